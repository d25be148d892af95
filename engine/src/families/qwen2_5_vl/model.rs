//! The whole model on a ragged batch: embed, splice the images, run the blocks; and the gradient of all of it.

use super::batch::Batch;
use super::head::{HeadBuffers, Policy};
use super::plan::Plan;
use super::vision::VisionBuffers;
use super::windows::VisionRows;
use crate::block::{Activations, BlockScratch, Rows};
use crate::error::EngineError;
use crate::kernels::gemm::grow;
use crate::kernels::norm::add_assign;
use crate::linear::Weights;
use crate::types::PackScores;

/// dL/dlogp of a pack of the batch from its scores, in the shape of the log-probs.
pub type BatchObjective<'a> = dyn Fn(usize, &PackScores) -> Result<Vec<Vec<f32>>, EngineError> + 'a;

/// All buffers of one thread; they grow to the largest batch seen and are reused.
#[derive(Default)]
pub struct Workspace {
    pub blocks: Vec<Activations>,
    pub vision: VisionBuffers,
    pub scratch: BlockScratch,
    pub head: HeadBuffers,
    /// Residual stream \[rows, hidden\]; after the forward pass, the last block's output.
    pub x: Vec<f32>,
    dx: Vec<f32>,
}

impl Plan {
    /// Hidden width.
    pub fn hidden(&self) -> usize {
        self.head.n_in
    }

    /// Runs the batch up to the last block. With `save`, what the backward pass needs is kept. `after_block` sees (layer, q|k|v rows).
    /// Returns the geometry of the vision rows, if there are images.
    pub fn forward(
        &self,
        w: &Weights,
        batch: &Batch,
        ws: &mut Workspace,
        save: bool,
        after_block: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<Option<VisionRows>, EngineError> {
        let (n, d) = (batch.len(), self.hidden());
        let vision = self.embed(w, batch, ws, save)?;
        let rows = Rows { n, packs: &batch.packs, cos: &batch.cos, sin: &batch.sin };
        ws.blocks.resize_with(self.blocks.len(), Activations::default);
        for (i, block) in self.blocks.iter().enumerate() {
            let a = &mut ws.blocks[if save { i } else { 0 }];
            block.forward(w, rows, &mut ws.x[..n * d], a, save, &mut ws.scratch);
            after_block(i, &a.qkv);
        }
        Ok(vision)
    }

    fn embed(
        &self,
        w: &Weights,
        batch: &Batch,
        ws: &mut Workspace,
        save: bool,
    ) -> Result<Option<VisionRows>, EngineError> {
        let d = self.hidden();
        grow(&mut ws.x, batch.len() * d);
        self.embed_tokens(w, &batch.ids, &mut ws.x);
        let (Some(v), false) = (&self.vision, batch.images.is_empty()) else { return Ok(None) };
        let rows = VisionRows::new(&v.config, &batch.images)?;
        v.forward(w, &rows, &batch.images, &mut ws.vision, save, &mut ws.scratch, &mut |_, _| {});
        for (token, &row) in ws.vision.out.chunks_exact(d).zip(&batch.image_rows) {
            ws.x[row * d..(row + 1) * d].copy_from_slice(token);
        }
        Ok(Some(rows))
    }

    /// x ← embedding rows of `ids`, which must lie in the vocabulary.
    pub fn embed_tokens(&self, w: &Weights, ids: &[u32], x: &mut [f32]) {
        let d = self.hidden();
        let table = &w.slab[self.embed.clone()];
        for (x, &id) in x.chunks_exact_mut(d).zip(ids) {
            x.copy_from_slice(&table[id as usize * d..][..d]);
        }
    }

    /// Log-probs and entropies of the batch's targets into `scores`, one entry a pack, already of the right shape.
    pub fn score(
        &self,
        w: &Weights,
        batch: &Batch,
        policy: &Policy,
        scores: &mut [PackScores],
        ws: &mut Workspace,
    ) -> Result<(), EngineError> {
        self.forward(w, batch, ws, false, &mut |_, _| {})?;
        self.head_scores(w, batch, &ws.x, policy, scores, &mut ws.head)
    }

    /// Like [`Plan::score`], then adds the gradient of the objective to the slab `grads`.
    /// `objective` maps (pack of the batch, its scores) to dL/dlogp in the shape of the log-probs.
    pub fn train(
        &self,
        w: &Weights,
        batch: &Batch,
        policy: &Policy,
        scores: &mut [PackScores],
        objective: &BatchObjective,
        grads: &mut [f32],
        ws: &mut Workspace,
    ) -> Result<(), EngineError> {
        let vision = self.forward(w, batch, ws, true, &mut |_, _| {})?;
        self.head_scores(w, batch, &ws.x, policy, scores, &mut ws.head)?;
        let gradient = scores.iter().enumerate().map(|(i, s)| objective(i, s)).collect::<Result<Vec<_>, _>>()?;
        let (n, d) = (batch.len(), self.hidden());
        grow(&mut ws.dx, n * d);
        let dx = &mut ws.dx[..n * d];
        dx.fill(0.0);
        self.head_backward(w, batch, policy, &gradient, dx, grads, &mut ws.head, &mut ws.scratch.gemm)?;
        let rows = Rows { n, packs: &batch.packs, cos: &batch.cos, sin: &batch.sin };
        for (block, a) in self.blocks.iter().zip(&ws.blocks).rev() {
            block.backward(w, rows, a, dx, grads, &mut ws.scratch);
        }
        self.embed_backward(w, batch, vision.as_ref(), grads, ws);
        Ok(())
    }

    fn embed_backward(
        &self,
        w: &Weights,
        batch: &Batch,
        vision: Option<&VisionRows>,
        grads: &mut [f32],
        ws: &mut Workspace,
    ) {
        let d = self.hidden();
        let mut images = batch.image_rows.iter().copied().peekable();
        for (row, &id) in batch.ids.iter().enumerate() {
            if images.next_if_eq(&row).is_none() {
                add_assign(&mut grads[self.embed.start + id as usize * d..][..d], &ws.dx[row * d..(row + 1) * d]);
            }
        }
        if let (Some(v), Some(rows)) = (&self.vision, vision) {
            for (token, &row) in ws.vision.out.chunks_exact_mut(d).zip(&batch.image_rows) {
                token.copy_from_slice(&ws.dx[row * d..(row + 1) * d]);
            }
            v.backward(w, rows, &mut ws.vision, grads, &mut ws.scratch);
        }
    }
}
