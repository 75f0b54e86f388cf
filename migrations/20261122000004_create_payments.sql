-- What the Payment Service told us, and what became of it.

create table payment_events (
    event_key   text        not null,
    order_id    uuid        not null,
    event_type  text        not null,
    outcome     text        not null,
    topic       text        not null,
    partition   integer     not null,
    "offset"    bigint      not null,
    received_at timestamptz not null default clock_timestamp(),
    -- A repeat finds its key here and does nothing.
    constraint payment_events_pkey primary key (event_key)
);

comment on table payment_events is 'Payment events that were applied; written in the transaction of what they did';
comment on column payment_events.event_key is
    'metadata.eventId where there is one, else type, entity and timestamp, by which the platform dedupes';
comment on column payment_events.outcome is 'What the event did (domain/payment.rs)';

create table payments (
    order_id uuid        not null,
    amount   numeric     not null,
    paid_at  timestamptz not null default clock_timestamp(),
    constraint payments_pkey primary key (order_id),
    constraint payments_order_fkey foreign key (order_id) references orders (id)
);

comment on table payments is 'Orders that are paid';

create table refunds_due (
    order_id uuid        not null,
    amount   numeric     not null,
    reason   text        not null,
    due_at   timestamptz not null default clock_timestamp(),
    constraint refunds_due_pkey primary key (order_id),
    constraint refunds_due_order_fkey foreign key (order_id) references orders (id)
);

comment on table refunds_due is 'Money that has to go back: the order was paid and is cancelled';
comment on column refunds_due.reason is 'OUT_OF_STOCK, PAID_AFTER_CANCELLED, or the reason of the cancellation';

create table parked_payments (
    topic     text        not null,
    partition integer     not null,
    "offset"  bigint      not null,
    order_id  uuid,
    payload   bytea       not null,
    error     text        not null,
    parked_at timestamptz not null default clock_timestamp(),
    constraint parked_payments_pkey primary key (topic, partition, "offset")
);

comment on table parked_payments is
    'Records of the payment topic that a person has to look at: undecodable, of no known order, or of another amount';
