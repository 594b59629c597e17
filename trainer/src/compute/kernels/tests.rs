//! Every kernel against a plain triple loop, on shapes with every kind of rest.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::micro::{Kernel, Multiply, NR, ROWS_MAX, Source, Stretch, Strip, kernels};
use super::words::Precision;
use super::{
    Job, Left, Linear, Out, Outer, Part, Product, Rows, Term, Tile, accumulate, block_rows,
    collect, f32_words, multiply, panel, portable, project, project_back, strips, turn_square,
};
use crate::compute::order;

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
fn all() -> Vec<(&'static str, Multiply, usize)> {
    let mut all = vec![("portable", portable::MULTIPLY, portable::ROWS)];
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected;
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            all.push(("avx2", portable::MULTIPLY_AVX2, portable::ROWS));
        }
    }
    all.push(("chosen", kernels().single, kernels().rows));
    all
}

/// Runs one kernel on `rows` strided rows; `None` past a narrow kernel's columns.
fn run(kernel: Kernel, x: &[f32], step: usize, panel: &[f32], tile: &mut [f32]) {
    // Two stretches, of which the first has all but the last steps.
    let (k, ahead) = (panel.len() / NR, panel.as_ptr().cast());
    let stretch = |first: usize, k: usize| Stretch {
        x: x[first * step..].as_ptr().cast(),
        step: 4 * step,
        panel: panel[first * NR..].as_ptr().cast(),
        k,
        ahead,
        ahead_step: 16,
    };
    let stretches = &[stretch(0, k - 3), stretch(k - 3, 3)];
    let strip = Strip { stretches, tile: tile.as_mut_ptr(), stride: NR, fresh: false };
    // SAFETY: the caller's buffers have the lengths that the strip names; the kernel is one that
    // this processor reported.
    unsafe { kernel(&strip) };
}

#[test]
fn every_f32_kernel_of_this_machine_agrees_with_a_plain_loop() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for (name, multiply, most) in all() {
        assert!(most <= ROWS_MAX);
        for (rows, step) in (1..=most).flat_map(|rows| [(rows, rows), (rows, rows + 5)]) {
            let k = 37;
            let (x, panel) = (random(&mut rng, k * step), random(&mut rng, k * NR));
            let cut: Vec<f32> = x.chunks_exact(step).flat_map(|w| w[..rows].to_vec()).collect();
            let wanted = product(&turned(&cut, k, rows), &turned(&panel, k, NR), rows, NR, k);
            for (kernel, width) in [(multiply.wide[rows - 1], NR), (multiply.narrow[rows - 1], 16)]
            {
                let mut tile = vec![1.0; rows * NR];
                run(kernel, &x, step, &panel, &mut tile);
                for (found, wanted) in tile.chunks_exact(NR).zip(wanted.chunks_exact(NR)) {
                    let wanted: Vec<f32> = wanted.iter().map(|w| 1.0 + w).collect();
                    let error = worst(&found[..width], &wanted[..width]);
                    assert!(error < 1e-4, "{name} {rows} x {width}: {error}");
                    assert!(found[width..].iter().all(|v| *v == 1.0), "{name}: past its width");
                }
            }
        }
    }
}

#[test]
fn every_interleave_lays_rows_side_by_side() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for (name, multiply, _) in all() {
        for (rows, width) in [(1, 1), (3, 16), (12, 17), (16, 40)] {
            let (stride, scale) = (width + 3, 0.5);
            let x = random(&mut rng, rows * stride);
            let mut to = vec![0u32; width * rows + 16];
            let source = Source { from: x.as_ptr(), stride, rows, width, scale };
            // SAFETY: rows of `x`, `width` steps of `rows` words with sixteen behind the last.
            unsafe { (multiply.interleave)(&source, to.as_mut_ptr(), rows) };
            for (i, words) in to.chunks_exact(rows).enumerate().take(width) {
                let wanted: Vec<f32> = (0..rows).map(|r| scale * x[r * stride + i]).collect();
                assert_eq!(words, f32_words(&wanted), "{name} {rows} x {width}");
            }
        }
    }
}

