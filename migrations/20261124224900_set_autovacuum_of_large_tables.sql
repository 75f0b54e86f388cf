-- Autovacuum by PostgreSQL's defaults waits until a fifth of a table has changed: at 10 million orders that is two million dead
-- rows, which every index read passes over, and statistics that are weeks old. These tables are looked at after 1 %, and
-- after 2 % for new rows, which also keeps index-only reads possible. None of this rewrites a table or stops anybody.

-- A status is in an index, so a change of it leaves a dead row in the table and in each index.
alter table orders set (
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_analyze_scale_factor = 0.01,
    autovacuum_vacuum_insert_scale_factor = 0.02
);
-- The worker reads a few of its rows along partial indexes; each job is written several times within a second.
alter table stock_jobs set (
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_analyze_scale_factor = 0.01,
    autovacuum_vacuum_insert_scale_factor = 0.02
);
-- Each line is written twice or more, and none of the changed columns is in an index: with room on its page the new
-- version stays there and no index is written (HOT).
alter table stock_lines set (
    fillfactor = 75,
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_insert_scale_factor = 0.02
);
-- Only ever added to: vacuumed early, so that old pages are frozen bit by bit and not all at once.
alter table order_items set (autovacuum_vacuum_insert_scale_factor = 0.02);
alter table order_history set (autovacuum_vacuum_insert_scale_factor = 0.02);
alter table payments set (autovacuum_vacuum_insert_scale_factor = 0.02);
alter table payment_events set (autovacuum_vacuum_insert_scale_factor = 0.02);
-- One row a request, deleted a day later.
alter table idempotency_keys set (autovacuum_vacuum_scale_factor = 0.02);
