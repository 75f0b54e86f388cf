//! Errors of the database, classified by what the caller can do.

use std::borrow::Cow;
use std::sync::Arc;

use sqlx::postgres::{PgDatabaseError, PgSeverity};
use strum::IntoStaticStr;
use thiserror::Error;

/// An error of the store. Cheap to clone, because a set of reads or writes has one error for all its callers.
#[derive(Clone, Debug, Error, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum StoreError {
    /// The database is down or overloaded; a later retry may succeed.
    #[error("the database is not available")]
    Unavailable(#[source] Arc<sqlx::Error>),
    /// PostgreSQL cancelled a statement that ran, or waited for a lock, for too long.
    #[error("a statement took longer than DATABASE_DEADLINE_MS allows")]
    Slow(#[source] Arc<sqlx::Error>),
    /// The database did not answer within the deadline.
    #[error("the database did not answer within the deadline")]
    Deadline,
    /// The database did not confirm in time whether it wrote. It may have, or may still do so.
    #[error("the database did not confirm in time whether it wrote")]
    OutcomeUnknown(#[source] Arc<StoreError>),
    /// The maximum number of waiting writes is reached.
    #[error("too many writes wait for the database")]
    TooManyWrites,
    /// The maximum number of waiting reads is reached.
    #[error("too many reads wait for the database")]
    TooManyReads,
    /// PostgreSQL refused a statement: a bug, or a change of the database by others.
    #[error("the database refused a statement")]
    Refused(#[source] Arc<sqlx::Error>),
    /// A row has a value that the service never writes.
    #[error("{table}.{column} of {id} has a value that the service never writes")]
    Inconsistent {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// The key of the row.
        id: uuid::Uuid,
    },
    /// An event could not be rendered as JSON.
    #[error("an event could not be rendered")]
    Render(#[source] Arc<serde_json::Error>),
}

impl StoreError {
    /// The outcome is unknown because of `cause`.
    pub(crate) fn unknown(cause: Self) -> Self {
        Self::OutcomeUnknown(Arc::new(cause))
    }

    /// The `error.type` of a span; a bounded set.
    pub fn error_type(&self) -> &'static str {
        self.into()
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        let (Self::Unavailable(error) | Self::Slow(error) | Self::Refused(error)) = self else { return None };
        error.as_database_error().and_then(sqlx::error::DatabaseError::code)
    }

    /// Whether the connection was lost. What was sent on it may have been executed.
    pub(super) fn is_lost_connection(&self) -> bool {
        use sqlx::Error::{Database, Io, Protocol, Tls};
        let Self::Unavailable(error) = self else { return false };
        match &**error {
            Io(_) | Protocol(_) | Tls(_) => true,
            // The severities that end the connection.
            Database(error) => {
                let error = error.try_downcast_ref::<PgDatabaseError>();
                error.is_some_and(|error| [PgSeverity::Fatal, PgSeverity::Panic].contains(&error.severity()))
            }
            _ => false,
        }
    }

    /// Whether waiting for a lock timed out.
    pub(super) fn is_lock_timeout(&self) -> bool {
        self.code().is_some_and(|code| code == LOCK_NOT_AVAILABLE)
    }

    /// Whether a later retry may succeed.
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::Refused(_) | Self::Inconsistent { .. } | Self::Render(_))
    }

    /// Whether certainly nothing was written: PostgreSQL reported the failure of the statement and rolled it back, or
    /// this service found invalid data before it committed.
    ///
    /// Only PostgreSQL errors of severity ERROR prove it. A terminated connection (FATAL) or a crash (PANIC) can follow
    /// a commit, and other errors prove nothing.
    pub(super) fn is_rolled_back(&self) -> bool {
        if matches!(self, Self::Inconsistent { .. } | Self::Render(_)) {
            return true;
        }
        let (Self::Unavailable(error) | Self::Slow(error) | Self::Refused(error)) = self else {
            return false;
        };
        let sqlx::Error::Database(error) = &**error else { return false };
        let error = error.try_downcast_ref::<PgDatabaseError>();
        error.is_some_and(|error| error.severity() == PgSeverity::Error)
    }

    /// Whether one of several writes may have caused the error of their transaction.
    pub(super) fn may_be_of_one_write(&self) -> bool {
        self.is_rolled_back() || matches!(self, Self::Refused(_))
    }

    /// Whether the data of this work is the cause, so that every retry fails; other work is not affected.
    pub fn is_about_the_data(&self) -> bool {
        use sqlx::Error::{ColumnDecode, Database, Decode, Encode};
        match self {
            Self::Refused(error) => match &**error {
                Database(refusal) => refusal.code().is_some_and(|code| is_about_the_data(&code)),
                error => matches!(error, ColumnDecode { .. } | Decode(_) | Encode(_)),
            },
            Self::Inconsistent { .. } | Self::Render(_) => true,
            _ => false,
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let error = Arc::new(error);
        if is_too_slow(&error) {
            Self::Slow(error)
        } else if is_temporary(&error) {
            Self::Unavailable(error)
        } else {
            Self::Refused(error)
        }
    }
}

impl From<serde_json::Error> for StoreError {
    fn from(error: serde_json::Error) -> Self {
        Self::Render(Arc::new(error))
    }
}

/// Whether `statement_timeout`, `lock_timeout` or an operator cancelled the statement.
fn is_too_slow(error: &sqlx::Error) -> bool {
    const QUERY_CANCELED: &str = "57014";
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| [QUERY_CANCELED, LOCK_NOT_AVAILABLE].contains(&code.as_ref()))
}

/// Whether a later retry may succeed.
pub(super) fn is_temporary(error: &sqlx::Error) -> bool {
    use sqlx::Error::{Database, Io, PoolClosed, PoolTimedOut, Protocol, Tls, WorkerCrashed};
    match error {
        // Protocol: a connection that ends during its negotiation, as behind a load balancer without a server, is
        // reported as a protocol error.
        Io(_) | Tls(_) | Protocol(_) | PoolTimedOut | PoolClosed | WorkerCrashed => true,
        Database(refusal) => refusal.code().is_some_and(|code| is_transient(&code)),
        _ => false,
    }
}

const LOCK_NOT_AVAILABLE: &str = "55P03";

/// The error codes (appendix A of PostgreSQL's manual) of temporary errors.
fn is_transient(code: &str) -> bool {
    const CONNECTION: &str = "08";
    const RESOURCES: &str = "53";
    const OPERATOR: &str = "57";
    const ROLLBACK: &str = "40";
    const IDLE_IN_TRANSACTION: &str = "25P03";
    // From a primary that has just become a standby.
    const READ_ONLY: &str = "25006";
    [CONNECTION, RESOURCES, OPERATOR, ROLLBACK].iter().any(|class| code.starts_with(class))
        || [LOCK_NOT_AVAILABLE, IDLE_IN_TRANSACTION, READ_ONLY].contains(&code)
}

/// Data exceptions and violated constraints, by the same appendix. Not errors of the schema or of privileges, which
/// would affect every statement.
fn is_about_the_data(code: &str) -> bool {
    const DATA: &str = "22";
    const CONSTRAINT: &str = "23";
    [DATA, CONSTRAINT].iter().any(|class| code.starts_with(class))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_errors_are_distinguished_from_statement_errors() {
        for code in ["08006", "53300", "57P01", "57014", "40001", "55P03", "25P03", "25006"] {
            assert!(is_transient(code), "{code}");
        }
        for code in ["23505", "42601", "42P01", "22003"] {
            assert!(!is_transient(code), "{code}");
        }
    }

    #[test]
    fn data_errors_are_distinguished_from_errors_of_every_statement() {
        for code in ["22003", "22021", "23505", "23514"] {
            assert!(is_about_the_data(code), "{code}");
        }
        for code in ["08006", "57P01", "42P01", "42501", "40001"] {
            assert!(!is_about_the_data(code), "{code}");
        }
    }

    #[test]
    fn a_connection_that_ends_during_its_negotiation_is_a_temporary_error() {
        let cut = sqlx::Error::Protocol("unexpected response from SSLRequest: 0x00".to_owned());
        assert!(StoreError::from(cut).is_transient());
    }
}
