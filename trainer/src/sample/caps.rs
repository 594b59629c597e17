//! Caps against one voice: per session, person and tenant, and the balance of signs.
//!
//! A person is who the client names (`user`, `safety_identifier`, `metadata.user_id`), as a keyed
//! hash; requests without one have the caps of their session and tenant only. A tenant's share is
//! of what the pool offers; it binds only where there is more than one tenant, and never below
//! `samples_min`, so that a small round can begin. OpenClaw-RL's transcript of a collapse had 14 of
//! 16 rewards of one sign; the balance bounds that.
//!
//! Invariant: whatever somebody sends beyond their caps changes nothing in the batch.

use super::Sample;
use super::filter::Reason;
use hone_shared::policy::RoundPolicy;
use hone_shared::store::{StoredTurn, VerdictRow};
use std::collections::BTreeMap;

/// What has been taken so far.
pub struct Caps<'a> {
    policy: &'a RoundPolicy,
    /// Most samples of one tenant.
    tenant_max: usize,
    taken: usize,
    sessions: BTreeMap<(&'a str, &'a str), usize>,
    persons: BTreeMap<(&'a str, &'a str), usize>,
    tenants: BTreeMap<&'a str, usize>,
}

impl<'a> Caps<'a> {
    /// Nothing taken yet, from a pool of these turns.
    pub fn new(policy: &'a RoundPolicy, pool: &[(StoredTurn, VerdictRow)]) -> Self {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        pool.iter().for_each(|(turn, _)| *counts.entry(&turn.tenant).or_default() += 1);
        let counts: Vec<usize> = counts.into_values().collect();
        let share = share_cap(&counts, policy.tenant_share_max, policy.samples_min);
        Self {
            policy,
            tenant_max: policy.per_tenant_max.min(share),
            taken: 0,
            sessions: BTreeMap::new(),
            persons: BTreeMap::new(),
            tenants: BTreeMap::new(),
        }
    }

    /// Whether one more sample of this turn fits.
    pub fn room(&self, turn: &StoredTurn) -> Result<(), Reason> {
        let (tenant, session) = (turn.tenant.as_str(), turn.session_id.as_str());
        let count = |list: &BTreeMap<(&str, &str), usize>, key: &str| {
            list.get(&(tenant, key)).copied().unwrap_or(0)
        };
        let named = !turn.person.is_empty();
        if self.taken >= self.policy.samples_max {
            Err(Reason::RoundFull)
        } else if count(&self.sessions, session) >= self.policy.per_session_max {
            Err(Reason::SessionCap)
        } else if named && count(&self.persons, &turn.person) >= self.policy.per_user_max {
            Err(Reason::UserCap)
        } else if self.tenants.get(tenant).copied().unwrap_or(0) >= self.tenant_max {
            Err(Reason::TenantCap)
        } else {
            Ok(())
        }
    }

    /// Counts a sample of this turn.
    pub fn take(&mut self, turn: &'a StoredTurn) {
        let tenant = turn.tenant.as_str();
        self.taken += 1;
        *self.sessions.entry((tenant, &turn.session_id)).or_default() += 1;
        *self.persons.entry((tenant, &turn.person)).or_default() += 1;
        *self.tenants.entry(tenant).or_default() += 1;
    }
}

/// Most samples of one tenant, so that nobody has more than `share` of what is left.
fn share_cap(counts: &[usize], share: f64, floor: usize) -> usize {
    let mut cap = counts.iter().copied().max().unwrap_or(0);
    if counts.len() < 2 {
        return cap.max(floor);
    }
    loop {
        let total: usize = counts.iter().map(|n| (*n).min(cap)).sum();
        let next = ((share * total as f64).floor() as usize).max(floor);
        if next >= cap {
            return cap.max(floor);
        }
        cap = next;
    }
}

/// Takes the rewards of too many samples of one sign away; what else they say stays. Returns how
/// many it took.
pub fn balance<'a>(round: &RoundPolicy, samples: impl Iterator<Item = &'a mut Sample>) -> u64 {
    let mut samples: Vec<&mut Sample> = samples.collect();
    let rewards: Vec<f64> = samples.iter().map(|sample| sample.reward).collect();
    let excess = unbalanced(&rewards, round.sign_share_max, round.samples_min);
    for at in &excess {
        samples[*at].reward = 0.0;
    }
    excess.len() as u64
}

/// Which rewards (by index, in the order of the list) are too many of one sign. Only where both
/// signs are there, and never below `floor`; the last ones go.
fn unbalanced(rewards: &[f64], share: f64, floor: usize) -> Vec<usize> {
    let of = |sign: f64| -> Vec<usize> {
        (0..rewards.len()).filter(|i| rewards[*i] * sign > 0.0).collect()
    };
    let (good, bad) = (of(1.0), of(-1.0));
    let (few, many) = if good.len() < bad.len() { (good, bad) } else { (bad, good) };
    if few.is_empty() || share >= 1.0 {
        return Vec::new();
    }
    let cap = (few.len() as f64 * share / (1.0 - share)).floor() as usize;
    many.into_iter().skip(cap.max(floor)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_tenant_has_more_than_its_share_where_there_are_others() {
        assert_eq!(share_cap(&[100], 0.5, 8), 100, "one tenant alone is not bound");
        assert_eq!(share_cap(&[100, 30], 0.5, 8), 30);
        assert_eq!(share_cap(&[100, 2], 0.5, 8), 8, "a small round can begin");
        assert_eq!(share_cap(&[20, 20, 20], 0.5, 8), 20);
        assert_eq!(share_cap(&[100, 2], 1.0, 8), 100);
        assert_eq!(share_cap(&[], 0.5, 8), 8);
    }

    #[test]
    fn the_last_of_the_larger_sign_go_and_never_below_the_floor() {
        let rewards: Vec<f64> = (0..20).map(|i| if i < 2 { 1.0 } else { -1.0 }).collect();
        // Two of one sign allow eight of the other at 0.8.
        assert_eq!(unbalanced(&rewards, 0.8, 1), (10..20).collect::<Vec<_>>());
        assert_eq!(unbalanced(&rewards, 0.8, 12), (14..20).collect::<Vec<_>>());
        assert!(unbalanced(&rewards, 1.0, 1).is_empty());
        assert!(unbalanced(&[-1.0; 20], 0.8, 1).is_empty(), "one sign alone cannot be balanced");
        assert!(unbalanced(&[1.0, 0.0, -1.0], 0.5, 1).is_empty());
    }
}
