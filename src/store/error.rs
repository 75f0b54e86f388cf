//! What can go wrong with the database, by what the caller can do about it.

use std::borrow::Cow;
use std::sync::Arc;

use sqlx::postgres::{PgDatabaseError, PgSeverity};
use thiserror::Error;

/// Why the store could not do what it was asked.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The database is away or too busy; trying again later may help.
    #[error("the database is not available")]
    Unavailable(#[source] sqlx::Error),
    /// PostgreSQL ended a statement of ours, because it ran or waited for a lock for too long.
    #[error("a statement took longer than DATABASE_DEADLINE_MS allows")]
    Slow(#[source] sqlx::Error),
    /// The database did not answer within the deadline.
    #[error("the database did not answer within the deadline")]
    Deadline,
    /// The database did not say in time whether it wrote: it may have, and it still may.
    #[error("the database did not say in time whether it wrote")]
    OutcomeUnknown(#[source] Arc<StoreError>),
    /// What went wrong with all writes of a set.
    #[error(transparent)]
    OfSet(Arc<StoreError>),
    /// As many writes wait as may wait.
    #[error("too many writes wait for the database")]
    TooManyWrites,
    /// As many reads wait as may wait.
    #[error("too many reads wait for the database")]
    TooManyReads,
    /// A statement was refused: a bug in the service, or a change to the database behind its back.
    #[error("the database refused a statement")]
    Refused(#[source] sqlx::Error),
    /// A row holds what the service never writes.
    #[error("{table}.{column} of {id} holds what the service never writes")]
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
    Render(#[from] serde_json::Error),
}

impl StoreError {
    /// A failure that leaves open whether something was written.
    pub(crate) fn unknown(cause: Self) -> Self {
        Self::OutcomeUnknown(Arc::new(cause))
    }

    /// The failure of a set, for one of its writes.
    pub(super) fn of_set(error: &Arc<Self>) -> Self {
        match &**error {
            Self::OutcomeUnknown(cause) => Self::OutcomeUnknown(Arc::clone(cause)),
            _ => Self::OfSet(Arc::clone(error)),
        }
    }

    /// A word for it, of a bounded set (`error.type` of a span).
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::Slow(_) => "slow",
            Self::Deadline => "deadline",
            Self::OutcomeUnknown(_) => "outcome_unknown",
            Self::OfSet(error) => error.as_str(),
            Self::TooManyWrites => "too_many_writes",
            Self::TooManyReads => "too_many_reads",
            Self::Refused(_) => "refused",
            Self::Inconsistent { .. } => "inconsistent",
            Self::Render(_) => "render",
        }
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        let (Self::Unavailable(error) | Self::Slow(error) | Self::Refused(error)) = self else { return None };
        error.as_database_error().and_then(sqlx::error::DatabaseError::code)
    }

    /// Whether PostgreSQL ended a statement of ours, because it ran or waited for a lock for too long.
    pub fn is_slow(&self) -> bool {
        match self {
            Self::Slow(_) => true,
            Self::OfSet(error) => error.is_slow(),
            _ => false,
        }
    }

    /// Whether the connection was lost, which says nothing of what was sent on it.
    pub(super) fn is_lost_connection(&self) -> bool {
        use sqlx::Error::{Database, Io, Protocol, Tls};
        match self {
            Self::Unavailable(Io(_) | Protocol(_) | Tls(_)) => true,
            // The level of PostgreSQL's errors that end the connection.
            Self::Unavailable(Database(error)) => {
                let error = error.try_downcast_ref::<PgDatabaseError>();
                error.is_some_and(|error| [PgSeverity::Fatal, PgSeverity::Panic].contains(&error.severity()))
            }
            _ => false,
        }
    }

    /// Whether another transaction held a lock for longer than a statement may wait.
    pub(super) fn is_lock_timeout(&self) -> bool {
        self.code().is_some_and(|code| code == LOCK_NOT_AVAILABLE)
    }

    /// Whether trying again later may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable(_)
            | Self::Slow(_)
            | Self::Deadline
            | Self::OutcomeUnknown(_)
            | Self::TooManyWrites
            | Self::TooManyReads => true,
            Self::OfSet(error) => error.is_transient(),
            Self::Refused(_) | Self::Inconsistent { .. } | Self::Render(_) => false,
        }
    }

    /// Whether certainly nothing was written: PostgreSQL itself reported the failure of the statement and rolled it back,
    /// or this service found the data wrong before it committed.
    ///
    /// Of PostgreSQL's errors only the level ERROR says so. A connection that is terminated (FATAL) or a crash (PANIC) can
    /// follow a commit, and what did not come from PostgreSQL says nothing of it.
    pub(super) fn is_rolled_back(&self) -> bool {
        if matches!(self, Self::Inconsistent { .. } | Self::Render(_)) {
            return true;
        }
        let (Self::Unavailable(error) | Self::Slow(error) | Self::Refused(error)) = self else {
            return false;
        };
        let sqlx::Error::Database(error) = error else { return false };
        let error = error.try_downcast_ref::<PgDatabaseError>();
        error.is_some_and(|error| error.severity() == PgSeverity::Error)
    }

    /// Whether one of several writes may have caused the failure of their transaction.
    pub(super) fn may_be_of_one_write(&self) -> bool {
        self.is_rolled_back()
            || matches!(self, Self::Refused(_) | Self::Inconsistent { .. } | Self::Render(_))
    }

    /// Whether it is this work's own data that cannot be read or written, now and later; other work goes on.
    pub fn is_about_the_data(&self) -> bool {
        use sqlx::Error::{ColumnDecode, Database, Decode, Encode};
        match self {
            Self::Refused(Database(refusal)) => refusal.code().is_some_and(|code| is_about_the_data(&code)),
            Self::Refused(error) => matches!(error, ColumnDecode { .. } | Decode(_) | Encode(_)),
            Self::Inconsistent { .. } | Self::Render(_) => true,
            Self::OfSet(error) => error.is_about_the_data(),
            Self::Unavailable(_)
            | Self::Slow(_)
            | Self::Deadline
            | Self::OutcomeUnknown(_)
            | Self::TooManyWrites
            | Self::TooManyReads => false,
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        if is_too_slow(&error) {
            Self::Slow(error)
        } else if is_about_the_moment(&error) {
            Self::Unavailable(error)
        } else {
            Self::Refused(error)
        }
    }
}

/// Whether it is `statement_timeout` or `lock_timeout` (or an operator) that ended the statement.
fn is_too_slow(error: &sqlx::Error) -> bool {
    const QUERY_CANCELED: &str = "57014";
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| [QUERY_CANCELED, LOCK_NOT_AVAILABLE].contains(&code.as_ref()))
}

