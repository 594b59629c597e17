//! What is learned, from whom, and how: TOML files, one per route, judge and gate.
//!
//! ```text
//! policies/routes/<name>.toml   what a route matches, its learning mode, alias and limits
//! policies/judges/<name>.toml   rules, the LLM judge and its prompt, hints
//! policies/gates/<name>.toml    what a candidate must show
//! policies/redactions/<name>.toml  what is replaced before a turn is stored
//! ```
//! Files are read raw (unknown keys refused) and turned into checked values; every number has its
//! default and range in [`LIMITS`]. A set is loaded whole or not at all, and swapped by
//! [`PolicyWatch`].
//!
//! Invariant: a `PolicySet` is complete (every judge, gate and redaction that a route names exists)
//! and never changes.

mod builtin;
mod gate;
mod inherited;
mod judge;
mod limits;
mod locate;
mod overrides;
mod redaction;
mod retention;
mod round;
mod route;
mod traffic;
mod train;
mod watch;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::next_state::StateKind;
use crate::turn::Mode;

pub use builtin::{builtin_files, install_builtin};
pub use gate::GatePolicy;
pub use judge::{
    AUTO, AnswerPatterns, CallPatterns, Example, FeedbackPolicy, HintMode, HintPolicy, JudgePolicy,
    LlmJudge, Patterns, Phrases, RequestPatterns, ResultPatterns, RuleHit, RuleName, Rules, fold,
};
pub use limits::{LIMITS, Limit};
pub use overrides::{
    ModeOverride, OverrideError, Overrides, REASON_CHARS_MAX, TTL_S_MAX, Unaudited,
};
pub use redaction::RedactionPolicy;
pub use retention::RetentionPolicy;
pub use round::RoundPolicy;
pub use route::{CapturePolicy, RouteMatch, RoutePolicy, WhenFull};
pub use traffic::TrafficPolicy;
pub use train::{
    BudgetPolicy, Engine, ExternalPolicy, HintSelect, Loss, MemoryPolicy, Precision, StopPolicy,
    Support, Teacher, TrainPolicy,
};
pub use watch::{Policies, PolicyWatch};

/// Most files in one policy directory.
pub const FILES_MAX: usize = 1_000;
/// Largest policy file, bytes.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why a set of policies was not accepted. The set that was loaded before stays.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PolicyError {
    /// A file or directory could not be read.
    #[error("{file}: {problem}")]
    Io {
        /// The file, relative to the policy directory.
        file: String,
        /// What the system said.
        problem: String,
    },
    /// Not TOML, an unknown key, or a value of the wrong type.
    #[error("{file}, line {line}: {problem}")]
    Syntax {
        /// The file, relative to the policy directory.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong, with the keys that are allowed there.
        problem: String,
    },
    /// A value that is not allowed.
    #[error("{file}{}: `{key}` is {found}; allowed: {allowed}", locate::in_words(*line))]
    Invalid {
        /// The file, relative to the policy directory.
        file: String,
        /// The line, from 1; `None` where the key is not in the file.
        line: Option<usize>,
        /// The key, with its sections.
        key: String,
        /// The value that was found.
        found: String,
        /// What would be accepted.
        allowed: String,
    },
    /// More than one of these, in the order of the files.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Several(Vec<PolicyError>),
    /// The modes that were set at run time cannot be read.
    #[error(transparent)]
    Overrides(OverrideError),
}

impl PolicyError {
    /// Every single problem.
    pub fn each(&self) -> &[PolicyError] {
        match self {
            Self::Several(all) => all,
            one => std::slice::from_ref(one),
        }
    }
}

/// All policies, checked, as of one moment.
#[derive(Debug, Clone)]
pub struct PolicySet {
    /// Hash of all files; recorded on every turn.
    pub version: u64,
    /// Routes by priority, highest first, then by name.
    pub routes: Vec<Arc<RoutePolicy>>,
    /// Judges by name.
    pub judges: BTreeMap<String, Arc<JudgePolicy>>,
    /// Gates by name.
    pub gates: BTreeMap<String, Arc<GatePolicy>>,
    /// Redactions by name.
    pub redactions: BTreeMap<String, Arc<RedactionPolicy>>,
    /// Routes whose mode was set at run time; their policies above have that mode.
    pub overridden: BTreeMap<String, Overridden>,
    /// Routes that an override names and that do not exist.
    pub unknown_overrides: Vec<String>,
}

/// A route's mode in its file, and what stands over it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overridden {
    /// The file's mode, to which the route returns.
    pub file_mode: Mode,
    /// What was set at run time.
    pub by: ModeOverride,
}

/// The directories of policy files.
const SECTIONS: [&str; 4] = ["gates", "judges", "redactions", "routes"];

