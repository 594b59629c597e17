//! Reverse divergence over the teacher's likeliest tokens and one bin for all others.
//!
//! `p_tail = 1 − Σ_{k≤K} p_k` on both sides, taken as `ln(−expm1(ln Σ p_k))` with `ln Σ p_k`
//! clamped to −1e-7; `L = Σ_{k=1..K+1} p_θ^(k) (ln p_θ^(k) − ln p_T^(k))`.
//! By the student's `ln p_k`: `p_k [(ln p_k − ln q_k) − (ln p_tail − ln q_tail)]`.
//! Source: OpenClaw-RL PR #4 (after SDFT and SDPO), K = 50. No policy gradient: the loss is exact
//! over its bins, so neither ratio nor clip enters.
//!
//! Invariant: never negative beyond rounding, zero where both agree.

/// The largest `ln Σ p_k` that leaves a tail.
const INSIDE_MAX: f64 = -1e-7;

/// The loss of one position and its derivative by the student's ln p of each token. `now` and
/// `teacher` are ln p of the same tokens.
pub fn term(now: &[f32], teacher: &[f32]) -> (f64, Vec<f64>) {
    let (tail, is_clamped) = tail(now);
    let tail_gap = tail - self::tail(teacher).0;
    let mut loss = tail.exp() * tail_gap;
    let gradient = now.iter().zip(teacher).map(|(now, teacher)| {
        let (now, teacher) = (f64::from(*now), f64::from(*teacher));
        let gap = now - teacher;
        loss += now.exp() * gap;
        // A clamped tail is a constant; otherwise d p_tail = −d p_k.
        let moved = if is_clamped { 0.0 } else { tail_gap + 1.0 };
        now.exp() * (gap + 1.0 - moved)
    });
    let gradient = gradient.collect();
    (loss, gradient)
}

/// ln of what is left beside these tokens, and whether it had to be clamped.
fn tail(logprobs: &[f32]) -> (f64, bool) {
    let most = logprobs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if most == f32::NEG_INFINITY {
        return (0.0, false);
    }
    let most = f64::from(most);
    let sum: f64 = logprobs.iter().map(|p| (f64::from(*p) - most).exp()).sum();
    let inside = most + sum.ln();
    ((-inside.min(INSIDE_MAX).exp_m1()).ln(), inside > INSIDE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_token_and_its_tail_worked_by_hand() {
        // p = (½, ½), q = (¼, ¾): ½ ln 2 + ½ ln ⅔.
        let (loss, gradient) = term(&[0.5f32.ln()], &[0.25f32.ln()]);
        let want = 0.5 * 2f64.ln() + 0.5 * (2.0f64 / 3.0).ln();
        assert!((loss - want).abs() < 1e-7, "{loss}");
        // ½ · (ln 2 − ln ⅔) = ½ ln 3.
        assert!((gradient[0] - 0.5 * 3f64.ln()).abs() < 1e-6, "{gradient:?}");
    }

    #[test]
    fn agreement_costs_nothing() {
        let same = [0.5f32.ln(), 0.3f32.ln()];
        let (loss, gradient) = term(&same, &same);
        assert!(loss.abs() < 1e-12 && gradient.iter().all(|g| g.abs() < 1e-12));
    }

    #[test]
    fn a_distribution_without_a_tail_stays_finite() {
        let (loss, gradient) = term(&[0.0], &[0.5f32.ln()]);
        assert!(loss.is_finite() && gradient[0].is_finite());
        assert!((loss - 2f64.ln()).abs() < 1e-4, "{loss}");
        assert!(term(&[], &[]).0.abs() < 1e-12);
    }
}
