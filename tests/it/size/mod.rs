//! The proof of size: large tables, long backlogs, long transactions and slow clients change no promise.
//!
//! Each world creates its rows by SQL, measures through the service, and prints a line per figure with its bound.
//! `cargo test` uses small worlds. The large ones need several GB of disk and run one at a time:
//!
//! ```sh
//! SIZE_SCALE=large cargo test --profile size --test it size:: -- --nocapture --test-threads=1
//! ```
//!
//! Each size has its own variable, for example `SIZE_ORDERS=1000000`.
//!
//! | world | large | must hold | seen on 2026-11-25, on two cores that also did other work |
//! |---|---|---|---|
//! | `lists` | 5,000,000 orders, one customer with a fifth of them | no page reads more than 4 × `limit` rows | 4 at the most, with fresh, stale and no statistics |
//! | `long_transaction` | a snapshot held open while 5,000,000 events pass | from commit to Kafka p99 < 1 s | 0.16–0.55 s at 21,000–47,000 events/s; 71 ms at rest |
//! | `slow_clients` | 4,000 half-sent heads; 3,000 slow bodies of one customer, 300 a second | RSS below 120 MB, probes and other clients served | 99 MB; 0 of 4,621 reads of another customer refused |
//! | `migrations` | 1,000,000 orders, readers and writers | no statement waits 1 s for a lock | 0 of 9,462 statements |
//! | `stock_backlog` | 1,000,000 finished jobs, 100,000 due | the drain begins within 2 s of the first successful answer, at 0.8 × the rate with empty tables | 25–28 ms; 688–796 confirmations per second compared with 794 in empty tables: 0.87 and 1.00 |
//! | `parked_events` | 100,000 events of parked orders | from commit to Kafka p99 < 1 s | 0.59 s for the first hundred, 66 ms after a restart |
//! | `years` | 10,000,000 orders against 10,000 | placing, reading and confirming at most 1.2 × | place 0.99, read 1.00, list 1.02, history 1.02, confirm 0.99; at the first visit of a customer, from the disk: place 1.28, list 1.39 |

mod cost;
mod report;
mod scale;
mod world;

mod lists;
mod long_transaction;
mod migrations;
mod parked_events;
mod slow_clients;
mod stock_backlog;
mod years;
