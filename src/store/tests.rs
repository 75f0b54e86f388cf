//! Checks every statement against the migrated schema: PostgreSQL prepares it, and the row type of the code decodes a
//! row with the names and types of its columns. A migration that breaks a statement fails here first, not in a request.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use sqlx::postgres::{PgConnection, PgRow, PgTypeInfo};
use sqlx::{
    AssertSqlSafe, Column, Connection, Executor, FromRow, Postgres, SqlSafeStr, Statement, Type, TypeInfo,
};
use uuid::Uuid;

use super::parked_orders::{ParkedOrder, ParkedStockLine};
use super::stock_claims::{DueJob, Unfinished};
use super::*;
use crate::dev;
use crate::domain::{CustomerId, Status};

/// The checked statements, as `file::NAME`.
struct Checked {
    connection: PgConnection,
    names: BTreeSet<String>,
}

impl Checked {
    /// Prepares a statement. `parameters` are the types that PostgreSQL cannot infer, from the first parameter on.
    async fn prepare(&mut self, name: &str, sql: impl SqlSafeStr, parameters: &[PgTypeInfo]) -> String {
        self.names.insert(name.to_owned());
        let prepared = self.connection.prepare_with(sql.into_sql_str(), parameters).await;
        let prepared = prepared.unwrap_or_else(|error| panic!("{name}: {error}"));
        let samples = prepared
            .columns()
            .iter()
            .map(|column| format!("{} as \"{}\"", sample(column.type_info().name()), column.name()));
        samples.collect::<Vec<_>>().join(", ")
    }

    /// Checks a statement whose rows the code does not read.
    async fn writes(&mut self, name: &str, sql: &'static str) {
        self.prepare(name, sql, &[]).await;
    }

