//! One pre-norm transformer block, forward and explicit backward. All decoders and all vision towers are made of it; they differ in
//! norms, biases, MLP, qk-norm, head counts, causality and in the tables of positions.

use crate::kernels::attention::Heads;
use crate::kernels::gemm::{Scratch, grow};
use crate::kernels::packs::{AttentionScratch, Geometry, PackRows, attend_packs, attend_packs_backward};
use crate::kernels::rope::rotate;
use crate::linear::Linear;
use crate::mlp::{Mlp, MlpScratch};
use crate::norm::Norm;
use crate::params::{Grads, Weights};
use crate::qk_norm::QkNorm;

/// Where a block's tensors lie, and its shapes.
#[derive(Debug, Clone)]
pub struct Block {
    pub norm1: Norm,
    /// q|k|v.
    pub qkv: Linear,
    /// Norms of q's and k's heads before rope.
    pub qk_norm: Option<QkNorm>,
    pub out: Linear,
    pub norm2: Norm,
    pub mlp: Mlp,
    pub heads: Heads,
    pub causal: bool,
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

/// What the backward pass needs of a forward pass; norms, activations and probabilities are recomputed.
#[derive(Default)]
pub struct Activations {
    pub x_in: Vec<f32>,
    pub attention: Projected,
    /// (max, 1 / Σ) of each attention row: \[heads, n, 2\].
    stats: Vec<f32>,
    att: Vec<f32>,
    x_mid: Vec<f32>,
    mlp: Hidden,
}

/// What the first half of a block makes of its rows.
#[derive(Default)]
pub struct Projected {
    stats: Vec<f32>,
    /// Rotated q (scaled), rotated k, v: \[n, (heads + 2 kv_heads) · head_dim\].
    pub qkv: Vec<f32>,
    /// q|k before their norms, and 1 / deviation of each of their heads. Only with qk-norm.
    raw: Vec<f32>,
    raw_stats: Vec<f32>,
}

/// What the second half of a block keeps.
#[derive(Default)]
pub struct Hidden {
    stats: Vec<f32>,
    hidden: Vec<f32>,
}

/// Buffers that live for one block only.
#[derive(Default)]
pub struct BlockScratch {
    h: Vec<f32>,
    dh: Vec<f32>,
    pub mlp: MlpScratch,
    attention: AttentionScratch,
    pub gemm: Scratch,
}

impl Block {
    fn geometry(&self) -> Geometry {
        Geometry { heads: self.heads, causal: self.causal }
    }

    /// 1 / √head_dim, folded into q.
    pub fn scale(&self) -> f32 {
        1.0 / (self.heads.hd as f32).sqrt()
    }

    /// Its linear layers.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        [&self.qkv, &self.out, &self.mlp.up, &self.mlp.down].into_iter()
    }

    /// Whether any of its tensors is trained.
    pub fn trained(&self, grads: &Grads) -> bool {
        self.norm1.trained(grads)
            || self.qkv.trained(grads)
            || self.qk_norm.as_ref().is_some_and(|n| n.trained(grads))
            || self.out.trained(grads)
            || self.norm2.trained(grads)
            || self.mlp.trained(grads)
    }

    /// q|k|v of normed rows, rotated; the first half of a block, shared with decoding. `save`: for a backward pass.
    pub fn project(
        &self,
        w: &Weights,
        rows: usize,
        cos: &[f32],
        sin: &[f32],
        x: &[f32],
        p: &mut Projected,
        h: &mut Vec<f32>,
        save: bool,
    ) {
        let ld = self.qkv.n_out;
        grow(&mut p.qkv, rows * ld);
        self.norm1.forward(w, x, rows, &mut p.stats, h);
        self.qkv.forward(w, h, rows, &mut p.qkv);
        let qkv = &mut p.qkv[..rows * ld];
        if let Some(norm) = &self.qk_norm {
            norm.forward(w, self.heads, qkv, rows, save.then_some(&mut p.raw), &mut p.raw_stats);
        }
        let Heads { heads, kv_heads, hd } = self.heads;
        rotate(qkv, ld, heads + kv_heads, hd, cos, sin, 1.0, heads, self.scale());
    }

