//! One pre-norm transformer block with SwiGLU, forward and explicit backward. The decoder and the vision tower share it; they
//! differ in biases, head counts, causality and in the tables of positions.

use crate::kernels::act::{swiglu, swiglu_backward};
use crate::kernels::attention::Heads;
use crate::kernels::gemm::{Scratch, grow};
use crate::kernels::norm::{rms_norm, rms_norm_again, rms_norm_backward};
use crate::kernels::packs::{AttentionScratch, Geometry, PackRows, attend_packs, attend_packs_backward};
use crate::kernels::rope::rotate;
use crate::linear::{Linear, Weights};
use std::ops::Range;

/// Where a block's tensors lie, and its shapes.
#[derive(Debug, Clone)]
pub struct Block {
    pub norm1: Range<usize>,
    /// q|k|v.
    pub qkv: Linear,
    pub out: Linear,
    pub norm2: Range<usize>,
    /// gate|up.
    pub gate_up: Linear,
    pub down: Linear,
    pub heads: Heads,
    pub causal: bool,
    pub eps: f32,
}

/// Rows a block runs on.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub n: usize,
    pub packs: &'a [PackRows],
    /// Rotary tables \[n, head_dim / 2\].
    pub cos: &'a [f32],
    pub sin: &'a [f32],
}

/// What the backward pass needs of a forward pass; norms, SwiGLU and probabilities are recomputed.
#[derive(Default)]
pub struct Activations {
    x_in: Vec<f32>,
    rstd1: Vec<f32>,
    /// Rotated q (scaled), rotated k, v: \[n, (heads + 2 kv_heads) · head_dim\].
    pub qkv: Vec<f32>,
    /// (max, 1 / Σ) of each attention row: \[heads, n, 2\].
    stats: Vec<f32>,
    att: Vec<f32>,
    x_mid: Vec<f32>,
    rstd2: Vec<f32>,
    gate_up: Vec<f32>,
}

/// Buffers that live for one block only.
#[derive(Default)]
pub struct BlockScratch {
    h: Vec<f32>,
    act: Vec<f32>,
    dh: Vec<f32>,
    d_wide: Vec<f32>,
    d_act: Vec<f32>,
    attention: AttentionScratch,
    pub gemm: Scratch,
}

impl Block {
    fn width(&self) -> usize {
        self.norm1.len()
    }

    fn geometry(&self) -> Geometry {
        Geometry { heads: self.heads, causal: self.causal }
    }

    /// 1 / √head_dim, folded into q.
    pub fn scale(&self) -> f32 {
        1.0 / (self.heads.hd as f32).sqrt()
    }

    /// q|k|v of normed rows, rotated; the first half of a block, shared with decoding.
    pub fn project(
        &self,
        w: &Weights,
        rows: usize,
        cos: &[f32],
        sin: &[f32],
        x: &[f32],
        rstd: &mut Vec<f32>,
        h: &mut Vec<f32>,
        qkv: &mut Vec<f32>,
    ) {
        let d = self.width();
        grow(rstd, rows);
        grow(h, rows * d);
        grow(qkv, rows * self.qkv.n_out);
        rms_norm(&x[..rows * d], &w.slab[self.norm1.clone()], self.eps, &mut rstd[..rows], h);
        self.qkv.forward(w, h, rows, qkv);
        let Heads { heads, kv_heads, hd } = self.heads;
        rotate(
            &mut qkv[..rows * self.qkv.n_out],
            self.qkv.n_out,
            heads + kv_heads,
            hd,
            cos,
            sin,
            1.0,
            heads,
            self.scale(),
        );
    }

    /// Everything behind attention: x += out(att); x += mlp(norm(x)). `mid` sees x between the two.
    pub fn finish(
        &self,
        w: &Weights,
        rows: usize,
        att: &[f32],
        x: &mut [f32],
        a: &mut MlpBuffers,
        mid: impl FnOnce(&[f32]),
    ) {
        let d = self.width();
        self.out.forward_add(w, att, rows, x);
        mid(&x[..rows * d]);
        let f = self.down.n_in;
        grow(a.rstd, rows);
        grow(a.h, rows * d);
        grow(a.gate_up, rows * 2 * f);
        grow(a.act, rows * f);
        rms_norm(&x[..rows * d], &w.slab[self.norm2.clone()], self.eps, &mut a.rstd[..rows], a.h);
        self.gate_up.forward(w, a.h, rows, a.gate_up);
        swiglu(&a.gate_up[..rows * 2 * f], f, &mut a.act[..rows * f]);
        self.down.forward_add(w, a.act, rows, x);
    }

