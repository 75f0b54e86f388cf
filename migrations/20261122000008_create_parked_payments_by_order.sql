-- no-transaction
-- Serves the search for unpaid orders (store/expire.rs): those with a payment that waits for a person stay.
create index concurrently if not exists parked_payments_by_order on parked_payments (order_id)
    where order_id is not null;