    /// Everything behind attention: x += out(att); x += mlp(norm(x)). `mid` sees x between the two.
    pub fn finish(
        &self,
        w: &Weights,
        rows: usize,
        att: &[f32],
        x: &mut [f32],
        a: &mut Hidden,
        s: &mut BlockScratch,
        mid: impl FnOnce(&[f32]),
    ) {
        let d = self.norm1.width();
        self.out.forward_add(w, att, rows, x);
        mid(&x[..rows * d]);
        self.norm2.forward(w, x, rows, &mut a.stats, &mut s.h);
        self.mlp.inner(w, &s.h, rows, &mut a.hidden, &mut s.mlp.act);
        self.mlp.down.forward_add(w, &s.mlp.act, rows, x);
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
        let (n, d) = (rows.n, self.norm1.width());
        if save {
            keep(&mut a.x_in, &x[..n * d]);
        }
        self.project(w, n, rows.cos, rows.sin, x, &mut a.attention, &mut s.h, save);
        grow(&mut a.att, n * self.out.n_in);
        if save {
            grow(&mut a.stats, self.heads.heads * n * 2);
        }
        let stats = save.then_some(&mut a.stats[..]);
        attend_packs(&self.geometry(), rows.packs, n, &a.attention.qkv, &mut a.att, stats, &mut s.attention);
        let x_mid = &mut a.x_mid;
        self.finish(w, n, &a.att, x, &mut a.mlp, s, |x| {
            if save {
                keep(x_mid, x);
            }
        });
    }

    /// dx ← gradient of the block's input; gradients of trained tensors are added.
    pub fn backward(
        &self,
        w: &Weights,
        rows: Rows,
        a: &Activations,
        dx: &mut [f32],
        grads: &mut Grads,
        s: &mut BlockScratch,
    ) {
        let n = rows.n;
        grow(&mut s.dh, n * self.norm2.width());
        self.norm2.again(w, &a.x_mid, n, &a.mlp.stats, &mut s.h);
        self.mlp.backward(w, &s.h, &a.mlp.hidden, dx, n, &mut s.dh, grads, &mut s.mlp, &mut s.gemm);
        self.norm2.backward(w, &a.x_mid, n, &a.mlp.stats, &s.dh, dx, grads);
        self.backward_attention(w, rows, a, dx, grads, s);
    }

    fn backward_attention(
        &self,
        w: &Weights,
        rows: Rows,
        a: &Activations,
        dx: &mut [f32],
        grads: &mut Grads,
        s: &mut BlockScratch,
    ) {
        let (n, ld) = (rows.n, self.qkv.n_out);
        let Heads { heads, kv_heads, hd } = self.heads;
        let MlpScratch { d_act: d_att, d_wide: d_qkv, .. } = &mut s.mlp;
        grow(d_att, n * self.out.n_in);
        grow(d_qkv, n * ld);
        self.out.backward_weights(w, &a.att, dx, n, grads, &mut s.gemm);
        self.out.backward_input(w, dx, n, d_att, &mut s.gemm);
        let d_qkv = &mut d_qkv[..n * ld];
        d_qkv.fill(0.0);
        let qkv = &a.attention.qkv;
        attend_packs_backward(&self.geometry(), rows.packs, n, qkv, &a.att, d_att, &a.stats, d_qkv, &mut s.attention);
        rotate(d_qkv, ld, heads + kv_heads, hd, rows.cos, rows.sin, -1.0, heads, self.scale());
        if let Some(norm) = &self.qk_norm {
            norm.backward(w, self.heads, &a.attention.raw, &a.attention.raw_stats, n, d_qkv, grads);
        }
        self.norm1.again(w, &a.x_in, n, &a.attention.stats, &mut s.h);
        self.qkv.backward_weights(w, &s.h, d_qkv, n, grads, &mut s.gemm);
        self.qkv.backward_input(w, d_qkv, n, &mut s.dh, &mut s.gemm);
        self.norm1.backward(w, &a.x_in, n, &a.attention.stats, &s.dh, dx, grads);
    }
}

/// Copies a slice into a reused buffer.
pub fn keep(to: &mut Vec<f32>, from: &[f32]) {
    grow(to, from.len());
    to[..from.len()].copy_from_slice(from);
}
