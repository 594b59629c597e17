//! The turns of a data directory, as rows that tests can compare. Read from the database, as a
//! stranger would.

use hone_shared::data_dir::DataDir;
use hone_shared::store::Store;
use rusqlite::{Connection, OpenFlags};

/// One turn.
#[derive(Debug, Clone)]
pub struct Row {
    pub turn_id: String,
    /// The turn that it goes on from.
    pub parent: Option<String>,
    /// The messages of the request, as JSON.
    pub request: String,
    /// The text of all answers.
    pub response: String,
    pub status: u16,
    pub outcome: String,
    pub route: String,
    pub mode: String,
    pub tenant: String,
    pub generation: String,
}

/// All turns in the store, oldest first; none while there is no store.
pub fn turns_in(data: &DataDir) -> Vec<Row> {
    let Ok(store) = Store::open_read_only(&data.store_path()) else { return Vec::new() };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let ids = Connection::open_with_flags(data.store_path(), flags).unwrap();
    ids.busy_timeout(std::time::Duration::from_secs(5)).unwrap();
    let mut select = ids.prepare("SELECT turn_id FROM turns ORDER BY started_ms, turn_id").unwrap();
    let ids = select.query_map([], |row| row.get::<_, String>(0)).unwrap();
    ids.map(|id| {
        let turn = store.turn(id.unwrap().parse().unwrap()).unwrap().unwrap();
        let text = |choice: &hone_shared::wire::Choice| {
            choice.message["content"].as_str().unwrap_or_default().to_owned()
        };
        Row {
            turn_id: turn.turn_id.to_string(),
            parent: turn.parent.map(|parent| parent.to_string()),
            request: serde_json::to_string(&turn.messages).unwrap(),
            response: turn.choices.iter().map(text).collect(),
            status: turn.status,
            outcome: turn.outcome.to_string(),
            route: turn.route,
            mode: turn.mode.to_string(),
            tenant: turn.tenant,
            generation: turn.generation.to_string(),
        }
    })
    .collect()
}
