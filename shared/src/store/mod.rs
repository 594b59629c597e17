//! The store: turns, links, verdicts and rounds in one SQLite file, shared by proxy and trainer.
//!
//! WAL with synchronous=FULL: what a commit reported is durable. Writers begin with `BEGIN
//! IMMEDIATE`, so that a lock is waited for and not stumbled upon; readers page through short
//! statements and hold no snapshot. Messages are content-addressed and conversations are a tree, so
//! a client that resends its history costs only what is new.
//!
//! * `reading`, `incoming`: turns on their way in. `insert`: batches of them, exactly once. `index`: how a child finds its
//!   parent.
//!   `known`: what a writer remembers, so that resent history is stored once. `writing`, `staged`:
//!   what a batch shares, so that a turn of a large one costs less.
//! * `turns`, `verdicts`, `rounds`, `counts`: what the trainer and people read and write. `list`,
//!   `facets`: what operators page through. `feedback`: what was said about turns by the API.
//!
//! Invariant: one row per turn id, for ever; a batch and the spool position it came from are
//! committed together.

pub mod audit;
mod bodies;
mod called;
mod counts;
mod erase;
mod facets;
mod feedback;
pub mod flags;
mod forget;
mod incoming;
mod index;
mod insert;
mod judging;
mod known;
mod list;
mod pending;
mod reading;
mod redacted;
mod restore;
mod retention;
mod rounds;
mod said;
mod schema;
mod staged;
mod turns;
mod verdicts;
mod writing;

use std::cell::RefCell;
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use known::Known;

pub use audit::{AuditEntry, AuditRow};
pub use counts::{Counts, FeedbackCounts};
pub use erase::Erased;
pub use feedback::{FeedbackInserted, FeedbackRow, IngestFeedback, WAITING_MAX};
pub use forget::{Concerned, ForgetJob, RoundUse, Subject};
pub use incoming::IngestTurn;
pub use index::Index;
pub use insert::{Batch, IngestPos, Inserted};
pub use judging::{AnswerKey, Spent};
pub use list::{
    Cursor, Judged, LIST_LIMIT_MAX, SESSION_TURNS_MAX, SessionTurn, TurnFilter, TurnLine, TurnPage,
};
pub use reading::TurnReader;
pub use retention::{BATCH_TURNS_MAX, Swept};
pub use rounds::{RoundRow, RoundState, Split};
pub use said::{Said, Settled};
pub use turns::{JudgeItem, StoredTurn};
pub use verdicts::{LlmTrace, VerdictRow};

/// How long a statement waits for another process's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the store could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite refused.
    #[error("store: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The file belongs to a newer version of hone.
    #[error("store: the file has schema {found}, this program knows {known}: use a newer hone")]
    Newer {
        /// The schema of the file.
        found: i64,
        /// The newest schema that this program knows.
        known: i64,
    },
    /// The file is a database of another program.
    #[error("store: the file is a database, but not one of hone")]
    NotOurs,
    /// A stored value is not what this program writes.
    #[error("store: {what} cannot be read: {problem}")]
    Malformed {
        /// The column.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The round is in a final state: somebody else ended it.
    #[error("store: round `{0}` has ended")]
    RoundEnded(String),
    /// The row that is to be changed is not there.
    #[error("store: there is no {what} `{id}`")]
    Missing {
        /// The kind of row.
        what: &'static str,
        /// Its id.
        id: String,
    },
}

impl StoreError {
    /// Whether the same call may succeed later with nothing changed: locks, full or failing disks,
    /// missing rights.
    pub fn is_passing(&self) -> bool {
        use rusqlite::ErrorCode as Code;
        let Self::Sqlite(error) = self else { return false };
        matches!(
            error.sqlite_error_code(),
            Some(
                Code::DatabaseBusy
                    | Code::DatabaseLocked
                    | Code::DiskFull
                    | Code::SystemIoFailure
                    | Code::CannotOpen
                    | Code::ReadOnly
                    | Code::PermissionDenied
                    | Code::OutOfMemory
                    | Code::FileLockingProtocolFailed
                    | Code::OperationInterrupted
                    | Code::DatabaseCorrupt
                    | Code::NotADatabase
                    | Code::SchemaChanged
            )
        )
    }
}

type Result<T> = std::result::Result<T, StoreError>;

/// A connection to the store. Not `Sync`: one per thread.
#[derive(Debug)]
pub struct Store {
    conn: Connection,
    known: RefCell<Known>,
}

impl Store {
    /// Opens the store, creating or migrating the file.
    pub fn open(path: &Path) -> Result<Self> {
        let conn = Connection::open(path)?;
        conn.busy_timeout(BUSY_TIMEOUT)?;
        schema::prepare(&conn)?;
        Self::tune(conn)
    }

    /// Opens an existing store for reading only. Errors: the file is missing or its schema is not
    /// ours.
    pub fn open_read_only(path: &Path) -> Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(path, flags)?;
        conn.busy_timeout(BUSY_TIMEOUT)?;
        schema::check(&conn)?;
        Self::tune(conn)
    }

    fn tune(conn: Connection) -> Result<Self> {
        conn.set_prepared_statement_cache_capacity(128);
        // Or SQLite plans a join anew for each value that is bound: a quarter of the ingest's time.
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        conn.pragma_update(None, "synchronous", "FULL")?;
        conn.pragma_update(None, "cache_size", -32_768)?;
        conn.pragma_update(None, "journal_size_limit", 64 << 20)?;
        // Pages that every batch changes are then copied from the log into the file a quarter as
        // often.
        conn.pragma_update(None, "wal_autocheckpoint", 4_000)?;
        // The rows are written by one place that keeps them whole; looking every reference up costs
        // a fifth.
        conn.pragma_update(None, "foreign_keys", false)?;
        Ok(Self { conn, known: RefCell::default() })
    }

    /// Sets how long a statement waits for another process's lock; 5 s unless set.
    pub fn set_busy_timeout(&self, timeout: Duration) -> Result<()> {
        Ok(self.conn.busy_timeout(timeout)?)
    }

    /// Checks the whole file. Returns SQLite's findings; `["ok"]` when there are none.
    pub fn integrity_check(&self) -> Result<Vec<String>> {
        let mut statement = self.conn.prepare("PRAGMA integrity_check")?;
        let rows = statement.query_map([], |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Moves the write-ahead log into the file as far as readers allow. Returns the log's frames
    /// that are left.
    pub fn checkpoint(&self) -> Result<i64> {
        Ok(self.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(1))?)
    }

    /// A writing transaction: takes the lock at once, or waits for it.
    fn write(&self) -> Result<Transaction<'_>> {
        Ok(Transaction::new_unchecked(&self.conn, TransactionBehavior::Immediate)?)
    }
}

/// Reads a stored word. Errors name the column.
fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(
    what: &'static str,
    text: &str,
) -> Result<T> {
    text.parse().map_err(|e: T::Err| StoreError::Malformed { what, problem: e.to_string() })
}

/// Reads stored JSON. Errors name the column.
fn parse_json<T: serde::de::DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|e| StoreError::Malformed { what, problem: e.to_string() })
}

/// SQLite integers are signed; durations and sizes above 2^63 do not occur.
fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The other way round; a negative number cannot have been written by us and reads as 0.
fn uint(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
