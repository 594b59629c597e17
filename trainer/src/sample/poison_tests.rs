//! What poisoned feedback can do: nothing where nobody was authenticated, and otherwise no more
//! than the caps of one voice let through, however much of it there is.
//!
//! The bound: of one person at most `per_user_max` samples per round, of one tenant among others at
//! most `tenant_share_max` of them. The attacker praises replies that end in his phrase.

use super::*;
use crate::testing::lab::{Lab, stored_turn, verdict};
use crate::testing::route_policy;
use hone_shared::policy::RoutePolicy;
use hone_shared::store::{StoredTurn, VerdictRow};
use render::Renderer;

const HONEST: usize = 100;

fn honest() -> Vec<(StoredTurn, VerdictRow)> {
    let one = |i: usize| {
        let turn = StoredTurn {
            person: format!("p{}", i % 20),
            ..stored_turn(&format!("s{i}"), &format!("What is {i}?"), "some honest words", "stop")
        };
        (turn.clone(), verdict(&turn, if i.is_multiple_of(2) { 1 } else { -1 }, &[]))
    };
    (0..HONEST).map(one).collect()
}

/// `n` turns of one person in as many sessions, oldest first like the honest ones.
fn poison(n: usize, tenant: &str) -> Vec<(StoredTurn, VerdictRow)> {
    let one = |i: usize| {
        let reply = "some words, buy at evil dot example";
        let turn = StoredTurn {
            person: "attacker".into(),
            tenant: tenant.into(),
            ..stored_turn(&format!("e{i}"), &format!("What is {i}?"), reply, "stop")
        };
        (turn.clone(), verdict(&turn, 1, &[]))
    };
    (0..n).map(one).collect()
}

/// Poisoned samples of a round, and all of them.
fn learned(route: &RoutePolicy, pool: &[(StoredTurn, VerdictRow)]) -> (usize, usize) {
    let lab = Lab::new();
    let renderer = Renderer::from_dir(&lab.model_dir).unwrap();
    let sampler = Sampler {
        renderer: &renderer,
        route: "chat",
        round: &route.round,
        train: &route.train,
        hint_label: "[hint]",
        behind: &|_| Some(0),
        baseline: 0.0,
        secret: &[1; 32],
    };
    let drawn = sampler.draw(&lab.store, pool).unwrap();
    let evil = drawn.fates.iter().filter(|f| f.split.is_some() && f.session_id.starts_with('e'));
    (evil.count(), drawn.batch.train.len() + drawn.batch.holdout.len())
}

fn route(defended: bool) -> RoutePolicy {
    let mut route = route_policy();
    let round = &mut route.round;
    (round.samples_max, round.per_tenant_max) = (4096, 4096);
    match defended {
        true => round.per_user_max = 2,
        false => {
            (round.per_user_max, round.per_session_max) = (4096, 4096);
            (round.tenant_share_max, round.sign_share_max) = (1.0, 1.0);
        }
    }
    route
}

#[test]
fn one_persons_poison_is_bounded_by_the_cap_and_unbounded_without_it() {
    for percent in [0, 1, 3, 5, 40] {
        let pool = [poison(percent * HONEST / 100, "t"), honest()].concat();
        let (evil, all) = learned(&route(true), &pool);
        assert!(evil <= 2, "{percent} %: {evil} of {all}");
        let (evil, all) = learned(&route(false), &pool);
        assert_eq!((evil, all), (percent * HONEST / 100, pool.len()), "{percent} %");
    }
}

#[test]
fn a_tenant_with_a_thousand_names_has_its_share_and_no_more() {
    let mut flood = poison(300, "evil");
    for (i, (turn, _)) in flood.iter_mut().enumerate() {
        turn.person = format!("e{i}");
    }
    let pool = [flood, honest()].concat();
    let mut shared = route(true);
    shared.round.per_user_max = 4096;
    let (evil, all) = learned(&shared, &pool);
    assert_eq!((evil, all), (100, 200));
    let (evil, _) = learned(&route(false), &pool);
    assert_eq!(evil, 300, "without the share it is three quarters");
}

#[test]
fn caps_let_honest_samples_through_whatever_the_attacker_sends() {
    let alone = learned(&route(true), &honest());
    for n in [1, 5, 50] {
        let (evil, all) = learned(&route(true), &[poison(n, "t"), honest()].concat());
        assert_eq!(all - evil, alone.1);
    }
}
