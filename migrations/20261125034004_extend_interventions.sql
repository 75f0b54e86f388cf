-- More commands of operators. A record that is no JSON names no order, and a replay may be of a range of time.
alter table interventions
    alter column order_id drop not null,
    drop constraint interventions_action_is_known,
    add constraint interventions_action_is_known check (action in (
        'OUTBOX_REPLAY', 'OUTBOX_SKIP', 'STOCK_RESOLVE', 'PAYMENT_RETRY', 'PAYMENT_SETTLE', 'REFUND_DONE', 'EVENTS_REPLAY'
    )) not valid;

comment on table interventions is 'What people did by the commands of order-service: who, what, when';
comment on column interventions.order_id is 'The order; absent where the work named none, or more than one';
