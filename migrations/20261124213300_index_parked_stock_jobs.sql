-- no-transaction
-- What waits for a person: `order-service stock list`, and the count of readiness.
create index concurrently if not exists stock_jobs_parked on stock_jobs (created_at)
    where state in ('TAKING', 'RETURNING') and parked is not null;
