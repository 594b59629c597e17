//! What a micro-kernel is: a strip of rows times one panel of columns, added to a tile.
//!
//! All instruction sets share one packed layout, `(k, 32)` panels of 32-bit words, so the weights
//! exist once and the kernel is chosen when the program runs. A word is an f32, or two bf16 that
//! are neighbours along the contraction (the first in the low half): then `k` counts pairs.
//! A strip lies with its rows side by side: `x[step * i + r]` is word `i` of row `r`.

use std::sync::OnceLock;

use super::portable;
use super::words::Precision;

/// Columns of a packed panel. A multiple of every vector width in use.
pub(in crate::compute) const NR: usize = 32;
/// Most rows of a strip of any kernel.
pub(in crate::compute) const ROWS_MAX: usize = 12;

/// One stretch of a contraction: `Σ_i x[step · i + r] · panel[i]`, and which words to fetch
/// meanwhile.
///
/// Kernels read it field by field: six words, in this order.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Stretch {
    pub(super) x: *const u32,
    /// Bytes from one `i` to the next.
    pub(super) step: usize,
    pub(super) panel: *const u32,
    pub(super) k: usize,
    /// Fetched into the cache along the way, `ahead_step` bytes per step. Never read.
    pub(super) ahead: *const u32,
    pub(super) ahead_step: usize,
}

/// `tile (rows, NR) (+)=` the sum of one stretch after the other.
#[derive(Clone, Copy)]
pub(super) struct Strip<'a> {
    /// At least one.
    pub(super) stretches: &'a [Stretch],
    pub(super) tile: *mut f32,
    /// Values from row to row of the tile.
    pub(super) stride: usize,
    /// Overwrite the tile instead of adding to it.
    pub(super) fresh: bool,
}

/// # Safety
/// Of each stretch, `x` is readable for `rows` words at each of `k` > 0 steps, the panel for `k · NR`
/// words; the tile is writable for `rows` rows of NR values and not aliased; the instruction set is
/// there. A narrow kernel reads and writes only the first 16 columns.
pub(super) type Kernel = unsafe fn(&Strip<'_>);

/// Turns `(n, NR)` rows: `to[j * NR + i] = from[i * NR + j]` for `i < width`, `j < count`.
///
/// # Safety
/// `from` is readable for `width` rows and `to` writable for `count` rows of `NR` words each;
/// the instruction set is there.
pub(super) type Transpose = unsafe fn(from: *const u32, to: *mut u32, width: usize, count: usize);

/// Brings the lines of a tile, `rows` rows of NR values at `stride`, near for writing while the tile
/// is computed. Without, its stores fill the store queue and hold up the next tile.
pub(super) type Fetch = fn(tile: *const f32, stride: usize, rows: usize);

/// Rows of values to be laid side by side as words.
#[derive(Clone, Copy)]
pub(super) struct Source {
    pub(super) from: *const f32,
    /// Values from row to row.
    pub(super) stride: usize,
    /// At most 16.
    pub(super) rows: usize,
    /// Values of a row.
    pub(super) width: usize,
    pub(super) scale: f32,
}

/// Writes word `i` of row `r` to `to[step * i + r]`, and zero or what follows to the rest of the 16
/// words from `to[step * i]` on, in order of `i`.
///
/// # Safety
/// The source is readable; `to` is writable for 16 words at each step; the instruction set is there.
pub(super) type Interleave = unsafe fn(&Source, to: *mut u32, step: usize);

/// Kernels for one kind of word, by rows − 1.
#[derive(Clone, Copy)]
pub(super) struct Multiply {
    pub(super) wide: [Kernel; ROWS_MAX],
    pub(super) narrow: [Kernel; ROWS_MAX],
    pub(super) interleave: Interleave,
}

/// The kernels for this machine.
#[derive(Clone, Copy)]
pub(super) struct Kernels {
    pub(super) single: Multiply,
    /// For words that are pairs of bf16; `None` where the processor has no such instruction.
    pub(super) pairs: Option<Multiply>,
    pub(super) transpose: Transpose,
    pub(super) fetch: Fetch,
    /// Most rows of a strip.
    pub(super) rows: usize,
    pub(super) name: &'static str,
}

impl Kernels {
    /// Those for a kind of word. [`Precision::supported`] never lets bf16 through without kernels;
    /// should it happen, the wrong result would be noticed by every test.
    pub(super) fn of(&self, precision: Precision) -> &Multiply {
        match (precision, &self.pairs) {
            (Precision::Bf16, Some(pairs)) => pairs,
            _ => &self.single,
        }
    }
}

/// Chooses once, by what the processor reports.
pub(super) fn kernels() -> &'static Kernels {
    static CHOSEN: OnceLock<Kernels> = OnceLock::new();
    CHOSEN.get_or_init(choose)
}

const PORTABLE: Kernels = Kernels {
    single: portable::MULTIPLY,
    pairs: None,
    transpose: portable::transpose,
    fetch: portable::fetch,
    rows: portable::ROWS,
    name: "portable",
};

