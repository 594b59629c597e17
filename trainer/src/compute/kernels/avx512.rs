//! AVX-512 micro-kernels: twelve rows by thirty-two columns in twenty-four registers, for words
//! that are f32 and for words that are pairs of bf16 (products in bf16, sums in f32).
//!
//! The loops are written in assembly, because the compiler hoists the broadcasts of several steps
//! and spills them, which halves the speed.

use std::arch::asm;
use std::arch::x86_64::{
    __m512, __mmask16, _mm512_castpd_ps, _mm512_castps_pd, _mm512_cvtne2ps_pbh, _mm512_loadu_ps,
    _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_shuffle_f32x4,
    _mm512_storeu_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps, _mm512_unpacklo_pd,
    _mm512_unpacklo_ps,
};
use std::mem::transmute;

use super::micro::{Kernel, Multiply, NR, Source, Strip};

const LANES: usize = 16;

/// Defines one kernel: of each row its index and its accumulators, all 32 columns or half of them.
macro_rules! kernel {
    ($name:ident $features:literal $fma:literal $($row:tt $a:tt $b:tt),+) => {
        /// See [`super::micro::Kernel`]; needs the instruction sets named by its attribute.
        #[target_feature(enable = $features)]
        unsafe fn $name(s: &Strip<'_>) {
            // SAFETY: the caller's promise is ours; every register that is written is named.
            unsafe {
                asm!(
                    "test {fresh}, {fresh}",
                    "jnz 3f",
                    "mov {to}, {tile}",
                    $(concat!("vmovups ", $a, ", [{to}]"),
                      concat!("vmovups ", $b, ", [{to} + 64]"),
                      "add {to}, {stride}",)+
                    "jmp 2f",
                    "3:",
                    $(concat!("vpxord ", $a, ", ", $a, ", ", $a),
                      concat!("vpxord ", $b, ", ", $b, ", ", $b),)+
                    "2:",
                    "mov {x}, [{at}]",
                    "mov {step}, [{at} + 8]",
                    "mov {panel}, [{at} + 16]",
                    "mov {k}, [{at} + 24]",
                    "mov {ahead}, [{at} + 32]",
                    "mov {ahead_step}, [{at} + 40]",
                    "add {at}, 48",
                    "4:",
                    "vmovups zmm24, [{panel}]",
                    "vmovups zmm25, [{panel} + 64]",
                    "prefetcht1 [{ahead}]",
                    $(concat!("vbroadcastss zmm26, dword ptr [{x} + 4 * ", $row, "]"),
                      concat!($fma, " ", $a, ", zmm26, zmm24"),
                      concat!($fma, " ", $b, ", zmm26, zmm25"),)+
                    "add {x}, {step}",
                    "add {panel}, 128",
                    "add {ahead}, {ahead_step}",
                    "dec {k}",
                    "jnz 4b",
                    "dec {count}",
                    "jnz 2b",
                    $(concat!("vmovups [{tile}], ", $a),
                      concat!("vmovups [{tile} + 64], ", $b),
                      "add {tile}, {stride}",)+
                    at = inout(reg) s.stretches.as_ptr() => _,
                    count = inout(reg) s.stretches.len() => _,
                    x = out(reg) _, step = out(reg) _, panel = out(reg) _,
                    k = out(reg) _, ahead = out(reg) _, ahead_step = out(reg) _,
                    tile = inout(reg) s.tile => _, stride = in(reg) 4 * s.stride,
                    fresh = in(reg) usize::from(s.fresh), to = out(reg) _,
                    $(out($a) _, out($b) _,)+
                    out("zmm24") _, out("zmm25") _, out("zmm26") _,
                    options(nostack)
                );
            }
        }
    };
    (half $name:ident $features:literal $fma:literal $($row:tt $a:tt $b:tt),+) => {
        /// See [`super::micro::Kernel`]: a narrow one.
        #[target_feature(enable = $features)]
        unsafe fn $name(s: &Strip<'_>) {
            // SAFETY: the caller's promise is ours; every register that is written is named.
            unsafe {
                asm!(
                    "test {fresh}, {fresh}",
                    "jnz 3f",
                    "mov {to}, {tile}",
                    $(concat!("vmovups ", $a, ", [{to}]"),
                      "add {to}, {stride}",)+
                    "jmp 2f",
                    "3:",
                    $(concat!("vpxord ", $a, ", ", $a, ", ", $a),)+
                    "2:",
                    "mov {x}, [{at}]",
                    "mov {step}, [{at} + 8]",
                    "mov {panel}, [{at} + 16]",
                    "mov {k}, [{at} + 24]",
                    "add {at}, 48",
                    "4:",
                    "vmovups zmm24, [{panel}]",
                    $(concat!("vbroadcastss zmm26, dword ptr [{x} + 4 * ", $row, "]"),
                      concat!($fma, " ", $a, ", zmm26, zmm24"),)+
                    "add {x}, {step}",
                    "add {panel}, 128",
                    "dec {k}",
                    "jnz 4b",
                    "dec {count}",
                    "jnz 2b",
                    $(concat!("vmovups [{tile}], ", $a),
                      "add {tile}, {stride}",)+
                    at = inout(reg) s.stretches.as_ptr() => _,
                    count = inout(reg) s.stretches.len() => _,
                    x = out(reg) _, step = out(reg) _, panel = out(reg) _,
                    k = out(reg) _,
                    tile = inout(reg) s.tile => _, stride = in(reg) 4 * s.stride,
                    fresh = in(reg) usize::from(s.fresh), to = out(reg) _,
                    $(out($a) _,)+
                    out("zmm24") _, out("zmm26") _,
                    options(nostack)
                );
            }
        }
    };
}

