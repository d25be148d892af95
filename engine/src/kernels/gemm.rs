//! Matrix products. Every output element is its start (zero, a bias or the old value) plus, one after another, the sums of at most
//! `KC` products; each sum is one chain of fused multiply-adds over k in rising order, from zero. Hence an element never depends on how
//! many rows or columns are computed with it, on blocking of those, threads or the instruction set: batch invariance holds by
//! construction. Sums from zero keep a large start (a residual stream, a bias) from rounding every step at its own magnitude.
//! It is not a general BLAS; shapes and layouts are those of this engine.

use super::isa::{Isa, isa};
use super::micro::{self, Load};
use super::numbers::{Element, Values};
use super::threads::share_rows;

/// Columns of a panel.
pub const NR: usize = 32;
/// Rows of the register tile.
pub const MR: usize = micro::MR;
/// k and m blocks: a panel block stays in L1, a block of A in L2. `KC` is part of the result.
const KC: usize = 256;
const MC: usize = 240;

/// `n` rounded up to whole panels.
#[inline]
pub const fn padded(n: usize) -> usize {
    n.div_ceil(NR) * NR
}

/// The left matrix: element (i, k) at `i * rs + k * cs`.
#[derive(Clone, Copy)]
pub struct Left<'a> {
    pub data: &'a [f32],
    pub rs: usize,
    pub cs: usize,
}

impl<'a> Left<'a> {
    /// Row-major rows `ld` apart.
    pub fn rows(data: &'a [f32], ld: usize) -> Self {
        Self { data, rs: ld, cs: 1 }
    }

    /// The transpose of row-major rows `ld` apart.
    pub fn transposed(data: &'a [f32], ld: usize) -> Self {
        Self { data, rs: 1, cs: ld }
    }
}

/// The right matrix as panels of `NR` columns: element (k, j) at `(j / NR) * stride + k * NR + j % NR`. Columns past n must exist (zeros).
#[derive(Clone, Copy)]
pub struct Panels<'a> {
    pub data: Values<'a>,
    pub stride: usize,
}

impl<'a> Panels<'a> {
    /// Panels of `k` rows one after another.
    pub fn new(data: &'a [f32], k: usize) -> Self {
        Self::of(Values::F32(data), k)
    }

    /// The same of f32 or bf16 values.
    pub fn of(data: Values<'a>, k: usize) -> Self {
        Self { data, stride: k * NR }
    }
}

/// What the product is added to.
#[derive(Clone, Copy)]
pub enum Init<'a> {
    Zero,
    /// The value already in C: accumulate.
    Keep,
    /// One value a column.
    Bias(&'a [f32]),
}

/// C\[m, n\] (rows `ldc` apart) = init + A\[m, k\] · B\[k, n\].
pub fn gemm(m: usize, n: usize, k: usize, a: Left, b: Panels, c: &mut [f32], ldc: usize, init: Init) {
    if m == 0 || n == 0 {
        return;
    }
    assert!((m - 1) * ldc + n <= c.len(), "gemm: C is too small");
    if k > 0 {
        assert!((m - 1) * a.rs + (k - 1) * a.cs < a.data.len(), "gemm: A is too small");
        assert!((n.div_ceil(NR) - 1) * b.stride + k * NR <= b.data.len(), "gemm: B is too small");
    }
    if let Init::Bias(bias) = init {
        assert!(bias.len() >= n, "gemm: bias is too small");
    }
    share_rows(m, MR, m * n * k, c, ldc, |rows, c| {
        let a = Left { data: &a.data[(rows.start * a.rs).min(a.data.len())..], ..a };
        // SAFETY: the assertions above bound every row, column and k, and `c` holds these rows.
        unsafe {
            match b.data {
                Values::F32(data) => product(rows.len(), n, k, a, data.as_ptr(), b.stride, c, ldc, init),
                Values::Bf16(data) => product(rows.len(), n, k, a, data.as_ptr(), b.stride, c, ldc, init),
            }
        }
    });
}

