//! The operator's lists: turns by any combination of filters, newest first, page by page; and a
//! session as a tree.
//!
//! A page costs the same on a store of a thousand turns and of a million: the facets that match are
//! merged by an index over (facet, time), and the one kind of page that has to look at turns singly
//! (a session with other filters, a facet of many combinations) stops after a fixed number of them
//! and says where to go on.
//!
//! Invariant: following `next` to its end yields every turn that matched when the list began,
//! exactly once.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::fmt;
use std::str::FromStr;

use rusqlite::types::Value as Sql;
use rusqlite::{Connection, Row, params, params_from_iter};
use serde::Serialize;

use super::facets::UNJUDGED;
use super::{Result, Store, StoreError, parse, uint};
use crate::link::LinkKind;
use crate::turn::{Generation, Mode, Outcome, TurnId};

/// Most turns of one page.
pub const LIST_LIMIT_MAX: usize = 1_000;
/// Most turns that one page looks at singly.
const LOOKED_AT_MAX: usize = 20_000;
/// Most turns of a session that are shown as a tree.
pub const SESSION_TURNS_MAX: usize = 10_000;

/// Which turns to list: all conditions must hold; `None` holds always.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TurnFilter {
    /// Name of the route.
    pub route: Option<String>,
    /// Name of the tenant.
    pub tenant: Option<String>,
    /// The session, as stored.
    pub session: Option<String>,
    /// How the turn ended.
    pub outcome: Option<Outcome>,
    /// The model that was asked for; empty = none was named.
    pub model: Option<String>,
    /// What the judge said.
    pub verdict: Option<Judged>,
    /// Began at this time or later, milliseconds since 1970.
    pub since_ms: Option<i64>,
    /// Began before this time, milliseconds since 1970.
    pub until_ms: Option<i64>,
}

/// Whether and how a turn was judged. Text: `none`, `-1`, `0`, `1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judged {
    /// There is no verdict yet.
    Not,
    /// The verdict.
    As(i8),
}

impl FromStr for Judged {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "none" => Ok(Self::Not),
            "-1" => Ok(Self::As(-1)),
            "0" => Ok(Self::As(0)),
            "1" | "+1" => Ok(Self::As(1)),
            _ => Err(StoreError::Malformed { what: "verdict", problem: text.to_owned() }),
        }
    }
}

/// Where a list goes on: after this turn. Text form for URLs: `<started_ms>-<row>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    started_ms: i64,
    row: i64,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.started_ms, self.row)
    }
}

impl FromStr for Cursor {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self> {
        let (ms, row) = text.rsplit_once('-').unwrap_or_default();
        match (ms.parse(), row.parse()) {
            (Ok(started_ms), Ok(row)) => Ok(Self { started_ms, row }),
            _ => Err(StoreError::Malformed { what: "cursor", problem: text.to_owned() }),
        }
    }
}

/// A turn without its texts.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the fields are those of StoredTurn")]
pub struct TurnLine {
    pub turn_id: TurnId,
    pub session_id: String,
    pub parent: Option<TurnId>,
    pub parent_choice: u32,
    pub link: Option<LinkKind>,
    pub link_confidence: f64,
    pub route: String,
    pub mode: Mode,
    pub alias: String,
    pub tenant: String,
    pub path: String,
    pub model: Option<String>,
    pub generation: Generation,
    pub started_ms: i64,
    pub first_byte_ms: Option<u64>,
    pub duration_ms: Option<u64>,
    pub status: u16,
    pub outcome: Outcome,
    pub stream: bool,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub prompt_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
    /// The bits of [`super::flags`].
    pub flags: u32,
    /// +1, 0 or −1; `None`: not judged.
    pub verdict: Option<i8>,
}

/// One page of a list.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TurnPage {
    /// The turns, newest first. May be fewer than asked for although there are more.
    pub turns: Vec<TurnLine>,
    /// Where to go on; `None` at the end.
    pub next: Option<Cursor>,
}

/// A turn of a session, with its place in the tree.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SessionTurn {
    /// The turn.
    #[serde(flatten)]
    pub turn: TurnLine,
    /// Distance from the root of its tree; a turn whose parent is in another session is a root.
    pub depth: u32,
}

