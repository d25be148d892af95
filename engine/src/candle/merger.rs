//! Patch merger on device tensors: merged tokens of the tower's states, and the states' gradient.

use super::store::{Grads, Weights};
use crate::error::EngineError;
use crate::model::merger::Merger;
use candle_core::Tensor;

type Result<T> = std::result::Result<T, EngineError>;

/// What the backward pass of a merger reads.
pub struct Merged {
    /// Tokens in raster order `[units, out_hidden]`.
    pub out: Tensor,
    x: Tensor,
    normed: Tensor,
    hidden: Tensor,
}

/// Order of the merge units: tower's rows → raster, and back.
pub struct Order {
    pub raster: Tensor,
    pub rows: Tensor,
}

impl Weights<'_> {
    /// Merged tokens of states x `[patches, hidden]`.
    pub fn merge(&self, m: &Merger, x: &Tensor, order: &Order) -> Result<Merged> {
        let width = m.norm.width();
        let x = x.reshape((x.elem_count() / width, width))?;
        let normed = self.norm(&m.norm, &x)?;
        let normed = normed.reshape((x.elem_count() / m.mlp.up.n_in, m.mlp.up.n_in))?;
        let (y, hidden) = self.mlp(&m.mlp, &normed)?;
        Ok(Merged { out: y.index_select(&order.rows, 0)?, x, normed, hidden })
    }

    /// Gradient of the states `[patches, hidden]` from that of the tokens in raster order.
    pub fn merge_backward(
        &self,
        m: &Merger,
        kept: &Merged,
        d_out: &Tensor,
        hidden: usize,
        order: &Order,
        grads: &mut Grads,
    ) -> Result<Tensor> {
        let dy = d_out.index_select(&order.raster, 0)?;
        let d_normed = self.mlp_backward(&m.mlp, &kept.normed, &kept.hidden, &dy, grads)?;
        let dx = self.norm_backward(&m.norm, &kept.x, &d_normed.reshape(kept.x.shape())?, grads)?;
        Ok(dx.reshape((dx.elem_count() / hidden, hidden))?)
    }
}
