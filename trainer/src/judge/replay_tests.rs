//! What a changed judge would say of turns that were judged, in a real store.

use super::super::Judge;
use super::*;
use crate::testing::lab::Lab;
use crate::testing::peers::nobody;
use crate::testing::policies;
use hone_shared::clock::Clock;

#[tokio::test]
async fn a_replay_shows_what_would_change_and_changes_nothing() {
    let mut lab = Lab::new();
    let long = lab.add("s", "What is rain?", "Rain is water.", "Too long. Use one sentence.");
    let good = lab.add("t", "What is snow?", "Snow is ice.", "Thanks, perfect.");
    let mut judge = Judge::new(&nobody(), Clock::manual(1_000)).unwrap();
    judge.pass(&mut lab.store, &policies(&[])).await.unwrap();
    let before = (lab.store.verdict(long).unwrap(), lab.store.verdict(good).unwrap());

    let same = replay(&lab.store, &policies(&[]), None, 100).unwrap();
    assert_eq!((same.turns, same.skipped, same.differing.len()), (2, 0, 0));
    assert_eq!((same.changes[0][0], same.changes[2][2]), (1, 1));

    // A judge that no longer knows the complaint is silent about it; approval stays.
    let changed =
        policies(&[("'too long'", "'much too long'"), ("'one (short )?sentence'", "'x'")]);
    let found = replay(&lab.store, &changed, None, 100).unwrap();
    let [one] = found.differing.as_slice() else { panic!("{found:?}") };
    assert_eq!((one.turn, one.stands, one.now), (long, -1, None));
    assert_eq!((one.stands_by.as_str(), one.now_by.as_str()), ("rule:correction", "none"));
    assert_eq!(replay(&lab.store, &changed, Some("elsewhere"), 100).unwrap().turns, 0);
    assert_eq!(replay(&lab.store, &changed, None, 1).unwrap().turns, 1, "the newest first");
    assert_eq!(before, (lab.store.verdict(long).unwrap(), lab.store.verdict(good).unwrap()));
}
