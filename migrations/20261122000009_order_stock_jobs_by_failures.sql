-- The worker: what is due, what has not failed yet before what has, oldest first (store/stock_queue.rs); and the report
-- of unfinished work. Jobs that are not due are passed over: no more than were tried in the longest pause, 30 s.
drop index stock_jobs_unfinished;
create index stock_jobs_unfinished on stock_jobs ((failures > 0), next_attempt_at) where state in ('TAKING', 'RETURNING');