#[cfg(target_arch = "x86_64")]
fn choose() -> Kernels {
    use super::avx512;
    use std::arch::is_x86_feature_detected;
    if is_x86_feature_detected!("avx512f") {
        let pairs = is_x86_feature_detected!("avx512bf16");
        return Kernels {
            single: avx512::SINGLE,
            pairs: pairs.then_some(avx512::PAIRS),
            transpose: avx512::transpose,
            fetch: avx512::fetch,
            rows: ROWS_MAX,
            name: if pairs { "avx512+bf16" } else { "avx512" },
        };
    }
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        return Kernels { single: portable::MULTIPLY_AVX2, name: "avx2", ..PORTABLE };
    }
    PORTABLE
}

#[cfg(not(target_arch = "x86_64"))]
fn choose() -> Kernels {
    PORTABLE
}

/// Which instruction set the kernels use.
pub(in crate::compute) fn kernel_name() -> &'static str {
    kernels().name
}

/// Rows of the next strip, so that strips of at most `most` rows are nearly equal.
pub(super) fn strip(rows_left: usize, most: usize) -> usize {
    rows_left.div_ceil(rows_left.div_ceil(most).max(1))
}

/// The left side of [`accumulate`]: word `i` of row `r` is `words[step * i + r]`.
#[derive(Clone, Copy)]
pub(in crate::compute) struct Left<'a> {
    pub(in crate::compute) words: &'a [u32],
    pub(in crate::compute) step: usize,
    pub(in crate::compute) rows: usize,
}

/// Where a strip's product goes: rows of [`NR`] values that begin `stride` values after each other.
pub(in crate::compute) struct Tile<'a> {
    pub(in crate::compute) values: &'a mut [f32],
    pub(in crate::compute) stride: usize,
    /// Overwrite what stands there instead of adding to it.
    pub(in crate::compute) fresh: bool,
}

/// What [`accumulate`] multiplies, and with which kernels.
#[derive(Clone, Copy)]
pub(in crate::compute) struct Product<'a> {
    pub(in crate::compute) precision: Precision,
    pub(in crate::compute) left: Left<'a>,
    /// `(k, NR)`.
    pub(in crate::compute) panel: &'a [u32],
    /// Only the first 16 columns are computed.
    pub(in crate::compute) narrow: bool,
    /// Words that are fetched into the cache meanwhile, and how many bytes per step.
    pub(in crate::compute) ahead: (&'a [u32], usize),
}

/// `tile (rows, NR) (+)= left · panel (k, NR)` on the calling thread.
///
/// # Panics
/// When a length does not fit: a bug of the caller, caught before memory is touched.
#[inline]
pub(in crate::compute) fn accumulate(tile: Tile<'_>, product: Product<'_>) {
    let rows = product.left.rows;
    let Tile { values, stride, fresh } = tile;
    assert!(rows == 0 || values.len() >= (rows - 1) * stride + NR, "a strip past its tile");
    assert!(rows <= 1 || stride >= NR, "rows of a tile overlap");
    // SAFETY: checked above, and exclusively borrowed.
    unsafe { accumulate_at(values.as_mut_ptr(), stride, fresh, product, None) }
}

/// As [`accumulate`], with a tile that only the caller knows to be there, and perhaps a second product
/// of as many rows, which is added at once.
///
/// # Safety
/// `tile` is writable for the strip's rows of NR values at `stride`, and not aliased.
#[inline]
pub(super) unsafe fn accumulate_at(
    tile: *mut f32,
    stride: usize,
    fresh: bool,
    first: Product<'_>,
    second: Option<Product<'_>>,
) {
    let (kernels, rows) = (kernels(), first.left.rows);
    let one = first.stretch();
    let two = second.map_or(one, |second| {
        assert!(second.left.rows == rows && second.precision == first.precision, "another strip");
        second.stretch()
    });
    if rows == 0 || (one.k == 0 && !fresh && second.is_none()) {
        return;
    }
    assert!(one.k > 0 && two.k > 0 && rows <= kernels.rows, "a strip that no kernel takes");
    let multiply = kernels.of(first.precision);
    let kernel = if first.narrow { multiply.narrow[rows - 1] } else { multiply.wide[rows - 1] };
    let both = [one, two];
    let stretches = &both[..1 + usize::from(second.is_some())];
    // SAFETY: operands were checked, the tile is the caller's promise; `kernels` are those that the
    // processor reported.
    unsafe { kernel(&Strip { stretches, tile, stride, fresh }) }
}

impl Product<'_> {
    /// The operands as the kernels take them, checked.
    #[inline]
    fn stretch(&self) -> Stretch {
        let Product { left: Left { words, step, rows }, panel, ahead, .. } = *self;
        let k = panel.len() / NR;
        assert!(k == 0 || words.len() >= (k - 1) * step + rows, "a strip past its rows");
        Stretch {
            x: words.as_ptr(),
            step: 4 * step,
            panel: panel.as_ptr(),
            k,
            ahead: ahead.0.as_ptr(),
            ahead_step: ahead.1,
        }
    }
}

/// `to[j][i] = from[i][j]` for a square of `NR` by `NR` values.
pub(in crate::compute) fn turn_square(from: &[f32; NR * NR], to: &mut [f32; NR * NR]) {
    // SAFETY: both have NR rows of NR words.
    unsafe { (kernels().transpose)(from.as_ptr().cast(), to.as_mut_ptr().cast(), NR, NR) }
}

/// Values as the words of [`Precision::F32`].
pub(in crate::compute) fn f32_words(values: &[f32]) -> &[u32] {
    // SAFETY: f32 and u32 have the same size and alignment, and every bit pattern is valid.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len()) }
}