/// All kernels of one number of rows.
macro_rules! kernels {
    ($single:ident $single_half:ident $pairs:ident $pairs_half:ident $($rows:tt)+) => {
        kernel!($single "avx512f" "vfmadd231ps" $($rows)+);
        kernel!(half $single_half "avx512f" "vfmadd231ps" $($rows)+);
        kernel!($pairs "avx512f,avx512bf16" "vdpbf16ps" $($rows)+);
        kernel!(half $pairs_half "avx512f,avx512bf16" "vdpbf16ps" $($rows)+);
    };
}

kernels!(single1 single_half1 pairs1 pairs_half1
    0 "zmm0" "zmm1");
kernels!(single2 single_half2 pairs2 pairs_half2
    0 "zmm0" "zmm1", 1 "zmm2" "zmm3");
kernels!(single3 single_half3 pairs3 pairs_half3
    0 "zmm0" "zmm1", 1 "zmm2" "zmm3", 2 "zmm4" "zmm5");
kernels!(single4 single_half4 pairs4 pairs_half4
    0 "zmm0" "zmm1", 1 "zmm2" "zmm3", 2 "zmm4" "zmm5", 3 "zmm6" "zmm7");
kernels!(single5 single_half5 pairs5 pairs_half5
    0 "zmm0" "zmm1", 1 "zmm2" "zmm3", 2 "zmm4" "zmm5", 3 "zmm6" "zmm7", 4 "zmm8" "zmm9");
kernels!(single6 single_half6 pairs6 pairs_half6
    0 "zmm0" "zmm1", 1 "zmm2" "zmm3", 2 "zmm4" "zmm5", 3 "zmm6" "zmm7", 4 "zmm8" "zmm9",
    5 "zmm10" "zmm11");
kernels!(single7 single_half7 pairs7 pairs_half7
    0 "zmm0" "zmm1", 1 "zmm2" "zmm3", 2 "zmm4" "zmm5", 3 "zmm6" "zmm7", 4 "zmm8" "zmm9",
    5 "zmm10" "zmm11", 6 "zmm12" "zmm13");
kernels!(single8 single_half8 pairs8 pairs_half8
    0 "zmm0" "zmm1", 1 "zmm2" "zmm3", 2 "zmm4" "zmm5", 3 "zmm6" "zmm7", 4 "zmm8" "zmm9",
    5 "zmm10" "zmm11", 6 "zmm12" "zmm13", 7 "zmm14" "zmm15");