impl PolicySet {
    /// Reads the four directories of policy files under `dir`. Files that do not end in `.toml`
    /// are ignored.
    pub fn load(dir: &Path) -> Result<Self, PolicyError> {
        let mut files = Vec::new();
        for section in SECTIONS {
            read_section(dir, section, &mut files)?;
        }
        if files.is_empty() {
            let problem =
                "holds no policy: expected routes/, judges/ and gates/ with .toml files".into();
            return Err(PolicyError::Io { file: dir.display().to_string(), problem });
        }
        Self::from_files(files.iter().map(|(path, text)| (path.as_str(), text.as_str())))
    }

    /// The set that is compiled in.
    pub fn builtin() -> Result<Self, PolicyError> {
        Self::from_files(builtin_files().iter().copied())
    }

    /// A set from `(path, text)` pairs with paths like `routes/chat.toml`, in any order.
    pub fn from_files<'a>(
        files: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, PolicyError> {
        let mut files: Vec<_> = files.into_iter().collect();
        files.sort_unstable();
        let mut hasher = blake3::Hasher::new();
        let mut problems = Vec::new();
        let (mut routes, mut judges, mut gates) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        let mut redactions = BTreeMap::new();
        let judge_texts: BTreeMap<&str, &str> = files
            .iter()
            .filter_map(|(path, text)| {
                let (section, name) = split_path(path).ok()?;
                (section == "judges").then_some((name, *text))
            })
            .collect();
        for (path, text) in &files {
            for part in [path, text] {
                hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
            }
            let parsed = split_path(path).and_then(|(section, name)| {
                match section {
                    "routes" => routes.push(Arc::new(RoutePolicy::parse(path, name, text)?)),
                    "judges" => {
                        let judge = JudgePolicy::parse(path, name, text, &judge_texts)?;
                        judges.insert(name.to_owned(), Arc::new(judge));
                    }
                    "redactions" => {
                        let redaction = RedactionPolicy::parse(path, name, text)?;
                        redactions.insert(name.to_owned(), Arc::new(redaction));
                    }
                    _ => {
                        let gate = GatePolicy::parse(path, name, text)?;
                        gates.insert(name.to_owned(), Arc::new(gate));
                    }
                }
                Ok(())
            });
            problems.extend(parsed.err().map(|error| (*path, locate::add_line(error, text))));
        }
        let mut problems = inherited::each_once(problems, &judge_texts);
        routes.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.name.cmp(&b.name)));
        for route in &routes {
            problems.extend(check_name(route, "gate", &route.gate, &files).err());
            for name in judges_of(route) {
                problems.extend(check_name(route, "judge", name, &files).err());
            }
            if let Some(name) = &route.redaction {
                problems.extend(check_name(route, "redaction", name, &files).err());
            }
        }
        if !problems.is_empty() {
            return Err(match problems.len() {
                1 => problems.remove(0),
                _ => PolicyError::Several(problems),
            });
        }
        let version = version(&hasher);
        let (overridden, unknown_overrides) = (BTreeMap::new(), Vec::new());
        Ok(Self { version, routes, judges, gates, redactions, overridden, unknown_overrides })
    }

    /// This set, which is as the files say, with the modes that were set at run time and have not
    /// run out. Its version covers them.
    pub fn with_overrides(&self, overrides: &Overrides, now_ms: i64) -> Self {
        let mut set = self.clone();
        let active = overrides.routes.iter().filter(|(_, held)| held.is_active(now_ms));
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.version.to_le_bytes());
        for (name, held) in active {
            let Some(route) = set.routes.iter_mut().find(|route| route.name == *name) else {
                set.unknown_overrides.push(name.clone());
                continue;
            };
            let file_mode = route.mode;
            if file_mode != held.mode {
                *route = Arc::new(RoutePolicy { mode: held.mode, ..RoutePolicy::clone(route) });
            }
            hasher.update(name.as_bytes()).update(b"=").update(held.mode.as_str().as_bytes());
            hasher.update(b"\n");
            set.overridden.insert(name.clone(), Overridden { file_mode, by: held.clone() });
        }
        if !set.overridden.is_empty() {
            set.version = version(&hasher);
        }
        set
    }

    /// Logs every route whose mode is not what it was in `before`.
    fn log_modes(&self, before: &Self) {
        for route in &self.routes {
            let was = before.route(&route.name).map(|route| route.mode);
            if let Some(was) = was.filter(|was| *was != route.mode) {
                tracing::info!(route = route.name, %was, now = %route.mode, "learning mode");
            }
        }
    }

    /// The route of a request. `path` is without the query; `headers` looks up a header by
    /// lower-case name.
    pub fn route_for(
        &self,
        path: &str,
        headers: &dyn Fn(&str) -> Option<String>,
        tenant: &str,
    ) -> Option<&Arc<RoutePolicy>> {
        self.routes.iter().find(|route| route.matches.matches(path, headers, tenant))
    }

    /// A route by name.
    pub fn route(&self, name: &str) -> Option<&Arc<RoutePolicy>> {
        self.routes.iter().find(|route| route.name == name)
    }

    /// The judge of a route, the one of chats where the kind of next state decides; present for
    /// every route of this set.
    pub fn judge_of(&self, route: &RoutePolicy) -> Option<&Arc<JudgePolicy>> {
        self.judge_for(route, StateKind::Chat)
    }

    /// The judge of a route for a kind of next state; present for every route of this set.
    pub fn judge_for(&self, route: &RoutePolicy, kind: StateKind) -> Option<&Arc<JudgePolicy>> {
        let name = if route.judge == AUTO { kind.as_str() } else { &route.judge };
        self.judges.get(name)
    }

    /// The gate of a route; present for every route of this set.
    pub fn gate_of(&self, route: &RoutePolicy) -> Option<&Arc<GatePolicy>> {
        self.gates.get(&route.gate)
    }
}

