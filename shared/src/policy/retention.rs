//! `[retention]` of a route: how long its turns are kept.
//!
//! Invariant: what is not set is kept for ever.

use serde::Deserialize;

use super::PolicyError;
use super::limits::Checker;

/// How long turns of a route are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetentionPolicy {
    /// Days after which the content of a turn goes; `None`: never.
    pub days_max: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRetention {
    days_max: Option<f64>,
}

impl RawRetention {
    pub(super) fn check(self, check: &Checker<'_>) -> Result<RetentionPolicy, PolicyError> {
        let days = check.long("retention.days_max", self.days_max)?;
        Ok(RetentionPolicy { days_max: (days > 0).then_some(days) })
    }
}
