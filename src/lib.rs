//! The order service of ShopVerse: places orders, keeps them in PostgreSQL, publishes their events to Kafka.
//!
//! # The map, in reading order
//!
//! ```text
//! gateway ──HTTP──► api ──► orders (OrderService) ──► products (ProductClient) ──HTTP──► Product Service
//!                               │
//!                               ▼
//!                             store ── one transaction: order, items, history, outbox, key ──► PostgreSQL
//!                               ▲
//! payment-events ──► events/payments                 events/relay ──► order-events (Kafka)
//! ```
//!
//! | module | what it is | in the platform's vocabulary |
//! |---|---|---|
//! | [`domain`] | the rules, as plain data: state machine, money, lines, stock, payments, events | |
//! | [`orders`] | what the service does, one use case a file | `OrderService` |
//! | [`api`] | HTTP in: the route table, identity, errors, the `OpenAPI` document | `OrderController`, `GlobalExceptionHandler` |
//! | [`store`] | PostgreSQL: the only place with SQL | `OrderRepository` |
//! | [`products`] | the Product Service: look-ups with breaker and deadline, stock calls | `ProductClient` |
//! | [`events`] | Kafka out (the relay) and in (payments) | `KafkaEventPublisher` |
//! | [`metrics`] | what Prometheus reads: one registry per running service, every family in `metrics/metrics.md` | |
//! | [`config`] | every setting, checked at the start | |
//! | `json` | how foreign JSON is read: objects as objects alone | |
//! | [`kit`] | the files that `order-service kit` writes: manifests, dashboards, and the decisions behind all this (`kit/decisions`) | |
//! | [`app`] | what starts, in what order, and how it stops | |
//! | `dev` | the embedded stack behind `order-service dev` and the tests, and the console in the browser; not in the production image | |
//!
//! Arrows of import: `api → orders → {store, products} → domain`; `events → {orders, store} → domain`. `domain`
//! knows no framework, no I/O and no async; only [`app`] sees everything.
//!
//! # The invariants, each with the tests that show it
//!
//! 1. An order, its items, its history row and its `ORDER_PLACED` commit in one transaction, or none of them
//!    does; so does a status change with its event. In `store/place.rs` and `store/update.rs`, many in one commit
//!    (`store/group_commit.rs`). —
//!    `place_order::an_order_is_answered_written_and_published`,
//!    `database_outage::nothing_is_half_written_and_nothing_is_lost_when_the_database_goes_away_in_the_middle`
//! 2. The request path never talks to Kafka; Kafka being away costs nothing but delay. —
//!    `kafka_outage::orders_are_placed_while_kafka_is_away_and_every_event_arrives_when_it_is_back`
//! 3. No network call while a transaction or a connection is held. —
//!    `product_outage::no_connection_is_held_while_the_product_service_is_asked`
//! 4. The events of an order reach Kafka in sequence, at least once, and a repeat is byte-identical. What is
//!    deleted from the outbox was acknowledged. Reading costs what is pending, not what was deleted. — `relay::*`,
//!    `relay_floor::*`, and the arguments at [`events::relay`] and in `events/floor.rs`
//! 5. A broker error never counts against an event; nothing is dropped because it waited long. Only an event
//!    that is refused for itself parks, with its order. —
//!    `kafka_outage::errors_of_the_broker_lose_nothing_and_change_no_sequence`, `parking::*`
//! 6. Money is decimal from the wire to the column and back. —
//!    `read_orders::amounts_keep_their_decimals_wherever_they_are_shown`, and the laws in `domain/money.rs`
//! 7. Ownership is decided in one place, on a typed identity; a handler cannot forget it. — `access::*`
//! 8. Every wait has a deadline, every queue a bound, every retry a cap. —
//!    `database_outage::a_database_that_swallows_packets_is_given_up_at_the_deadline`,
//!    `product_outage::one_product_that_hangs_among_many_ends_the_placement_at_the_deadline_whatever_the_retries`,
//!    `contract_errors::row_unavailable_while_there_is_too_much_to_do`,
//!    `confirm_outage::a_product_service_that_is_away_is_asked_now_and_then_and_all_goes_on_when_it_is_back`
//! 9. A client that hangs up does not stop a placement half way. — `client_hangs_up::*`
//! 10. Any replica can die at any instruction; the others need nothing but PostgreSQL and Kafka to go on. —
//!     `relay::what_a_killed_replica_held_is_taken_over_and_nothing_is_lost`, `proof::*`
//! 11. An order is never CONFIRMED unless all its stock was taken; no line is taken or given back twice. —
//!     `confirm_order::*`, and the law in `domain/stock/tests.rs`
//! 12. One key of one customer is one order. — `duplicates::*`
//! 13. No order is cancelled for want of a payment that stood in the topic before its time was up; where Kafka
//!     cannot be asked, nothing is cancelled. — `unpaid_orders::*`, and the argument in
//!     `events/payments/unpaid.rs`
//! 14. No payment vanishes: a record counts as a repeat only with the same bytes. —
//!     `payments::a_repeat_that_has_other_bytes_is_parked`,
//!     `payments::a_second_payment_within_the_same_second_is_kept`
//! 15. Placements that wait for the same product share its next look-up, and none is priced by an answer that is
//!     older than its request. — `products/tests/shared.rs`, and any interleaving in `products/singleflight/tests.rs`
//! 16. Writes that share a commit share nothing else: each caller is answered after the commit, with its own
//!     answer, once; a write that is refused spoils no other; no offset is stored beyond a payment that was not
//!     applied. — the law in `store/group_commit/tests.rs`, `payment_faults::*`
//! 17. Reads that share a statement share nothing else: it is sent after each of them has arrived, each caller gets its
//!     own answer, once, and what it may see is decided for it alone. — `shared_reads::*`, and any interleaving in
//!     `store/shared_read/tests.rs`
//!
//! `order-service check` looks for contradictions to those of them that a snapshot of the database shows, beside replicas
//! that serve (`store/check/invariants.rs`). — `operate_check::*`
//!
//! # What operators do
//!
//! `outbox`, `stock`, `payments`, `refunds`, `events replay`, `check` and `config` are in `src/cli`, their statements in
//! `store/parking.rs`, `store/settle.rs`, `store/replay.rs` and `store/check.rs`. Whatever one of them does is in
//! `interventions`. — `operate_payments::*`, `operate_events::*`, `parking::*`
//!
//! # Deliberately absent
//!
//! No cache (reads are one indexed round trip), no ORM, no traits with one implementation, no floats, no
//! distributed lock service, no delivery "exactly once": consumers drop what they have seen by `eventId`, or by
//! `sequence`.

pub mod api;
pub mod app;
pub mod config;
#[cfg(feature = "dev")]
pub mod dev;
pub mod domain;
pub mod events;
mod json;
pub mod kit;
pub mod lifecycle;
pub mod metrics;
pub mod orders;
pub mod products;
pub mod store;
pub mod telemetry;