/// The blocks of [`gemm`] on one thread.
///
/// # Safety
/// A, B and C hold m × k, k × n (whole panels) and m × n elements at their strides, m and n are not 0.
unsafe fn product<T: Load>(
    m: usize,
    n: usize,
    k: usize,
    a: Left,
    b: *const T,
    stride: usize,
    c: &mut [f32],
    ldc: usize,
    init: Init,
) {
    let np = n.div_ceil(NR);
    let use_isa = isa();
    let mut k0 = 0;
    loop {
        let kc = KC.min(k - k0);
        let from = if k0 == 0 { init } else { Init::Keep };
        for i0 in (0..m).step_by(MC) {
            let mc = MC.min(m - i0);
            for p in 0..np {
                let cols = NR.min(n - p * NR);
                for i in (i0..i0 + mc).step_by(MR) {
                    let rows = MR.min(i0 + mc - i);
                    // SAFETY: every row, column and k of the tile is bounded by the caller.
                    unsafe {
                        let ap = a.data.as_ptr().add(i * a.rs + k0 * a.cs);
                        let bp = b.add(p * stride + k0 * NR);
                        let cp = c.as_mut_ptr().add(i * ldc + p * NR);
                        tile(use_isa, rows, cols, kc, ap, a.rs, a.cs, bp, cp, ldc, from, p * NR);
                    }
                }
            }
        }
        k0 += kc;
        if k0 >= k {
            break;
        }
    }
}

/// One register tile; narrow panels and biases go through a stack buffer.
#[inline]
unsafe fn tile<T: Load>(
    use_isa: Isa,
    rows: usize,
    cols: usize,
    k: usize,
    a: *const f32,
    rs: usize,
    cs: usize,
    b: *const T,
    c: *mut f32,
    ldc: usize,
    init: Init,
    col: usize,
) {
    // SAFETY: the caller bounds A and B; C is bounded by rows × cols, the buffer by MR × NR.
    unsafe {
        if cols == NR {
            let (keep, bias) = match init {
                Init::Zero => (false, std::ptr::null()),
                Init::Keep => (true, std::ptr::null()),
                Init::Bias(v) => (false, v.as_ptr().add(col)),
            };
            micro::tile(use_isa, rows, k, a, rs, cs, b, c, ldc, keep, bias);
            return;
        }
        let mut buf = [0f32; MR * NR];
        for i in 0..rows {
            match init {
                Init::Zero => {}
                Init::Keep => std::ptr::copy_nonoverlapping(c.add(i * ldc), buf.as_mut_ptr().add(i * NR), cols),
                Init::Bias(v) => buf[i * NR..i * NR + cols].copy_from_slice(&v[col..col + cols]),
            }
        }
        micro::tile(use_isa, rows, k, a, rs, cs, b, buf.as_mut_ptr(), NR, true, std::ptr::null());
        for i in 0..rows {
            std::ptr::copy_nonoverlapping(buf.as_ptr().add(i * NR), c.add(i * ldc), cols);
        }
    }
}

/// Packs row-major rows \[k, n\] (`ld` apart) into panels; `out` holds `padded(n) * k`.
pub fn pack_rows(k: usize, n: usize, src: &[f32], ld: usize, out: &mut [f32]) {
    for (p, panel) in out[..padded(n) * k].chunks_exact_mut((k * NR).max(1)).enumerate() {
        let cols = NR.min(n - p * NR);
        for (kk, row) in panel.chunks_exact_mut(NR).enumerate() {
            let from = &src[kk * ld + p * NR..][..cols];
            if cols == NR {
                row.copy_from_slice(from);
            } else {
                row[..cols].copy_from_slice(from);
                row[cols..].fill(0.0);
            }
        }
    }
}

/// Packs the transpose of row-major rows \[n, k\] (`ld` apart) into panels; `out` holds `padded(n) * k`.
pub fn pack_transposed<T: Element>(k: usize, n: usize, src: &[f32], ld: usize, out: &mut [T]) {
    for (p, panel) in out[..padded(n) * k].chunks_exact_mut((k * NR).max(1)).enumerate() {
        let cols = NR.min(n - p * NR);
        if cols < NR {
            panel.fill(T::default());
        }
        pack_panel(k, 0, cols, &src[p * NR * ld..], ld, panel);
    }
}

/// Columns `first..first + cols` of one panel from as many row-major rows of `k` elements.
pub fn pack_panel<T: Element>(k: usize, first: usize, cols: usize, src: &[f32], ld: usize, panel: &mut [T]) {
    // 16 k at a time: one cache line of each source row.
    for k0 in (0..k).step_by(16) {
        let kn = 16.min(k - k0);
        for j in 0..cols {
            let from = &src[j * ld + k0..][..kn];
            for (kk, &x) in from.iter().enumerate() {
                panel[(k0 + kk) * NR + first + j] = T::round(x);
            }
        }
    }
}

