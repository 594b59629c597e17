//! Rounds whose policies change while they run: other tenants, or no learning any more.

use super::*;

/// Policies that are edited when they are asked for the `n`th time.
struct Turning<'a> {
    n: usize,
    edit: (&'a str, &'a str),
    asked: std::cell::Cell<usize>,
}

impl Policies for Turning<'_> {
    fn current(&self) -> std::sync::Arc<hone_shared::policy::PolicySet> {
        self.asked.set(self.asked.get() + 1);
        let edits = match self.asked.get() >= self.n {
            true => vec![EASY, self.edit],
            false => vec![EASY],
        };
        std::sync::Arc::new(policies(&edits))
    }
}

#[test]
fn a_route_whose_learning_is_turned_off_gets_no_further_and_keeps_its_samples() {
    let it = prepared(CORRECTION);
    let mut shop = it.workshop();
    // The questions of a whole round: at its start, before each update, before gate and publishing.
    let mut n = 2;
    let set = policies(&[EASY]);
    let pool = shop.store.trainable("chat", POOL_MAX).unwrap();
    while n < 1_000 {
        let mut row = begin(&mut shop, set.route("chat").unwrap(), &pool, None).unwrap();
        let turning = Turning { n, edit: ("MODE", "observe"), asked: Default::default() };
        let end = run(&mut shop, &mut row, &turning).unwrap();
        if turning.asked.get() < n {
            break;
        }
        assert_eq!(end, End::Finished(RoundState::Abandoned), "turned off at question {n}");
        assert!(row.reason.contains("does not learn any more"), "{}", row.reason);
        assert!(it.served().is_base());
        assert_eq!(shop.store.trainable("chat", POOL_MAX).unwrap().len(), pool.len());
        n += 1;
    }
    assert!(n > 5, "a round asks before every update, the gate and publishing: {n}");
}

#[test]
fn turns_of_tenants_that_the_route_does_not_take_teach_it_nothing() {
    let it = prepared(CORRECTION);
    let paths = "paths = [\"/v1/chat/completions\"]";
    let others = format!("{paths}\ntenants = [\"somebody-else\"]");
    let (end, row) = it.round(&[EASY, (paths, &others)]);
    assert_eq!(end, End::Finished(RoundState::Abandoned), "{}", row.reason);
    assert_eq!(it.workshop().store.round_turns(&row.round_id).unwrap(), []);
    assert!(it.served().is_base());
    let own = format!("{paths}\ntenants = [\"t\"]");
    let (end, row) = it.round(&[EASY, (paths, &own)]);
    assert_eq!(end, End::Finished(RoundState::Promoted), "{}", row.reason);
}

#[test]
fn a_tenant_that_the_route_stops_taking_leaves_a_round_that_has_begun() {
    let it = prepared(CORRECTION);
    let paths = "paths = [\"/v1/chat/completions\"]";
    let others = format!("{paths}\ntenants = [\"somebody-else\"]");
    let edit = (paths, others.as_str());
    let set = policies(&[EASY]);
    let pool = it.workshop().store.trainable("chat", POOL_MAX).unwrap();
    let begun = || begin(&mut it.workshop(), set.route("chat").unwrap(), &pool, None).unwrap();
    let gave_up = |row: &mut RoundRow, policies: &dyn Fn(&mut RoundRow) -> End| {
        assert_eq!(policies(row), End::Finished(RoundState::Abandoned), "{}", row.reason);
        assert!(row.reason.contains("does not take the tenant"), "{}", row.reason);
        assert!(it.served().is_base() && it.workshop().registry.list().unwrap().is_empty());
    };
    // Between a stop of the trainer and its next start.
    let mut row = begun();
    let mut shop = it.workshop();
    let stop = shop.shutdown.clone();
    shop.kernels = watched_kernels(move |_, _| stop.cancel());
    assert_eq!(run(&mut shop, &mut row, &set).unwrap(), End::Interrupted);
    let after = policies(&[EASY, edit]);
    gave_up(&mut row, &|row| run(&mut it.workshop(), row, &after).unwrap());
    // While it trains.
    let turning = Turning { n: 4, edit, asked: Default::default() };
    gave_up(&mut begun(), &|row| run(&mut it.workshop(), row, &turning).unwrap());
    // While its candidate waits for an engine that is away.
    let mut row = begun();
    let mut away = it.lab.workshop(&nobody(), it.runtime.handle().clone());
    assert!(matches!(run(&mut away, &mut row, &set).unwrap(), End::Later(_)));
    let end = run(&mut it.workshop(), &mut row, &after).unwrap();
    assert_eq!(end, End::Finished(RoundState::Abandoned));
    assert!(row.reason.contains("does not take the tenant"), "{}", row.reason);
    assert!(it.served().is_base());
}
