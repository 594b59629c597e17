//! Schema versions: `user_version` counts the migrations that a file has had.
//!
//! Invariant: a published migration never changes; a file of a newer program is refused, not
//! guessed at.

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::{Result, StoreError};

/// "HONE": tells our files from other databases.
const APPLICATION_ID: i64 = 0x484F_4E45;
/// Migration `n` takes a file from version `n` to `n + 1`.
const MIGRATIONS: &[&str] = &[
    include_str!("0001_init.sql"),
    include_str!("0002_wire.sql"),
    include_str!("0003_list.sql"),
    include_str!("0004_privacy.sql"),
    include_str!("0005_feedback.sql"),
    include_str!("0006_judged.sql"),
    include_str!("0007_lean.sql"),
];
const KNOWN: i64 = MIGRATIONS.len() as i64;

/// Makes or migrates the schema. Safe when several processes do so at once.
pub(super) fn prepare(conn: &Connection) -> Result<()> {
    // Both take effect only while the file is empty. 16 KiB pages: +29 % rows/s at 4 KiB rows
    // (reference/proxy.md §3.1).
    conn.pragma_update(None, "page_size", 16_384)?;
    conn.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    conn.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    // Migrations may replace tables that others refer to.
    conn.pragma_update(None, "foreign_keys", false)?;
    if version(conn)? == KNOWN {
        return check(conn);
    }
    let migration = Transaction::new_unchecked(conn, TransactionBehavior::Immediate)?;
    let found = version(&migration)?;
    let tables: i64 =
        migration.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if found == 0 && tables == 0 {
        migration.pragma_update(None, "application_id", APPLICATION_ID)?;
    }
    ours(&migration)?;
    for sql in MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or(usize::MAX)) {
        migration.execute_batch(sql)?;
    }
    if found < KNOWN {
        migration.pragma_update(None, "user_version", KNOWN)?;
    }
    migration.commit()?;
    check(conn)
}

/// Refuses files that are not ours or newer than this program.
pub(super) fn check(conn: &Connection) -> Result<()> {
    ours(conn)?;
    match version(conn)? {
        KNOWN => Ok(()),
        found if found > KNOWN => Err(StoreError::Newer { found, known: KNOWN }),
        _ => Err(StoreError::NotOurs),
    }
}

fn ours(conn: &Connection) -> Result<()> {
    let id: i64 = conn.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    if id == APPLICATION_ID { Ok(()) } else { Err(StoreError::NotOurs) }
}

fn version(conn: &Connection) -> Result<i64> {
    Ok(conn.query_row("PRAGMA user_version", [], |row| row.get(0))?)
}