impl Store {
    /// The newest turns that match, at most `limit` (and [`LIST_LIMIT_MAX`]), after `cursor`.
    pub fn list_turns(
        &self,
        filter: &TurnFilter,
        cursor: Option<Cursor>,
        limit: usize,
    ) -> Result<TurnPage> {
        let read = self.conn.unchecked_transaction()?;
        let limit = limit.clamp(1, LIST_LIMIT_MAX);
        let before = before(filter, cursor);
        let since = filter.since_ms.unwrap_or(i64::MIN);
        let facets = facets(&read, filter)?;
        let span = Span { before, since, limit };
        let found = match (&filter.session, &facets) {
            (Some(session), _) => span.of_session(&read, session, facets.as_ref(), filter)?,
            (None, None) => span.of_all(&read)?,
            (None, Some(facets)) => span.of_facets(&read, facets, filter)?,
        };
        let turns = found.rows.iter().map(|at| line(&read, at.row)).collect::<Result<_>>()?;
        Ok(TurnPage { turns, next: found.next })
    }

    /// A session as a forest in depth-first order: every turn after its parent, siblings by time.
    /// At most [`SESSION_TURNS_MAX`] turns, the oldest; the flag says whether there are more.
    pub fn session(&self, session_id: &str) -> Result<(Vec<SessionTurn>, bool)> {
        let read = self.conn.unchecked_transaction()?;
        let mut find = read.prepare_cached(
            "SELECT id FROM turns WHERE session_id = ?1 ORDER BY started_ms, id LIMIT 10001",
        )?;
        let ids = find.query_map([session_id], |row| row.get::<_, i64>(0))?;
        let mut ids = ids.collect::<rusqlite::Result<Vec<_>>>()?;
        let more = ids.len() > SESSION_TURNS_MAX;
        ids.truncate(SESSION_TURNS_MAX);
        let lines = ids.into_iter().map(|id| line(&read, id)).collect::<Result<Vec<_>>>()?;
        Ok((tree(lines), more))
    }
}

/// Puts turns, oldest first, below their parents.
fn tree(lines: Vec<TurnLine>) -> Vec<SessionTurn> {
    let known: HashSet<TurnId> = lines.iter().map(|line| line.turn_id).collect();
    let mut children: HashMap<Option<TurnId>, VecDeque<TurnLine>> = HashMap::new();
    let count = lines.len();
    for line in lines {
        let parent = line.parent.filter(|parent| known.contains(parent));
        children.entry(parent).or_default().push_back(line);
    }
    let mut ordered = Vec::with_capacity(count);
    let mut path = vec![None];
    while let Some(&above) = path.last() {
        let Some(turn) = children.get_mut(&above).and_then(VecDeque::pop_front) else {
            path.pop();
            continue;
        };
        let depth = u32::try_from(path.len().saturating_sub(1)).unwrap_or(u32::MAX);
        path.push(Some(turn.turn_id));
        ordered.push(SessionTurn { turn, depth });
    }
    ordered
}

/// The place before which the page begins.
fn before(filter: &TurnFilter, cursor: Option<Cursor>) -> Cursor {
    let end = Cursor { started_ms: filter.until_ms.unwrap_or(i64::MAX), row: i64::MIN };
    cursor.map_or(end, |cursor| cursor.min(end))
}

/// The facets that match, and whether their turns must be looked at; `None`: every turn matches.
type Facets = HashMap<i64, bool>;

