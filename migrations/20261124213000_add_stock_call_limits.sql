-- What bounds the repeats of a stock call (domain/stock.rs). Neither column rewrites the table.

alter table stock_jobs add column refusals integer not null default 0;
alter table stock_lines add column sent_at timestamptz;

comment on column stock_jobs.refusals is
    'How often a call was refused although a look-up of the product did not confirm it; beyond a bound the job is parked';
comment on column stock_lines.sent_at is
    'When the call whose outcome is not known was first made; its key is not used again when it is too old';
comment on column stock_jobs.next_attempt_at is
    'When the job may be claimed: after a pause, at the end of the lease of whoever holds it, or when an earlier attempt wakes it';
