//! Micro-kernels in plain Rust: for AVX2 machines (compiled with AVX2 and FMA enabled) and for
//! every other architecture.

use super::micro::{Block, NR, Segment, strip};

/// Half a panel: what fits the sixteen AVX2 registers together with six rows.
const HALF: usize = 16;
const ROWS: usize = 6;

/// See [`super::micro::Kernel`].
pub(super) unsafe fn multiply(segments: &[Segment], block: &Block) {
    // SAFETY: the caller's promise is ours.
    unsafe { run::<false>(segments, block) }
}

/// See [`super::micro::Kernel`]; needs AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn multiply_avx2(segments: &[Segment], block: &Block) {
    // SAFETY: the caller's promise is ours.
    unsafe { run::<true>(segments, block) }
}

/// See [`super::micro::Transpose`].
pub(super) unsafe fn transpose(from: *const u32, to: *mut u32, width: usize, count: usize) {
    for i in 0..width {
        for j in 0..count {
            // SAFETY: i < width rows of `from`, j < count rows of `to`, both NR wide.
            unsafe { *to.add(j * NR + i) = *from.add(i * NR + j) };
        }
    }
}

#[inline(always)]
unsafe fn run<const FMA: bool>(segments: &[Segment], block: &Block) {
    let mut row = 0;
    while row < block.rows {
        let take = strip(block.rows - row, ROWS);
        for half in 0..block.width.div_ceil(HALF) {
            // SAFETY: rows row..row + take and columns of this half are inside the block.
            unsafe {
                match take {
                    6 => tile::<6, FMA>(segments, block, row, half),
                    5 => tile::<5, FMA>(segments, block, row, half),
                    4 => tile::<4, FMA>(segments, block, row, half),
                    3 => tile::<3, FMA>(segments, block, row, half),
                    2 => tile::<2, FMA>(segments, block, row, half),
                    _ => tile::<1, FMA>(segments, block, row, half),
                }
            }
        }
        row += take;
    }
}

#[inline(always)]
unsafe fn tile<const MR: usize, const FMA: bool>(
    segments: &[Segment],
    block: &Block,
    row: usize,
    half: usize,
) {
    let mut acc = [[0.0f32; HALF]; MR];
    for s in segments {
        for k in 0..s.k {
            // SAFETY: k < s.k rows of the panel; the half is inside its NR columns.
            let w = unsafe { &*s.panel.add(k * NR + half * HALF).cast::<[f32; HALF]>() };
            for (r, sums) in acc.iter_mut().enumerate() {
                // SAFETY: row + r < block.rows.
                let x = f32::from_bits(unsafe { *s.x.add((row + r) * s.ldx + k) });
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = if FMA { x.mul_add(*w, *sum) } else { x * *w + *sum };
                }
            }
        }
    }
    let columns = (block.width - half * HALF).min(HALF);
    for (r, sums) in acc.iter().enumerate() {
        for (c, sum) in sums.iter().enumerate().take(columns) {
            // SAFETY: inside the block's rows and width.
            unsafe {
                let y = block.y.add((row + r) * block.ldy + half * HALF + c);
                *y = if block.add { *y + *sum } else { *sum };
            }
        }
    }
}
