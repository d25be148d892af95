//! The whole model on a ragged batch: embed, splice the images, run the blocks; and the gradient of all of it, as far down as a
//! trained tensor lies.

use super::batch::Batch;
use super::head::{HeadBuffers, Policy};
use super::merger::{add_rows, take_rows};
use super::plan::Plan;
use super::vision::VisionBuffers;
use super::vision_rows::VisionRows;
use crate::block::{BlockScratch, Rows};
use crate::error::EngineError;
use crate::kernels::gemm::grow;
use crate::kernels::norm::add_assign;
use crate::params::{Grads, Weights};
use crate::tape::{Keep, Tape};
use crate::types::PackScores;

/// dL/dlogp of a pack of the batch from its scores, in the shape of the log-probs.
pub type BatchObjective<'a> = dyn Fn(usize, &PackScores) -> Result<Vec<Vec<f32>>, EngineError> + 'a;

/// All buffers of one thread; they grow to the largest batch seen and are reused.
#[derive(Default)]
pub struct Workspace {
    pub tape: Tape,
    pub vision: VisionBuffers,
    pub scratch: BlockScratch,
    pub head: HeadBuffers,
    /// Residual stream \[rows, hidden\]; after the forward pass, the last block's output.
    pub x: Vec<f32>,
    dx: Vec<f32>,
}

/// How far down a gradient goes, and what is kept for it on the way up.
#[derive(Debug, Clone, Copy)]
pub struct Reach {
    /// The lowest block of the decoder that the gradient enters; their number if it enters none.
    from: usize,
    vision: bool,
    /// What is kept of the blocks that it enters.
    keep: Keep,
}

impl Reach {
    /// Forward only.
    pub const NONE: Self = Self { from: usize::MAX, vision: false, keep: Keep::Nothing };

    fn block(&self, i: usize) -> Keep {
        if i >= self.from { self.keep } else { Keep::Nothing }
    }

    fn tower(&self) -> Keep {
        if self.vision { self.keep } else { Keep::Nothing }
    }
}

impl Plan {
    /// Hidden width.
    pub fn hidden(&self) -> usize {
        self.head.n_in
    }

    /// How far down the gradient of `batch` must go. With `checkpointing` only the blocks' inputs are kept.
    fn reach(&self, batch: &Batch, grads: &Grads, checkpointing: bool) -> Reach {
        let vision = !batch.images.is_empty() && self.vision.as_ref().is_some_and(|v| v.trained(grads));
        let below = vision || grads.wants(&self.embed);
        let lowest = self.blocks.iter().position(|b| b.trained(grads)).unwrap_or(self.blocks.len());
        let keep = if checkpointing { Keep::Input } else { Keep::All };
        Reach { from: if below { 0 } else { lowest }, vision, keep }
    }

