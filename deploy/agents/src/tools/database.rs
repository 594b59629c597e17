//! The SQL tool: read-only queries on a seeded SQLite file.
//!
//! Invariant: three walls, each enough by itself against writing: the statement must begin with
//! SELECT or WITH, SQLite must call it read-only, and the file is opened read-only. Rows, bytes and
//! time of an answer are bounded.

use std::path::Path;
use std::time::Duration;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};

/// Most rows of an answer.
const ROWS_MAX: usize = 20;
/// Longest answer, bytes.
const BYTES_MAX: usize = 1_000;
/// Longest query, bytes.
const QUERY_BYTES_MAX: usize = 1_000;
/// After this a query is interrupted.
const TIME_MAX: Duration = Duration::from_secs(1);

/// One kind of goods in the table `items`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its name.
    pub name: &'static str,
    /// What one costs.
    pub price: i64,
    /// How many there are.
    pub stock: i64,
}

/// Writes the database file.
///
/// # Errors
/// SQLite's.
pub fn create(path: &Path, items: &[Item]) -> rusqlite::Result<()> {
    let mut database = Connection::open(path)?;
    let write = database.transaction()?;
    write.execute_batch(
        "CREATE TABLE items
         (name TEXT PRIMARY KEY, price INTEGER NOT NULL, stock INTEGER NOT NULL)",
    )?;
    for item in items {
        let row = (item.name, item.price, item.stock);
        write.execute("INSERT INTO items VALUES (?1, ?2, ?3)", row)?;
    }
    write.commit()
}

/// The answer to a query, or what is wrong with it, as text for the model.
pub fn query(path: &Path, sql: &str) -> String {
    match ask(path, sql) {
        Ok(answer) => answer,
        Err(why) => format!("error: {why}"),
    }
}

fn ask(path: &Path, sql: &str) -> Result<String, String> {
    let first: String = sql.trim_start().chars().take_while(char::is_ascii_alphabetic).collect();
    if sql.len() > QUERY_BYTES_MAX {
        return Err(format!("the query is longer than {QUERY_BYTES_MAX} bytes"));
    }
    if !["select", "with"].contains(&first.to_lowercase().as_str()) {
        return Err("only SELECT is allowed".into());
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(path, flags).map_err(said)?;
    let interrupt = database.get_interrupt_handle();
    // Ends with the query, not with the time: the sender is dropped when this function returns.
    let (running, over) = std::sync::mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        if over.recv_timeout(TIME_MAX) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            interrupt.interrupt();
        }
    });
    let answer = rows(&database, sql);
    drop(running);
    let _ = watch.join();
    answer
}

fn rows(database: &Connection, sql: &str) -> Result<String, String> {
    let mut statement = database.prepare(sql).map_err(said)?;
    if !statement.readonly() {
        return Err("only SELECT is allowed".into());
    }
    let columns = statement.column_count();
    let mut found = statement.query([]).map_err(said)?;
    let mut lines = Vec::new();
    let mut bytes = 0;
    while let Some(row) = found.next().map_err(said)? {
        if lines.len() == ROWS_MAX {
            lines.push("…".to_owned());
            break;
        }
        let mut values = Vec::new();
        for at in 0..columns {
            values.push(shown(row.get_ref(at).map_err(said)?));
        }
        let line = values.join(" | ");
        bytes += line.len();
        if bytes > BYTES_MAX {
            return Err(format!("the answer is longer than {BYTES_MAX} bytes"));
        }
        lines.push(line);
    }
    if lines.is_empty() { Ok("no rows".into()) } else { Ok(lines.join("\n")) }
}

fn shown(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => "NULL".into(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => number.to_string(),
        ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
        ValueRef::Blob(bytes) => format!("{} bytes", bytes.len()),
    }
}

fn said(error: rusqlite::Error) -> String {
    // The file's path is nobody's business.
    match error {
        rusqlite::Error::SqliteFailure(code, None) => code.to_string(),
        rusqlite::Error::SqliteFailure(_, Some(text)) => text,
        rusqlite::Error::SqlInputError { msg, .. } => msg,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shop.sqlite");
        let items = [
            Item { name: "apple", price: 3, stock: 40 },
            Item { name: "plum", price: 5, stock: 7 },
        ];
        create(&path, &items).unwrap();
        (dir, path)
    }

    #[test]
    fn a_query_is_answered() {
        let (_dir, path) = database();
        assert_eq!(query(&path, "SELECT price FROM items WHERE name = 'plum'"), "5");
        let sorted = "select name, stock from items order by stock";
        assert_eq!(query(&path, sorted), "plum | 7\napple | 40");
        assert_eq!(query(&path, "SELECT price FROM items WHERE name = 'fig'"), "no rows");
    }

    #[test]
    fn nothing_can_be_written_attached_or_configured() {
        let (dir, path) = database();
        let before = std::fs::read(&path).unwrap();
        let other = dir.path().join("other.sqlite");
        for sql in [
            "DELETE FROM items",
            "INSERT INTO items VALUES ('x', 1, 1)",
            "DROP TABLE items",
            "UPDATE items SET price = 0",
            "SELECT 1; DELETE FROM items",
            "WITH x AS (SELECT 1) DELETE FROM items",
            "WITH x AS (SELECT 1) INSERT INTO items SELECT 'y', 1, 1",
            "PRAGMA writable_schema = 1",
            &format!("ATTACH DATABASE '{}' AS o", other.display()),
            "VACUUM INTO '/tmp/copy.sqlite'",
            "SELECT load_extension('/tmp/x')",
            "SELECT writefile('/tmp/x', 'y')",
            "/* hello */ DELETE FROM items",
            "",
        ] {
            let said = query(&path, sql);
            assert!(said.starts_with("error: "), "{sql}: {said}");
        }
        assert_eq!(std::fs::read(&path).unwrap(), before);
        assert!(!other.exists());
    }

    #[test]
    fn endless_and_huge_queries_end() {
        let (_dir, path) = database();
        let endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) \
                       SELECT count(*) FROM c";
        assert!(query(&path, endless).contains("interrupted"));
        let many =
            "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c";
        assert_eq!(query(&path, many).lines().count(), ROWS_MAX + 1);
        let wide = format!("SELECT replace(hex(zeroblob({})), '0', 'x')", BYTES_MAX);
        assert!(query(&path, &wide).contains("longer"));
    }
}