fn facets(conn: &Connection, filter: &TurnFilter) -> Result<Option<Facets>> {
    let mut conditions = Vec::new();
    let mut values: Vec<Sql> = Vec::new();
    let mut word = |column: &str, vague: bool, text: &Option<String>| {
        let Some(text) = text else { return };
        values.push(Sql::Text(text.clone()));
        let others = if vague { " OR others = 1" } else { "" };
        conditions.push(format!("({column} = ?{}{others})", values.len()));
    };
    word("route", false, &filter.route);
    word("outcome", false, &filter.outcome.map(|outcome| outcome.to_string()));
    word("tenant", true, &filter.tenant);
    word("model", true, &filter.model);
    if let Some(judged) = filter.verdict {
        let verdict = if let Judged::As(verdict) = judged { verdict } else { UNJUDGED };
        conditions.push(format!("verdict = {verdict}"));
    }
    if conditions.is_empty() {
        return Ok(None);
    }
    let sql = format!("SELECT id, others FROM facets WHERE {}", conditions.join(" AND "));
    let mut find = conn.prepare_cached(&sql)?;
    let rows = find.query_map(params_from_iter(values), |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(Some(rows.collect::<rusqlite::Result<_>>()?))
}

/// What one page covers.
struct Span {
    before: Cursor,
    since: i64,
    limit: usize,
}

/// The rows of a page, and where the next one begins.
struct Found {
    rows: Vec<Cursor>,
    next: Option<Cursor>,
}

/// Rows per read of one facet's index, after the first.
const CHUNK: usize = 32;

struct Head {
    at: Cursor,
    facet: i64,
    rest: VecDeque<Cursor>,
    /// Whether the index may hold more after `rest`.
    more: bool,
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}
impl Eq for Head {}
impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Head {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.cmp(&other.at)
    }
}

impl Span {
    fn of_all(&self, conn: &Connection) -> Result<Found> {
        let sql = "SELECT started_ms, id FROM turns
                   WHERE (started_ms, id) < (?1, ?2) AND started_ms >= ?3
                   ORDER BY started_ms DESC, id DESC";
        let mut find = conn.prepare_cached(sql)?;
        let from = params![self.before.started_ms, self.before.row, self.since];
        let rows = find.query_map(from, cursor)?.take(self.limit + 1);
        Ok(self.page(rows.collect::<rusqlite::Result<_>>()?))
    }

    /// Cuts the one row off that only says that there is more.
    fn page(&self, mut rows: Vec<Cursor>) -> Found {
        let more = rows.len() > self.limit;
        rows.truncate(self.limit);
        let next = rows.last().copied().filter(|_| more);
        Found { rows, next }
    }

    fn of_facets(&self, conn: &Connection, facets: &Facets, filter: &TurnFilter) -> Result<Found> {
        let mut heap = BinaryHeap::new();
        for facet in facets.keys() {
            heap.extend(self.head(conn, *facet, self.before, 1)?);
        }
        let (mut rows, mut looked_at, mut last) = (Vec::new(), 0, None);
        while let Some(head) = heap.pop() {
            if rows.len() == self.limit || looked_at == LOOKED_AT_MAX {
                return Ok(Found { rows, next: last });
            }
            let vague = facets.get(&head.facet).copied().unwrap_or(true);
            looked_at += usize::from(vague);
            if !vague || matches(conn, head.at.row, filter)? {
                rows.push(head.at);
            }
            last = Some(head.at);
            heap.extend(self.after(conn, head)?);
        }
        Ok(Found { rows, next: None })
    }

    fn after(&self, conn: &Connection, mut head: Head) -> Result<Option<Head>> {
        match head.rest.pop_front() {
            Some(at) => Ok(Some(Head { at, ..head })),
            None if head.more => self.head(conn, head.facet, head.at, CHUNK),
            None => Ok(None),
        }
    }

    /// The newest rows of a facet before a place.
    fn head(
        &self,
        conn: &Connection,
        facet: i64,
        before: Cursor,
        chunk: usize,
    ) -> Result<Option<Head>> {
        let mut find = conn.prepare_cached(
            "SELECT started_ms, id FROM turns
             WHERE facet = ?1 AND (started_ms, id) < (?2, ?3) AND started_ms >= ?4
             ORDER BY started_ms DESC, id DESC",
        )?;
        let from = params![facet, before.started_ms, before.row, self.since];
        let rows = find.query_map(from, cursor)?.take(chunk);
        let mut rest = rows.collect::<rusqlite::Result<VecDeque<_>>>()?;
        let more = rest.len() == chunk;
        Ok(rest.pop_front().map(|at| Head { at, facet, rest, more }))
    }

