-- What waits for a person, and what people did about it.

create table parked_orders (
    order_id  uuid        not null,
    event_id  uuid        not null,
    sequence  integer     not null,
    error     text        not null,
    parked_at timestamptz not null default clock_timestamp(),
    constraint parked_orders_pkey primary key (order_id)
);

comment on table parked_orders is
    'Orders whose next event Kafka refuses for itself; their events wait in the outbox, those of others go on';
comment on column parked_orders.event_id is 'The event that was refused';

create table interventions (
    id       bigint      not null generated always as identity,
    order_id uuid        not null,
    action   text        not null,
    detail   text        not null,
    actor    text        not null,
    at       timestamptz not null default clock_timestamp(),
    constraint interventions_pkey primary key (id),
    constraint interventions_action_is_known check (action in ('OUTBOX_REPLAY', 'OUTBOX_SKIP', 'STOCK_RESOLVE'))
);

comment on table interventions is 'What people did by order-service outbox and order-service stock: who, what, when';
comment on column interventions.detail is 'What it was about; for a skipped event the event itself, so that nothing is lost';
