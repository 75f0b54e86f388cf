-- Orders, their lines and their history.

create table orders (
    id           uuid        not null,
    customer_id  text        not null,
    status       text        not null,
    total_amount numeric     not null,
    placed_at    timestamptz not null,
    version      integer     not null,
    changed_at   timestamptz not null,
    constraint orders_pkey primary key (id),
    constraint orders_customer_id_is_an_address check (length(customer_id) between 3 and 254),
    constraint orders_status_is_known check (status in ('CREATED', 'CONFIRMED', 'CANCELLED')),
    constraint orders_total_amount_is_money
        check (total_amount >= 0 and total_amount < 1000000000000 and scale(total_amount) <= 2),
    constraint orders_version_is_positive check (version >= 1),
    constraint orders_changed_after_placed check (changed_at >= placed_at)
);

comment on table orders is 'One row an order; its lines never change, its status does';
comment on column orders.id is 'UUIDv7, made by the service';
comment on column orders.customer_id is 'The e-mail address that the gateway vouched for, compared exactly';
comment on column orders.status is 'CREATED, then CONFIRMED or CANCELLED (domain/order.rs)';
comment on column orders.total_amount is
    'Sum of quantity times unit price; numeric without a scale keeps the decimals that the prices were written with';
comment on column orders.placed_at is 'The orderDate of the API, by the clock of the replica that placed it';
comment on column orders.version is '1 when placed, one more with each real change; ETag, and sequence of the latest event';
comment on column orders.changed_at is 'Time of the latest event; strictly increases with version';

-- GET /api/orders/my, and GET /api/orders?customerId=…: newest first, read backwards.
create index orders_by_customer on orders (customer_id, placed_at, id);
-- GET /api/orders without a filter, or with from/to.
create index orders_by_time on orders (placed_at, id);
-- GET /api/orders?status=….
create index orders_by_status on orders (status, placed_at, id);

create table order_items (
    order_id    uuid     not null,
    line_number smallint not null,
    product_id  text     not null,
    quantity    integer  not null,
    unit_price  numeric  not null,
    -- Also serves the only question that is asked of this table: the lines of one order, in sequence.
    constraint order_items_pkey primary key (order_id, line_number),
    constraint order_items_order_fkey foreign key (order_id) references orders (id),
    constraint order_items_line_number_in_limits check (line_number between 1 and 100),
    constraint order_items_quantity_in_limits check (quantity between 1 and 10000),
    constraint order_items_unit_price_is_money
        check (unit_price >= 0 and unit_price < 1000000000000 and scale(unit_price) <= 2)
);

comment on table order_items is 'The lines of the orders; written once with their order';
comment on column order_items.line_number is '1, 2, 3 …: the sequence in which the customer asked for the products';
comment on column order_items.product_id is 'Id in the Product Service; one line a product';
comment on column order_items.unit_price is 'What one cost at the moment of placing, from the Product Service';

create table order_history (
    order_id    uuid        not null,
    version     integer     not null,
    from_status text,
    to_status   text        not null,
    actor_role  text        not null,
    actor_id    text        not null,
    reason      text,
    changed_at  timestamptz not null,
    -- One row a version: two changes cannot both claim to be the third.
    constraint order_history_pkey primary key (order_id, version),
    constraint order_history_order_fkey foreign key (order_id) references orders (id),
    constraint order_history_first_row_places check ((version = 1) = (from_status is null)),
    constraint order_history_is_a_change check (from_status is distinct from to_status),
    constraint order_history_actor_role_is_known check (actor_role in ('CUSTOMER', 'ADMIN', 'PAYMENT', 'SYSTEM'))
);

comment on table order_history is 'What happened to each order: who, from what, to what, why and when';
comment on column order_history.version is 'The version of the order that this change made';
comment on column order_history.from_status is 'Absent in the row of the placing';
comment on column order_history.actor_role is 'As what the actor acted';
comment on column order_history.actor_id is 'An e-mail address, or the name of a service';
comment on column order_history.reason is 'Why, where that was said';
