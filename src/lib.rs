//! The order service of ShopVerse: places orders, stores them in PostgreSQL, and publishes their events to Kafka.
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
//! | module | content | name on the platform |
//! |---|---|---|
//! | [`domain`] | the business rules as plain data: state machine, money, lines, stock, payments, events | |
//! | `orders` | the use cases, one per file | `OrderService` |
//! | [`api`] | the HTTP API: routes, identity, errors, the `OpenAPI` document | `OrderController`, `GlobalExceptionHandler` |
//! | [`store`] | PostgreSQL: the only module with SQL | `OrderRepository` |
//! | `products` | the Product Service: look-ups with circuit breaker and deadline, stock calls | `ProductClient` |
//! | [`events`] | Kafka: the relay publishes events, the consumer applies payments | `KafkaEventPublisher` |
//! | `metrics` | the metrics for Prometheus: one registry per running service, all families in `metrics/metrics.md` | |
//! | [`config`] | all settings, validated at the start | |
//! | [`http_client`] | builds the clients for outgoing HTTP | |
//! | `json` | reads JSON from other systems: objects, never arrays of their fields | |
//! | [`kit`] | the files that `order-service kit` writes: manifests, dashboards, decision records (`kit/decisions`) | |
//! | [`app`] | starts and stops the parts | |
//! | `dev` | the embedded stack behind `order-service dev` and the tests, and the console in the browser; not in the production image | |
//!
//! Imports: `api → orders → {store, products} → domain`; `events → {orders, store} → domain`. `domain` uses no framework,
//! no I/O and no async; only [`app`] imports everything.
//!
//! # The way of a request, file by file
//!
//! * A placement: `api/orders.rs` → `orders/place.rs` → `products.rs` → `store/place.rs` → `events/relay.rs` →
//!   `events/kafka.rs`.
//! * A confirmation: `api/orders.rs` → `orders/change_status.rs` → `store/update.rs` → `domain/aggregate.rs` →
//!   `orders/stock.rs` → `products/stock.rs`; with the outcomes of the stock calls back through `orders/stock.rs`,
//!   `store/update.rs` and `domain/aggregate.rs` → `events/relay.rs` → `events/kafka.rs`.
//! * Details of both: `store/group_commit.rs` calls the `commit` of `store/place.rs` and `store/update.rs`;
//!   `domain/event.rs` renders the event; `store/orders.rs` inserts that of a new status, `store/place.rs` that of a
//!   placement; `store/outbox.rs` reads and deletes it.
//!
//! # The invariants and their tests
//!
//! 1. An order, its items, its history row and its `ORDER_PLACED` are committed in one transaction; so is a status change
//!    with its event. In `store/place.rs` and `store/update.rs`, many per commit (`store/group_commit.rs`). —
//!    `place_order::a_placement_is_answered_stored_and_published`,
//!    `database_outage::a_database_outage_during_requests_leaves_no_partial_writes_and_loses_no_order`
//! 2. The request path never uses Kafka; an outage of Kafka only delays events. —
//!    `kafka_outage::orders_are_placed_during_a_kafka_outage_and_every_event_arrives_afterwards`
//! 3. No network call while a transaction or a connection is held. —
//!    `product_outage::no_database_connection_is_held_during_product_look_ups`
//! 4. The events of an order reach Kafka in order, at least once, and a repeat is byte-identical. Only acknowledged events
//!    are deleted from the outbox. Reading costs as much as is pending, not as much as was deleted. — `relay::*`,
//!    `relay_floor::*`, and the arguments in `events/relay.rs` and `events/floor.rs`
//! 5. An error of the broker never counts against an event, and no event is dropped because of its age. Only an invalid
//!    event is parked, with its order. —
//!    `kafka_outage::broker_errors_lose_no_event_and_keep_the_order_of_events`, `parking::*`
//! 6. Money is decimal from the wire to the column and back. —
//!    `read_orders::amounts_keep_their_decimals_in_every_answer`, and the property tests in `domain/money.rs`
//! 7. Ownership is checked in one place, on a typed identity; a handler cannot forget it. — `access::*`
//! 8. Every wait has a deadline, every queue is bounded, and every retry is limited. —
//!    `database_outage::a_database_that_drops_packets_times_out_at_the_deadline`,
//!    `product_outage::one_hanging_product_ends_the_placement_at_the_deadline_despite_retries`,
//!    `contract_errors::overload_is_answered_with_unavailable`,
//!    `confirm_outage::a_product_service_outage_is_probed_and_stock_work_resumes_afterwards`
//! 9. A client that hangs up does not interrupt a placement. — `client_hangs_up::*`
//! 10. Any replica can die at any instruction; the others continue its work from PostgreSQL and Kafka. —
//!     `relay::the_buckets_of_a_killed_replica_are_taken_over_and_no_event_is_lost`, `proof::*`
//! 11. An order is never CONFIRMED unless all its stock was taken; no line is taken or given back twice. —
//!     `confirm_order::*`, and the property test in `domain/stock/tests.rs`
//! 12. One key of one customer is one order. — `duplicates::*`
//! 13. No order is cancelled as unpaid if its payment was in the topic before its deadline. While Kafka cannot be reached,
//!     nothing is cancelled. — `unpaid_orders::*`, and the argument in `events/payments/unpaid.rs`
//! 14. No payment is lost: a record counts as a repeat only with the same bytes. —
//!     `payments::a_repeat_with_different_bytes_is_parked`,
//!     `payments::a_second_payment_within_the_same_second_is_kept`
//! 15. Placements that wait for the same product share its next look-up, and none is priced by an answer that is older than
//!     its request. — `products/tests/shared.rs`, and the property test in `products/singleflight/tests.rs`
//! 16. Writes share only their commit: each caller gets its own answer, once, after the commit; a refused write does not
//!     affect others; no offset is stored beyond a payment that was not applied. — the property test in
//!     `store/group_commit/tests.rs`, `payment_faults::*`
//! 17. Reads share only their statement: it is sent after each of them has arrived, each caller gets its own answer, once,
//!     and access is checked per caller. — `shared_reads::*`, and the property test in `store/shared_read/tests.rs`
//!
//! `order-service check` looks for broken invariants in a snapshot of the live database (`store/check/invariants.rs`). —
//! `operate_check::*`
//!
//! # What operators do
//!
//! `outbox`, `stock`, `payments`, `refunds`, `events replay`, `check` and `config` are in `src/cli`, their statements in
//! `store/parked_orders.rs`, `store/settle.rs`, `store/replay.rs` and `store/check.rs`. Each change is recorded in
//! `interventions`. — `operate_payments::*`, `operate_events::*`, `parking::*`
//!
//! # Deliberately absent
//!
//! No cache (reads are one indexed round trip), no ORM, no traits with one implementation, no floats, no distributed lock
//! service, no exactly-once delivery (consumers deduplicate by `eventId` or `sequence`).

pub mod api;
pub mod app;
pub mod config;
#[cfg(feature = "dev")]
pub mod dev;
pub mod domain;
pub mod events;
pub mod http_client;
mod json;
pub mod kit;
mod lifecycle;
mod metrics;
mod orders;
mod products;
pub mod store;
pub mod telemetry;
