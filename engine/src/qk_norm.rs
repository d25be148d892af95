//! RMSNorm of every head of q and of k before rope, one weight for all heads of each: forward in place on rows of q|k|v, and backward.

use crate::kernels::attention::Heads;
use crate::kernels::gemm::grow;
use crate::kernels::head_norm::{head_norm, head_norm_backward_input, head_norm_backward_weight};
use crate::params::{Grads, Param, Weights};

/// The two weights, \[head_dim\] each.
#[derive(Debug, Clone)]
pub struct QkNorm {
    pub q: Param,
    pub k: Param,
    pub eps: f32,
}

impl QkNorm {
    /// Whether a weight is trained.
    pub fn trained(&self, grads: &Grads) -> bool {
        grads.wants(&self.q) || grads.wants(&self.k)
    }

    /// q and k, with (first element of a row, heads).
    fn parts(&self, h: Heads) -> [(&Param, usize, usize); 2] {
        [(&self.q, 0, h.heads), (&self.k, h.heads * h.hd, h.kv_heads)]
    }

    /// Norms q and k of rows of q|k|v in place. `raw` receives q|k as they were, \[rows, (heads + kv_heads) · head_dim\];
    /// `stats` one value a head, all of q, then all of k.
    pub fn forward(
        &self,
        w: &Weights,
        h: Heads,
        qkv: &mut [f32],
        rows: usize,
        raw: Option<&mut Vec<f32>>,
        stats: &mut Vec<f32>,
    ) {
        if rows == 0 {
            return;
        }
        let (ld, width) = (qkv.len() / rows, (h.heads + h.kv_heads) * h.hd);
        if let Some(raw) = raw {
            grow(raw, rows * width);
            for (to, from) in raw.chunks_exact_mut(width).zip(qkv.chunks_exact(ld)) {
                to.copy_from_slice(&from[..width]);
            }
        }
        grow(stats, rows * (h.heads + h.kv_heads));
        let mut stats = &mut stats[..];
        for (weight, at, heads) in self.parts(h) {
            let (own, rest) = stats.split_at_mut(rows * heads);
            head_norm(&mut qkv[at..], ld, heads, w.vector(weight), self.eps, own);
            stats = rest;
        }
    }

    /// Turns the gradient of normed q and k in rows of q|k|v into that of raw q and k; gradients of trained weights are added.
    pub fn backward(
        &self,
        w: &Weights,
        h: Heads,
        raw: &[f32],
        stats: &[f32],
        rows: usize,
        d: &mut [f32],
        grads: &mut Grads,
    ) {
        if rows == 0 {
            return;
        }
        let (ld, width) = (d.len() / rows, (h.heads + h.kv_heads) * h.hd);
        let raw = &raw[..rows * width];
        let mut stats = stats;
        for (weight, at, heads) in self.parts(h) {
            let (own, rest) = stats.split_at(rows * heads);
            if let Some(dw) = grads.of(weight) {
                head_norm_backward_weight(&raw[at..], width, heads, own, &d[at..], ld, dw);
            }
            head_norm_backward_input(&raw[at..], width, heads, w.vector(weight), own, &mut d[at..], ld);
            stats = rest;
        }
    }
}
