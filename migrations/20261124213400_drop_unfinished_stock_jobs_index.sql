-- no-transaction
-- stock_jobs_fresh, stock_jobs_failed and stock_jobs_parked replace it.
drop index concurrently if exists stock_jobs_unfinished;
