-- no-transaction
-- Serves `order-service payments list` and the count of parked payments: the ones that wait, oldest first.
create index concurrently if not exists parked_payments_unsettled on parked_payments (parked_at)
    where settled_at is null;
