//! Micro-kernels in plain Rust: for AVX2 machines (compiled with AVX2 and FMA enabled) and for
//! every other architecture.

use super::micro::{Multiply, NR, ROWS_MAX, Source, Strip};

/// Half a panel: what fits the sixteen AVX2 registers together with six rows.
const HALF: usize = 16;
/// Most rows of a strip.
pub(super) const ROWS: usize = 6;

/// Kernels by rows; those beyond [`ROWS`] are never asked for.
macro_rules! table {
    ($name:ident, $halves:literal) => {
        [
            $name::<1, $halves>,
            $name::<2, $halves>,
            $name::<3, $halves>,
            $name::<4, $halves>,
            $name::<5, $halves>,
            $name::<6, $halves>,
            $name::<7, $halves>,
            $name::<8, $halves>,
            $name::<9, $halves>,
            $name::<10, $halves>,
            $name::<11, $halves>,
            $name::<ROWS_MAX, $halves>,
        ]
    };
}

/// For any machine.
pub(super) const MULTIPLY: Multiply =
    Multiply { wide: table!(plain, 2), narrow: table!(plain, 1), interleave };

/// For machines with AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
pub(super) const MULTIPLY_AVX2: Multiply =
    Multiply { wide: table!(avx2, 2), narrow: table!(avx2, 1), interleave };

/// See [`super::micro::Kernel`].
unsafe fn plain<const MR: usize, const HALVES: usize>(strip: &Strip<'_>) {
    for half in 0..HALVES {
        // SAFETY: the caller's promise is ours.
        unsafe { tile::<MR, false>(strip, half) }
    }
}

/// See [`super::micro::Kernel`]; needs AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const MR: usize, const HALVES: usize>(strip: &Strip<'_>) {
    for half in 0..HALVES {
        // SAFETY: the caller's promise is ours.
        unsafe { tile::<MR, true>(strip, half) }
    }
}

#[inline(always)]
unsafe fn tile<const MR: usize, const FMA: bool>(s: &Strip<'_>, half: usize) {
    let mut acc = [[0.0f32; HALF]; MR];
    for p in s.stretches {
        let step = p.step / 4;
        for i in 0..p.k {
            // SAFETY: i < k rows of the panel; the half is inside its NR columns.
            let w = unsafe { &*p.panel.add(i * NR + half * HALF).cast::<[f32; HALF]>() };
            for (r, sums) in acc.iter_mut().enumerate() {
                // SAFETY: MR words at each of k steps.
                let x = f32::from_bits(unsafe { *p.x.add(i * step + r) });
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = if FMA { x.mul_add(*w, *sum) } else { x * *w + *sum };
                }
            }
        }
    }
    for (r, sums) in acc.iter().enumerate() {
        // SAFETY: MR rows of the tile.
        let to = unsafe { &mut *s.tile.add(r * s.stride + half * HALF).cast::<[f32; HALF]>() };
        for (to, sum) in to.iter_mut().zip(sums) {
            *to = if s.fresh { *sum } else { *to + *sum };
        }
    }
}

/// See [`super::micro::Fetch`]: left to the processor.
pub(super) fn fetch(_: *const f32, _: usize, _: usize) {}

/// See [`super::micro::Transpose`].
pub(super) unsafe fn transpose(from: *const u32, to: *mut u32, width: usize, count: usize) {
    for i in 0..width {
        for j in 0..count {
            // SAFETY: i < width rows of `from`, j < count rows of `to`, both NR wide.
            unsafe { *to.add(j * NR + i) = *from.add(i * NR + j) };
        }
    }
}

/// See [`super::micro::Interleave`].
pub(super) unsafe fn interleave(source: &Source, to: *mut u32, step: usize) {
    for i in 0..source.width {
        for r in 0..HALF {
            // SAFETY: r < rows rows of the source; 16 words at each step of `to`.
            unsafe {
                let value = match r < source.rows {
                    true => source.scale * *source.from.add(r * source.stride + i),
                    false => 0.0,
                };
                *to.add(i * step + r) = value.to_bits();
            }
        }
    }
}
