-- no-transaction
-- Served the housekeeping of the release before, which reads the few rows of the table without it.
drop index concurrently if exists recent_orders_by_time;