kernels!(single9 single_half9 pairs9 pairs_half9
    0 "zmm0" "zmm1", 1 "zmm2" "zmm3", 2 "zmm4" "zmm5", 3 "zmm6" "zmm7", 4 "zmm8" "zmm9",
    5 "zmm10" "zmm11", 6 "zmm12" "zmm13", 7 "zmm14" "zmm15", 8 "zmm16" "zmm17");
kernels!(single10 single_half10 pairs10 pairs_half10
    0 "zmm0" "zmm1", 1 "zmm2" "zmm3", 2 "zmm4" "zmm5", 3 "zmm6" "zmm7", 4 "zmm8" "zmm9",
    5 "zmm10" "zmm11", 6 "zmm12" "zmm13", 7 "zmm14" "zmm15", 8 "zmm16" "zmm17", 9 "zmm18" "zmm19");
kernels!(single11 single_half11 pairs11 pairs_half11
    0 "zmm0" "zmm1", 1 "zmm2" "zmm3", 2 "zmm4" "zmm5", 3 "zmm6" "zmm7", 4 "zmm8" "zmm9",
    5 "zmm10" "zmm11", 6 "zmm12" "zmm13", 7 "zmm14" "zmm15", 8 "zmm16" "zmm17",
    9 "zmm18" "zmm19", 10 "zmm20" "zmm21");
kernels!(single12 single_half12 pairs12 pairs_half12
    0 "zmm0" "zmm1", 1 "zmm2" "zmm3", 2 "zmm4" "zmm5", 3 "zmm6" "zmm7", 4 "zmm8" "zmm9",
    5 "zmm10" "zmm11", 6 "zmm12" "zmm13", 7 "zmm14" "zmm15", 8 "zmm16" "zmm17",
    9 "zmm18" "zmm19", 10 "zmm20" "zmm21", 11 "zmm22" "zmm23");

const SINGLE_WIDE: [Kernel; 12] = [
    single1, single2, single3, single4, single5, single6, single7, single8, single9, single10,
    single11, single12,
];
const SINGLE_HALF: [Kernel; 12] = [
    single_half1,
    single_half2,
    single_half3,
    single_half4,
    single_half5,
    single_half6,
    single_half7,
    single_half8,
    single_half9,
    single_half10,
    single_half11,
    single_half12,
];
const PAIRS_WIDE: [Kernel; 12] = [
    pairs1, pairs2, pairs3, pairs4, pairs5, pairs6, pairs7, pairs8, pairs9, pairs10, pairs11,
    pairs12,
];
const PAIRS_HALF: [Kernel; 12] = [
    pairs_half1,
    pairs_half2,
    pairs_half3,
    pairs_half4,
    pairs_half5,
    pairs_half6,
    pairs_half7,
    pairs_half8,
    pairs_half9,
    pairs_half10,
    pairs_half11,
    pairs_half12,
];

/// See [`super::micro::Fetch`].
pub(super) fn fetch(tile: *const f32, stride: usize, rows: usize) {
    for row in 0..rows {
        let from = tile.wrapping_add(row * stride);
        // SAFETY: a prefetch reads and writes nothing, whatever the address.
        unsafe {
            asm!(
                "prefetchw [{from}]",
                "prefetchw [{from} + 64]",
                "prefetchw [{from} + 124]",
                from = in(reg) from,
                options(nostack, preserves_flags)
            );
        }
    }
}

/// For words that are f32.
pub(super) const SINGLE: Multiply =
    Multiply { wide: SINGLE_WIDE, narrow: SINGLE_HALF, interleave: interleave_single };

/// For words that are pairs of bf16.
pub(super) const PAIRS: Multiply =
    Multiply { wide: PAIRS_WIDE, narrow: PAIRS_HALF, interleave: interleave_pairs };

/// The first `count` lanes (all from 16 on).
fn mask(count: usize) -> __mmask16 {
    ((1u32 << count.min(LANES)) - 1) as __mmask16
}