    fn of_session(
        &self,
        conn: &Connection,
        session: &str,
        facets: Option<&Facets>,
        filter: &TurnFilter,
    ) -> Result<Found> {
        let mut find = conn.prepare_cached(
            "SELECT started_ms, id, facet FROM turns
             WHERE session_id = ?1 AND (started_ms, id) < (?2, ?3) AND started_ms >= ?4
             ORDER BY started_ms DESC, id DESC",
        )?;
        let from = params![session, self.before.started_ms, self.before.row, self.since];
        let mut turns = find.query(from)?;
        let (mut rows, mut looked_at, mut last) = (Vec::new(), 0, None);
        while let Some(row) = turns.next()? {
            if rows.len() == self.limit || looked_at == LOOKED_AT_MAX {
                return Ok(Found { rows, next: last });
            }
            let (at, facet) = (cursor(row)?, row.get::<_, Option<i64>>(2)?);
            looked_at += 1;
            let matched = match facets.map(|known| facet.and_then(|facet| known.get(&facet))) {
                None | Some(Some(false)) => true,
                Some(Some(true)) => matches(conn, at.row, filter)?,
                Some(None) => false,
            };
            if matched {
                rows.push(at);
            }
            last = Some(at);
        }
        Ok(Found { rows, next: None })
    }
}

fn cursor(row: &Row<'_>) -> rusqlite::Result<Cursor> {
    Ok(Cursor { started_ms: row.get(0)?, row: row.get(1)? })
}

/// Whether a turn of a facet of many combinations is meant.
fn matches(conn: &Connection, row: i64, filter: &TurnFilter) -> Result<bool> {
    let sql = "SELECT tenant, coalesce(model, '') FROM turns WHERE id = ?1";
    let (tenant, model): (String, String) =
        conn.prepare_cached(sql)?.query_row([row], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(filter.tenant.as_ref().is_none_or(|wanted| *wanted == tenant)
        && filter.model.as_ref().is_none_or(|wanted| *wanted == model))
}

const SELECT: &str = "SELECT t.turn_id, t.session_id, p.turn_id, t.parent_choice, t.link,
    t.link_confidence, t.route, t.mode, t.alias, t.tenant, t.path, t.model, t.generation,
    t.started_ms, t.first_byte_ms, t.duration_ms, t.status, t.outcome, t.stream, t.request_bytes,
    t.response_bytes, t.prompt_tokens, t.completion_tokens, t.flags, v.verdict
    FROM turns t LEFT JOIN turns p ON p.id = t.parent LEFT JOIN verdicts v ON v.turn = t.id
    WHERE t.id = ?1";

fn line(conn: &Connection, row: i64) -> Result<TurnLine> {
    let mut find = conn.prepare_cached(SELECT)?;
    let mut rows = find.query([row])?;
    let missing = || StoreError::Missing { what: "turn", id: row.to_string() };
    let row = rows.next()?.ok_or_else(missing)?;
    let text = |at: usize| row.get::<_, String>(at);
    let maybe = |at: usize| row.get::<_, Option<String>>(at);
    let number = |at: usize| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(at)?.map(uint));
    Ok(TurnLine {
        turn_id: parse("turn_id", &text(0)?)?,
        session_id: text(1)?,
        parent: maybe(2)?.map(|id| parse("parent", &id)).transpose()?,
        parent_choice: row.get(3)?,
        link: maybe(4)?.map(|kind| parse("link", &kind)).transpose()?,
        link_confidence: row.get(5)?,
        route: text(6)?,
        mode: parse("mode", &text(7)?)?,
        alias: text(8)?,
        tenant: text(9)?,
        path: text(10)?,
        model: maybe(11)?,
        generation: parse("generation", &text(12)?)?,
        started_ms: row.get(13)?,
        first_byte_ms: number(14)?,
        duration_ms: number(15)?,
        status: row.get(16)?,
        outcome: parse("outcome", &text(17)?)?,
        stream: row.get(18)?,
        request_bytes: number(19)?.unwrap_or(0),
        response_bytes: number(20)?.unwrap_or(0),
        prompt_tokens: number(21)?,
        completion_tokens: number(22)?,
        flags: row.get(23)?,
        verdict: row.get(24)?,
    })
}
