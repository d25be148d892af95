//! Row kernels: RMSNorm forward and backward, bias gradients, sums. Sums run in 16 fixed lanes, whatever the vector width.

use super::isa::simd;

/// Lanes of every horizontal sum.
pub const LANES: usize = 16;

/// Folds 16 lane sums in a fixed tree.
#[inline(always)]
pub fn fold(lanes: [f32; LANES]) -> f32 {
    let mut s = lanes;
    let mut w = LANES / 2;
    while w > 0 {
        for i in 0..w {
            s[i] += s[i + w];
        }
        w /= 2;
    }
    s[0]
}

/// Σ aᵢ bᵢ in fixed lanes.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (ac, bc) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (ar, br) = (ac.remainder(), bc.remainder());
    for (x, y) in ac.zip(bc) {
        for l in 0..LANES {
            lanes[l] = x[l].mul_add(y[l], lanes[l]);
        }
    }
    for (l, (x, y)) in ar.iter().zip(br).enumerate() {
        lanes[l] = x.mul_add(*y, lanes[l]);
    }
    fold(lanes)
}

/// Σ (aᵢ bᵢ) cᵢ of three rows of one length, in fixed lanes.
#[inline(always)]
pub fn dot_of_three(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let n = a.len();
    let whole = n - n % LANES;
    for i in (0..whole).step_by(LANES) {
        for l in 0..LANES {
            lanes[l] = (a[i + l] * b[i + l]).mul_add(c[i + l], lanes[l]);
        }
    }
    for i in whole..n {
        lanes[i - whole] = (a[i] * b[i]).mul_add(c[i], lanes[i - whole]);
    }
    fold(lanes)
}

simd! {
    /// Σ aᵢ bᵢ of two rows.
    pub fn row_dot(a: &[f32], b: &[f32]) -> f32 {
        dot(a, b)
    }
}

simd! {
    /// out = x · rstd · w for each row of `w.len()`; `rstd` receives 1 / sqrt(mean x² + eps).
    pub fn rms_norm(x: &[f32], w: &[f32], eps: f32, rstd: &mut [f32], out: &mut [f32]) {
        let h = w.len();
        for ((x, out), r) in x.chunks_exact(h).zip(out.chunks_exact_mut(h)).zip(rstd) {
            let s = 1.0 / (dot(x, x) / h as f32 + eps).sqrt();
            *r = s;
            for i in 0..h {
                out[i] = x[i] * s * w[i];
            }
        }
    }
}

simd! {
    /// The forward result again from a stored `rstd`, bit for bit.
    pub fn rms_norm_again(x: &[f32], w: &[f32], rstd: &[f32], out: &mut [f32]) {
        let h = w.len();
        for ((x, out), &s) in x.chunks_exact(h).zip(out.chunks_exact_mut(h)).zip(rstd) {
            for i in 0..h {
                out[i] = x[i] * s * w[i];
            }
        }
    }
}

/// dx += ∂norm/∂x · dy and, for a trained weight, dw += ∂norm/∂w · dy, rows in order.
pub fn rms_norm_backward(x: &[f32], w: &[f32], rstd: &[f32], dy: &[f32], dx: &mut [f32], dw: Option<&mut [f32]>) {
    if let Some(dw) = dw {
        rms_norm_backward_weight(x, rstd, dy, dw);
    }
    rms_norm_backward_input(x, w, rstd, dy, dx);
}

simd! {
    /// dw += ∂norm/∂w · dy, rows in order.
    fn rms_norm_backward_weight(x: &[f32], rstd: &[f32], dy: &[f32], dw: &mut [f32]) {
        let h = dw.len();
        for ((x, dy), &s) in x.chunks_exact(h).zip(dy.chunks_exact(h)).zip(rstd) {
            for i in 0..h {
                dw[i] = (x[i] * s).mul_add(dy[i], dw[i]);
            }
        }
    }
}

simd! {
    /// dx += ∂norm/∂x · dy.
    fn rms_norm_backward_input(x: &[f32], w: &[f32], rstd: &[f32], dy: &[f32], dx: &mut [f32]) {
        let h = w.len();
        for (((x, dy), dx), &s) in x.chunks_exact(h).zip(dy.chunks_exact(h)).zip(dx.chunks_exact_mut(h)).zip(rstd) {
            let c = dot_of_three(dy, w, x) * s * s / h as f32;
            for i in 0..h {
                dx[i] += s * (dy[i] * w[i] - x[i] * c);
            }
        }
    }
}

simd! {
    /// out\[j\] += Σ over rows of x\[row, j\], rows in order: bias gradients.
    pub fn add_columns(x: &[f32], out: &mut [f32]) {
        let n = out.len();
        for row in x.chunks_exact(n) {
            for (o, v) in out.iter_mut().zip(row) {
                *o += v;
            }
        }
    }
}

simd! {
    /// out += x.
    pub fn add_assign(out: &mut [f32], x: &[f32]) {
        for (o, v) in out.iter_mut().zip(x) {
            *o += v;
        }
    }
}
