//! Intermediate states for parity checks and diagnosis. Not used by rollout or training.

use crate::engine::Engine;
use crate::error::EngineError;
use crate::model::batch::{Batch, check_prompt};
use crate::model::forward::Reach;
use crate::model::vision::Stage;
use crate::model::vision_rows::VisionRows;
use crate::tape::Keep;
use quorum_model::{EncodedImage, EncodedPrompt};

/// Stages of the vision tower.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct VisionTrace {
    /// \[patches, hidden\], in input order.
    pub patch_embed: Vec<f32>,
    /// Output of every block \[patches, hidden\], in the order of the tower's rows: raster, or windows.
    pub blocks: Vec<Vec<f32>>,
    /// Merged tokens \[units, out_hidden\], in raster order.
    pub out: Vec<f32>,
    /// What each deepstack merger adds to the decoder's states \[units, out_hidden\], in raster order.
    pub deepstack: Vec<Vec<f32>>,
}

impl Engine {
    /// Logits \[tokens, vocab\] of a whole prompt: never use it on long inputs of a large vocabulary.
    ///
    /// # Errors
    /// A prompt that does not fit the model.
    pub fn logits(&self, weights: &[f32], prompt: &EncodedPrompt) -> Result<Vec<f32>, EngineError> {
        let last = check_prompt(&self.plan, prompt, 0)?;
        #[cfg(feature = "candle")]
        if let Some(backend) = &self.elsewhere {
            return backend.logits(self, weights, prompt, last);
        }
        let panels = self.pool.panels(&self.plan, weights, self.threads)?;
        let rope = self.pool.rope(&self.plan, last);
        let mut batch = Batch::default();
        batch.push(&self.plan, &rope, prompt, &[]);
        let w = panels.weights(weights);
        self.pool.with_workspace(|ws| {
            self.plan.forward(&w, &batch, ws, Reach::NONE, &mut |_, _| {})?;
            Ok(self.plan.logits(&w, &ws.x, batch.len(), &mut ws.head))
        })
    }

    /// Stages of the vision tower on some images.
    ///
    /// # Errors
    /// A model without a vision tower, or an image that does not fit it.
    pub fn vision_trace(&self, weights: &[f32], images: &[&EncodedImage]) -> Result<VisionTrace, EngineError> {
        let vision =
            self.plan.vision.as_ref().ok_or_else(|| EngineError::Request("the model has no vision tower".into()))?;
        #[cfg(feature = "candle")]
        if let Some(backend) = &self.elsewhere {
            return backend.vision_trace(self, weights, images);
        }
        let panels = self.pool.panels(&self.plan, weights, self.threads)?;
        let rows = VisionRows::new(&vision.config, images)?;
        let d = vision.config.hidden_size;
        let mut trace = VisionTrace { patch_embed: vec![0.0; rows.n * d], ..VisionTrace::default() };
        self.pool.with_workspace(|ws| {
            vision.forward(
                &panels.weights(weights),
                &rows,
                images,
                &mut ws.vision,
                Keep::Nothing,
                &mut ws.scratch,
                &mut |stage, x| {
                    if stage == Stage::Block {
                        trace.blocks.push(x.to_vec());
                        return;
                    }
                    for (row, &to) in x.chunks_exact(d).zip(&rows.source) {
                        trace.patch_embed[to * d..(to + 1) * d].copy_from_slice(row);
                    }
                },
            );
            let n = rows.units() * self.plan.hidden();
            trace.out = ws.vision.main.out[..n].to_vec();
            trace.deepstack = ws.vision.deep.iter().map(|d| d.out[..n].to_vec()).collect();
        });
        Ok(trace)
    }
}
