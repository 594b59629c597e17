//! Anomaly stops: an update that looks like a collapse ends the round before it is applied.
//!
//! The reference's long reproduction ran from a gradient norm of 3–8 to 2,243 and 8-token garbage
//! with nothing stopping it; each bound here would have caught one of its symptoms.
//!
//! Invariant: a number that is not finite always stops.

use super::update::Measured;
use hone_shared::policy::StopPolicy;

/// Why the round must end, or `None` to go on.
pub fn reason(seen: &Measured, stop: &StopPolicy) -> Option<String> {
    let numbers = [seen.grad_norm, seen.loss, seen.log_ratio, seen.kl, seen.entropy];
    if numbers.iter().any(|n| !n.is_finite()) {
        return Some("a number of the update is not finite".into());
    }
    if seen.grad_norm > stop.grad_norm_max {
        return Some(over("gradient norm", seen.grad_norm, stop.grad_norm_max));
    }
    if seen.log_ratio > stop.log_ratio_max {
        return Some(over("mean |log-ratio| to the teacher", seen.log_ratio, stop.log_ratio_max));
    }
    if seen.fresh_replies == 0 {
        return None;
    }
    if seen.entropy < stop.entropy_min {
        return Some(under("entropy of the fresh replies", seen.entropy, stop.entropy_min));
    }
    if seen.reply_tokens_mean < stop.reply_tokens_min_mean {
        let limit = stop.reply_tokens_min_mean;
        return Some(under("mean length of the fresh replies", seen.reply_tokens_mean, limit));
    }
    None
}

fn over(what: &str, got: f64, limit: f64) -> String {
    format!("{what} {got:.3} is over the limit of {limit}")
}

fn under(what: &str, got: f64, limit: f64) -> String {
    format!("{what} {got:.3} is under the limit of {limit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> Measured {
        Measured {
            grad_norm: 1.0,
            log_ratio: 0.5,
            entropy: 0.8,
            reply_tokens_mean: 30.0,
            fresh_replies: 16,
            ..Measured::default()
        }
    }

    fn limits() -> StopPolicy {
        StopPolicy {
            grad_norm_max: 50.0,
            log_ratio_max: 10.0,
            entropy_min: 0.05,
            reply_tokens_min_mean: 2.0,
        }
    }

    #[test]
    fn a_healthy_update_goes_on() {
        assert_eq!(reason(&healthy(), &limits()), None);
    }

    #[test]
    fn each_symptom_of_collapse_stops_with_its_name() {
        let cases = [
            (Measured { grad_norm: 1_776.0, ..healthy() }, "gradient norm"),
            (Measured { log_ratio: 233.0, ..healthy() }, "log-ratio"),
            (Measured { entropy: 0.0, ..healthy() }, "entropy"),
            (Measured { reply_tokens_mean: 1.0, ..healthy() }, "mean length"),
            (Measured { loss: f64::NAN, ..healthy() }, "not finite"),
            (Measured { grad_norm: f64::INFINITY, ..healthy() }, "not finite"),
        ];
        for (seen, word) in cases {
            let why = reason(&seen, &limits()).unwrap_or_default();
            assert!(why.contains(word), "{why:?} should name {word}");
        }
    }

    #[test]
    fn without_fresh_replies_their_length_and_entropy_are_not_judged() {
        let seen = Measured { fresh_replies: 0, reply_tokens_mean: 0.0, entropy: 0.0, ..healthy() };
        assert_eq!(reason(&seen, &limits()), None);
    }
}
