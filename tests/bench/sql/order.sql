-- One order of two lines in one transaction: every row that the service writes for it, the same tables and the
-- same indexes. The id grows with time as a UUIDv7 does.
\set customer random(1, 2000000000)
\set first random(0, 999)
\set second random(0, 999)
\set bucket random(0, 63)
with
    made as (
        select (lpad(to_hex((extract(epoch from clock_timestamp()) * 1000000)::bigint), 16, '0')
                || lpad(to_hex(:customer::bigint), 16, '0'))::uuid as id,
               :customer::bigint || '@example.com' as customer_id,
               clock_timestamp() as at
    ),
    recent as (
        insert into recent_orders (customer_id, fingerprint, order_id, placed_at)
        select customer_id, sha256(customer_id::bytea), id, at from made
        on conflict (customer_id, fingerprint) do update
        set order_id = excluded.order_id, placed_at = excluded.placed_at
    ),
    placed as (
        insert into orders (id, customer_id, status, total_amount, placed_at, version, changed_at)
        select id, customer_id, 'CREATED', 74.97, at, 1, at from made
    ),
    items as (
        insert into order_items (order_id, line_number, product_id, quantity, unit_price)
        select id, line, 'P' || case line when 1 then :first::bigint else :second::bigint end, 3 - line, 24.99
        from made cross join generate_series(1, 2) as line
    ),
    history as (
        insert into order_history
            (order_id, version, to_status, actor_role, actor_id, changed_at, event_id, traceparent)
        select id, 1, 'CREATED', 'CUSTOMER', customer_id, at, id,
               '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
        from made
    )
insert into outbox (bucket, event_id, order_id, sequence, event_type, payload, headers)
select :bucket::smallint, id, id, 1, 'ORDER_PLACED',
       '{"eventType":"ORDER_PLACED","service":"ORDER_SERVICE","userEmail":"' || customer_id || '","entityId":"' || id
       || '","amount":74.97,"timestamp":"2026-11-22T12:59:59.334124Z","metadata":{"eventId":"' || id
       || '","sequence":1,"status":"CREATED","items":[{"productId":"P123","quantity":2,"price":24.99},'
       || '{"productId":"P456","quantity":1,"price":24.99}]}}',
       '[["ce_specversion","1.0"],["ce_id","' || id || '"],["ce_type","shopverse.order.placed.v1"],'
       || '["ce_source","/order-service"],["ce_subject","' || id || '"],["ce_time","2026-11-22T12:59:59.334124Z"],'
       || '["content-type","application/json"],["traceparent","00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]]'
from made;
