-- The index on placed_at kept every renewal of a row from being done in place (HOT): 0 of 2,000. The housekeeping goes by a
-- time that a renewal leaves alone. A replica of the release before fills the column by its default.
alter table recent_orders add column check_after timestamptz not null default now() + interval '2 minutes';
comment on column recent_orders.check_after is
    'When the housekeeping looks at the row: it deletes it, or, where the row was renewed since, looks again later';
