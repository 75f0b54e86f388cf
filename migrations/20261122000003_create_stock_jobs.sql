-- Stock that is being taken or given back: the intention is written before the first call (domain/stock.rs).

create table stock_jobs (
    order_id        uuid        not null,
    attempt         smallint    not null,
    state           text        not null,
    paid            boolean     not null,
    actor_role      text        not null,
    actor_id        text        not null,
    reason          text,
    traceparent     text        not null,
    parked          text,
    failures        integer     not null default 0,
    deadline        timestamptz not null,
    next_attempt_at timestamptz not null,
    lease_token     uuid,
    leased_until    timestamptz not null default '-infinity',
    created_at      timestamptz not null default clock_timestamp(),
    constraint stock_jobs_pkey primary key (order_id, attempt),
    constraint stock_jobs_order_fkey foreign key (order_id) references orders (id),
    constraint stock_jobs_attempt_is_positive check (attempt >= 1),
    constraint stock_jobs_state_is_known check (state in ('TAKING', 'TAKEN', 'RETURNING', 'RETURNED'))
);

comment on table stock_jobs is 'One row an attempt to confirm an order, until its stock is taken for good or given back';
comment on column stock_jobs.paid is 'The customer has paid: a refusal cancels the order, and a refund is due';
comment on column stock_jobs.actor_role is 'Who asked for the confirmation; goes into the history';
comment on column stock_jobs.traceparent is 'Trace of what started it; goes into the calls and the event';
comment on column stock_jobs.parked is 'Why a person has to look at it; nothing happens to it until then';
comment on column stock_jobs.failures is 'How often in a row its calls brought nothing; the pause grows with it';
comment on column stock_jobs.deadline is 'When it should have come to its end; after that it is reported as overdue';
comment on column stock_jobs.next_attempt_at is 'Not before this moment are its calls made again';
comment on column stock_jobs.lease_token is 'Who is working on it, by a token made for each time it is taken up';

-- An order is confirmed by one attempt at a time.
create unique index stock_jobs_one_active on stock_jobs (order_id) where state in ('TAKING', 'TAKEN');
-- The worker: what is due, oldest first; and the report of unfinished work.
create index stock_jobs_unfinished on stock_jobs (next_attempt_at) where state in ('TAKING', 'RETURNING');

create table stock_lines (
    order_id    uuid     not null,
    attempt     smallint not null,
    line_number smallint not null,
    product_id  text     not null,
    quantity    integer  not null,
    state       text     not null,
    last_error  text,
    -- Also serves the only question that is asked of this table: the lines of one job, in sequence.
    constraint stock_lines_pkey primary key (order_id, attempt, line_number),
    constraint stock_lines_job_fkey foreign key (order_id, attempt) references stock_jobs (order_id, attempt),
    constraint stock_lines_state_is_known
        check (state in ('TODO', 'TAKING', 'TAKEN', 'REFUSED', 'RETURNING', 'RETURNED'))
);

comment on table stock_lines is 'How far each line of a stock job is';
comment on column stock_lines.last_error is 'What the last call that brought nothing said';