/// Whether trying again later may help.
pub(super) fn is_about_the_moment(error: &sqlx::Error) -> bool {
    use sqlx::Error::{Database, Io, PoolClosed, PoolTimedOut, Protocol, Tls, WorkerCrashed};
    match error {
        // Protocol: a connection that ends in the middle of its negotiation, as behind a load balancer
        // without a server, reads as nonsense and not as an end.
        Io(_) | Tls(_) | Protocol(_) | PoolTimedOut | PoolClosed | WorkerCrashed => true,
        Database(refusal) => refusal.code().is_some_and(|code| is_transient(&code)),
        _ => false,
    }
}

const LOCK_NOT_AVAILABLE: &str = "55P03";

/// PostgreSQL's error codes (appendix A of its manual) that are about the moment and not about the statement.
fn is_transient(code: &str) -> bool {
    const CONNECTION: &str = "08";
    const RESOURCES: &str = "53";
    const OPERATOR: &str = "57";
    const ROLLBACK: &str = "40";
    const IDLE_IN_TRANSACTION: &str = "25P03";
    // What a statement meets on a primary that has just become a standby.
    const READ_ONLY: &str = "25006";
    [CONNECTION, RESOURCES, OPERATOR, ROLLBACK].iter().any(|class| code.starts_with(class))
        || [LOCK_NOT_AVAILABLE, IDLE_IN_TRANSACTION, READ_ONLY].contains(&code)
}

/// Data exceptions and violated constraints, by the same appendix. Not those about the schema or about rights,
/// which every statement would meet.
fn is_about_the_data(code: &str) -> bool {
    const DATA: &str = "22";
    const CONSTRAINT: &str = "23";
    [DATA, CONSTRAINT].iter().any(|class| code.starts_with(class))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_about_the_moment_is_told_from_what_is_about_the_statement() {
        for code in ["08006", "53300", "57P01", "57014", "40001", "55P03", "25P03", "25006"] {
            assert!(is_transient(code), "{code}");
        }
        for code in ["23505", "42601", "42P01", "22003"] {
            assert!(!is_transient(code), "{code}");
        }
    }

    #[test]
    fn what_is_about_the_data_is_told_from_what_every_statement_would_meet() {
        for code in ["22003", "22021", "23505", "23514"] {
            assert!(is_about_the_data(code), "{code}");
        }
        for code in ["08006", "57P01", "42P01", "42501", "40001"] {
            assert!(!is_about_the_data(code), "{code}");
        }
    }

    #[test]
    fn a_connection_that_ends_in_the_middle_of_its_negotiation_may_come_back() {
        let cut = sqlx::Error::Protocol("unexpected response from SSLRequest: 0x00".to_owned());
        assert!(StoreError::from(cut).is_transient());
    }
}
