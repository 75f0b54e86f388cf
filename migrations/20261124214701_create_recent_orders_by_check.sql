-- no-transaction
-- Serves the housekeeping: the rows to look at (store/idempotency.rs).
create index concurrently if not exists recent_orders_by_check on recent_orders (check_after);
