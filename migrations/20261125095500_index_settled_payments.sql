-- no-transaction
-- Serves the retention of parked payments: the ones that are settled, oldest first.
create index concurrently if not exists parked_payments_settled on parked_payments (settled_at)
    where settled_at is not null;
