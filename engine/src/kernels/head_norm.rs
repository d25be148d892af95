//! RMSNorm of single heads inside rows of q|k|v, in place, with one weight for all heads: qk-norm. Sums run in the lanes of `norm.rs`.

use super::isa::simd;
use super::norm::{dot, dot_of_three};

simd! {
    /// Each of the heads (`w.len()` long, side by side at the start of each row of `x`, rows `ld` apart) ← x · rstd · w.
    /// `rstd` receives one value a row and head.
    pub fn head_norm(x: &mut [f32], ld: usize, heads: usize, w: &[f32], eps: f32, rstd: &mut [f32]) {
        let hd = w.len();
        for (row, rstd) in x.chunks_mut(ld).zip(rstd.chunks_exact_mut(heads)) {
            for (head, r) in row[..heads * hd].chunks_exact_mut(hd).zip(rstd) {
                let s = 1.0 / (dot(head, head) / hd as f32 + eps).sqrt();
                *r = s;
                for i in 0..hd {
                    head[i] = head[i] * s * w[i];
                }
            }
        }
    }
}

simd! {
    /// d ← ∂norm/∂x · d for the same heads, `x` being the heads before the norm (rows `ldx` apart).
    pub fn head_norm_backward_input(x: &[f32], ldx: usize, heads: usize, w: &[f32], rstd: &[f32], d: &mut [f32], ld: usize) {
        let hd = w.len();
        for ((x, d), rstd) in x.chunks(ldx).zip(d.chunks_mut(ld)).zip(rstd.chunks_exact(heads)) {
            for ((x, d), &s) in x[..heads * hd].chunks_exact(hd).zip(d[..heads * hd].chunks_exact_mut(hd)).zip(rstd) {
                let c = dot_of_three(d, w, x) * s * s / hd as f32;
                for i in 0..hd {
                    d[i] = s * (d[i] * w[i] - x[i] * c);
                }
            }
        }
    }
}

simd! {
    /// dw += ∂norm/∂w · d, rows and heads in order. Call it before [`head_norm_backward_input`], which overwrites `d`.
    pub fn head_norm_backward_weight(x: &[f32], ldx: usize, heads: usize, rstd: &[f32], d: &[f32], ld: usize, dw: &mut [f32]) {
        let hd = dw.len();
        for ((x, d), rstd) in x.chunks(ldx).zip(d.chunks(ld)).zip(rstd.chunks_exact(heads)) {
            for ((x, d), &s) in x[..heads * hd].chunks_exact(hd).zip(d[..heads * hd].chunks_exact(hd)).zip(rstd) {
                for i in 0..hd {
                    dw[i] = (x[i] * s).mul_add(d[i], dw[i]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::norm::{rms_norm, rms_norm_backward};

    #[test]
    fn heads_are_normed_as_rows_are() {
        let (rows, heads, hd, ld) = (3, 4, 24, 110);
        let x: Vec<f32> = (0..rows * ld).map(|i| (i as f32 * 0.37).sin() + 0.2).collect();
        let d: Vec<f32> = (0..rows * ld).map(|i| (i as f32 * 0.71).cos()).collect();
        let w: Vec<f32> = (0..hd).map(|i| 1.0 + (i as f32).sin() * 0.3).collect();
        let compact = |v: &[f32]| v.chunks(ld).flat_map(|r| r[..heads * hd].to_vec()).collect::<Vec<f32>>();
        let (flat, flat_d) = (compact(&x), compact(&d));
        let (mut rstd, mut want) = (vec![0.0; rows * heads], vec![0.0; flat.len()]);
        rms_norm(&flat, &w, 1e-6, &mut rstd, &mut want);
        let (mut ours, mut our_rstd) = (x.clone(), vec![0.0; rows * heads]);
        head_norm(&mut ours, ld, heads, &w, 1e-6, &mut our_rstd);
        assert_eq!((compact(&ours), &our_rstd), (want, &rstd));
        assert!(ours.chunks(ld).zip(x.chunks(ld)).all(|(a, b)| a[heads * hd..] == b[heads * hd..]));
        let (mut dx, mut dw) = (vec![0.0; flat.len()], vec![0.0; hd]);
        rms_norm_backward(&flat, &w, &rstd, &flat_d, &mut dx, Some(&mut dw));
        let (mut our_d, mut our_dw) = (d.clone(), vec![0.0; hd]);
        head_norm_backward_weight(&flat, heads * hd, heads, &rstd, &d, ld, &mut our_dw);
        head_norm_backward_input(&flat, heads * hd, heads, &w, &rstd, &mut our_d, ld);
        assert_eq!((compact(&our_d), our_dw), (dx, dw));
    }
}
