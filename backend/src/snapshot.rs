//! What is resident and what the aliases name, as one immutable value.
//!
//! Why immutable: readers take the whole state with one pointer load and never see half a swap;
//! writers make the next value from the present one and flip the pointer. Generic over the resident
//! so that the rules can be tested without an engine.
//!
//! Invariant: every alias names a resident generation, and the base is always resident.

use std::collections::BTreeMap;
use std::sync::Arc;

use hone_shared::turn::Generation;

/// Why an alias does not move.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AliasError {
    /// The caller thinks that the alias points elsewhere than it does.
    #[error("alias `{alias}` names {current}, not {expected}")]
    Mismatch {
        /// The alias.
        alias: String,
        /// What it names; `base` if it does not exist.
        current: String,
        /// What the caller thought.
        expected: String,
    },
    /// The alias is taken by another generation, and replacing was not asked for.
    #[error("alias `{alias}` is taken by {current}; send `load_inplace: true` to move it")]
    Taken {
        /// The alias.
        alias: String,
        /// What it names.
        current: String,
    },
    /// There is no such alias.
    #[error("there is no alias `{0}`")]
    Unknown(String),
    /// The generation to name is not resident.
    #[error("generation {0} is not resident")]
    NotResident(String),
}

/// One consistent state: residents, aliases, and how many changes led to it.
#[derive(Debug)]
pub struct Snapshot<R> {
    residents: BTreeMap<String, Arc<R>>,
    aliases: BTreeMap<String, Generation>,
    sequence: u64,
}

impl<R> Snapshot<R> {
    /// The first state: only the base.
    pub fn new(base: Arc<R>) -> Self {
        let residents = BTreeMap::from([(Generation::base().as_str().to_owned(), base)]);
        Self { residents, aliases: BTreeMap::new(), sequence: 0 }
    }

    /// The resident engine of a generation.
    pub fn resident(&self, generation: &Generation) -> Option<&Arc<R>> {
        self.residents.get(generation.as_str())
    }

    /// All residents, the base included, by generation.
    pub fn residents(&self) -> impl Iterator<Item = &Arc<R>> {
        self.residents.values()
    }

    /// What an alias names.
    pub fn alias(&self, name: &str) -> Option<&Generation> {
        self.aliases.get(name)
    }

    /// All aliases with what they name, by name.
    pub fn aliases(&self) -> impl Iterator<Item = (&str, &Generation)> {
        self.aliases.iter().map(|(name, generation)| (name.as_str(), generation))
    }

    /// The aliases that name a generation.
    pub fn aliases_of(&self, generation: &Generation) -> Vec<&str> {
        self.aliases().filter(|(_, named)| *named == generation).map(|(name, _)| name).collect()
    }

