-- no-transaction
-- GET /api/orders?customerId=…&status=…. An expression, so that this index and no other serves both conditions together,
-- whatever the statistics say (store/list.rs). A customer id has no spaces.
create index concurrently if not exists orders_by_customer_and_status
    on orders (((customer_id || ' ' || status) collate "C"), placed_at, id);
