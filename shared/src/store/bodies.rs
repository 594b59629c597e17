//! Content-addressed bodies and the tree of messages.
//!
//! Invariant: hashes include the tenant, so tenants share no rows and none can find out what
//! another one sent.

use rusqlite::{Connection, OptionalExtension, params};
use serde_json::Value;

use super::{Result, StoreError, parse_json};
use crate::pack as zstd;

/// Key of a body or node: a truncated BLAKE3.
pub(super) type Key = [u8; 16];

const PLAIN: u8 = 0;
const ZSTD: u8 = 1;
const ZSTD_ABOVE_BYTES: usize = 512;
const BODY_BYTES_MAX: usize = 256 << 20;

/// A body with its key, made outside of any transaction.
#[derive(Debug, Clone)]
pub(super) struct Body {
    pub(super) key: Key,
    pub(super) bytes: Vec<u8>,
}

impl Body {
    pub(super) fn new(tenant: &str, bytes: Vec<u8>) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(tenant.len() as u64).to_le_bytes());
        hasher.update(tenant.as_bytes());
        hasher.update(&bytes);
        Self { key: short(&hasher), bytes }
    }

    pub(super) fn json(tenant: &str, value: &Value) -> Self {
        Self::new(tenant, value.to_string().into_bytes())
    }
}

/// One message of a prompt with the key of its node.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) key: Key,
    pub(super) message: Body,
}

/// The nodes of a prompt, oldest first.
pub(super) fn chain(tenant: &str, messages: &[Value]) -> Vec<Node> {
    let mut above = [0u8; 16];
    let link = |message: &Value| {
        let message = Body::json(tenant, message);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&above);
        hasher.update(&message.key);
        above = short(&hasher);
        Node { key: above, message }
    };
    messages.iter().map(link).collect()
}

fn short(hasher: &blake3::Hasher) -> Key {
    let mut key = [0u8; 16];
    hasher.finalize_xof().fill(&mut key);
    key
}

/// Stores a body unless it is there; returns its row.
pub(super) fn put(conn: &Connection, body: &Body) -> Result<i64> {
    let mut find = conn.prepare_cached("SELECT id FROM bodies WHERE hash = ?1")?;
    if let Some(id) = find.query_row([&body.key[..]], |row| row.get(0)).optional()? {
        return Ok(id);
    }
    let mut insert = conn.prepare_cached("INSERT INTO bodies (hash, bytes) VALUES (?1, ?2)")?;
    Ok(insert.insert(params![&body.key[..], pack(&body.bytes)])?)
}

/// Stores the nodes of a prompt that are not there; returns the row of the last one. `None` for an
/// empty prompt.
pub(super) fn put_chain(conn: &Connection, nodes: &[Node]) -> Result<Option<i64>> {
    let mut find = conn.prepare_cached("SELECT id FROM nodes WHERE hash = ?1")?;
    let mut known = nodes.len();
    let mut above = None;
    // Resent history is there already, so the longest known prefix is near the end.
    while let Some(node) = known.checked_sub(1).and_then(|last| nodes.get(last)) {
        above = find.query_row([&node.key[..]], |row| row.get::<_, i64>(0)).optional()?;
        if above.is_some() {
            break;
        }
        known -= 1;
    }
    let sql = "INSERT INTO nodes (hash, parent, message) VALUES (?1, ?2, ?3)";
    let mut insert = conn.prepare_cached(sql)?;
    for node in nodes.iter().skip(known) {
        let message = put(conn, &node.message)?;
        above = Some(insert.insert(params![&node.key[..], above, message])?);
    }
    Ok(above)
}

/// Reads a body.
pub(super) fn get(conn: &Connection, id: i64) -> Result<Vec<u8>> {
    let mut find = conn.prepare_cached("SELECT bytes FROM bodies WHERE id = ?1")?;
    unpack(&find.query_row([id], |row| row.get::<_, Vec<u8>>(0))?)
}

/// Reads the messages of a prompt, oldest first.
pub(super) fn get_chain(conn: &Connection, last: Option<i64>) -> Result<Vec<Value>> {
    let mut find = conn.prepare_cached(
        "SELECT nodes.parent, bodies.bytes FROM nodes JOIN bodies ON bodies.id = nodes.message
         WHERE nodes.id = ?1",
    )?;
    let mut messages = Vec::new();
    let mut next = last;
    while let Some(id) = next {
        let (parent, bytes): (Option<i64>, Vec<u8>) =
            find.query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))?;
        messages.push(parse_json("a message", &unpack(&bytes)?)?);
        // A node is always younger than its parent; anything else would be a loop.
        next = parent.filter(|&parent| parent < id);
    }
    messages.reverse();
    Ok(messages)
}

fn pack(bytes: &[u8]) -> Vec<u8> {
    if bytes.len() > ZSTD_ABOVE_BYTES
        && let (Some(packed), Ok(len)) = (zstd::pack(bytes), u32::try_from(bytes.len()))
        && packed.len() + 4 < bytes.len()
    {
        return [&[ZSTD][..], &len.to_le_bytes(), &packed].concat();
    }
    [&[PLAIN][..], bytes].concat()
}

pub(super) fn unpack(stored: &[u8]) -> Result<Vec<u8>> {
    let bad = |problem: &str| StoreError::Malformed { what: "a body", problem: problem.to_owned() };
    match stored.split_first() {
        Some((&PLAIN, bytes)) => Ok(bytes.to_vec()),
        Some((&ZSTD, rest)) => {
            let (len, packed) = rest.split_first_chunk::<4>().ok_or_else(|| bad("too short"))?;
            let len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
            if len > BODY_BYTES_MAX {
                return Err(bad("too long"));
            }
            zstd::unpack(packed, len).ok_or_else(|| bad("damaged"))
        }
        _ => Err(bad("unknown codec")),
    }
}
