//! AVX-512 micro-kernels: twelve rows by thirty-two columns in twenty-four registers, for words
//! that are f32 and for words that are pairs of bf16 (products in bf16, sums in f32).

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_add_ps, _mm512_castpd_ps, _mm512_castps_pd,
    _mm512_castsi512_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_set1_epi32, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_shuffle_f32x4, _mm512_storeu_ps, _mm512_unpackhi_pd,
    _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
};
use std::mem::transmute;

use super::micro::{Block, NR, Segment, strip};

const LANES: usize = 16;
const ROWS: usize = 12;

/// Defines one kernel: the walk over strips of rows is the same for every kind of word, only the
/// multiplication differs, and with it the instruction sets that have to be switched on.
macro_rules! kernel {
    ($name:ident, $rows:ident, $tile:ident, $step:ident, $features:literal, $multiply:expr) => {
        /// See [`super::micro::Kernel`]; needs the instruction sets named by its attribute.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(segments: &[Segment], block: &Block) {
            let mut row = 0;
            while row < block.rows {
                let take = strip(block.rows - row, ROWS);
                // SAFETY: rows row..row + take are inside the block.
                unsafe {
                    if block.width > LANES {
                        $rows::<2>(segments, block, row, take);
                    } else {
                        $rows::<1>(segments, block, row, take);
                    }
                }
                row += take;
            }
        }

        #[target_feature(enable = $features)]
        unsafe fn $rows<const NV: usize>(s: &[Segment], block: &Block, row: usize, take: usize) {
            // SAFETY: the caller's promise is ours.
            unsafe {
                match take {
                    12 => $tile::<12, NV>(s, block, row),
                    11 => $tile::<11, NV>(s, block, row),
                    10 => $tile::<10, NV>(s, block, row),
                    9 => $tile::<9, NV>(s, block, row),
                    8 => $tile::<8, NV>(s, block, row),
                    7 => $tile::<7, NV>(s, block, row),
                    6 => $tile::<6, NV>(s, block, row),
                    5 => $tile::<5, NV>(s, block, row),
                    4 => $tile::<4, NV>(s, block, row),
                    3 => $tile::<3, NV>(s, block, row),
                    2 => $tile::<2, NV>(s, block, row),
                    _ => $tile::<1, NV>(s, block, row),
                }
            }
        }

        #[target_feature(enable = $features)]
        unsafe fn $tile<const MR: usize, const NV: usize>(s: &[Segment], b: &Block, row: usize) {
            let mut acc = [[_mm512_setzero_ps(); NV]; MR];
            for s in s {
                // SAFETY: `row` is a row of x.
                let (mut x, mut panel) = (unsafe { s.x.add(row * s.ldx) }, s.panel);
                // Four steps at a time, so that the row addresses are computed once per four.
                for _ in 0..s.k / 4 {
                    for i in 0..4 {
                        // SAFETY: the four steps are inside k.
                        unsafe { $step::<MR, NV>(&mut acc, x.add(i), s.ldx, panel.add(i * NR)) };
                    }
                    // SAFETY: at most one past the last value of the row and of the panel.
                    (x, panel) = unsafe { (x.add(4), panel.add(4 * NR)) };
                }
                for i in 0..s.k % 4 {
                    // SAFETY: the remaining steps are inside k.
                    unsafe { $step::<MR, NV>(&mut acc, x.add(i), s.ldx, panel.add(i * NR)) };
                }
            }
            // SAFETY: MR rows from `row` are inside the block.
            unsafe { store(&acc, b, row) }
        }

        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn $step<const MR: usize, const NV: usize>(
            acc: &mut [[__m512; NV]; MR],
            x: *const u32,
            ldx: usize,
            panel: *const u32,
        ) {
            let mut w = [_mm512_setzero_si512(); NV];
            for (v, lane) in w.iter_mut().enumerate() {
                // SAFETY: NV * LANES <= NR words of the panel.
                *lane = unsafe { _mm512_loadu_si512(panel.add(v * LANES).cast()) };
            }
            for (r, sums) in acc.iter_mut().enumerate() {
                // SAFETY: MR rows of x.
                let x = _mm512_set1_epi32(unsafe { *x.add(r * ldx) } as i32);
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = $multiply(x, w, *sum);
                }
            }
        }
    };
}

