-- A key is written with its order now, in one statement, and is never claimed before that. During a rolling update a replica
-- of the release before still claims keys: it fills both columns, and finds our rows by their order_id. We fill neither: the
-- defaults say "held by nobody". A claim of the release before (no order_id) is respected until its locked_until.
-- The release after this one can drop both columns.
alter table idempotency_keys
    alter column token drop not null,
    alter column locked_until set default '-infinity';
comment on column idempotency_keys.token is 'Only of the release before: the attempt that holds the key';
comment on column idempotency_keys.locked_until is 'Only of the release before: until then an attempt without order_id holds the key';
