-- An operator marks a refund when the money has gone back (order-service refunds).
alter table refunds_due add column done_at timestamptz;

comment on column refunds_due.done_at is
    'When an operator said that the money has gone back; absent while it is due. Who said so is in interventions';
