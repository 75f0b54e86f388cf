create table if not exists order_projection (
    order_id text primary key,
    status   text not null,
    amount   numeric not null,
    sequence integer not null,
    changes  integer not null
);
