//! The invariants that hold in every snapshot of the database. The statement of an invariant returns what breaks it:
//! the order, if any, and the finding. An invariant only relates rows that one transaction writes together.

use uuid::Uuid;

use super::Broken;

/// An invariant.
pub(in crate::store) struct Invariant {
    /// A short name, for reports.
    pub(in crate::store) name: &'static str,
    /// The text.
    pub(super) says: &'static str,
    /// Returns `(order_id, detail)` for each row that breaks the invariant.
    pub(in crate::store) sql: &'static str,
}

impl Invariant {
    pub(super) fn rows(&self, found: Vec<(Option<Uuid>, String)>) -> Vec<Broken> {
        let (invariant, says) = (self.name, self.says);
        let broken = found.into_iter().map(|(order, detail)| Broken { invariant, says, order, detail });
        broken.collect()
    }
}

/// All invariants.
pub(in crate::store) fn all() -> impl Iterator<Item = &'static Invariant> {
    SCHEMA.iter().chain([&LEASES]).chain(EVENTS).chain([&KEYS, &RECENT]).chain(PAYMENTS).chain(ORDERS)
}

/// Without parameters.
pub(super) const SCHEMA: &[Invariant] = &[
    Invariant {
        name: "indexes",
        says: "every index is valid",
        sql: "
select null::uuid, format('index %s is not valid: drop it and run order-service migrate', index.indexrelid::regclass)
from pg_index index
join pg_class class on class.oid = index.indrelid
where class.relnamespace = current_schema()::regnamespace and not index.indisvalid
",
    },
    Invariant {
        name: "positions",
        says: "the sequence of the outbox caches no positions, because the floors of the relay need them in order",
        sql: "
select null::uuid, format('it caches %s values', seqcache)
from pg_sequence
where seqrelid = pg_get_serial_sequence('outbox', 'position')::regclass and seqcache <> 1
",
    },
];

/// $1: the number of buckets.
pub(super) const LEASES: Invariant = Invariant {
    name: "buckets",
    says: "every bucket of the outbox has a lease row, without which its events are not relayed",
    sql: "
select null::uuid, format('bucket %s has none', bucket)
from generate_series(0, $1::smallint - 1) as known (bucket)
where (select true from relay_leases lease where lease.bucket = known.bucket limit 1) is null
",
};

/// $1: the bucket; $2, $3: the first and the last position of the page; $4: whether events may follow it.
pub(super) const EVENTS: &[Invariant] = &[
    Invariant {
        name: "event-change",
        says: "an event in the outbox describes the change of its order that has its sequence number",
        sql: "
select event.order_id,
       format('event %s, sequence %s, %s', event.event_id, event.sequence,
              case when change.to_status is null then 'has no change' else 'differs from its change' end)
from outbox event
left join lateral (
    select to_status, from_status from order_history
    where order_id = event.order_id and version = event.sequence limit 1
) change on true
where event.bucket = $1 and event.position between $2 and $3 and $4 is not null
  and (
      change.to_status is null
      or event.event_type <> case event.sequence when 1 then 'ORDER_PLACED' else 'ORDER_STATUS_UPDATED' end
      or strpos(event.payload, format('\"entityId\":\"%s\"', event.order_id)) = 0
      or strpos(event.payload, format('\"eventId\":\"%s\",\"sequence\":%s,\"status\":\"%s\"',
                                      event.event_id, event.sequence, change.to_status)) = 0
  )
",
    },
    Invariant {
        name: "event-bucket",
        says: "an event is in the bucket of its order",
        sql: "
select order_id, format('event %s is in bucket %s', event_id, bucket)
from outbox
where bucket = $1 and position between $2 and $3 and $4 is not null
  and bucket <> (get_byte(uuid_send(order_id), 15) & 63)
",
    },
    Invariant {
        name: "event-floor",
        says: "only events of parked orders are below the floor of a bucket, where the relay does not read",
        sql: "
select event.order_id, format('event %s at position %s is below the floor %s', event.event_id, event.position, lease.floor)
from outbox event
cross join lateral (select floor from relay_leases where bucket = event.bucket limit 1) lease
where event.bucket = $1 and event.position between $2 and $3 and $4 is not null
  and event.position < lease.floor
  and (select true from parked_orders where order_id = event.order_id limit 1) is null
",
    },
    // After a skip of an operator, a gap is legal: acknowledged events before it may not be deleted yet.
    Invariant {
        name: "event-sequence",
        says: "the events of an order are in order, without a gap up to the latest change",
        sql: "
select event.order_id, format('after sequence %s waits %s, and the latest change is %s',
                              event.sequence, coalesce(event.following::text, 'nothing'), placed.version)
from (
    select order_id, sequence, lead(sequence) over (partition by order_id order by position) as following
    from outbox where bucket = $1 and position between $2 and $3
) event
cross join lateral (select version from orders where id = event.order_id limit 1) placed
where (event.following <> event.sequence + 1 or (event.following is null and not $4 and event.sequence <> placed.version))
  and (select true from interventions where order_id = event.order_id and action = 'OUTBOX_SKIP' limit 1) is null
",
    },
];

