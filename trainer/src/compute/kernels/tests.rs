//! Every kernel against a plain triple loop, on shapes with every kind of rest.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::linear::{Job, Linear, Term, project, project_back};
use super::micro::{Block, Kernel, NR, Segment, kernels};
use super::words::Precision;
use super::{View, ViewMut, gemm, portable};

fn random(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

/// `a (m, k) · b (n, k)ᵀ` in f64.
fn product(a: &[f32], b: &[f32], m: usize, n: usize, k: usize) -> Vec<f32> {
    let at = |i: usize, j: usize| {
        (0..k).map(|p| f64::from(a[i * k + p]) * f64::from(b[j * k + p])).sum::<f64>() as f32
    };
    (0..m).flat_map(|i| (0..n).map(move |j| (i, j))).map(|(i, j)| at(i, j)).collect()
}

fn turned(a: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|j| (0..rows).map(move |i| a[i * cols + j])).collect()
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

fn sum(a: &[f32], b: &[f32], c: &[f32]) -> Vec<f32> {
    a.iter().zip(b).zip(c).map(|((a, b), c)| a + b + c).collect()
}

#[test]
fn products_both_ways_agree_with_a_plain_loop() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    // Rows, outputs, inputs, rank: below, at and above the sizes of strips, panels and passes.
    let shapes = [(1, 1, 1, 1), (13, 33, 7, 5), (125, 64, 70, 16), (50, 1100, 31, 3)];
    let shapes = shapes.into_iter().chain([(26, 47, 2311, 150)]);
    for (rows, outputs, inputs, rank) in shapes {
        for (precision, scale) in [(Precision::F32, 1e-5), (Precision::Bf16.supported(), 1e-2)] {
            let tolerance = scale * ((inputs + outputs + rank) as f32).sqrt();
            let [x, h, dy] = [inputs, rank, outputs].map(|width| random(&mut rng, rows * width));
            let [w, b] = [inputs, rank].map(|width| random(&mut rng, outputs * width));
            let packed_w = Linear::pack(&w, outputs, inputs, 1.0, precision);
            let packed_b = Linear::pack(&b, outputs, rank, 1.0, precision);
            let start = random(&mut rng, rows * outputs);
            let mut y = start.clone();
            let terms = vec![Term { x: &x, w: &packed_w }, Term { x: &h, w: &packed_b }];
            project(rows, &mut [Job { y: &mut y, add: true, terms }]);
            let (xw, hb) =
                (product(&x, &w, rows, outputs, inputs), product(&h, &b, rows, outputs, rank));
            let error = worst(&y, &sum(&start, &xw, &hb));
            assert!(error < tolerance, "{precision:?} {rows} {outputs} {inputs}: {error}");

            let a = random(&mut rng, rank * inputs);
            let packed_a = Linear::pack(&a, rank, inputs, 1.0, precision);
            let start = random(&mut rng, rows * inputs);
            let mut dx = start.clone();
            let terms = [Term { x: &dy, w: &packed_w }, Term { x: &h, w: &packed_a }];
            project_back(rows, &mut dx, true, &terms);
            let dyw = product(&dy, &turned(&w, outputs, inputs), rows, inputs, outputs);
            let ha = product(&h, &turned(&a, rank, inputs), rows, inputs, rank);
            let error = worst(&dx, &sum(&start, &dyw, &ha));
            assert!(error < tolerance, "{precision:?} back {rows} {outputs} {inputs}: {error}");
        }
    }
}

#[test]
fn a_packed_row_can_be_read_back() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let w = random(&mut rng, 70 * 9);
    for (precision, tolerance) in [(Precision::F32, 0.0), (Precision::Bf16, 0.004)] {
        let packed = Linear::pack(&w, 70, 9, 1.0, precision);
        let mut row = [0.0; 9];
        packed.row(66, &mut row);
        assert!(worst(&row, &w[66 * 9..67 * 9]) <= tolerance);
    }
}

/// The kernels of other machines that this one can run too.
fn all() -> Vec<(&'static str, Kernel)> {
    let mut all = vec![("portable", portable::multiply as Kernel)];
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected;
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            all.push(("avx2", portable::multiply_avx2));
        }
    }
    all.push(("chosen", kernels().multiply));
    all
}

#[test]
fn every_f32_kernel_of_this_machine_agrees_with_a_plain_loop() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for (name, kernel) in all() {
        for rows in 1..=25 {
            for width in [1, 15, 16, 17, 31, 32] {
                let k = 37;
                let (x, panel) = (random(&mut rng, rows * k), random(&mut rng, k * NR));
                let mut y = vec![0.0; rows * NR];
                let segment =
                    Segment { x: x.as_ptr().cast(), ldx: k, k, panel: panel.as_ptr().cast() };
                let block = Block { y: y.as_mut_ptr(), ldy: NR, rows, width, add: false };
                // SAFETY: the buffers have the lengths that the segment and the block name; the
                // kernel is one that this processor reported.
                unsafe { kernel(&[segment], &block) };
                let wanted = product(&x, &turned(&panel, k, NR), rows, NR, k);
                for (found, wanted) in y.chunks_exact(NR).zip(wanted.chunks_exact(NR)) {
                    let error = worst(&found[..width], &wanted[..width]);
                    assert!(error < 1e-4, "{name} {rows} x {width}: {error}");
                    assert!(found[width..].iter().all(|v| *v == 0.0), "{name}: past its width");
                }
            }
        }
    }
}

#[test]
fn strided_products_agree_with_a_plain_loop() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let (a, b) = (random(&mut rng, 5 * 9), random(&mut rng, 6 * 9));
    let mut to = vec![1.0; 5 * 8];
    let (left, right) = (View::new(&a[2..], 5, 7, 9), View::new(&b[2..], 6, 7, 9));
    gemm(ViewMut::new(&mut to, 5, 6, 8), true, left, right.t(), 2.0);
    let cut = |m: &[f32]| m.chunks_exact(9).flat_map(|row| row[2..].to_vec()).collect::<Vec<_>>();
    let wanted = product(&cut(&a), &cut(&b), 5, 6, 7);
    for (found, wanted) in to.chunks_exact(8).zip(wanted.chunks_exact(6)) {
        let wanted: Vec<f32> = wanted.iter().map(|v| 1.0 + 2.0 * v).collect();
        assert!(worst(&found[..6], &wanted) < 1e-5);
        assert_eq!(found[6..], [1.0, 1.0]);
    }
}

#[test]
#[should_panic(expected = "past its buffer")]
fn a_view_past_its_buffer_is_caught() {
    let _ = View::new(&[0.0; 10], 3, 4, 4);
}
