-- A repeat of a payment event has the same bytes; a record with the key of another event and other bytes is parked.
alter table payment_events add column payload_sha256 bytea;

comment on column payment_events.payload_sha256 is
    'SHA-256 of the record''s value; absent where the event was applied before this column existed';
comment on column payment_events.event_key is
    'metadata.eventId where there is one, else type, entity and timestamp, by which the platform dedupes; '
    'before this column existed, the order stood in the place of the entity';
