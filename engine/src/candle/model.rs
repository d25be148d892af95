//! The whole model on a ragged batch of device tensors: embed, splice the images, run the blocks; and the gradient of all of it, as far
//! down as a trained tensor lies.

use super::block::{Kept, Projected, Tape};
use super::rows::Rows;
use super::store::{Grads, Weights};
use super::team::Seat;
use super::vision::Seen;
use crate::error::EngineError;
use crate::model::batch::Batch;
use crate::model::plan::Plan;
use crate::params::Grads as HostGrads;
use candle_core::{DType, Device, Tensor};
use std::sync::Arc;

type Result<T> = std::result::Result<T, EngineError>;

/// What is kept of a block on the way up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeping {
    Nothing,
    Input,
    All,
}

impl Keeping {
    /// Keeps as much of a block's forward pass on x.
    pub fn of(self, kept: Kept, x: &Tensor) -> Tape {
        match self {
            Self::Nothing => Tape::Nothing,
            Self::Input => Tape::Input(x.clone()),
            Self::All => Tape::All(Box::new(kept)),
        }
    }
}

/// How far down a gradient goes.
#[derive(Debug, Clone, Copy)]
pub struct Reach {
    /// The lowest block of the decoder that it enters.
    from: usize,
    vision: bool,
    keep: Keeping,
}

impl Reach {
    /// Forward only.
    pub const NONE: Self = Self { from: usize::MAX, vision: false, keep: Keeping::Nothing };

    /// For a batch; with `checkpointing` only the blocks' inputs are kept.
    pub fn of(plan: &Plan, batch: &Batch, checkpointing: bool) -> Self {
        let nothing = HostGrads::new(&mut []);
        let vision = !batch.images.is_empty() && plan.vision.as_ref().is_some_and(|v| v.trained(&nothing));
        let lowest = plan.blocks.iter().position(|b| b.trained(&nothing)).unwrap_or(plan.blocks.len());
        let keep = if checkpointing { Keeping::Input } else { Keeping::All };
        Self { from: if vision || plan.embed.trained() { 0 } else { lowest }, vision, keep }
    }

    fn block(&self, i: usize) -> Keeping {
        if i >= self.from { self.keep } else { Keeping::Nothing }
    }
}

/// A forward pass up to the last block.
pub struct Passed {
    /// Rows behind the last block `[n, hidden]`.
    pub x: Tensor,
    rows: Rows,
    tape: Vec<Tape>,
    seen: Option<Seen>,
    image_rows: Tensor,
}

/// Where a model runs.
pub struct Place<'a> {
    pub plan: &'a Plan,
    pub weights: Weights<'a>,
    pub seat: Seat<'a>,
    pub device: &'a Device,
    pub dtype: DType,
    /// Where decoding steps are recorded; not where shards meet on the host in between.
    #[cfg(feature = "cuda")]
    pub graphs: Option<&'a super::graphs::Graphs>,
}

