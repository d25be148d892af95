//! The register tiles of the matrix product, one per instruction set. Unsafe and unchecked: `gemm.rs` checks the bounds.

use super::gemm::NR;
use super::isa::Isa;
use super::numbers::Element;
use std::arch::x86_64::*;

/// Rows of a tile.
pub const MR: usize = 12;

/// Loads of consecutive elements of B, widened to f32.
pub trait Load: Element {
    /// # Safety
    /// 16 elements are readable and the processor has AVX-512F.
    unsafe fn sixteen(at: *const Self) -> __m512;
    /// # Safety
    /// 8 elements are readable and the processor has AVX2.
    unsafe fn eight(at: *const Self) -> __m256;
}

impl Load for f32 {
    #[inline(always)]
    unsafe fn sixteen(at: *const Self) -> __m512 {
        // SAFETY: by contract.
        unsafe { _mm512_loadu_ps(at) }
    }
    #[inline(always)]
    unsafe fn eight(at: *const Self) -> __m256 {
        // SAFETY: by contract.
        unsafe { _mm256_loadu_ps(at) }
    }
}

impl Load for u16 {
    #[inline(always)]
    unsafe fn sixteen(at: *const Self) -> __m512 {
        // SAFETY: by contract.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn eight(at: *const Self) -> __m256 {
        // SAFETY: by contract.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
}

/// C\[rows, NR\] = start + A · B, where start is C (`keep`), a bias (not null) or zero. The product is summed from zero and the start
/// added once: a large start would round every step of the sum at its own magnitude.
///
/// # Safety
/// `rows` is in 1..=MR; A, B and C are valid for rows × k, k × NR and rows × NR elements at their strides; the processor has `isa`.
#[inline]
pub unsafe fn tile<T: Load>(
    isa: Isa,
    rows: usize,
    k: usize,
    a: *const f32,
    rs: usize,
    cs: usize,
    b: *const T,
    c: *mut f32,
    ldc: usize,
    keep: bool,
    bias: *const f32,
) {
    macro_rules! by_rows {
        ($f:ident, $left:expr, $a:expr, $b:expr, $c:expr, $bias:expr, $($m:literal)*) => {
            match $left { $($m => $f::<$m, T>(k, $a, rs, cs, $b, $c, ldc, keep, $bias),)* _ => std::hint::unreachable_unchecked() }
        };
    }
    // SAFETY: handed on from the caller.
    unsafe {
        match isa {
            Isa::Avx512 => by_rows!(wide, rows, a, b, c, bias, 1 2 3 4 5 6 7 8 9 10 11 12),
            Isa::Avx2 => {
                for half in [0, 16] {
                    let bias = if bias.is_null() { bias } else { bias.add(half) };
                    let mut i = 0;
                    while i < rows {
                        let left = (rows - i).min(6);
                        by_rows!(narrow, left, a.add(i * rs), b.add(half), c.add(i * ldc + half), bias, 1 2 3 4 5 6);
                        i += left;
                    }
                }
            }
            Isa::Baseline => portable(rows, k, a, rs, cs, b, c, ldc, keep, bias),
        }
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn wide<const M: usize, T: Load>(
    k: usize,
    a: *const f32,
    rs: usize,
    cs: usize,
    b: *const T,
    c: *mut f32,
    ldc: usize,
    keep: bool,
    bias: *const f32,
) {
    // SAFETY: see `tile`.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); 2]; M];
        let (mut ap, mut bp) = (a, b);
        for _ in 0..k {
            let b0 = T::sixteen(bp);
            let b1 = T::sixteen(bp.add(16));
            for (i, row) in acc.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*ap.add(i * rs));
                row[0] = _mm512_fmadd_ps(x, b0, row[0]);
                row[1] = _mm512_fmadd_ps(x, b1, row[1]);
            }
            ap = ap.wrapping_add(cs);
            bp = bp.wrapping_add(NR);
        }
        for (i, row) in acc.iter_mut().enumerate() {
            let out = c.add(i * ldc);
            let start = if keep { out.cast_const() } else { bias };
            if !start.is_null() {
                row[0] = _mm512_add_ps(_mm512_loadu_ps(start), row[0]);
                row[1] = _mm512_add_ps(_mm512_loadu_ps(start.add(16)), row[1]);
            }
            _mm512_storeu_ps(out, row[0]);
            _mm512_storeu_ps(out.add(16), row[1]);
        }
    }
}

#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn narrow<const M: usize, T: Load>(
    k: usize,
    a: *const f32,
    rs: usize,
    cs: usize,
    b: *const T,
    c: *mut f32,
    ldc: usize,
    keep: bool,
    bias: *const f32,
) {
    // SAFETY: see `tile`; this variant computes 16 columns.
    unsafe {
        let mut acc = [[_mm256_setzero_ps(); 2]; M];
        let (mut ap, mut bp) = (a, b);
        for _ in 0..k {
            let b0 = T::eight(bp);
            let b1 = T::eight(bp.add(8));
            for (i, row) in acc.iter_mut().enumerate() {
                let x = _mm256_set1_ps(*ap.add(i * rs));
                row[0] = _mm256_fmadd_ps(x, b0, row[0]);
                row[1] = _mm256_fmadd_ps(x, b1, row[1]);
            }
            ap = ap.wrapping_add(cs);
            bp = bp.wrapping_add(NR);
        }
        for (i, row) in acc.iter_mut().enumerate() {
            let out = c.add(i * ldc);
            let start = if keep { out.cast_const() } else { bias };
            if !start.is_null() {
                row[0] = _mm256_add_ps(_mm256_loadu_ps(start), row[0]);
                row[1] = _mm256_add_ps(_mm256_loadu_ps(start.add(8)), row[1]);
            }
            _mm256_storeu_ps(out, row[0]);
            _mm256_storeu_ps(out.add(8), row[1]);
        }
    }
}

unsafe fn portable<T: Load>(
    rows: usize,
    k: usize,
    a: *const f32,
    rs: usize,
    cs: usize,
    b: *const T,
    c: *mut f32,
    ldc: usize,
    keep: bool,
    bias: *const f32,
) {
    // SAFETY: see `tile`.
    unsafe {
        for i in 0..rows {
            for j in 0..NR {
                let out = c.add(i * ldc + j);
                let mut acc = 0f32;
                for kk in 0..k {
                    acc = (*a.add(i * rs + kk * cs)).mul_add((*b.add(kk * NR + j)).widen(), acc);
                }
                *out = if keep {
                    *out + acc
                } else if bias.is_null() {
                    acc
                } else {
                    *bias.add(j) + acc
                };
            }
        }
    }
}
