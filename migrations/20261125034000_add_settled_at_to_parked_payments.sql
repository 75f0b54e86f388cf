-- An operator marks a parked payment when it is dealt with (order-service payments). No statement here rewrites the table.
-- A replica of the release before fills the reason by its default.
alter table parked_payments
    add column reason text not null default 'OTHER',
    add column settled_at timestamptz,
    add constraint parked_payments_reason_is_known check (reason in (
        'AMOUNT_MISMATCH', 'PAID_AGAIN', 'KEY_REUSED', 'UNKNOWN_ORDER', 'UNDECODABLE', 'UNWRITABLE', 'OTHER'
    )) not valid;

comment on column parked_payments.reason is
    'Why it is parked, as a word (domain/payment.rs); OTHER where a release before this column parked it';
comment on column parked_payments.settled_at is
    'When it was applied again with success, or an operator settled it; absent while it waits. Who did it is in interventions';
