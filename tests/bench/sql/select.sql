-- One order with its lines: the statement of store/orders.rs (its test compares both), on tables of the same size.
\set number random(0, :orders - 1)
select o.id, o.customer_id, o.status, o.total_amount, o.placed_at, o.version, o.changed_at,
       items.products, items.quantities, items.prices
from orders o
cross join lateral (
    select array_agg(product_id) as products, array_agg(quantity) as quantities, array_agg(unit_price) as prices
    from (
        select product_id, quantity, unit_price from order_items where order_id = o.id order by line_number
    ) line
) items
where o.id = ('01900000-0000-7000-8000-' || lpad(to_hex(:number::bigint), 12, '0'))::uuid;
