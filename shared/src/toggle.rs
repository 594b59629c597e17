//! Changing a route's learning mode at run time, with a row in the audit trail.
//!
//! The same for the admin API and the command line, whether or not a proxy runs.
//!
//! Invariant: turning learning off works even while the store is locked or away; the change is then
//! audited later, and until then its row waits in `overrides.json`.

use serde::Serialize;

use crate::clock::now_ms;
use crate::data_dir::DataDir;
use crate::policy::{
    ModeOverride, OverrideError, Overrides, Policies, PolicyError, PolicySet, Unaudited,
};
use crate::store::{AuditEntry, Store};
use crate::turn::Mode;

/// Why a mode was not changed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ToggleError {
    /// No policy has that name.
    #[error("there is no route `{route}`; there are: {known}")]
    NoRoute {
        /// What was asked for.
        route: String,
        /// The routes that exist.
        known: String,
    },
    /// The policies do not pass, so that nobody can say what the route is.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The override could not be written.
    #[error(transparent)]
    Override(#[from] OverrideError),
}

/// What a change did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Toggled {
    /// The route.
    pub route: String,
    /// Its mode before.
    pub before: Mode,
    /// Its mode now.
    pub after: Mode,
    /// When the mode falls back to the file's, milliseconds since 1970.
    pub until_ms: Option<i64>,
    /// Whether the audit trail has it already.
    pub audited: bool,
}

/// Sets the mode of a route. Errors: [`ToggleError`]; nothing changed then.
pub fn set(data: &DataDir, route: &str, to: ModeOverride) -> Result<Toggled, ToggleError> {
    set_in(data, &PolicySet::load(&data.policies_dir())?, route, to)
}

/// As [`set`], for who knows the policies in force.
pub fn set_in(
    data: &DataDir,
    policies: &impl Policies,
    route: &str,
    to: ModeOverride,
) -> Result<Toggled, ToggleError> {
    let file_mode = file_mode(&policies.current(), route)?;
    change(data, route, file_mode, Some(to.clone()), &to.who, &to.reason)
}

/// Returns a route to its file's mode; harmless when nothing was set. An override of a route that
/// does not exist any more is removed too.
pub fn reset(data: &DataDir, route: &str, who: &str, reason: &str) -> Result<Toggled, ToggleError> {
    reset_in(data, &PolicySet::load(&data.policies_dir())?, route, who, reason)
}

/// As [`reset`], for who knows the policies in force.
pub fn reset_in(
    data: &DataDir,
    policies: &impl Policies,
    route: &str,
    who: &str,
    reason: &str,
) -> Result<Toggled, ToggleError> {
    let held = Overrides::read(&data.overrides_path())?;
    let file_mode = match file_mode(&policies.current(), route) {
        Err(_) if held.routes.contains_key(route) => Mode::Off,
        other => other?,
    };
    change(data, route, file_mode, None, who, reason)
}

fn file_mode(policies: &PolicySet, route: &str) -> Result<Mode, ToggleError> {
    let overridden = policies.overridden.get(route).map(|over| over.file_mode);
    let found = overridden.or_else(|| policies.route(route).map(|route| route.mode));
    found.ok_or_else(|| {
        let mut known: Vec<&str> = policies.routes.iter().map(|r| r.name.as_str()).collect();
        known.sort_unstable();
        ToggleError::NoRoute { route: route.to_owned(), known: known.join(", ") }
    })
}

fn change(
    data: &DataDir,
    route: &str,
    file_mode: Mode,
    to: Option<ModeOverride>,
    who: &str,
    reason: &str,
) -> Result<Toggled, ToggleError> {
    let action = if to.is_some() { "learning.set" } else { "learning.reset" };
    let note = |before: Option<&ModeOverride>| Unaudited {
        actor: who.to_owned(),
        action: action.to_owned(),
        route: route.to_owned(),
        before: in_words(before, file_mode),
        after: in_words(to.as_ref(), file_mode),
        reason: reason.to_owned(),
    };
    let before = Overrides::change(data, route, to.clone(), note, now_ms())?;
    let mode = |held: Option<&ModeOverride>| held.map_or(file_mode, |held| held.mode);
    let toggled = Toggled {
        route: route.to_owned(),
        before: mode(before.as_ref()),
        after: mode(to.as_ref()),
        until_ms: to.and_then(|held| held.until_ms),
        audited: audit_pending(data).is_ok_and(|left| left == 0),
    };
    tracing::info!(route, who, reason, before = %toggled.before, after = %toggled.after, action);
    Ok(toggled)
}

/// `observe until_ms=1763830000000`, or the file's mode.
fn in_words(held: Option<&ModeOverride>, file_mode: Mode) -> String {
    match held {
        None => file_mode.to_string(),
        Some(ModeOverride { mode, until_ms: None, .. }) => mode.to_string(),
        Some(ModeOverride { mode, until_ms: Some(until), .. }) => {
            format!("{mode} until_ms={until}")
        }
    }
}

/// Brings changes into the audit trail that could not be written there before. Returns how many
/// still wait.
pub fn audit_pending(data: &DataDir) -> Result<usize, OverrideError> {
    let mut store = None;
    Overrides::audit(data, |change| {
        let row = AuditEntry {
            actor: change.actor.clone(),
            action: change.action.clone(),
            target: change.route.clone(),
            before: Some(change.before.clone()),
            after: Some(change.after.clone()),
            reason: change.reason.clone(),
        };
        let opened = match store.take() {
            Some(store) => Ok(store),
            None => Store::open(&data.store_path()),
        };
        match opened.and_then(|open| open.append_audit(&row).map(|_| open)) {
            Ok(open) => {
                store = Some(open);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "a change is audited later");
                false
            }
        }
    })
}