    /// Runs the batch up to the last block, keeping what `reach` says. `after_block` sees (layer, q|k|v rows).
    /// Returns the geometry of the vision rows, if there are images.
    pub fn forward(
        &self,
        w: &Weights,
        batch: &Batch,
        ws: &mut Workspace,
        reach: Reach,
        after_block: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<Option<VisionRows>, EngineError> {
        let (n, d) = (batch.len(), self.hidden());
        let vision = self.embed(w, batch, ws, reach.tower())?;
        let rows = Rows { n, packs: &batch.packs, cos: &batch.cos, sin: &batch.sin };
        for (i, block) in self.blocks.iter().enumerate() {
            let x = &mut ws.x[..n * d];
            after_block(i, ws.tape.forward(i, block, w, rows, x, reach.block(i), &mut ws.scratch));
            if let (Some(_), Some(deep)) = (&vision, ws.vision.deep.get(i)) {
                add_rows(&deep.out, &batch.image_rows, d, x);
            }
        }
        Ok(vision)
    }

    fn embed(
        &self,
        w: &Weights,
        batch: &Batch,
        ws: &mut Workspace,
        keep: Keep,
    ) -> Result<Option<VisionRows>, EngineError> {
        let d = self.hidden();
        grow(&mut ws.x, batch.len() * d);
        self.embed_tokens(w, &batch.ids, &mut ws.x);
        let (Some(v), false) = (&self.vision, batch.images.is_empty()) else { return Ok(None) };
        let rows = VisionRows::new(&v.config, &batch.images)?;
        v.forward(w, &rows, &batch.images, &mut ws.vision, keep, &mut ws.scratch, &mut |_, _| {});
        for (token, &row) in ws.vision.main.out.chunks_exact(d).zip(&batch.image_rows) {
            ws.x[row * d..(row + 1) * d].copy_from_slice(token);
        }
        Ok(Some(rows))
    }

    /// x ← embedding rows of `ids`, which must lie in the vocabulary.
    pub fn embed_tokens(&self, w: &Weights, ids: &[u32], x: &mut [f32]) {
        let d = self.hidden();
        for (x, &id) in x.chunks_exact_mut(d).zip(ids) {
            w.copy_row(&self.embed, id as usize, x);
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
        self.forward(w, batch, ws, Reach::NONE, &mut |_, _| {})?;
        self.head_scores(w, batch, &ws.x, policy, scores, &mut ws.head)
    }

    /// Like [`Plan::score`], then adds the gradient of the objective to `grads`.
    /// `objective` maps (pack of the batch, its scores) to dL/dlogp in the shape of the log-probs.
    pub fn train(
        &self,
        w: &Weights,
        batch: &Batch,
        policy: &Policy,
        scores: &mut [PackScores],
        objective: &BatchObjective,
        grads: &mut Grads,
        checkpointing: bool,
        ws: &mut Workspace,
    ) -> Result<(), EngineError> {
        let reach = self.reach(batch, grads, checkpointing);
        let vision = self.forward(w, batch, ws, reach, &mut |_, _| {})?;
        self.head_scores(w, batch, &ws.x, policy, scores, &mut ws.head)?;
        let gradient = scores.iter().enumerate().map(|(i, s)| objective(i, s)).collect::<Result<Vec<_>, _>>()?;
        let (n, d) = (batch.len(), self.hidden());
        grow(&mut ws.dx, n * d);
        let dx = &mut ws.dx[..n * d];
        dx.fill(0.0);
        self.head_backward(w, batch, policy, &gradient, dx, grads, &mut ws.head, &mut ws.scratch.gemm)?;
        let rows = Rows { n, packs: &batch.packs, cos: &batch.cos, sin: &batch.sin };
        for (i, block) in self.blocks.iter().enumerate().skip(reach.from).rev() {
            if let (true, Some(deep)) = (reach.vision, ws.vision.deep.get_mut(i)) {
                take_rows(dx, &batch.image_rows, d, &mut deep.out);
            }
            ws.tape.backward(i, block, w, rows, dx, grads, &mut ws.scratch);
        }
        self.embed_backward(batch, grads, &ws.dx);
        if let (true, Some(v), Some(rows)) = (reach.vision, &self.vision, &vision) {
            take_rows(&ws.dx, &batch.image_rows, d, &mut ws.vision.main.out);
            v.backward(w, rows, &mut ws.vision, grads, &mut ws.scratch);
        }
        Ok(())
    }

    /// Adds the gradient of the embedding rows in use; rows of image tokens have none.
    fn embed_backward(&self, batch: &Batch, grads: &mut Grads, dx: &[f32]) {
        let Some(table) = grads.of(&self.embed) else { return };
        let d = self.hidden();
        let mut images = batch.image_rows.iter().copied().peekable();
        for (row, &id) in batch.ids.iter().enumerate() {
            if images.next_if_eq(&row).is_none() {
                add_assign(&mut table[id as usize * d..][..d], &dx[row * d..(row + 1) * d]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorum_core::config::{LoraSection, TrainSection};
    use quorum_model::{Checkpoint, EncodedImage, Partition};
    use std::path::Path;

    /// (lowest block entered, tower entered) for a batch with or without an image.
    fn reach(fixture: &str, train: &TrainSection, image: bool) -> (usize, bool) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(fixture);
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let parts = Partition::of(&checkpoint.config, &checkpoint.layout, train).unwrap();
        let plan = Plan::new(&checkpoint.config, &parts).unwrap();
        let picture = EncodedImage { grid: [1, 2, 2], patches: Vec::new() };
        let mut batch = Batch::default();
        if image {
            batch.images.push(&picture);
        }
        let reach = plan.reach(&batch, &Grads::new(&mut []), false);
        assert_eq!(reach.tower() == Keep::All, reach.vision);
        assert!(reach.from == 0 || reach.block(reach.from - 1) == Keep::Nothing);
        (reach.from, reach.vision)
    }

    #[test]
    fn gradients_go_as_far_down_as_something_learns() {
        let freeze = |parts: &[&str]| TrainSection {
            freeze: parts.iter().map(|p| p.to_string()).collect(),
            ..TrainSection::default()
        };
        let q = LoraSection { rank: 2, alpha: 4.0, targets: vec!["q_proj".into()] };
        let lora = TrainSection { lora: q, ..TrainSection::default() };
        assert_eq!(reach("qwen3_vl", &freeze(&[]), true), (0, true));
        assert_eq!(reach("qwen3_vl", &freeze(&[]), false), (0, false));
        assert_eq!(reach("qwen3_vl", &freeze(&["vision"]), true), (0, false));
        assert_eq!(reach("qwen3_vl", &freeze(&["language", "embeddings"]), true), (0, true));
        // Text alone: what learns is in the tower, which no gradient reaches.
        assert_eq!(reach("qwen3_vl", &freeze(&["language", "embeddings"]), false), (3, false));
        assert_eq!(reach("qwen3_vl", &lora, true), (0, false));
    }
}
