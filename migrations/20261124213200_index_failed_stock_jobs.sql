-- no-transaction
-- The worker claims what is due and has failed after everything else (store/stock_queue.rs).
create index concurrently if not exists stock_jobs_failed on stock_jobs (next_attempt_at)
    where state in ('TAKING', 'RETURNING') and parked is null and failures > 0;
