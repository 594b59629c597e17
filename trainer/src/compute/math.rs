//! Element-wise arithmetic on rows: exponentials, norms, rotary embedding, gated activation.
//!
//! Loops are written so that the compiler vectorises them: no calls, no branches, several
//! independent sums. Invariant: sums are taken in one fixed order, so results are reproducible.

use rayon::prelude::*;

use super::kernels::NR;

/// Rows that one task of an element-wise step handles.
pub(super) const TASK_ROWS: usize = 32;
const LANES: usize = 16;

/// `e^x` to about 2e-7 relative; arguments are clamped to ±87. NaN stays NaN.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // 1.5 · 2^23: adding it rounds to an integer that stands in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 87.0);
    let n = x.mul_add(std::f32::consts::LOG2_E, MAGIC);
    let whole = n - MAGIC;
    // ln 2 in two parts, so that the product with a whole number is exact.
    let f = whole.mul_add(-0.693_359_4, x);
    let f = whole.mul_add(2.121_944_4e-4, f);
    let mut p = 1.388_888_9e-3f32;
    p = p.mul_add(f, 8.333_334e-3);
    p = p.mul_add(f, 4.166_666_8e-2);
    p = p.mul_add(f, 0.166_666_67);
    p = p.mul_add(f, 0.5);
    p = p.mul_add(f, 1.0);
    p = p.mul_add(f, 1.0);
    f32::from_bits(p.to_bits().wrapping_add(n.to_bits() << 23))
}

/// Largest value; −∞ of nothing.
pub(super) fn max(row: &[f32]) -> f32 {
    let (blocks, tail) = row.as_chunks::<LANES>();
    let mut most = [f32::NEG_INFINITY; LANES];
    for block in blocks {
        for (m, v) in most.iter_mut().zip(block) {
            *m = if *v > *m { *v } else { *m };
        }
    }
    most.iter().chain(tail).fold(f32::NEG_INFINITY, |m, v| if *v > m { *v } else { m })
}

/// Replaces each value by `e^((value − shift) · scale)` and returns the sum.
pub(super) fn exp_in_place(row: &mut [f32], shift: f32, scale: f32) -> f32 {
    let (blocks, tail) = row.as_chunks_mut::<LANES>();
    let mut sums = [0.0f32; LANES];
    for block in blocks {
        for (s, v) in sums.iter_mut().zip(block) {
            *v = exp((*v - shift) * scale);
            *s += *v;
        }
    }
    let rest: f32 = tail
        .iter_mut()
        .map(|v| {
            *v = exp((*v - shift) * scale);
            *v
        })
        .sum();
    sums.iter().sum::<f32>() + rest
}

/// `Σ e^((value − shift) · scale)`, leaving the values as they are.
pub(super) fn exp_sum(row: &[f32], shift: f32, scale: f32) -> f32 {
    let (blocks, tail) = row.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for block in blocks {
        for (s, v) in sums.iter_mut().zip(block) {
            *s += exp((*v - shift) * scale);
        }
    }
    let rest: f32 = tail.iter().map(|v| exp((*v - shift) * scale)).sum();
    sums.iter().sum::<f32>() + rest
}

/// Inner product of equally long rows.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for ((s, x), y) in sums.iter_mut().zip(a).zip(b) {
            *s = x.mul_add(*y, *s);
        }
    }
    let rest: f32 = a_tail.iter().zip(b_tail).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f32>() + rest
}

/// `to += factor · from`.
pub(super) fn add_scaled(to: &mut [f32], factor: f32, from: &[f32]) {
    for (t, f) in to.iter_mut().zip(from) {
        *t = factor.mul_add(*f, *t);
    }
}

/// `1 / √(mean(x²) + eps)`.
fn rms_factor(x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt()
}

/// RMS norm of one row (Zhang and Sennrich 2019): `y = x / rms(x) · weight`.
pub(super) fn norm_row(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let factor = rms_factor(x, eps);
    for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
        *y = x * factor * w;
    }
}

