-- The comment spoke of refusals alone that no look-up confirmed; every refusal counts (domain/stock.rs).
comment on column stock_jobs.refusals is
    'How often a call to take stock was refused since the job began or turned round, confirmed by a look-up of the product or not; '
    'beyond PRODUCT_REFUSAL_RETRIES the job waits for a person';