    /// x\[n, width\] ← block(x). With `save`, `a` receives what [`Block::backward`] needs.
    pub fn forward(
        &self,
        w: &Weights,
        rows: Rows,
        x: &mut [f32],
        a: &mut Activations,
        save: bool,
        s: &mut BlockScratch,
    ) {
        let (n, d) = (rows.n, self.width());
        if save {
            keep(&mut a.x_in, &x[..n * d]);
        }
        self.project(w, n, rows.cos, rows.sin, x, &mut a.rstd1, &mut s.h, &mut a.qkv);
        grow(&mut a.att, n * self.out.n_in);
        if save {
            grow(&mut a.stats, self.heads.heads * n * 2);
        }
        let stats = save.then_some(&mut a.stats[..]);
        attend_packs(&self.geometry(), rows.packs, n, &a.qkv, &mut a.att, stats, &mut s.attention);
        let Activations { att, x_mid, rstd2, gate_up, .. } = a;
        let mut buffers = MlpBuffers { rstd: rstd2, h: &mut s.h, gate_up, act: &mut s.act };
        self.finish(w, n, att, x, &mut buffers, |x| {
            if save {
                keep(x_mid, x);
            }
        });
    }

    /// dx ← gradient of the block's input; weight gradients are added to the slab `grads`.
    pub fn backward(
        &self,
        w: &Weights,
        rows: Rows,
        a: &Activations,
        dx: &mut [f32],
        grads: &mut [f32],
        s: &mut BlockScratch,
    ) {
        self.backward_mlp(w, rows.n, a, dx, grads, s);
        self.backward_attention(w, rows, a, dx, grads, s);
    }

    fn backward_mlp(
        &self,
        w: &Weights,
        n: usize,
        a: &Activations,
        dx: &mut [f32],
        grads: &mut [f32],
        s: &mut BlockScratch,
    ) {
        let (d, f) = (self.width(), self.down.n_in);
        grow(&mut s.d_act, n * f);
        grow(&mut s.act, n * f);
        grow(&mut s.d_wide, n * 2 * f);
        grow(&mut s.h, n * d);
        grow(&mut s.dh, n * d);
        self.down.backward_input(w, dx, n, &mut s.d_act);
        swiglu_backward(&a.gate_up[..n * 2 * f], f, &s.d_act[..n * f], &mut s.act[..n * f], &mut s.d_wide[..n * 2 * f]);
        self.down.backward_weights(&s.act, dx, n, grads, &mut s.gemm);
        let weight = &w.slab[self.norm2.clone()];
        rms_norm_again(&a.x_mid[..n * d], weight, &a.rstd2, &mut s.h);
        self.gate_up.backward_weights(&s.h, &s.d_wide, n, grads, &mut s.gemm);
        self.gate_up.backward_input(w, &s.d_wide, n, &mut s.dh);
        rms_norm_backward(&a.x_mid[..n * d], weight, &a.rstd2, &s.dh, dx, &mut grads[self.norm2.clone()]);
    }

    fn backward_attention(
        &self,
        w: &Weights,
        rows: Rows,
        a: &Activations,
        dx: &mut [f32],
        grads: &mut [f32],
        s: &mut BlockScratch,
    ) {
        let (n, d, ld) = (rows.n, self.width(), self.qkv.n_out);
        let Heads { heads, kv_heads, hd } = self.heads;
        grow(&mut s.d_act, n * self.out.n_in);
        grow(&mut s.d_wide, n * ld);
        self.out.backward_weights(&a.att, dx, n, grads, &mut s.gemm);
        self.out.backward_input(w, dx, n, &mut s.d_act);
        s.d_wide[..n * ld].fill(0.0);
        attend_packs_backward(
            &self.geometry(),
            rows.packs,
            n,
            &a.qkv,
            &a.att,
            &s.d_act,
            &a.stats,
            &mut s.d_wide,
            &mut s.attention,
        );
        rotate(&mut s.d_wide[..n * ld], ld, heads + kv_heads, hd, rows.cos, rows.sin, -1.0, heads, self.scale());
        let weight = &w.slab[self.norm1.clone()];
        rms_norm_again(&a.x_in[..n * d], weight, &a.rstd1, &mut s.h);
        self.qkv.backward_weights(&s.h, &s.d_wide, n, grads, &mut s.gemm);
        self.qkv.backward_input(w, &s.d_wide, n, &mut s.dh);
        rms_norm_backward(&a.x_in[..n * d], weight, &a.rstd1, &s.dh, dx, &mut grads[self.norm1.clone()]);
    }
}

/// Buffers of [`Block::finish`].
pub struct MlpBuffers<'a> {
    pub rstd: &'a mut Vec<f32>,
    pub h: &'a mut Vec<f32>,
    pub gate_up: &'a mut Vec<f32>,
    pub act: &'a mut Vec<f32>,
}

/// Copies a slice into a reused buffer.
fn keep(to: &mut Vec<f32>, from: &[f32]) {
    grow(to, from.len());
    to[..from.len()].copy_from_slice(from);
}
