-- The id and the trace of the event that told of a change, so that it can be sent again as it was first published
-- (order-service events replay). Nothing is rewritten: older rows, and those of a replica of the release before, have
-- neither; their events get an id that is derived from the order and the version.
alter table order_history
    add column event_id uuid,
    add column traceparent text;

comment on column order_history.event_id is
    'The id of the event that told of the change; absent in rows that a release before this column wrote';
comment on column order_history.traceparent is 'The trace of what caused the change, as its event had it; absent likewise';
