//! The vision tower of all families on device tensors. Its geometry comes from the same [`VisionRows`] as the `cpu` backend's.

use super::block::Tape;
use super::merger::{Merged, Order};
use super::model::Keeping;
use super::rows::Rows;
use super::store::{Grads, Weights};
use crate::error::EngineError;
use crate::model::vision::{Stage, VisionPlan};
use crate::model::vision_rows::VisionRows;
use candle_core::{DType, Device, Tensor};
use quorum_model::EncodedImage;

type Result<T> = std::result::Result<T, EngineError>;

/// A forward pass of the tower, with what its backward pass reads.
pub struct Seen {
    windows: Rows,
    full: Rows,
    order: Order,
    patches: Tensor,
    tape: Vec<Tape>,
    /// The merged tokens, and those of each deepstack merger.
    pub main: Merged,
    pub deep: Vec<Merged>,
    /// Rows of the learned table `[n · 4]` and their weights `[n, 4, 1]`.
    taps: Option<(Tensor, Tensor)>,
}

impl Weights<'_> {
    /// Runs all images of a batch through the tower. `watch` sees its stages.
    pub fn see(
        &self,
        v: &VisionPlan,
        images: &[&EncodedImage],
        keep: Keeping,
        dtype: DType,
        device: &Device,
        watch: &mut dyn FnMut(Stage, &Tensor) -> Result<()>,
    ) -> Result<Seen> {
        let r = VisionRows::new(&v.config, images)?;
        let heads = v.config.num_heads;
        let rows = |packs| Rows::new(packs, &r.cos, &r.sin, r.n, heads, false, device);
        let (windows, full) = (rows(&r.windows)?, rows(&r.full)?);
        let order = order(&r, device)?;
        let patches = gather(&r, images, v.patch.n_in, device)?.to_dtype(dtype)?;
        let mut x = self.linear(&v.patch, &patches)?;
        watch(Stage::Patches, &x)?;
        let taps = taps(&r, device)?;
        if let (Some(table), Some((at, weight))) = (&v.positions, &taps) {
            let picked = self.get(table)?.index_select(at, 0)?.reshape((r.n, 4, v.config.hidden_size))?;
            x = (x + picked.broadcast_mul(&weight.to_dtype(dtype)?)?.sum(1)?)?;
        }
        let (mut tape, mut deep) = (Vec::with_capacity(v.blocks.len()), Vec::new());
        for (i, block) in v.blocks.iter().enumerate() {
            let rows = if v.config.full_attention_blocks.contains(&i) { &full } else { &windows };
            let (y, kept) = self.block(block, &x, rows)?;
            tape.push(keep.of(kept, &x));
            x = y;
            watch(Stage::Block, &x)?;
            for (_, merger) in v.deepstack.iter().filter(|(at, _)| *at == i) {
                deep.push(self.merge(merger, &x, &order)?);
            }
        }
        let main = self.merge(&v.merger, &x, &order)?;
        Ok(Seen { windows, full, order, patches, tape, main, deep, taps })
    }

    /// Adds the tower's gradients from those of its merged tokens (`deep` in the order of the mergers).
    pub fn see_backward(
        &self,
        v: &VisionPlan,
        seen: Seen,
        d_main: &Tensor,
        d_deep: &[Tensor],
        grads: &mut Grads,
    ) -> Result<()> {
        let width = v.config.hidden_size;
        let mut dx = self.merge_backward(&v.merger, &seen.main, d_main, width, &seen.order, grads)?;
        for (i, (block, tape)) in v.blocks.iter().zip(seen.tape).enumerate().rev() {
            let deep = v.deepstack.iter().zip(&seen.deep).zip(d_deep);
            for (((_, merger), kept), d) in deep.filter(|(((at, _), _), _)| *at == i) {
                dx = (dx + self.merge_backward(merger, kept, d, width, &seen.order, grads)?)?;
            }
            let rows = if v.config.full_attention_blocks.contains(&i) { &seen.full } else { &seen.windows };
            dx = self.block_backward(block, rows, tape, &dx, grads)?;
        }
        if let (Some(table), Some((at, weight))) = (&v.positions, &seen.taps) {
            let n = dx.dim(0)?;
            let shares = dx.to_dtype(DType::F32)?.unsqueeze(1)?.broadcast_mul(weight)?.reshape((n * 4, width))?;
            grads.add_rows(table, (table.len() / width, width), at, &shares)?;
        }
        self.linear_weights(&v.patch, &seen.patches, &dx, grads)
    }
}

fn order(r: &VisionRows, device: &Device) -> Result<Order> {
    let mut rows = vec![0u32; r.unit.len()];
    for (row, &raster) in r.unit.iter().enumerate() {
        rows[raster] = row as u32;
    }
    let raster: Vec<u32> = r.unit.iter().map(|&u| u as u32).collect();
    let n = rows.len();
    Ok(Order { raster: Tensor::from_vec(raster, n, device)?, rows: Tensor::from_vec(rows, n, device)? })
}

/// Patches of all images in the order of the tower's rows: `[n, dim]`.
fn gather(r: &VisionRows, images: &[&EncodedImage], dim: usize, device: &Device) -> Result<Tensor> {
    let all: Vec<&[f32]> = images.iter().flat_map(|image| image.patches.chunks_exact(dim)).collect();
    let mut values = Vec::with_capacity(r.n * dim);
    for &from in &r.source {
        values.extend_from_slice(all[from]);
    }
    Ok(Tensor::from_vec(values, (r.n, dim), device)?)
}

fn taps(r: &VisionRows, device: &Device) -> Result<Option<(Tensor, Tensor)>> {
    if r.taps.is_empty() {
        return Ok(None);
    }
    let at: Vec<u32> = r.taps.iter().flatten().map(|t| t.0 as u32).collect();
    let weight: Vec<f32> = r.taps.iter().flatten().map(|t| t.1).collect();
    let n = r.taps.len();
    Ok(Some((Tensor::from_vec(at, n * 4, device)?, Tensor::from_vec(weight, (n, 4, 1), device)?)))
}