    /// How many changes led to this state.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Whether `name` may move to `to`: compare-and-swap against `expected`, where an alias that
    /// does not exist compares as the base.
    ///
    /// # Errors
    /// [`AliasError::Mismatch`] or [`AliasError::Taken`].
    pub fn may_move(
        &self,
        name: &str,
        to: &Generation,
        expected: Option<&Generation>,
        inplace: bool,
    ) -> Result<(), AliasError> {
        let current = self.alias(name);
        if let Some(expected) = expected {
            compare(name, current, expected)?;
        }
        match current {
            Some(current) if current != to && !inplace => Err(AliasError::Taken {
                alias: name.to_owned(),
                current: current.as_str().to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// The state in which `name` names `to`.
    ///
    /// # Errors
    /// As [`Snapshot::may_move`], and [`AliasError::NotResident`].
    pub fn with_alias(
        &self,
        name: &str,
        to: &Generation,
        expected: Option<&Generation>,
        inplace: bool,
    ) -> Result<Self, AliasError> {
        self.may_move(name, to, expected, inplace)?;
        if self.resident(to).is_none() {
            return Err(AliasError::NotResident(to.as_str().to_owned()));
        }
        let mut next = self.next();
        next.aliases.insert(name.to_owned(), to.clone());
        Ok(next)
    }

    /// The state without the alias, and without its generation if no other alias names it.
    ///
    /// # Errors
    /// [`AliasError::Unknown`] or [`AliasError::Mismatch`].
    pub fn without_alias(
        &self,
        name: &str,
        expected: Option<&Generation>,
    ) -> Result<(Self, Generation), AliasError> {
        let current =
            self.alias(name).cloned().ok_or_else(|| AliasError::Unknown(name.to_owned()))?;
        if let Some(expected) = expected {
            compare(name, Some(&current), expected)?;
        }
        let mut next = self.next();
        next.aliases.remove(name);
        if !current.is_base() && next.aliases_of(&current).is_empty() {
            next.residents.remove(current.as_str());
        }
        Ok((next, current))
    }

    /// The state with one more resident, or with a rebuilt one in its place.
    pub fn with_resident(&self, generation: &Generation, resident: Arc<R>) -> Self {
        let mut next = self.next();
        next.residents.insert(generation.as_str().to_owned(), resident);
        next
    }

    /// The state without a resident; the base and whatever an alias names stay.
    pub fn without_resident(&self, generation: &Generation) -> Self {
        let mut next = self.next();
        if !generation.is_base() && next.aliases_of(generation).is_empty() {
            next.residents.remove(generation.as_str());
        }
        next
    }

    /// Among the residents that no alias names, the one used longest ago. `idle_since` gives the
    /// time of last use, or `None` for one that must stay.
    pub fn least_used(&self, idle_since: impl Fn(&R) -> Option<i64>) -> Option<&Arc<R>> {
        let named = |generation: &str| self.aliases.values().any(|g| g.as_str() == generation);
        self.residents
            .iter()
            .filter(|(generation, _)| *generation != "base" && !named(generation))
            .filter_map(|(_, resident)| idle_since(resident).map(|since| (since, resident)))
            .min_by_key(|(since, _)| *since)
            .map(|(_, resident)| resident)
    }

    fn next(&self) -> Self {
        Self {
            residents: self.residents.clone(),
            aliases: self.aliases.clone(),
            sequence: self.sequence + 1,
        }
    }
}

fn compare(
    name: &str,
    current: Option<&Generation>,
    expected: &Generation,
) -> Result<(), AliasError> {
    let current = current.map_or("base", Generation::as_str);
    if current == expected.as_str() {
        return Ok(());
    }
    Err(AliasError::Mismatch {
        alias: name.to_owned(),
        current: current.to_owned(),
        expected: expected.as_str().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation(digit: char) -> Generation {
        Generation::parse(&digit.to_string().repeat(64)).unwrap()
    }

    fn with(digits: &str) -> Snapshot<i64> {
        let base = Snapshot::new(Arc::new(0));
        digits.chars().fold(base, |state, digit| {
            let used = i64::from(digit.to_digit(16).unwrap());
            state.with_resident(&generation(digit), Arc::new(used))
        })
    }

    #[test]
    fn an_alias_moves_only_from_where_the_caller_thinks_it_is() {
        let state = with("ab");
        let base = Generation::base();
        let state = state.with_alias("main", &generation('a'), Some(&base), true).unwrap();
        let wrong = state.with_alias("main", &generation('b'), Some(&base), true);
        assert!(matches!(wrong, Err(AliasError::Mismatch { .. })));
        let right = state.with_alias("main", &generation('b'), Some(&generation('a')), true);
        assert_eq!(right.unwrap().alias("main"), Some(&generation('b')));
    }

    #[test]
    fn a_taken_alias_moves_only_in_place_but_naming_the_same_again_is_no_error() {
        let state = with("ab").with_alias("main", &generation('a'), None, false).unwrap();
        assert!(matches!(
            state.with_alias("main", &generation('b'), None, false),
            Err(AliasError::Taken { .. })
        ));
        assert!(state.with_alias("main", &generation('a'), None, false).is_ok());
    }

    #[test]
    fn an_alias_cannot_name_what_is_not_resident() {
        let refused = with("").with_alias("main", &generation('a'), None, true);
        assert!(matches!(refused, Err(AliasError::NotResident(_))));
    }

    #[test]
    fn a_generation_leaves_with_its_last_alias_only() {
        let state = with("a").with_alias("one", &generation('a'), None, false).unwrap();
        let state = state.with_alias("two", &generation('a'), None, false).unwrap();
        let (state, _) = state.without_alias("one", None).unwrap();
        assert!(state.resident(&generation('a')).is_some());
        let (state, gone) = state.without_alias("two", Some(&generation('a'))).unwrap();
        assert_eq!(gone, generation('a'));
        assert!(state.resident(&generation('a')).is_none());
        assert!(matches!(state.without_alias("two", None), Err(AliasError::Unknown(_))));
    }

    #[test]
    fn the_victim_is_the_least_recently_used_that_no_alias_names() {
        let state = with("123").with_alias("main", &generation('1'), None, false).unwrap();
        let victim = state.least_used(|used| Some(*used)).unwrap();
        assert_eq!(**victim, 2);
        let victim = state.least_used(|used| (*used != 2).then_some(*used)).unwrap();
        assert_eq!(**victim, 3);
        assert!(state.least_used(|_| None).is_none());
    }

    #[test]
    fn the_base_never_leaves() {
        let state = with("").without_resident(&Generation::base());
        assert!(state.resident(&Generation::base()).is_some());
    }

    #[test]
    fn every_change_advances_the_sequence_and_leaves_the_old_state_alone() {
        let before = with("a");
        let after = before.with_alias("main", &generation('a'), None, false).unwrap();
        assert_eq!(after.sequence(), before.sequence() + 1);
        assert!(before.alias("main").is_none());
    }
}
