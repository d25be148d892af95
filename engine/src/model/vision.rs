//! The vision tower of all families: patch embedding, learned positions (if any), blocks, mergers. Forward and explicit backward.
//! What differs between families is in the plan and in the rows.

use super::merger::{Merger, MergerBuffers};
use super::vision_rows::VisionRows;
use crate::block::{Block, BlockScratch, Rows};
use crate::kernels::gemm::grow;
use crate::linear::Linear;
use crate::params::{Grads, Param, Weights};
use crate::tape::{Keep, Tape};
use quorum_model::{EncodedImage, VisionConfig};

/// Where the tower's tensors lie.
#[derive(Debug, Clone)]
pub struct VisionPlan {
    pub config: VisionConfig,
    /// The patch convolution as a matrix on flattened patches.
    pub patch: Linear,
    /// Learned positions \[grid², hidden\], interpolated to each image's grid.
    pub positions: Option<Param>,
    pub blocks: Vec<Block>,
    pub merger: Merger,
    /// (block, merger of its output); merger j feeds the decoder's states after layer j.
    pub deepstack: Vec<(usize, Merger)>,
}

/// Buffers of the tower; what the backward pass needs stays in them.
#[derive(Default)]
pub struct VisionBuffers {
    patches: Vec<f32>,
    tape: Tape,
    /// States in the order of the rows; after the forward pass, the last block's output.
    x: Vec<f32>,
    position: Vec<f32>,
    pub main: MergerBuffers,
    /// One for each deepstack merger.
    pub deep: Vec<MergerBuffers>,
    dx: Vec<f32>,
}

/// Stages of the tower, for whoever watches a forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Patch embedding, before positions are added.
    Patches,
    /// Output of a block.
    Block,
}

impl VisionPlan {
    /// Every linear layer.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        let mergers = std::iter::once(&self.merger).chain(self.deepstack.iter().map(|d| &d.1));
        let mergers = mergers.flat_map(|m| [&m.mlp.up, &m.mlp.down]);
        std::iter::once(&self.patch).chain(mergers).chain(self.blocks.iter().flat_map(Block::linears))
    }

    /// Whether any of its tensors is trained.
    pub fn trained(&self, grads: &Grads) -> bool {
        self.patch.trained(grads)
            || self.positions.as_ref().is_some_and(|p| grads.wants(p))
            || self.blocks.iter().any(|b| b.trained(grads))
            || self.merger.trained(grads)
            || self.deepstack.iter().any(|d| d.1.trained(grads))
    }

    fn rows<'a>(&self, r: &'a VisionRows, block: usize) -> Rows<'a> {
        let packs = if self.config.full_attention_blocks.contains(&block) { &r.full } else { &r.windows };
        Rows { n: r.n, packs, cos: &r.cos, sin: &r.sin }
    }

    /// Fills the mergers' outputs with the merged tokens of all images. `keep` says what is kept of each block.
    pub fn forward(
        &self,
        w: &Weights,
        r: &VisionRows,
        images: &[&EncodedImage],
        b: &mut VisionBuffers,
        keep: Keep,
        s: &mut BlockScratch,
        watch: &mut dyn FnMut(Stage, &[f32]),
    ) {
        let (d, dim) = (self.config.hidden_size, self.patch.n_in);
        self.gather(r, images, &mut b.patches);
        grow(&mut b.x, r.n * d);
        self.patch.forward(w, &b.patches[..r.n * dim], r.n, &mut b.x);
        watch(Stage::Patches, &b.x[..r.n * d]);
        self.add_positions(w, r, b);
        b.deep.resize_with(self.deepstack.len(), MergerBuffers::default);
        for (i, block) in self.blocks.iter().enumerate() {
            b.tape.forward(i, block, w, self.rows(r, i), &mut b.x, keep, s);
            watch(Stage::Block, &b.x[..r.n * d]);
            for ((at, merger), deep) in self.deepstack.iter().zip(&mut b.deep) {
                if *at == i {
                    merger.forward(w, &b.x, &r.unit, deep, s);
                }
            }
        }
        self.merger.forward(w, &b.x, &r.unit, &mut b.main, s);
    }

    /// Patches of all images in the order of the rows.
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

    /// x += Σ weight · table row over each patch's taps, the sum taken first.
    fn add_positions(&self, w: &Weights, r: &VisionRows, b: &mut VisionBuffers) {
        let Some(table) = &self.positions else { return };
        let d = self.config.hidden_size;
        grow(&mut b.position, 2 * d);
        let (sum, row) = b.position[..2 * d].split_at_mut(d);
        for (x, taps) in b.x.chunks_exact_mut(d).zip(&r.taps) {
            sum.fill(0.0);
            for &(at, weight) in taps {
                w.copy_row(table, at, row);
                sum.iter_mut().zip(&*row).for_each(|(s, v)| *s += v * weight);
            }
            x.iter_mut().zip(&*sum).for_each(|(x, s)| *x += s);
        }
    }

    /// Adds the tower's gradients, the mergers' buffers holding the gradients of the merged tokens. Follows [`VisionPlan::forward`]
    /// of the same rows that kept something.
    pub fn backward(
        &self,
        w: &Weights,
        r: &VisionRows,
        b: &mut VisionBuffers,
        grads: &mut Grads,
        s: &mut BlockScratch,
    ) {
        let d = self.config.hidden_size;
        grow(&mut b.dx, r.n * d);
        let dx = &mut b.dx[..r.n * d];
        dx.fill(0.0);
        self.merger.backward(w, &r.unit, &mut b.main, dx, grads, s);
        for (i, block) in self.blocks.iter().enumerate().rev() {
            for ((at, merger), deep) in self.deepstack.iter().zip(&mut b.deep) {
                if *at == i {
                    merger.backward(w, &r.unit, deep, dx, grads, s);
                }
            }
            b.tape.backward(i, block, w, self.rows(r, i), dx, grads, s);
        }
        if let Some(table) = self.positions.as_ref().and_then(|p| grads.of(p)) {
            for (dx, taps) in dx.chunks_exact(d).zip(&r.taps) {
                for &(at, weight) in taps {
                    table[at * d..(at + 1) * d].iter_mut().zip(dx).for_each(|(t, g)| *t += weight * g);
                }
            }
        }
        self.patch.backward_weights(w, &b.patches, dx, r.n, grads, &mut s.gemm);
    }
}
