-- The outbox, and the leases by which replicas share the work of relaying it.

create table outbox (
    position   bigint      not null generated always as identity,
    bucket     smallint    not null,
    event_id   uuid        not null,
    order_id   uuid        not null,
    sequence   integer     not null,
    event_type text        not null,
    payload    text        not null,
    headers    text        not null,
    created_at timestamptz not null default clock_timestamp(),
    -- Also serves the relay's question: the oldest events of each bucket it holds.
    constraint outbox_pkey primary key (bucket, position),
    constraint outbox_bucket_in_range check (bucket between 0 and 63)
)
-- Rows live for milliseconds. Vacuum early and at full speed, so that the table stays small (P10).
with (
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_insert_scale_factor = 0.1,
    autovacuum_vacuum_cost_delay = 0
);

comment on table outbox is
    'Events that Kafka has not acknowledged yet; written with the change they tell of, deleted after the acknowledgement';
comment on column outbox.position is
    'Grows with each row; within one order also in the sequence of commits, because the order row is locked first';
comment on column outbox.bucket is 'Chosen by the order id; one replica at a time relays a bucket';
comment on column outbox.event_id is 'Id of the event; a repeat has the same';
comment on column outbox.sequence is '1, 2, 3 … within the order';
comment on column outbox.payload is 'Value of the record, rendered once: text and not jsonb, which would reorder the keys';
comment on column outbox.headers is 'Headers of the record, rendered once: a JSON array of [name, value]';

create table relay_leases (
    bucket     smallint    not null,
    owner      uuid,
    expires_at timestamptz not null default '-infinity',
    constraint relay_leases_pkey primary key (bucket),
    constraint relay_leases_bucket_in_range check (bucket between 0 and 63)
);

comment on table relay_leases is 'Which replica relays which bucket, and until when without renewal';
comment on column relay_leases.owner is 'The replica, by the id that it made at its start';

insert into relay_leases (bucket) select generate_series(0, 63);

create table relay_replicas (
    replica    uuid        not null,
    expires_at timestamptz not null,
    constraint relay_replicas_pkey primary key (replica)
);

comment on table relay_replicas is 'The replicas that are relaying now, so that each can tell its fair share of the buckets';
