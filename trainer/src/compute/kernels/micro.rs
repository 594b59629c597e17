//! What a micro-kernel is: a strip of rows times one panel of packed columns.
//!
//! All instruction sets share one packed layout, `(k, 32)` panels of 32-bit words, so the weights
//! exist once and the kernel is chosen when the program runs. A word is an f32, or two bf16 that
//! are neighbours along the contraction (the first in the low half): then `k` counts pairs.

use std::sync::OnceLock;

use super::portable;

/// Columns of a packed panel. A multiple of every vector width in use.
pub(super) const NR: usize = 32;

/// One stretch of the contraction: `x (rows, k)` with row stride `ldx`, times `panel (k, NR)`.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    pub(super) x: *const u32,
    pub(super) ldx: usize,
    pub(super) k: usize,
    pub(super) panel: *const u32,
}

/// The destination: `rows` rows of `width <= NR` columns at `y` with row stride `ldy`.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub(super) y: *mut f32,
    pub(super) ldy: usize,
    pub(super) rows: usize,
    pub(super) width: usize,
    /// Add to what stands in `y` instead of overwriting it.
    pub(super) add: bool,
}

/// `y (+)= Σ segments x · panel`.
///
/// # Safety
/// Every segment's `x` is readable for `rows` rows of `k` values at stride `ldx`, its panel for
/// `k * NR` values, `y` is writable as described by the block and not aliased; the instruction
/// set of the kernel is there.
pub(super) type Kernel = unsafe fn(&[Segment], &Block);

/// Turns `(k, NR)` panel rows into `(n, NR)` rows: `to[j * NR + i] = from[i * NR + j]` for
/// `i < width`, `j < count`.
///
/// # Safety
/// `from` is readable for `width` rows and `to` writable for `count` rows of `NR` values each;
/// the instruction set is there.
pub(super) type Transpose = unsafe fn(from: *const u32, to: *mut u32, width: usize, count: usize);

/// The kernels for this machine.
#[derive(Clone, Copy)]
pub(super) struct Kernels {
    pub(super) multiply: Kernel,
    /// For words that are pairs of bf16; `None` where the processor has no such instruction.
    pub(super) multiply_pairs: Option<Kernel>,
    pub(super) transpose: Transpose,
    pub(super) name: &'static str,
}

/// Chooses once, by what the processor reports.
pub(super) fn kernels() -> Kernels {
    static CHOSEN: OnceLock<Kernels> = OnceLock::new();
    *CHOSEN.get_or_init(choose)
}

const PORTABLE: Kernels = Kernels {
    multiply: portable::multiply,
    multiply_pairs: None,
    transpose: portable::transpose,
    name: "portable",
};

#[cfg(target_arch = "x86_64")]
fn choose() -> Kernels {
    use super::avx512;
    use std::arch::is_x86_feature_detected;
    if is_x86_feature_detected!("avx512f") {
        let pairs = is_x86_feature_detected!("avx512bf16");
        return Kernels {
            multiply: avx512::multiply,
            multiply_pairs: if pairs { Some(avx512::multiply_pairs) } else { None },
            transpose: avx512::transpose,
            name: "avx512",
        };
    }
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        return Kernels { multiply: portable::multiply_avx2, name: "avx2", ..PORTABLE };
    }
    PORTABLE
}

#[cfg(not(target_arch = "x86_64"))]
fn choose() -> Kernels {
    PORTABLE
}

/// Rows of the next strip, so that strips of at most `most` rows are nearly equal.
pub(super) fn strip(rows_left: usize, most: usize) -> usize {
    rows_left.div_ceil(rows_left.div_ceil(most).max(1))
}
