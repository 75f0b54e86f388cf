-- Where the relay begins to read a bucket, so that a read does not visit what was deleted long ago.

alter table relay_leases add column floor bigint not null default 0;

comment on column relay_leases.floor is
    'No event below this position is pending, none will ever commit there, and only events of parked orders are left there; it never falls';
comment on column outbox.position is
    'Grows with each row (the sequence must not cache values); within one order also in the sequence of commits, because the order row is locked first. The events of a parked order get new positions when it is replayed or skipped, so that they are not below the floor';