#[test]
fn blocks_of_a_product_agree_with_a_plain_loop_for_few_and_many_rows() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    for rows in [1, 7, 33, 100] {
        let (outputs, inputs, stride) = (300, 45, 303);
        let [x, w] = [rows, outputs].map(|n| random(&mut rng, n * inputs));
        let packed = Rows::pack(&x, inputs, rows, inputs, Precision::F32);
        let linear = Linear::pack(&w, outputs, inputs, 1.0, Precision::F32);
        let mut y = vec![7.0; rows * stride];
        multiply(Out { y: &mut y, stride, add: false }, &[Part::new(&packed, &linear)]);
        let wanted = product(&x, &w, rows, outputs, inputs);
        for (found, wanted) in y.chunks_exact(stride).zip(wanted.chunks_exact(outputs)) {
            assert!(worst(&found[..outputs], wanted) < 1e-4, "{rows} rows");
            assert_eq!(found[outputs..], [7.0; 3], "what lies between rows is not touched");
        }
    }
}

#[test]
fn outer_products_agree_with_a_plain_loop() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let shapes = [(1, 1, 1), (131, 100, 16), (300, 7, 48), (130, 230, 16)];
    let precisions = [(Precision::F32, 1e-4), (Precision::Bf16.supported(), 0.3)];
    let cases = shapes.into_iter().flat_map(|shape| precisions.map(|p| (shape, p)));
    for ((rows, width, columns), (precision, tolerance)) in cases {
        let (left, right) =
            (random(&mut rng, rows * width), random(&mut rng, rows * (columns + 2)));
        let mut to = [vec![1.0; width * columns], vec![1.0; width * columns]];
        let (stride, first) = (columns + 2, 2);
        for (add, to) in [true, false].into_iter().zip(&mut to) {
            let (left, right, scale) = (&left[..], &right[..], 2.0);
            let outer = Outer { to, add, left, right, stride, first, columns, scale, precision };
            order::run(collect(rows, vec![outer]));
        }
        let cut: Vec<f32> = right.chunks_exact(stride).flat_map(|r| r[first..].to_vec()).collect();
        let (left, right) = (turned(&left, rows, width), turned(&cut, rows, columns));
        let wanted = product(&right, &left, columns, width, rows);
        for (to, before) in to.iter().zip([1.0, 0.0]) {
            let wanted: Vec<f32> = wanted.iter().map(|w| before + 2.0 * w).collect();
            let error = worst(to, &wanted);
            assert!(error < tolerance, "{precision:?} {rows} {width} {columns} {before}: {error}");
        }
    }
}

#[test]
fn squares_and_panels_are_turned_exactly() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let square: [f32; NR * NR] = std::array::from_fn(|_| rng.random());
    let mut to = [0.0; NR * NR];
    turn_square(&square, &mut to);
    assert_eq!(to.to_vec(), turned(&square, NR, NR));
    let (x, mut columns) = (random(&mut rng, 20 * 9), Vec::new());
    panel(&mut columns, &x, (9, 20, 7), 2.0, Precision::F32);
    for (i, row) in columns.chunks_exact(NR).enumerate() {
        let wanted: Vec<f32> =
            (0..NR).map(|j| if j < 20 { 2.0 * x[j * 9 + i] } else { 0.0 }).collect();
        assert_eq!(row, f32_words(&wanted));
    }
}

#[test]
fn strips_and_blocks_cover_all_rows() {
    for rows in 0..200 {
        let mut next = 0;
        for (first, take) in strips(rows) {
            assert!(first == next && take > 0 && take <= kernels().rows);
            next += take;
        }
        assert_eq!(next, rows);
        assert!(block_rows(rows) >= 1);
    }
}

#[test]
#[should_panic(expected = "past its rows")]
fn a_strip_past_its_buffer_is_caught() {
    let left = Left { words: &[0; 10], step: 4, rows: 3 };
    let (precision, narrow, ahead): (_, _, (&[u32], _)) = (Precision::F32, false, (&[], 0));
    accumulate(
        Tile { values: &mut [0.0; 3 * NR], stride: NR, fresh: false },
        Product { precision, left, panel: &[0; 3 * NR], narrow, ahead },
    );
}
