-- no-transaction
-- Serves the retention: what was paid for an order goes with the order (store/retention.rs).
create index concurrently if not exists payment_events_by_order on payment_events (order_id);