kernel!(multiply, rows, tile, step, "avx512f", |x, w, sum| {
    _mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(w), sum)
});

kernel!(multiply_pairs, rows_pairs, tile_pairs, step_pairs, "avx512f,avx512bf16", |x, w, sum| {
    // SAFETY: both are 64 bytes of plain data; a word is two bf16 by the layout's definition.
    let (x, w) = unsafe { (transmute::<__m512i, __m512bh>(x), transmute::<__m512i, __m512bh>(w)) };
    _mm512_dpbf16_ps(sum, x, w)
});

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store<const MR: usize, const NV: usize>(
    acc: &[[__m512; NV]; MR],
    block: &Block,
    row: usize,
) {
    for (r, sums) in acc.iter().enumerate() {
        for (v, sum) in sums.iter().enumerate() {
            let columns = block.width.saturating_sub(v * LANES).min(LANES);
            let mask = ((1u32 << columns) - 1) as u16;
            // SAFETY: masked to the columns that the block has.
            unsafe {
                let y = block.y.add((row + r) * block.ldy + v * LANES);
                let old =
                    if block.add { _mm512_maskz_loadu_ps(mask, y) } else { _mm512_setzero_ps() };
                _mm512_mask_storeu_ps(y, mask, _mm512_add_ps(old, *sum));
            }
        }
    }
}

/// See [`super::micro::Transpose`]; needs AVX-512F. Only whole 16 by 16 squares go through
/// registers, the rest is copied value by value.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn transpose(from: *const u32, to: *mut u32, width: usize, count: usize) {
    let (whole_width, whole_count) = (width / LANES * LANES, count / LANES * LANES);
    for i in (0..whole_width).step_by(LANES) {
        for j in (0..whole_count).step_by(LANES) {
            // SAFETY: a whole square inside both.
            unsafe { square(from.add(i * NR + j).cast(), to.add(j * NR + i).cast()) };
        }
    }
    for i in 0..width {
        let start = if i < whole_width { whole_count } else { 0 };
        for j in start..count {
            // SAFETY: i < width rows of `from`, j < count rows of `to`.
            unsafe { *to.add(j * NR + i) = *from.add(i * NR + j) };
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn square(from: *const f32, to: *mut f32) {
    let mut rows = [_mm512_setzero_ps(); LANES];
    for (i, row) in rows.iter_mut().enumerate() {
        // SAFETY: sixteen rows of sixteen values.
        *row = unsafe { _mm512_loadu_ps(from.add(i * NR)) };
    }
    let mut quads = rows;
    for g in 0..4 {
        let [a, b, c, d] = [rows[4 * g], rows[4 * g + 1], rows[4 * g + 2], rows[4 * g + 3]];
        let (ab0, ab1) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let (cd0, cd1) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        let pd = |v: __m512| _mm512_castps_pd(v);
        quads[4 * g] = _mm512_castpd_ps(_mm512_unpacklo_pd(pd(ab0), pd(cd0)));
        quads[4 * g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pd(ab0), pd(cd0)));
        quads[4 * g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(pd(ab1), pd(cd1)));
        quads[4 * g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(pd(ab1), pd(cd1)));
    }
    // quads[4 g + c], 128-bit lane l = column 4 l + c of rows 4 g .. 4 g + 4.
    for c in 0..4 {
        let [a, b, d, e] = [quads[c], quads[4 + c], quads[8 + c], quads[12 + c]];
        let (ab_even, ab_odd) =
            (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
        let (de_even, de_odd) =
            (_mm512_shuffle_f32x4::<0x88>(d, e), _mm512_shuffle_f32x4::<0xdd>(d, e));
        let columns = [
            _mm512_shuffle_f32x4::<0x88>(ab_even, de_even),
            _mm512_shuffle_f32x4::<0x88>(ab_odd, de_odd),
            _mm512_shuffle_f32x4::<0xdd>(ab_even, de_even),
            _mm512_shuffle_f32x4::<0xdd>(ab_odd, de_odd),
        ];
        for (l, column) in columns.into_iter().enumerate() {
            // SAFETY: column 4 l + c < 16 is a row of the destination square.
            unsafe { _mm512_storeu_ps(to.add((4 * l + c) * NR), column) };
        }
    }
}