    /// Checks a statement whose rows the code reads as `R`.
    async fn reads<R>(&mut self, name: &str, sql: impl SqlSafeStr, parameters: &[PgTypeInfo])
    where
        R: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        let samples = self.prepare(name, sql, parameters).await;
        let row = sqlx::query_as::<_, R>(AssertSqlSafe(format!("select {samples}")));
        row.fetch_one(&mut self.connection).await.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// A value of a type.
fn sample(name: &str) -> String {
    if let Some(element) = name.strip_suffix("[]") {
        return format!("array[{}]::{name}", sample(element));
    }
    match name {
        "UUID" => "gen_random_uuid()".to_owned(),
        "BOOL" => "true".to_owned(),
        "TIMESTAMPTZ" => "now()".to_owned(),
        "REGCLASS" => "'orders'::regclass".to_owned(),
        "BYTEA" => "'\\x00'::bytea".to_owned(),
        name => format!("'1'::{name}"),
    }
}

fn type_of<T: Type<Postgres>>() -> PgTypeInfo {
    T::type_info()
}

#[tokio::test]
async fn every_statement_matches_the_migrated_schema() {
    let server = dev::Postgres::start().await.unwrap();
    let options = server.url().parse().unwrap();
    let deadline = Duration::from_mins(1);
    let settings = DatabaseSettings { options, max_connections: 2, acquire_timeout: deadline, deadline };
    migrate::migrate(&settings).await.unwrap();
    let connection = PgConnection::connect_with(&settings.options).await.unwrap();
    let mut checked = Checked { connection, names: BTreeSet::new() };
    orders_and_lists(&mut checked).await;
    placements_and_payments(&mut checked).await;
    stock_and_operators(&mut checked).await;
    outbox_and_retention(&mut checked).await;
    replays_and_counts(&mut checked).await;
    invariants(&mut checked).await;
    let missing: Vec<String> = declared().into_iter().filter(|name| !checked.names.contains(name)).collect();
    assert_eq!(missing, [] as [String; 0], "add them to this test");
}

async fn orders_and_lists(checked: &mut Checked) {
    checked.reads::<orders::OrderRow>("orders::SELECT", orders::SELECT, &[]).await;
    checked.reads::<orders::OrderRow>("orders::LOCK_ONE", orders::LOCK_ONE.as_str(), &[]).await;
    checked.reads::<orders::OrderRow>("orders::LOCK_GROUP", orders::LOCK_GROUP.as_str(), &[]).await;
    checked.writes("orders::CHANGE_STATUS", orders::CHANGE_STATUS).await;
    checked.reads::<history::OwnedRow>("history::SELECT", history::SELECT, &[]).await;
    checked.reads::<(Uuid,)>("connection::FIND_VERSIONS", connection::FIND_VERSIONS, &[]).await;
    let customer = CustomerId::parse("a@example.com").ok();
    let status = Some(Status::Created);
    for (customer, status) in [(None, None), (customer.clone(), None), (None, status), (customer, status)] {
        let query = ListQuery { customer, status, ..ListQuery::default() };
        let page = AssertSqlSafe(list::select_page("", &query).sql().as_str().to_owned());
        checked.reads::<list::SummaryRow>("list::select_page", page, &[]).await;
    }
}

async fn placements_and_payments(checked: &mut Checked) {
    checked.reads::<(i64,)>("place::INSERT", place::INSERT, &[]).await;
    checked.reads::<(Uuid, Decimal)>("place::FIND_RECENT", place::FIND_RECENT, &[]).await;
    checked.reads::<idempotency::KeyRow>("idempotency::FIND", idempotency::FIND, &[]).await;
    let age = [type_of::<i64>(), type_of::<Duration>()];
    checked.reads::<(i64,)>("idempotency::DELETE_RECENT", idempotency::DELETE_RECENT, &age).await;
    checked.reads::<payments::KnownEvent>("payments::FIND", payments::FIND, &[]).await;
    checked.reads::<payments::RecordPlace>("payments::LOCK_PARKED", payments::LOCK_PARKED, &[]).await;
    checked.writes("payments::RETRIED", payments::RETRIED).await;
    checked.reads::<(String, i64)>("payments::COUNT_PARKED", payments::COUNT_PARKED, &[]).await;
    checked.writes("payments::REMEMBER", payments::REMEMBER).await;
    checked.writes("payments::PARK", payments::PARK).await;
    checked.writes("payments::PAY", payments::PAY).await;
    checked.writes("payments::REFUND", payments::REFUND).await;
    let due = [type_of::<DateTime<Utc>>(), type_of::<Uuid>(), type_of::<Duration>()];
    checked.reads::<(DateTime<Utc>, bool)>("unpaid::OLDEST_DUE", unpaid::OLDEST_DUE, &due).await;
    checked.reads::<(Uuid, DateTime<Utc>, bool)>("unpaid::PAGE", unpaid::PAGE, &[]).await;
}

async fn stock_and_operators(checked: &mut Checked) {
    checked.reads::<stock::JobRow>("stock::LOAD", stock::LOAD, &[]).await;
    checked.writes("stock::INSERT", stock::INSERT).await;
    checked.writes("stock::UPDATE", stock::UPDATE).await;
    checked.writes("stock::WAKE_LATER_ATTEMPTS", stock::WAKE_LATER_ATTEMPTS).await;
    checked.reads::<DueJob>("stock_claims::DUE_OLDEST", stock_claims::DUE_OLDEST.as_str(), &[]).await;
    checked.reads::<DueJob>("stock_claims::DUE_NEWEST", stock_claims::DUE_NEWEST.as_str(), &[]).await;
    checked.reads::<DueJob>("stock_claims::CLAIM_UNREAD", stock_claims::CLAIM_UNREAD.as_str(), &[]).await;
    checked.reads::<Unfinished>("stock_claims::UNFINISHED", stock_claims::UNFINISHED, &[]).await;
    checked.reads::<ParkedStockLine>("parked_orders::STOCK", parked_orders::STOCK, &[]).await;
    checked.reads::<ParkedOrder>("parked_orders::LIST", parked_orders::LIST, &[]).await;
    checked.reads::<(Uuid, i64)>("parked_orders::WAITING", parked_orders::WAITING, &[]).await;
    checked.writes("parked_orders::PARK", parked_orders::PARK).await;
    checked.writes("parked_orders::FREE", parked_orders::FREE).await;
    checked.writes("parked_orders::LOCK_ORDER", parked_orders::LOCK_ORDER).await;
    checked.writes("parked_orders::RESOLVE", parked_orders::RESOLVE).await;
}

async fn outbox_and_retention(checked: &mut Checked) {
    checked.writes("outbox::HEARTBEAT", outbox::HEARTBEAT).await;
    checked.reads::<(i64,)>("outbox::FORGET", outbox::FORGET, &[]).await;
    checked.reads::<(i16, i64, bool)>("outbox::RENEW", outbox::RENEW, &[]).await;
    checked.reads::<(i16, i64)>("outbox::CLAIM", outbox::CLAIM, &[]).await;
    checked.reads::<(DateTime<Utc>,)>("outbox::SERVER", outbox::SERVER, &[]).await;
    checked.reads::<(i64,)>("outbox::FREE", outbox::FREE, &[]).await;
    checked.reads::<(i16, i64)>("outbox::RAISE", outbox::RAISE, &[]).await;
    checked.reads::<(DateTime<Utc>, i64)>("outbox::LAST_POSITION", outbox::LAST_POSITION, &[]).await;
    checked.reads::<outbox::OutboxWriter>("outbox::WRITERS", outbox::WRITERS, &[]).await;
    checked.reads::<PendingEvent>("outbox::PENDING", outbox::PENDING, &[]).await;
    checked.writes("outbox::DELETE", outbox::DELETE).await;
    let age = [type_of::<String>(), type_of::<Duration>(), type_of::<DateTime<Utc>>()];
    checked.reads::<(Uuid, DateTime<Utc>, bool)>("retention::CANDIDATES", retention::CANDIDATES, &age).await;
    checked.reads::<(Uuid, String)>("retention::LOCK", retention::LOCK, &[]).await;
    checked.writes("retention::DELETE", retention::DELETE).await;
    checked.writes("retention::DELETE_SETTLED", retention::DELETE_SETTLED).await;
}

async fn replays_and_counts(checked: &mut Checked) {
    checked.reads::<settle::ParkedPayment>("settle::LIST", settle::LIST, &[]).await;
    checked.reads::<settle::ParkedPayment>("settle::FIND", settle::FIND, &[]).await;
    checked.writes("settle::SETTLE", settle::SETTLE).await;
    checked.reads::<settle::RefundDue>("settle::REFUNDS", settle::REFUNDS, &[]).await;
    checked.writes("settle::REFUND_DONE", settle::REFUND_DONE).await;
    checked.reads::<(Uuid, bool)>("replay::PAGE_OF_ORDERS", replay::PAGE_OF_ORDERS, &[]).await;
    checked.reads::<(Uuid, bool)>("replay::PAGE_OF_TIME", replay::PAGE_OF_TIME, &[]).await;
    checked.reads::<replay::ChangeRow>("replay::CHANGES", replay::CHANGES, &[]).await;
    checked.writes("replay::RECORD", replay::RECORD).await;
    checked.reads::<work::Outbox>("work::OUTBOX", work::OUTBOX, &[]).await;
    checked.reads::<work::StockJobs>("work::STOCK", work::STOCK, &[]).await;
    checked.reads::<(String, i64)>("work::REFUNDS", work::REFUNDS, &[]).await;
    checked.reads::<(f64,)>("work::OLDEST_REFUND", work::OLDEST_REFUND, &[]).await;
}

async fn invariants(checked: &mut Checked) {
    checked.reads::<(i64,)>("check::LAST_POSITION", check::LAST_POSITION, &[]).await;
    checked.reads::<(i64,)>("check::EVENTS_PAGE", check::EVENTS_PAGE, &[]).await;
    checked.reads::<(String, String)>("check::KEYS_PAGE", check::KEYS_PAGE, &[]).await;
    checked.reads::<(String, Vec<u8>)>("check::RECENT_PAGE", check::RECENT_PAGE, &[]).await;
    checked.reads::<(String,)>("check::PAYMENTS_PAGE", check::PAYMENTS_PAGE, &[]).await;
    checked.reads::<(Uuid,)>("check::ORDERS_PAGE", check::ORDERS_PAGE, &[]).await;
    checked.reads::<(i64,)>("check::ESTIMATE", check::ESTIMATE, &[]).await;
    checked.reads::<(i64,)>("check::ESTIMATE_ORDERS", check::ESTIMATE_ORDERS, &[]).await;
    let of_bucket = [type_of::<i16>(), type_of::<i64>(), type_of::<i64>(), type_of::<bool>()];
    for invariant in check::invariants::all() {
        let parameters: &[PgTypeInfo] = if invariant.sql.contains("$4") { &of_bucket } else { &[] };
        checked.reads::<(Option<Uuid>, String)>(invariant.name, invariant.sql, parameters).await;
    }
}

/// The statements in the files of this folder: every constant that contains SQL, and every text composed of them.
fn declared() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store");
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let sources = files.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let statements = sources.flat_map(|path| {
        let module = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(path).unwrap();
        let constants = text.split("const ").skip(1).filter_map(|constant| constant.split_once(": &str ="));
        let sql = constants.filter(|(_, text)| {
            let text = text.trim_start().trim_start_matches("concat!(").trim_start();
            let word = text.trim_start_matches('"').split_whitespace().next().unwrap_or_default();
            ["select", "with", "insert", "update", "delete"].contains(&word)
        });
        let made = text.split("static ").skip(1).filter_map(|made| made.split_once(": LazyLock<String> ="));
        let made = made.filter(|(name, _)| !name.contains(char::is_whitespace));
        sql.chain(made).map(|(name, _)| format!("{module}::{name}")).collect::<Vec<_>>()
    });
    statements.collect()
}