impl Place<'_> {
    /// What the first shard makes, for all of them; a single one makes it.
    pub fn share<T: Send + Sync + 'static>(&self, make: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        self.seat.share(make)
    }

    /// A tensor of row numbers or token ids.
    pub fn ids(&self, values: Vec<u32>) -> Result<Tensor> {
        let n = values.len();
        Ok(Tensor::from_vec(values, n, self.device)?)
    }

    /// Embeddings `[n, hidden]` of ids `[n]` in the vocabulary.
    pub fn embed_tokens(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(self.weights.get(&self.plan.embed)?.index_select(ids, 0)?)
    }

    /// Runs the batch, keeping what `reach` says. `watch` sees each layer's keys and values.
    pub fn forward(
        &self,
        batch: &Batch,
        reach: Reach,
        watch: &mut dyn FnMut(usize, &Projected) -> Result<()>,
    ) -> Result<Passed> {
        let plan = self.plan;
        let heads = plan.blocks.first().map_or(1, |b| b.heads.heads);
        let rows = Rows::new(&batch.packs, &batch.cos, &batch.sin, batch.len(), heads, true, self.device)?;
        let image_rows = self.ids(batch.image_rows.iter().map(|&r| r as u32).collect())?;
        let (mut x, seen) = self.embed(batch, reach)?;
        let mut tape = Vec::with_capacity(plan.blocks.len());
        for (i, block) in plan.blocks.iter().enumerate() {
            let (y, kept) = self.weights.block(block, &x, &rows)?;
            watch(i, kept.projected())?;
            tape.push(reach.block(i).of(kept, &x));
            x = y;
            if let Some(deep) = seen.as_ref().and_then(|s| s.deep.get(i)) {
                x = x.index_add(&image_rows, &deep.out, 0)?;
            }
        }
        Ok(Passed { x, rows, tape, seen, image_rows })
    }

    /// Token embeddings with the image rows replaced.
    fn embed(&self, batch: &Batch, reach: Reach) -> Result<(Tensor, Option<Seen>)> {
        let x = self.embed_tokens(&self.ids(batch.ids.clone())?)?;
        let (Some(v), false) = (&self.plan.vision, batch.images.is_empty()) else { return Ok((x, None)) };
        let keep = if reach.vision { reach.keep } else { Keeping::Nothing };
        let seen = self.weights.whole().see(v, &batch.images, keep, self.dtype, self.device, &mut |_, _| Ok(()))?;
        let n = batch.len() as u32;
        let mut source: Vec<u32> = (0..n).collect();
        for (token, &row) in batch.image_rows.iter().enumerate() {
            source[row] = n + token as u32;
        }
        let x = Tensor::cat(&[&x, &seen.main.out], 0)?.index_select(&self.ids(source)?, 0)?;
        Ok((x, Some(seen)))
    }

    /// Adds all gradients below the last block's output, whose gradient is `dx`.
    pub fn backward(
        &self,
        batch: &Batch,
        passed: Passed,
        reach: Reach,
        mut dx: Tensor,
        grads: &mut Grads,
    ) -> Result<()> {
        let deepstack = if reach.vision { passed.seen.as_ref().map_or(0, |s| s.deep.len()) } else { 0 };
        let mut d_deep = vec![None; deepstack];
        for (i, (block, tape)) in self.plan.blocks.iter().zip(passed.tape).enumerate().skip(reach.from).rev() {
            if let Some(d) = d_deep.get_mut(i) {
                *d = Some(dx.index_select(&passed.image_rows, 0)?);
            }
            dx = self.weights.block_backward(block, &passed.rows, tape, &dx, grads)?;
        }
        if reach.from == 0 {
            self.embed_backward(batch, &dx, grads)?;
        }
        if let (true, Some(v), Some(seen)) = (reach.vision, &self.plan.vision, passed.seen) {
            let d_main = dx.index_select(&passed.image_rows, 0)?;
            let d_deep: Vec<Tensor> = d_deep.into_iter().flatten().collect();
            self.weights.whole().see_backward(v, seen, &d_main, &d_deep, grads)?;
        }
        Ok(())
    }

    /// Gradient of the embedding rows in use; rows of image tokens have none.
    fn embed_backward(&self, batch: &Batch, dx: &Tensor, grads: &mut Grads) -> Result<()> {
        let embed = &self.plan.embed;
        let mut is_text = vec![true; batch.len()];
        batch.image_rows.iter().for_each(|&row| is_text[row] = false);
        let rows: Vec<u32> = (0..batch.len()).filter(|&row| is_text[row]).map(|row| row as u32).collect();
        if !embed.trained() || rows.is_empty() {
            return Ok(());
        }
        let ids = self.ids(rows.iter().map(|&row| batch.ids[row as usize]).collect())?;
        let t = &self.plan.config.text;
        grads.add_rows(embed, (t.vocab_size, t.hidden_size), &ids, &dx.index_select(&self.ids(rows)?, 0)?)
    }
}