/// Adds to `dx` the gradient of [`norm_row`] for `dy`.
pub(super) fn norm_row_back(x: &[f32], weight: &[f32], eps: f32, dy: &[f32], dx: &mut [f32]) {
    let factor = rms_factor(x, eps);
    let mut sums = [0.0f32; LANES];
    let width = x.len() / LANES * LANES;
    for i in (0..width).step_by(LANES) {
        for (l, s) in sums.iter_mut().enumerate() {
            *s = (dy[i + l] * weight[i + l]).mul_add(x[i + l], *s);
        }
    }
    let rest: f32 = (width..x.len()).map(|i| dy[i] * weight[i] * x[i]).sum();
    let inner = (sums.iter().sum::<f32>() + rest) * factor * factor * factor / x.len() as f32;
    for (((dx, dy), w), x) in dx.iter_mut().zip(dy).zip(weight).zip(x) {
        *dx += factor * dy * w - inner * x;
    }
}

/// [`norm_row`] of every row of `x (rows, weight.len())`, on the calling thread.
pub(super) fn norm_rows(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let width = weight.len();
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        norm_row(x, weight, eps, y);
    }
}

/// [`norm_rows`] on the current pool.
pub(super) fn norm(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let size = TASK_ROWS * weight.len();
    let tasks = x.par_chunks(size).zip(y.par_chunks_mut(size));
    tasks.for_each(|(x, y)| norm_rows(x, weight, eps, y));
}

/// [`norm_row_back`] of every row, on the calling thread.
pub(super) fn norm_rows_back(x: &[f32], weight: &[f32], eps: f32, dy: &[f32], dx: &mut [f32]) {
    let width = weight.len();
    let rows = x.chunks_exact(width).zip(dy.chunks_exact(width));
    for ((x, dy), dx) in rows.zip(dx.chunks_exact_mut(width)) {
        norm_row_back(x, weight, eps, dy, dx);
    }
}

/// `act = silu(gate) · up` (Shazeer 2020).
pub(super) fn swiglu(gate: &[f32], up: &[f32], act: &mut [f32]) {
    for ((a, g), u) in act.iter_mut().zip(gate).zip(up) {
        *a = g * u / (1.0 + exp(-g));
    }
}

/// Gradients of [`swiglu`]: `dact` becomes `dup`; `dgate` and `act` are written.
pub(super) fn swiglu_back(
    gate: &[f32],
    up: &[f32],
    dact: &mut [f32],
    dgate: &mut [f32],
    act: &mut [f32],
) {
    let inputs = gate.iter().zip(up);
    for ((((g, u), da), dg), a) in inputs.zip(dact).zip(dgate).zip(act) {
        let sigmoid = 1.0 / (1.0 + exp(-g));
        let silu = g * sigmoid;
        *a = silu * u;
        *dg = *da * u * sigmoid.mul_add(1.0 - silu, silu);
        *da *= silu;
    }
}

/// Adds `bias` to every row.
pub(super) fn add_bias(y: &mut [f32], bias: &[f32]) {
    for row in y.chunks_exact_mut(bias.len()) {
        add_scaled(row, 1.0, bias);
    }
}

/// A value for each of a panel's columns.
pub(super) type Columns = [f32; NR];

/// Softmax down the columns of `scores (keys, NR)`, in place but for the division by the sums:
/// values become `e^(score − most)`. Returns the largest scores and the sums.
pub(super) fn softmax_columns(scores: &mut [f32]) -> (Columns, Columns) {
    let rows = scores.as_chunks_mut::<NR>().0;
    let (mut most, mut sums) = ([f32::NEG_INFINITY; NR], [0.0; NR]);
    for row in &*rows {
        for (m, v) in most.iter_mut().zip(row) {
            *m = if *v > *m { *v } else { *m };
        }
    }
    for row in rows {
        for ((v, m), s) in row.iter_mut().zip(&most).zip(&mut sums) {
            *v = exp(*v - m);
            *s += *v;
        }
    }
    (most, sums)
}

