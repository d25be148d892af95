//! The vision tower: patch embedding, window and full attention blocks, 2×2 merger. Forward and explicit backward.

use super::plan::VisionPlan;
use super::windows::VisionRows;
use crate::block::{Activations, Block, BlockScratch, Rows};
use crate::kernels::act::{gelu, gelu_backward};
use crate::kernels::gemm::grow;
use crate::kernels::norm::{rms_norm, rms_norm_again, rms_norm_backward};
use crate::linear::Weights;
use quorum_model::EncodedImage;

/// Buffers of the tower; the block activations are kept for the backward pass.
#[derive(Default)]
pub struct VisionBuffers {
    patches: Vec<f32>,
    blocks: Vec<Activations>,
    /// States in window order; after the forward pass, the last block's output.
    pub x: Vec<f32>,
    rstd: Vec<f32>,
    normed: Vec<f32>,
    hidden: Vec<f32>,
    active: Vec<f32>,
    merged: Vec<f32>,
    /// Merged tokens in raster order \[units, out_hidden\]; on the way back, their gradient.
    pub out: Vec<f32>,
    d_active: Vec<f32>,
    d_normed: Vec<f32>,
    dx: Vec<f32>,
}

impl VisionPlan {
    fn rows<'a>(&self, r: &'a VisionRows, block: usize) -> Rows<'a> {
        let packs = if self.config.full_attention_blocks.contains(&block) { &r.full } else { &r.windows };
        Rows { n: r.n, packs, cos: &r.cos, sin: &r.sin }
    }

    /// Fills `b.out` with the merged tokens of all images. `watch` sees (stage, states): 0 = patch embedding, i + 1 = block i.
    pub fn forward(
        &self,
        w: &Weights,
        r: &VisionRows,
        images: &[&EncodedImage],
        b: &mut VisionBuffers,
        save: bool,
        s: &mut BlockScratch,
        watch: &mut dyn FnMut(usize, &[f32]),
    ) {
        let (d, dim) = (self.config.hidden_size, self.patch.n_in);
        self.gather(r, images, &mut b.patches);
        grow(&mut b.x, r.n * d);
        self.patch.forward(w, &b.patches[..r.n * dim], r.n, &mut b.x);
        watch(0, &b.x[..r.n * d]);
        b.blocks.resize_with(self.blocks.len().max(1), Activations::default);
        for (i, block) in self.blocks.iter().enumerate() {
            let a = &mut b.blocks[if save { i } else { 0 }];
            block.forward(w, self.rows(r, i), &mut b.x, a, save, s);
            watch(i + 1, &b.x[..r.n * d]);
        }
        self.merge(w, r, b);
    }

    /// Patches of all images in window order.
    fn gather(&self, r: &VisionRows, images: &[&EncodedImage], out: &mut Vec<f32>) {
        let dim = self.patch.n_in;
        grow(out, r.n * dim);
        let mut first = 0;
        let mut row = 0;
        for image in images {
            let n = image.patches.len() / dim;
            for _ in 0..n {
                let from = r.source[row] - first;
                out[row * dim..(row + 1) * dim].copy_from_slice(&image.patches[from * dim..(from + 1) * dim]);
                row += 1;
            }
            first += n;
        }
    }

    fn merge(&self, w: &Weights, r: &VisionRows, b: &mut VisionBuffers) {
        let (d, units, m, o) = (self.config.hidden_size, r.units(), self.fc1.n_out, self.fc2.n_out);
        grow(&mut b.rstd, r.n);
        grow(&mut b.normed, r.n * d);
        grow(&mut b.hidden, units * m);
        grow(&mut b.active, units * m);
        grow(&mut b.merged, units * o);
        grow(&mut b.out, units * o);
        rms_norm(&b.x[..r.n * d], &w.slab[self.ln_q.clone()], self.eps(), &mut b.rstd[..r.n], &mut b.normed);
        self.fc1.forward(w, &b.normed, units, &mut b.hidden);
        gelu(&b.hidden[..units * m], &mut b.active);
        self.fc2.forward(w, &b.active, units, &mut b.merged);
        for (from, &to) in b.merged.chunks_exact(o).zip(&r.unit) {
            b.out[to * o..(to + 1) * o].copy_from_slice(from);
        }
    }

    fn eps(&self) -> f32 {
        self.config.rms_norm_eps
    }

    /// Adds the tower's weight gradients, `b.out` holding the gradient of the merged tokens in raster order.
    pub fn backward(
        &self,
        w: &Weights,
        r: &VisionRows,
        b: &mut VisionBuffers,
        grads: &mut [f32],
        s: &mut BlockScratch,
    ) {
        let (d, units, m, o) = (self.config.hidden_size, r.units(), self.fc1.n_out, self.fc2.n_out);
        for (to, &from) in b.merged.chunks_exact_mut(o).zip(&r.unit) {
            to.copy_from_slice(&b.out[from * o..(from + 1) * o]);
        }
        grow(&mut b.d_active, units * m);
        grow(&mut b.d_normed, units * m);
        grow(&mut b.dx, r.n * d);
        self.fc2.backward_weights(&b.active, &b.merged, units, grads, &mut s.gemm);
        self.fc2.backward_input(w, &b.merged, units, &mut b.d_active);
        gelu_backward(&b.hidden[..units * m], &b.active[..units * m], &mut b.d_active[..units * m]);
        let weight = &w.slab[self.ln_q.clone()];
        rms_norm_again(&b.x[..r.n * d], weight, &b.rstd, &mut b.normed);
        self.fc1.backward_weights(&b.normed, &b.d_active, units, grads, &mut s.gemm);
        self.fc1.backward_input(w, &b.d_active, units, &mut b.d_normed);
        b.dx[..r.n * d].fill(0.0);
        rms_norm_backward(&b.x[..r.n * d], weight, &b.rstd, &b.d_normed, &mut b.dx, &mut grads[self.ln_q.clone()]);
        let blocks: &[Block] = &self.blocks;
        for (i, block) in blocks.iter().enumerate().rev() {
            block.backward(w, self.rows(r, i), &b.blocks[i], &mut b.dx, grads, s);
        }
        self.patch.backward_weights(&b.patches, &b.dx, r.n, grads, &mut s.gemm);
    }
}