/// Sixteen values of a row from `i` on, zeros past its end.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(source: &Source, row: usize, i: usize) -> __m512 {
    let left = source.width.saturating_sub(i);
    let from = source.from.wrapping_add(row * source.stride + i);
    // SAFETY: masked to what is left of the row.
    let values = unsafe { _mm512_maskz_loadu_ps(mask(left), from) };
    _mm512_mul_ps(values, _mm512_set1_ps(source.scale))
}

/// Writes the first `count` of sixteen columns.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn put(rows: [__m512; LANES], to: *mut u32, step: usize, count: usize) {
    for (j, column) in turned(rows).into_iter().enumerate().take(count) {
        // SAFETY: 16 words at each step.
        unsafe { _mm512_storeu_ps(to.add(j * step).cast(), column) };
    }
}

/// See [`super::micro::Interleave`]; needs AVX-512F.
#[target_feature(enable = "avx512f")]
unsafe fn interleave_single(source: &Source, to: *mut u32, step: usize) {
    for i in (0..source.width).step_by(LANES) {
        let mut rows = [_mm512_setzero_ps(); LANES];
        for (r, row) in rows.iter_mut().enumerate().take(source.rows) {
            // SAFETY: r is a row of the source.
            *row = unsafe { load(source, r, i) };
        }
        // SAFETY: words i.. of the destination.
        unsafe { put(rows, to.add(i * step), step, source.width - i) };
    }
}

/// See [`super::micro::Interleave`]; needs AVX-512 BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn interleave_pairs(source: &Source, to: *mut u32, step: usize) {
    let words = source.width.div_ceil(2);
    for i in (0..words).step_by(LANES) {
        let mut rows = [_mm512_setzero_ps(); LANES];
        for (r, row) in rows.iter_mut().enumerate().take(source.rows) {
            // SAFETY: r is a row of the source; 32 bf16 are 64 bytes of plain data.
            *row = unsafe {
                let (low, high) = (load(source, r, 2 * i), load(source, r, 2 * i + LANES));
                transmute::<std::arch::x86_64::__m512bh, __m512>(_mm512_cvtne2ps_pbh(high, low))
            };
        }
        // SAFETY: words i.. of the destination.
        unsafe { put(rows, to.add(i * step), step, words - i) };
    }
}

/// See [`super::micro::Transpose`]; needs AVX-512F. Only whole 16 by 16 squares go through
/// registers, the rest is copied value by value.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn transpose(from: *const u32, to: *mut u32, width: usize, count: usize) {
    let (whole_width, whole_count) = (width / LANES * LANES, count / LANES * LANES);
    for i in (0..whole_width).step_by(LANES) {
        for j in (0..whole_count).step_by(LANES) {
            let mut rows = [_mm512_setzero_ps(); LANES];
            for (r, row) in rows.iter_mut().enumerate() {
                // SAFETY: a whole square inside `from`.
                *row = unsafe { _mm512_loadu_ps(from.add((i + r) * NR + j).cast()) };
            }
            // SAFETY: a whole square inside `to`.
            unsafe { put(rows, to.add(j * NR + i), NR, LANES) };
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

/// Columns of a 16 by 16 square.
#[inline]
#[target_feature(enable = "avx512f")]
fn turned(rows: [__m512; LANES]) -> [__m512; LANES] {
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
    let mut columns = quads;
    for c in 0..4 {
        let [a, b, d, e] = [quads[c], quads[4 + c], quads[8 + c], quads[12 + c]];
        let (ab_even, ab_odd) =
            (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
        let (de_even, de_odd) =
            (_mm512_shuffle_f32x4::<0x88>(d, e), _mm512_shuffle_f32x4::<0xdd>(d, e));
        columns[c] = _mm512_shuffle_f32x4::<0x88>(ab_even, de_even);
        columns[4 + c] = _mm512_shuffle_f32x4::<0x88>(ab_odd, de_odd);
        columns[8 + c] = _mm512_shuffle_f32x4::<0xdd>(ab_even, de_even);
        columns[12 + c] = _mm512_shuffle_f32x4::<0xdd>(ab_odd, de_odd);
    }
    columns
}
