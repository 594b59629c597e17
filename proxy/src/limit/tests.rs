//! Buckets and gauges by themselves, with a clock of the test's own.

use super::*;

const RATE: TrafficPolicy =
    TrafficPolicy { requests_per_minute_max: 60, burst: 3, concurrent_max: 0 };
const PAIR: TrafficPolicy =
    TrafficPolicy { requests_per_minute_max: 0, burst: 0, concurrent_max: 2 };

fn passes(limiter: &Limiter, tenant: &str, now_ms: u64) -> bool {
    limiter.admit_at("r", tenant, &RATE, now_ms).is_ok()
}

#[test]
fn a_burst_passes_and_then_the_rate_holds() {
    let limiter = Limiter::new(1000);
    let first: Vec<bool> = (0..5).map(|_| passes(&limiter, "a", 0)).collect();
    assert_eq!(first, [true, true, true, false, false]);
    assert!(!passes(&limiter, "a", 900));
    assert!(passes(&limiter, "a", 1_000), "one per second comes back");
    assert!(!passes(&limiter, "a", 1_000));
    let passed = (0..60_000).step_by(100).filter(|ms| passes(&limiter, "a", 1_000 + ms)).count();
    assert!((58..=60).contains(&passed), "{passed} in the next minute");
}

#[test]
fn a_refusal_says_when_to_come_back_and_then_the_request_passes() {
    let limiter = Limiter::new(1000);
    let slow = TrafficPolicy { requests_per_minute_max: 7, burst: 1, concurrent_max: 0 };
    let at = |ms| limiter.admit_at("r", "a", &slow, ms);
    assert!(at(0).is_ok());
    let Err(Refusal::Rate { retry_after_s }) = at(1) else { panic!("must be refused") };
    assert_eq!(retry_after_s, 9, "60 / 7 s, rounded up");
    assert!(at(u64::from(retry_after_s) * 1000).is_ok());
}

#[test]
fn tenants_and_routes_do_not_share() {
    let limiter = Limiter::new(1000);
    while passes(&limiter, "a", 0) {}
    assert!(passes(&limiter, "b", 0));
    assert!(limiter.admit_at("other", "a", &RATE, 0).is_ok());
}

#[test]
fn a_place_is_given_back_however_the_request_ends() {
    let limiter = Limiter::new(1000);
    let first = limiter.admit("r", "a", &PAIR).unwrap();
    let second = limiter.admit("r", "a", &PAIR).unwrap();
    assert_eq!(limiter.admit("r", "a", &PAIR).unwrap_err(), Refusal::Concurrency);
    drop(first);
    let third = limiter.admit("r", "a", &PAIR).unwrap();
    assert!(limiter.admit("r", "a", &PAIR).is_err());
    let panicked = std::panic::catch_unwind(move || {
        let _held = second;
        panic!("the request's task panics");
    });
    assert!(panicked.is_err());
    assert!(limiter.admit("r", "a", &PAIR).is_ok());
    drop(third);
    assert_eq!(limiter.snapshot().refused["r"], Refused { rate: 0, concurrency: 2 });
}

#[test]
fn no_limits_keep_no_state() {
    let limiter = Limiter::new(10);
    for at in 0..1000 {
        let none = TrafficPolicy::default();
        assert!(limiter.admit("r", &at.to_string(), &none).unwrap().is_none());
    }
    assert_eq!(limiter.snapshot().tenants, 0);
}

#[test]
fn a_flood_of_new_tenants_is_bounded_and_shares_one_allowance() {
    let limiter = Limiter::new(160);
    let passed = (0..100_000).filter(|n| passes(&limiter, &format!("t{n}"), 0)).count();
    // Everyone in the table has three; all others have three together.
    assert!(passed <= 160 + 3, "{passed}");
    let state = limiter.snapshot();
    assert!(state.tenants <= 160 + 1, "{state:?}");
    assert!(state.crowded > 99_000);
    // When their buckets are full again, the table has room for others.
    assert!(passes(&limiter, "late", 10_000));
    assert!(limiter.snapshot().tenants < 160, "swept");
}

#[test]
fn a_sweep_keeps_whoever_has_requests_in_flight() {
    let limiter = Limiter::new(1);
    let both = TrafficPolicy { concurrent_max: 1, ..RATE };
    let kept = limiter.admit_at("r", "a", &both, 0).unwrap().unwrap();
    (0..200).for_each(|n| {
        assert!(
            limiter.admit_at("r", &n.to_string(), &PAIR, 1 << 30).is_ok()
                || limiter.crowded.load(Ordering::Relaxed) > 0
        )
    });
    assert_eq!(limiter.admit_at("r", "a", &both, 1 << 30), Err(Refusal::Concurrency));
    limiter.give_back(kept);
    assert!(limiter.admit_at("r", "a", &both, 1 << 30).is_ok());
}

#[test]
fn changed_limits_apply_to_tenants_that_are_known() {
    let limiter = Limiter::new(1000);
    assert!(passes(&limiter, "a", 0));
    let tight = TrafficPolicy { burst: 1, ..RATE };
    assert!(limiter.admit_at("r", "a", &tight, 0).is_ok(), "at most the new burst is left");
    assert!(limiter.admit_at("r", "a", &tight, 0).is_err());
}

#[test]
fn permits_balance_under_concurrency() {
    let limiter = Limiter::new(1000);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let limiter = Arc::clone(&limiter);
            scope.spawn(move || {
                for n in 0..2_000 {
                    let tenant = ((thread + n) % 7).to_string();
                    drop(limiter.admit("r", &tenant, &PAIR));
                }
            });
        }
    });
    let shards = limiter
        .shards
        .iter()
        .flat_map(|s| lock(s).slots.values().map(|slot| slot.in_flight).collect::<Vec<_>>());
    assert_eq!(shards.sum::<u64>(), 0);
}
