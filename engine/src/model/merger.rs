//! Patch merger: the states of merge² neighbouring patches become one row of the decoder's width. Norm before the states are joined
//! (over a patch) or behind it (over the joined row), then an MLP. Forward and backward.

use crate::block::{BlockScratch, keep};
use crate::kernels::gemm::grow;
use crate::kernels::norm::add_assign;
use crate::mlp::Mlp;
use crate::norm::Norm;
use crate::params::{Grads, Weights};

/// Where a merger's tensors lie. The width of the norm says whether it comes before or behind the joining.
#[derive(Debug, Clone)]
pub struct Merger {
    pub norm: Norm,
    pub mlp: Mlp,
}

/// Buffers of one merger, kept for the backward pass.
#[derive(Default)]
pub struct MergerBuffers {
    x: Vec<f32>,
    stats: Vec<f32>,
    normed: Vec<f32>,
    hidden: Vec<f32>,
    merged: Vec<f32>,
    /// Merged tokens in raster order \[units, out_hidden\]; on the way back, their gradient.
    pub out: Vec<f32>,
    d_normed: Vec<f32>,
}

impl Merger {
    /// Whether any of its tensors is trained.
    pub fn trained(&self, grads: &Grads) -> bool {
        self.norm.trained(grads) || self.mlp.trained(grads)
    }

    /// Elements of the states and rows of the norm for `units` merged tokens.
    fn sizes(&self, units: usize) -> (usize, usize) {
        let n = units * self.mlp.up.n_in;
        (n, n / self.norm.width())
    }

    /// `b.out` ← merged tokens of the states `x`; unit i of the states is row `raster[i]` of `b.out`.
    pub fn forward(&self, w: &Weights, x: &[f32], raster: &[usize], b: &mut MergerBuffers, s: &mut BlockScratch) {
        let (units, o) = (raster.len(), self.mlp.down.n_out);
        let (n, rows) = self.sizes(units);
        keep(&mut b.x, &x[..n]);
        self.norm.forward(w, &b.x, rows, &mut b.stats, &mut b.normed);
        self.mlp.inner(w, &b.normed, units, &mut b.hidden, &mut s.mlp.act);
        grow(&mut b.merged, units * o);
        grow(&mut b.out, units * o);
        self.mlp.down.forward(w, &s.mlp.act, units, &mut b.merged);
        for (from, &to) in b.merged.chunks_exact(o).zip(raster) {
            b.out[to * o..(to + 1) * o].copy_from_slice(from);
        }
    }

    /// dx += gradient of the states, from that of the merged tokens in `b.out`; gradients of trained tensors are added.
    pub fn backward(
        &self,
        w: &Weights,
        raster: &[usize],
        b: &mut MergerBuffers,
        dx: &mut [f32],
        grads: &mut Grads,
        s: &mut BlockScratch,
    ) {
        let (units, o) = (raster.len(), self.mlp.down.n_out);
        let (n, rows) = self.sizes(units);
        for (to, &from) in b.merged.chunks_exact_mut(o).zip(raster) {
            to.copy_from_slice(&b.out[from * o..(from + 1) * o]);
        }
        grow(&mut b.d_normed, n);
        self.norm.again(w, &b.x, rows, &b.stats, &mut b.normed);
        let (mlp, gemm) = (&mut s.mlp, &mut s.gemm);
        self.mlp.backward(w, &b.normed, &b.hidden, &b.merged, units, &mut b.d_normed, grads, mlp, gemm);
        self.norm.backward(w, &b.x, rows, &b.stats, &b.d_normed, &mut dx[..n], grads);
    }
}

/// x\[row\] += token for each row: states fed from merged tokens.
pub fn add_rows(tokens: &[f32], rows: &[usize], width: usize, x: &mut [f32]) {
    for (token, &row) in tokens.chunks_exact(width).zip(rows) {
        add_assign(&mut x[row * width..(row + 1) * width], token);
    }
}

/// token ← x\[row\] for each row.
pub fn take_rows(x: &[f32], rows: &[usize], width: usize, tokens: &mut [f32]) {
    for (token, &row) in tokens.chunks_exact_mut(width).zip(rows) {
        token.copy_from_slice(&x[row * width..(row + 1) * width]);
    }
}
