-- What makes a repeated request the same order.

create table idempotency_keys (
    customer_id     text        not null,
    key             text        not null,
    fingerprint     bytea       not null,
    order_id        uuid,
    token           uuid        not null,
    locked_until    timestamptz not null,
    expires_at      timestamptz not null,
    constraint idempotency_keys_pkey primary key (customer_id, key)
);

comment on table idempotency_keys is 'Idempotency-Key of POST /api/orders, each customer''s own';
comment on column idempotency_keys.fingerprint is 'SHA-256 of the lines; the same key with others is refused';
comment on column idempotency_keys.order_id is 'The order; written in its transaction. Absent while the request is running';
comment on column idempotency_keys.token is 'Of the attempt that holds the key; an attempt that lost it cannot commit';
comment on column idempotency_keys.locked_until is 'Until then the running attempt holds the key; after a crash it is free again';

-- Deleting what has expired.
create index idempotency_keys_by_expiry on idempotency_keys (expires_at);

create table recent_orders (
    customer_id text        not null,
    fingerprint bytea       not null,
    order_id    uuid        not null,
    placed_at   timestamptz not null,
    constraint recent_orders_pkey primary key (customer_id, fingerprint)
)
-- One row a customer and basket, rewritten again and again: leave room to do that in place.
with (fillfactor = 70);

comment on table recent_orders is
    'The latest order of each customer for the same lines, placed without a key: a double click within DUPLICATE_WINDOW_SECONDS finds it';

-- Deleting what is past any window.
create index recent_orders_by_time on recent_orders (placed_at);