/// The first 53 bits: SQLite and JSON readers hold signed or 53-bit numbers, and 53 are plenty to
/// tell sets apart.
fn version(hasher: &blake3::Hasher) -> u64 {
    let hash = hasher.finalize();
    let first = hash.as_bytes().first_chunk::<8>().copied().unwrap_or_default();
    u64::from_le_bytes(first) >> 11
}

/// The judges that a route needs.
fn judges_of(route: &RoutePolicy) -> Vec<&str> {
    match route.judge.as_str() {
        AUTO => StateKind::ALL.iter().map(|kind| kind.as_str()).collect(),
        name => vec![name],
    }
}

/// Checks that the judge, gate or redaction of a route has a file. One that has a file with a mistake in it
/// exists: one mistake is one problem.
fn check_name(
    route: &RoutePolicy,
    key: &str,
    name: &str,
    files: &[(&str, &str)],
) -> Result<(), PolicyError> {
    let section = format!("{key}s");
    let names = files.iter().filter_map(|(path, _)| split_path(path).ok());
    let known: Vec<&str> = names.filter(|(s, _)| *s == section).map(|(_, name)| name).collect();
    if known.contains(&name) {
        return Ok(());
    }
    let file = format!("routes/{}.toml", route.name);
    let text = files.iter().find(|(path, _)| *path == file).map_or("", |(_, text)| text);
    let error = PolicyError::Invalid {
        file,
        line: None,
        key: key.to_owned(),
        found: format!("\"{name}\""),
        allowed: format!("the name of a file in {section}/: {}", known.join(", ")),
    };
    Err(locate::add_line(error, text))
}

/// `routes/chat.toml` → (`routes`, `chat`).
fn split_path(path: &str) -> Result<(&str, &str), PolicyError> {
    let parts = path.strip_suffix(".toml").and_then(|stem| stem.split_once('/'));
    let known = |(section, name): &(&str, &str)| {
        SECTIONS.contains(section) && crate::registry::valid_name(name)
    };
    parts.filter(known).ok_or_else(|| PolicyError::Io {
        file: path.to_owned(),
        problem:
            "a policy is NAME.toml in routes/, judges/, gates/ or redactions/; NAME is 1 to 64 of \
             A-Z a-z 0-9 . _ -"
                .to_owned(),
    })
}

fn read_section(
    dir: &Path,
    section: &str,
    files: &mut Vec<(String, String)>,
) -> Result<(), PolicyError> {
    let problem = |file: String| {
        move |error: std::io::Error| PolicyError::Io { file, problem: error.to_string() }
    };
    let entries = match fs::read_dir(dir.join(section)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(problem(section.to_owned()))?,
    };
    for entry in entries {
        let path = entry.map_err(problem(section.to_owned()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.ends_with(".toml") || name.starts_with('.') {
            continue;
        }
        let file = format!("{section}/{name}");
        let size = fs::metadata(&path).map_err(problem(file.clone()))?.len();
        if size > FILE_BYTES_MAX || files.len() >= FILES_MAX {
            let problem =
                format!("at most {FILES_MAX} files of at most {FILE_BYTES_MAX} bytes are read");
            return Err(PolicyError::Io { file, problem });
        }
        let text = fs::read_to_string(&path).map_err(problem(file.clone()))?;
        files.push((file, text));
    }
    Ok(())
}

/// Reads TOML into a raw type; the error says the line and, for an unknown key, the keys that are
/// allowed.
fn parse_toml<T: DeserializeOwned>(file: &str, text: &str) -> Result<T, PolicyError> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let line = text.bytes().take(start).filter(|b| *b == b'\n').count() + 1;
        PolicyError::Syntax { file: file.to_owned(), line, problem: error.message().to_owned() }
    })
}

/// First 12 hex digits of a text's hash: the version of one judge or gate.
fn short_hash(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().chars().take(12).collect()
}
