-- no-transaction
-- A list without filters is the merge of the three statuses along orders_by_status (store/list.rs), so no statement uses
-- this index any more. Replicas of the release before sort until they are replaced, in that list alone.
drop index concurrently if exists orders_by_time;
