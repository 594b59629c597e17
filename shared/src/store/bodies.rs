//! Content-addressed bodies and the tree of messages; `writing` puts them into the store.
//!
//! Invariant: hashes include the tenant, so tenants share no rows and none can find out what
//! another one sent.

use rusqlite::Connection;
use serde_json::Value;

use super::{Result, StoreError, parse_json};
use crate::pack as zstd;

/// Key of a body or node: a truncated BLAKE3.
pub(super) type Key = [u8; 16];

const PLAIN: u8 = 0;
const ZSTD: u8 = 1;
/// Packing a short message costs more time than writing it.
const ZSTD_ABOVE_BYTES: usize = 4096;
const BODY_BYTES_MAX: usize = 256 << 20;

/// A body with its key, made outside of any transaction.
#[derive(Debug, Clone)]
pub(super) struct Body {
    pub(super) key: Key,
    pub(super) bytes: Vec<u8>,
}

impl Body {
    pub(super) fn new(tenant: &str, bytes: Vec<u8>) -> Self {
        let mut whole = Self::before(tenant, bytes.len());
        whole.extend_from_slice(&bytes);
        Self { key: Self::key(&whole), bytes }
    }

    pub(super) fn json(tenant: &str, value: &Value) -> Self {
        let mut bytes = Self::before(tenant, 256);
        let before = bytes.len();
        if serde_json::to_writer(&mut bytes, value).is_err() {
            bytes.truncate(before); // A JSON value always serialises.
        }
        let key = Self::key(&bytes);
        bytes.drain(..before);
        Self { key, bytes }
    }

    /// What is hashed before a body, with room for so many bytes of it.
    fn before(tenant: &str, room: usize) -> Vec<u8> {
        let mut before = Vec::with_capacity(8 + tenant.len() + room);
        before.extend_from_slice(&(tenant.len() as u64).to_le_bytes());
        before.extend_from_slice(tenant.as_bytes());
        before
    }

    /// In one piece: BLAKE3 then works on several KiB at once.
    fn key(whole: &[u8]) -> Key {
        blake3::hash(whole).as_bytes().first_chunk().copied().unwrap_or_default()
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
    chain_of(messages.iter().map(|message| Body::json(tenant, message)).collect())
}

/// The nodes of a prompt, of messages that are bodies already.
pub(super) fn chain_of(messages: Vec<Body>) -> Vec<Node> {
    let mut above = [0u8; 16];
    let link = |message: Body| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&above);
        hasher.update(&message.key);
        above = short(&hasher);
        Node { key: above, message }
    };
    messages.into_iter().map(link).collect()
}

fn short(hasher: &blake3::Hasher) -> Key {
    let mut key = [0u8; 16];
    hasher.finalize_xof().fill(&mut key);
    key
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

pub(super) fn pack(bytes: &[u8]) -> Vec<u8> {
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