/// $1, $2: the keys of the page.
pub(super) const KEYS: Invariant = Invariant {
    name: "idempotency-keys",
    says: "a valid idempotency key names an order of its customer",
    sql: "
select known.order_id, case when placed.id is null then 'the order is not there' else 'the order is of another customer' end
from unnest($1::text[], $2::text[]) as page (customer_id, key)
cross join lateral (
    select order_id, customer_id from idempotency_keys
    where customer_id = page.customer_id and key = page.key and order_id is not null and expires_at > now() limit 1
) known
left join lateral (select id, customer_id from orders where id = known.order_id limit 1) placed on true
where placed.customer_id is distinct from known.customer_id
",
};

/// $1, $2: the keys of the page. Older rows may be deleted shortly after their order.
pub(super) const RECENT: Invariant = Invariant {
    name: "recent-orders",
    says: "a recent order belongs to the customer whose requests it deduplicates",
    sql: "
select known.order_id, case when placed.id is null then 'the order is not there' else 'the order is of another customer' end
from unnest($1::text[], $2::bytea[]) as page (customer_id, fingerprint)
cross join lateral (
    select order_id, customer_id from recent_orders
    where customer_id = page.customer_id and fingerprint = page.fingerprint
      and placed_at > now() - interval '1 day' limit 1
) known
left join lateral (select id, customer_id from orders where id = known.order_id limit 1) placed on true
where placed.customer_id is distinct from known.customer_id
",
};