/// From scores and the gradient of the probabilities, `(keys, NR)` each, in place: probabilities
/// `p = e^(score − lse)` and the gradient of the scores `p · (dp − inner) · scale`.
pub(super) fn softmax_columns_back(
    scores: &mut [f32],
    dp: &mut [f32],
    lse: &Columns,
    inner: &Columns,
    scale: f32,
) {
    for (p, ds) in scores.as_chunks_mut::<NR>().0.iter_mut().zip(dp.as_chunks_mut::<NR>().0) {
        for (((p, ds), lse), inner) in p.iter_mut().zip(ds).zip(lse).zip(inner) {
            *p = exp(*p - lse);
            *ds = *p * (*ds - inner) * scale;
        }
    }
}

/// Cosines and sines by position, grown on demand. `(positions, head_dim / 2)` each.
pub(super) struct Rope {
    frequencies: Vec<f32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    /// A table of no positions yet, for `frequencies` in radians per position.
    pub(super) fn new(frequencies: Vec<f32>) -> Rope {
        Rope { frequencies, cos: Vec::new(), sin: Vec::new() }
    }

    /// Makes positions `0..count` available.
    pub(super) fn reserve(&mut self, count: usize) {
        for position in self.cos.len() / self.frequencies.len().max(1)..count {
            for frequency in &self.frequencies {
                let angle = f64::from(position as f32 * frequency);
                self.cos.push(angle.cos() as f32);
                self.sin.push(angle.sin() as f32);
            }
        }
    }

    /// Rotates every head of every row of `x (rows, heads · head_dim)` in place, first half
    /// against second half (the Hugging Face order). `sign` −1 undoes it, which is also its
    /// gradient.
    pub(super) fn rotate(&self, x: &mut [f32], width: usize, positions: &[u32], sign: f32) {
        for (row, position) in x.chunks_exact_mut(width).zip(positions) {
            self.rotate_row(row, *position as usize, sign);
        }
    }

    fn rotate_row(&self, row: &mut [f32], position: usize, sign: f32) {
        let half = self.frequencies.len();
        let cos = &self.cos[position * half..(position + 1) * half];
        let sin = &self.sin[position * half..(position + 1) * half];
        for head in row.chunks_exact_mut(2 * half) {
            let (low, high) = head.split_at_mut(half);
            for (((l, h), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                let s = s * sign;
                (*l, *h) = (*l * c - *h * s, *h * c + *l * s);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_is_exact_to_float_precision() {
        let worst = (-8000..8000)
            .map(|i| i as f32 * 0.01)
            .map(|x| (f64::from(exp(x)) / f64::from(x).exp() - 1.0).abs())
            .fold(0.0, f64::max);
        assert!(worst < 4e-7, "worst relative error {worst}");
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn rotation_by_minus_one_undoes_rotation() {
        let mut rope = Rope::new(vec![1.0, 0.1]);
        rope.reserve(9);
        let start = [1.0f32, 2.0, 3.0, 4.0];
        let mut x = start;
        rope.rotate(&mut x, 4, &[8], 1.0);
        assert!(x != start);
        rope.rotate(&mut x, 4, &[8], -1.0);
        assert!(x.iter().zip(start).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn norm_gradient_agrees_with_differences() {
        let x: Vec<f32> = (0..20).map(|i| ((i * 7 % 11) as f32 - 5.0) * 0.3).collect();
        let weight: Vec<f32> = (0..20).map(|i| 0.5 + i as f32 * 0.05).collect();
        let dy: Vec<f32> = (0..20).map(|i| (i as f32 * 0.7).sin()).collect();
        let loss = |x: &[f32]| {
            let mut y = vec![0.0; 20];
            norm_row(x, &weight, 1e-5, &mut y);
            dot(&y, &dy)
        };
        let mut dx = vec![0.0; 20];
        norm_row_back(&x, &weight, 1e-5, &dy, &mut dx);
        for i in 0..20 {
            let (mut up, mut down) = (x.clone(), x.clone());
            up[i] += 1e-2;
            down[i] -= 1e-2;
            let slope = (loss(&up) - loss(&down)) / 2e-2;
            assert!((slope - dx[i]).abs() < 1e-3, "{i}: {slope} against {}", dx[i]);
        }
    }
}
