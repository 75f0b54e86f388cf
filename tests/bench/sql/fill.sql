-- Orders $1 to $2 (exclusive) with two lines each: ten per customer, one per second, placed long ago.
with filled as (
    select number,
           ('01900000-0000-7000-8000-' || lpad(to_hex(number), 12, '0'))::uuid as id,
           'customer-' || number / 10 || '@example.com' as customer_id,
           timestamptz '2024-06-10 00:00:00+00' + number * interval '1 second' as placed_at
    from generate_series($1::bigint, $2::bigint - 1) as number
),
placed as (
    insert into orders (id, customer_id, status, total_amount, placed_at, version, changed_at)
    select id, customer_id, 'CREATED', 74.97, placed_at, 1, placed_at from filled
),
items as (
    insert into order_items (order_id, line_number, product_id, quantity, unit_price)
    select id, line, 'P' || (number * 7 + line * 131) % 1000, 3 - line, 24.99
    from filled cross join generate_series(1, 2) as line
)
insert into order_history (order_id, version, to_status, actor_role, actor_id, changed_at)
select id, 1, 'CREATED', 'CUSTOMER', customer_id, placed_at from filled
