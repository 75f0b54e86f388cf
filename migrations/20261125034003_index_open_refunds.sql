-- no-transaction
-- Serves `order-service refunds list` and the count of refunds that are due: oldest first.
create index concurrently if not exists refunds_due_open on refunds_due (due_at) where done_at is null;