/// Rows `from..from + rows` (`from` a multiple of `NR`) of a matrix \[n, k\] whose transpose lies in `panels`, as panels of the matrix itself:
/// \[rows, k\] in `out`, which holds `padded(k) * rows`.
pub fn turn_panels<T: Element>(k: usize, panels: &[T], from: usize, rows: usize, out: &mut [f32]) {
    for (b, panel) in panels[from * k..].chunks(k * NR).take(rows.div_ceil(NR)).enumerate() {
        let jn = NR.min(rows - b * NR);
        for (p, block) in panel.chunks(NR * NR).enumerate() {
            let to = &mut out[p * rows * NR + b * NR * NR..][..jn * NR];
            for (i, row) in block.chunks_exact(NR).enumerate() {
                for j in 0..jn {
                    to[j * NR + i] = row[j].widen();
                }
            }
        }
    }
}

/// Buffers of [`accumulate_transposed`], kept by the caller so that the hot loop allocates nothing.
#[derive(Default)]
pub struct Scratch {
    a: Vec<f32>,
    b: Vec<f32>,
}

impl Scratch {
    /// A buffer for panels made for one product.
    pub fn panels(&mut self, n: usize) -> &mut [f32] {
        grow(&mut self.b, n);
        &mut self.b[..n]
    }
}

/// C\[m, n\] += Aᵀ · B with A\[k, m\] and B\[k, n\] row-major: weight gradients, k being the tokens.
pub fn accumulate_transposed(
    m: usize,
    n: usize,
    k: usize,
    a: &[f32],
    lda: usize,
    b: &[f32],
    ldb: usize,
    c: &mut [f32],
    ldc: usize,
    s: &mut Scratch,
) {
    // The first share of the rows uses the caller's buffers; others have their own.
    let kept = std::sync::Mutex::new(Some(s));
    share_rows(m, MR, m * n * k, c, ldc, |rows, c| {
        let mine = kept.lock().ok().and_then(|mut s| s.take());
        let a = a.get(rows.start..).unwrap_or_default();
        match mine {
            Some(s) => accumulate_rows(rows.len(), n, k, a, lda, b, ldb, c, ldc, s),
            None => accumulate_rows(rows.len(), n, k, a, lda, b, ldb, c, ldc, &mut Scratch::default()),
        }
    });
}

fn accumulate_rows(
    m: usize,
    n: usize,
    k: usize,
    a: &[f32],
    lda: usize,
    b: &[f32],
    ldb: usize,
    c: &mut [f32],
    ldc: usize,
    s: &mut Scratch,
) {
    for k0 in (0..k).step_by(KC) {
        let kc = KC.min(k - k0);
        grow(&mut s.b, padded(n) * kc);
        pack_rows(kc, n, &b[k0 * ldb..], ldb, &mut s.b);
        for i0 in (0..m).step_by(MC) {
            let mc = MC.min(m - i0);
            grow(&mut s.a, mc.div_ceil(MR) * MR * kc);
            for (blk, out) in s.a[..mc.div_ceil(MR) * MR * kc].chunks_exact_mut(MR * kc).enumerate() {
                let i = i0 + blk * MR;
                let rows = MR.min(i0 + mc - i);
                for (kk, dst) in out.chunks_exact_mut(MR).enumerate() {
                    let from = &a[(k0 + kk) * lda + i..][..rows];
                    if rows == MR {
                        dst.copy_from_slice(from);
                    } else {
                        dst[..rows].copy_from_slice(from);
                    }
                }
            }
            for blk in 0..mc.div_ceil(MR) {
                let i = blk * MR;
                let rows = MR.min(mc - i);
                let left = Left { data: &s.a[blk * MR * kc..(blk + 1) * MR * kc], rs: 1, cs: MR };
                gemm(rows, n, kc, left, Panels::new(&s.b, kc), &mut c[(i0 + i) * ldc..], ldc, Init::Keep);
            }
        }
    }
}

/// Makes a buffer at least `n` long; old contents are kept, new elements are zero.
#[inline]
pub fn grow(v: &mut Vec<f32>, n: usize) {
    if v.len() < n {
        v.resize(n, 0.0);
    }
}

#[cfg(test)]
#[path = "gemm_tests.rs"]
mod tests;