/// $1: the keys of the page.
pub(super) const PAYMENTS: &[Invariant] = &[
    Invariant {
        name: "payment-effect",
        says: "the effect of an applied payment event is stored",
        sql: "
select event.order_id, format('%s at %s/%s/%s: %s', event.outcome, event.topic, event.partition, event.\"offset\",
                              case when placed.status is null then 'the order is not there' else 'it had no effect' end)
from payment_events event
left join lateral (select status from orders where id = event.order_id limit 1) placed on true
left join lateral (select true as found from payments where order_id = event.order_id limit 1) paid on true
left join lateral (select true as found from refunds_due where order_id = event.order_id limit 1) refund on true
where event.event_key = any ($1)
  and (
      placed.status is null
      or (event.outcome in ('CONFIRMING', 'REFUND_DUE') and paid.found is null)
      or (event.outcome = 'REFUND_DUE' and refund.found is null)
      or (event.outcome = 'CANCELLED' and placed.status <> 'CANCELLED')
  )
",
    },
    Invariant {
        name: "payment-parked",
        says: "a payment that does not fit its order is parked for an operator",
        sql: "
select event.order_id, format('%s at %s/%s/%s is not kept', event.outcome, event.topic, event.partition, event.\"offset\")
from payment_events event
where event.event_key = any ($1)
  and event.outcome in ('AMOUNT_MISMATCH', 'PAID_AGAIN')
  and (
      select true from parked_payments parked
      where parked.topic = event.topic and parked.partition = event.partition and parked.\"offset\" = event.\"offset\"
      limit 1
  ) is null
",
    },
];

/// $1: the orders of the page.
pub(super) const ORDERS: &[Invariant] = &[
    Invariant {
        name: "order-items",
        says: "an order has lines 1, 2, 3 …, one per product, and its total is the sum of its lines",
        sql: "
select placed.id, format('%s lines of %s products up to number %s for %s, total %s',
                         items.lines, items.products, items.last, items.total, placed.total_amount)
from orders placed
cross join lateral (
    select count(*) as lines, count(distinct product_id) as products, coalesce(max(line_number), 0) as last,
           coalesce(sum(quantity * unit_price), 0) as total
    from order_items where order_id = placed.id
) items
where placed.id = any ($1)
  and (items.lines = 0 or items.lines <> items.last or items.lines <> items.products
       or items.total <> placed.total_amount)
",
    },
    Invariant {
        name: "order-history",
        says: "the history of an order has every version once, each a legal change at a later time, and ends with the order's status",
        sql: "
select placed.id, format('version %s, %s: %s rows up to version %s, %s', placed.version, placed.status,
                         history.changes, history.last, coalesce(history.end_status, 'nothing'))
from orders placed
cross join lateral (
    select count(*) as changes, coalesce(max(version), 0) as last,
           coalesce(bool_and(coalesce(is_legal, false)), false) as all_legal,
           min(changed_at) filter (where version = 1) as placed_at,
           max(to_status) filter (where version = placed.version) as end_status,
           max(changed_at) filter (where version = placed.version) as changed_at
    from (
        select version, to_status, changed_at,
               case when version = 1 then from_status is null and to_status = 'CREATED'
                    else (from_status, to_status) in (('CREATED', 'CONFIRMED'), ('CREATED', 'CANCELLED'),
                                                      ('CONFIRMED', 'CANCELLED'))
                         and coalesce(from_status = lag(to_status) over w, false)
                         and coalesce(changed_at > lag(changed_at) over w, false)
               end as is_legal
        from order_history where order_id = placed.id
        window w as (order by version)
    ) change
) history
where placed.id = any ($1)
  and (history.changes <> placed.version or history.last <> placed.version or not history.all_legal
       or history.end_status is distinct from placed.status
       or history.placed_at is distinct from placed.placed_at
       or history.changed_at is distinct from placed.changed_at)
",
    },
    Invariant {
        name: "confirmed-stock",
        says: "an order is CONFIRMED if and only if one attempt has taken its stock; only a CREATED order has an attempt in progress",
        sql: "
select placed.id, format('%s: %s attempts, up to number %s, %s have taken its stock, %s are taking it',
                         placed.status, jobs.attempts, jobs.last, jobs.taken, jobs.taking)
from orders placed
cross join lateral (
    select count(*) as attempts, coalesce(max(attempt), 0) as last,
           count(*) filter (where state = 'TAKEN') as taken, count(*) filter (where state = 'TAKING') as taking
    from stock_jobs where order_id = placed.id
) jobs
where placed.id = any ($1)
  and (jobs.taken <> case placed.status when 'CONFIRMED' then 1 else 0 end
       or jobs.taking > case placed.status when 'CREATED' then 1 else 0 end
       or jobs.attempts <> jobs.last)
",
    },
    Invariant {
        name: "stock-lines",
        says: "a stock job has the lines of its order, each in a state that the state of the job allows",
        sql: "
select job.order_id, format('attempt %s is %s: %s lines of %s, %s of another product or quantity, %s in a state that does not fit',
                            job.attempt, job.state, lines.lines, items.lines, lines.other, lines.unfit)
from stock_jobs job
cross join lateral (select count(*) as lines from order_items where order_id = job.order_id) items
cross join lateral (
    select count(*) as lines,
           count(*) filter (where (item.product_id, item.quantity) is distinct from (line.product_id, line.quantity)) as other,
           count(*) filter (where not case job.state
               when 'TAKING' then line.state in ('TODO', 'TAKING', 'TAKEN', 'REFUSED')
               when 'TAKEN' then line.state = 'TAKEN'
               when 'RETURNED' then line.state in ('TODO', 'REFUSED', 'RETURNED')
               else true end) as unfit
    from stock_lines line
    left join lateral (
        select product_id, quantity from order_items
        where order_id = line.order_id and line_number = line.line_number limit 1
    ) item on true
    where line.order_id = job.order_id and line.attempt = job.attempt
) lines
where job.order_id = any ($1) and (lines.lines <> items.lines or lines.other > 0 or lines.unfit > 0)
",
    },
    Invariant {
        name: "stock-paid",
        says: "a stock job is marked as paid if its order is paid",
        sql: "
select job.order_id, format('attempt %s is %s and %s', job.attempt, job.state,
                            case when job.paid then 'marked as paid without a payment'
                                 else 'not marked as paid' end)
from stock_jobs job
left join lateral (select true as found from payments where order_id = job.order_id limit 1) paid on true
where job.order_id = any ($1)
  and ((job.paid and paid.found is null) or (job.state = 'TAKING' and not job.paid and paid.found))
",
    },
    Invariant {
        name: "paid-orders",
        says: "an order is paid once, by an event, with its total; then it is CONFIRMED, being confirmed, or CANCELLED with a refund",
        sql: "
select placed.id, format('%s, total %s, paid %s, refund %s', placed.status, placed.total_amount, paid.amount,
                         coalesce(refund.amount::text, 'none'))
from orders placed
cross join lateral (select amount from payments where order_id = placed.id limit 1) paid
left join lateral (select amount from refunds_due where order_id = placed.id limit 1) refund on true
left join lateral (
    select true as found from stock_jobs where order_id = placed.id and state = 'TAKING' limit 1
) taking on true
left join lateral (
    select true as found from payment_events
    where order_id = placed.id and event_type = 'PAYMENT_SUCCESS'
      and outcome in ('CONFIRMING', 'REFUND_DUE', 'IGNORED')
    limit 1
) event on true
where placed.id = any ($1)
  and (event.found is null
       or (placed.status = 'CREATED' and taking.found is null)
       or (placed.status <> 'CANCELLED' and paid.amount <> placed.total_amount)
       or (placed.status = 'CANCELLED' and refund.amount is distinct from paid.amount))
",
    },
    Invariant {
        name: "refunds",
        says: "only a paid and CANCELLED order has a refund",
        sql: "
select refund.order_id, format('%s, refund %s, paid %s', placed.status, refund.amount, coalesce(paid.amount::text, 'nothing'))
from refunds_due refund
cross join lateral (select status from orders where id = refund.order_id limit 1) placed
left join lateral (select amount from payments where order_id = refund.order_id limit 1) paid on true
where refund.order_id = any ($1) and (placed.status <> 'CANCELLED' or paid.amount is null)
",
    },
];

#[cfg(test)]
mod tests {
    use strum::VariantArray;

    use super::*;
    use crate::domain::Status;
    use crate::domain::event::BUCKETS;

    #[test]
    fn the_legal_changes_and_the_buckets_match_the_domain() {
        let history = ORDERS.iter().find(|one| one.name == "order-history").map(|one| one.sql).unwrap();
        for from in Status::VARIANTS {
            for to in Status::VARIANTS {
                let pair = format!("('{from}', '{to}')");
                assert_eq!(history.contains(&pair), from.reachable().contains(to), "{pair}");
            }
        }
        let bucket = EVENTS.iter().find(|one| one.name == "event-bucket").map(|one| one.sql).unwrap();
        assert!(bucket.contains(&format!("& {}", BUCKETS - 1)));
    }
}
