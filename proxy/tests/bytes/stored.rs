//! What the store holds of the exchanges, beside what it should.

use std::collections::BTreeMap;

use hone_shared::data_dir::DataDir;
use hone_shared::store::{Store, StoredTurn};
use rusqlite::{Connection, OpenFlags};

use crate::exchange::{Exchange, NUMBER};

/// A turn with the columns that only the database has.
pub struct Turn {
    pub turn: StoredTurn,
    pub method: String,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub flags: u32,
}

/// All turns, by the number of their exchange; more than one each is a defect.
pub fn turns(data: &DataDir) -> BTreeMap<u64, Vec<Turn>> {
    let store = Store::open_read_only(&data.store_path()).unwrap();
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let raw = Connection::open_with_flags(data.store_path(), flags).unwrap();
    let sql =
        "SELECT turn_id, method, request_bytes, response_bytes, flags, request_headers FROM turns";
    let mut select = raw.prepare(sql).unwrap();
    let rows = select.query_map([], |row| {
        let (id, headers): (String, String) = (row.get(0)?, row.get(5)?);
        let sizes: (i64, i64) = (row.get(2)?, row.get(3)?);
        Ok((id, headers, row.get::<_, String>(1)?, sizes, row.get::<_, u32>(4)?))
    });
    let mut turns = BTreeMap::<u64, Vec<Turn>>::new();
    for row in rows.unwrap() {
        let (id, headers, method, sizes, flags) = row.unwrap();
        turns.entry(number(&headers)).or_default().push(Turn {
            turn: store.turn(id.parse().unwrap()).unwrap().unwrap(),
            method,
            request_bytes: u64::try_from(sizes.0).unwrap(),
            response_bytes: u64::try_from(sizes.1).unwrap(),
            flags,
        });
    }
    turns
}

/// The exchange's number, from the recorded headers.
fn number(headers: &str) -> u64 {
    let headers: Vec<(String, String)> = serde_json::from_str(headers).unwrap();
    let found = headers.iter().find(|(name, _)| name == NUMBER);
    found.unwrap_or_else(|| panic!("no number among {headers:?}")).1.parse().unwrap()
}

/// What is wrong with the turns of an exchange.
pub fn differences(exchange: &Exchange, turns: &[Turn]) -> Vec<String> {
    let [stored] = turns else { return vec![format!("stored {} times", turns.len())] };
    let mut found = Vec::new();
    let mut expect = |what: &str, wanted: String, is: String| {
        if wanted != is {
            found.push(format!("stored {what}: {is} instead of {wanted}"));
        }
    };
    let turn = &stored.turn;
    expect("method", exchange.method.into(), stored.method.clone());
    expect("path", exchange.path().into(), turn.path.clone());
    expect("status", exchange.reply.status.to_string(), turn.status.to_string());
    expect("outcome", outcome(exchange).into(), turn.outcome.to_string());
    let length = exchange.body.len();
    expect("request length", length.to_string(), stored.request_bytes.to_string());
    let length = exchange.answer().len();
    expect("response length", length.to_string(), stored.response_bytes.to_string());
    let truncated = stored.flags & (4 | 8 | 64);
    expect("truncation", "0".into(), truncated.to_string());
    if let Some(texts) = &exchange.texts {
        expect("answers", format!("{texts:?}"), format!("{:?}", said(turn)));
        let asked = turn.messages.last().map(|message| message["content"].to_string());
        let whole =
            asked.is_some_and(|text| String::from_utf8_lossy(&exchange.body).contains(&text));
        expect("question", "as asked".into(), if whole { "as asked" } else { "another" }.into());
    }
    found
}

/// The text of each answer.
pub fn said(turn: &StoredTurn) -> Vec<String> {
    let text = |content: &serde_json::Value| match content {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Array(parts) => {
            parts.iter().filter_map(|part| part["text"].as_str()).collect::<String>()
        }
        _ => String::new(),
    };
    turn.choices.iter().map(|choice| text(&choice.message["content"])).collect()
}

fn outcome(exchange: &Exchange) -> &'static str {
    if exchange.breaks_off() || exchange.reply.status >= 400 {
        return "upstream_error";
    }
    if exchange.model_error { "model_error" } else { "complete" }
}
