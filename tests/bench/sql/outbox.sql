-- ORDER_PLACED of the orders $1 to $2 (exclusive) of fill.sql, as the service renders it.
insert into outbox (bucket, event_id, order_id, sequence, event_type, payload, headers)
select number % 64, event_id, id, 1, 'ORDER_PLACED',
       '{"eventType":"ORDER_PLACED","service":"ORDER_SERVICE","userEmail":"customer-' || number / 10
       || '@example.com","entityId":"' || id || '","amount":74.97,"timestamp":"2024-06-10T00:00:00.000000Z","metadata":{"eventId":"'
       || event_id || '","sequence":1,"status":"CREATED","items":[{"productId":"P17","quantity":2,"price":24.99},'
       || '{"productId":"P4","quantity":1,"price":24.99}]}}',
       '[["ce_specversion","1.0"],["ce_id","' || event_id || '"],["ce_type","ORDER_PLACED"],["ce_source","order-service"],'
       || '["ce_subject","' || id || '"],["ce_time","2024-06-10T00:00:00.000000Z"],["content-type","application/json"],'
       || '["traceparent","00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"]]'
from (
    select number, gen_random_uuid() as event_id,
           ('01900000-0000-7000-8000-' || lpad(to_hex(number), 12, '0'))::uuid as id
    from generate_series($1::bigint, $2::bigint - 1) as number
) event
