//! Weights on the device: tensors by the place of their parameter in its slab, and gradients summed in f32 by the same address. With
//! several devices, each has its own part of both.

use super::holdings::Holdings;
use super::team::Seat;
use crate::block::Block;
use crate::error::EngineError;
use crate::linear::Linear;
use crate::model::merger::Merger;
use crate::model::plan::Plan;
use crate::norm::Norm;
use crate::params::Param;
use candle_core::{DType, Device, Tensor};
use quorum_model::{Entry, Part, Partition};
use std::collections::{BTreeMap, HashMap};

type Result<T> = std::result::Result<T, EngineError>;

/// Tensors of one slab by the start of their parameter.
pub type Table = HashMap<usize, Tensor>;

/// One version of the weights.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    pub frozen: &'a Table,
    pub trainable: &'a Table,
    /// Whom products of a part of the columns are added with; none where every shard has the whole.
    pub seat: Option<Seat<'a>>,
}

impl<'a> Weights<'a> {
    /// The tensor of a parameter: `[n_out, n_in]` for a matrix, `[n]` for a vector.
    pub fn get(&self, p: &Param) -> Result<&'a Tensor> {
        let table = if p.part == Part::Frozen { self.frozen } else { self.trainable };
        table
            .get(&p.range.start)
            .ok_or_else(|| EngineError::Device(format!("no tensor at {} of the slab", p.range.start)))
    }

    /// The same weights, of which every shard has the whole.
    pub fn whole(self) -> Self {
        Self { seat: None, ..self }
    }

    /// The sum of the shards' tensors.
    pub fn sum(&self, x: Tensor) -> Result<Tensor> {
        match self.seat {
            Some(seat) => seat.sum(x),
            None => Ok(x),
        }
    }
}

/// Sums of a shard's gradients in f32, by the start of their parameter.
pub struct Grads<'a> {
    holdings: &'a Holdings,
    sums: BTreeMap<usize, (Param, Tensor)>,
}

impl<'a> Grads<'a> {
    /// Nothing yet.
    pub fn new(holdings: &'a Holdings) -> Self {
        Self { holdings, sums: BTreeMap::new() }
    }

    /// Adds `gradient` to the parameter's sum; nothing for what is frozen or left to the first shard.
    pub fn add(&mut self, p: &Param, gradient: impl FnOnce() -> candle_core::Result<Tensor>) -> Result<()> {
        if !self.holdings.counts(p) {
            return Ok(());
        }
        let gradient = gradient()?.to_dtype(DType::F32)?;
        let sum = match self.sums.remove(&p.range.start) {
            Some((_, sum)) => (sum + gradient)?,
            None => gradient,
        };
        self.sums.insert(p.range.start, (p.clone(), sum));
        Ok(())
    }

    /// Adds the rows of `gradient` to rows `ids` of a table of the given shape.
    pub fn add_rows(&mut self, p: &Param, shape: (usize, usize), ids: &Tensor, gradient: &Tensor) -> Result<()> {
        if !self.holdings.counts(p) {
            return Ok(());
        }
        let gradient = gradient.to_dtype(DType::F32)?.contiguous()?;
        let sum = match self.sums.remove(&p.range.start) {
            Some((_, sum)) => sum.reshape(shape)?,
            None => Tensor::zeros(shape, DType::F32, gradient.device())?,
        };
        self.sums.insert(p.range.start, (p.clone(), sum.index_add(ids, &gradient, 0)?));
        Ok(())
    }

    /// Adds everything to a slab in the layout of the trainable parameters.
    pub fn into_slab(self, slab: &mut [f32]) -> Result<()> {
        for (p, sum) in self.sums.into_values() {
            let values = sum.flatten_all()?.to_vec1::<f32>()?;
            self.holdings.add(&p, &values, &mut slab[p.range.clone()]);
        }
        Ok(())
    }
}

/// Every parameter of the plan once, with its shape.
pub fn params(plan: &Plan) -> Vec<(&Param, Vec<usize>)> {
    let mut all = Vec::new();
    let t = &plan.config.text;
    all.push((&plan.embed, vec![t.vocab_size, t.hidden_size]));
    plan.linears().for_each(|l| linear(l, &mut all));
    norm(&plan.norm, &mut all);
    plan.blocks.iter().for_each(|b| block_norms(b, &mut all));
    if let Some(v) = &plan.vision {
        let width = v.config.hidden_size;
        all.extend(v.positions.as_ref().map(|p| (p, vec![p.len() / width, width])));
        v.blocks.iter().for_each(|b| block_norms(b, &mut all));
        let mergers = std::iter::once(&v.merger).chain(v.deepstack.iter().map(|d| &d.1));
        mergers.for_each(|m: &Merger| norm(&m.norm, &mut all));
    }
    let mut seen = std::collections::HashSet::new();
    all.retain(|(p, _)| seen.insert((p.part, p.range.start)));
    all
}

fn linear<'a>(l: &'a Linear, all: &mut Vec<(&'a Param, Vec<usize>)>) {
    let matrices = std::iter::once(&l.weight).chain(l.adapters.iter().flat_map(|a| [&a.down, &a.up]));
    all.extend(matrices.map(|m| (&m.param, vec![m.n_out, m.n_in])));
    all.extend(l.bias.as_ref().map(|b| (b, vec![l.n_out])));
}

fn norm<'a>(n: &'a Norm, all: &mut Vec<(&'a Param, Vec<usize>)>) {
    match n {
        Norm::Rms { weight, .. } => all.push((weight, vec![weight.len()])),
        Norm::Layer { weight, bias, .. } => all.extend([weight, bias].map(|p| (p, vec![p.len()]))),
    }
}

fn block_norms<'a>(b: &'a Block, all: &mut Vec<(&'a Param, Vec<usize>)>) {
    norm(&b.norm1, all);
    norm(&b.norm2, all);
    all.extend(b.qk_norm.iter().flat_map(|n| [&n.q, &n.k]).map(|p| (p, vec![p.len()])));
}

/// A shard's part of the trainable tensors of a slab, in the compute type; rounded through bf16 where the policy computes with bf16 weights.
pub fn upload(
    plan: &Plan,
    holdings: &Holdings,
    slab: &[f32],
    bf16: bool,
    dtype: DType,
    device: &Device,
) -> Result<Table> {
    let mut table = Table::new();
    for (p, shape) in params(plan).into_iter().filter(|(p, _)| p.trained()) {
        let mut t = Tensor::from_slice(&holdings.share(p, 0, &slab[p.range.clone()]), shape, device)?;
        if bf16 {
            t = t.to_dtype(DType::BF16)?;
        }
        table.insert(p.range.start, t.to_dtype(dtype)?);
    }
    Ok(table)
}

/// Frozen tensors on their way to the device, one checkpoint tensor at a time.
pub struct Filler {
    /// By their start.
    params: BTreeMap<usize, Param>,
    pieces: BTreeMap<usize, Tensor>,
    device: Device,
    dtype: DType,
    bf16: bool,
}

impl Filler {
    /// Nothing yet. With `bf16`, values are rounded to it.
    pub fn new(plan: &Plan, device: Device, dtype: DType, bf16: bool) -> Self {
        let frozen = params(plan).into_iter().filter(|(p, _)| p.part == Part::Frozen);
        let params = frozen.map(|(p, _)| (p.range.start, p.clone())).collect();
        Self { params, pieces: BTreeMap::new(), device, dtype, bf16 }
    }

    /// Takes a shard's part of one tensor's values over.
    pub fn put(&mut self, entry: &Entry, values: &[f32], holdings: &Holdings) -> Result<()> {
        let start = entry.range.start;
        let own = match self.params.range(..=start).next_back() {
            Some((_, p)) => holdings.share(p, start - p.range.start, values),
            None => values.into(),
        };
        let mut t = Tensor::from_slice(&own, own.len(), &self.device)?;
        if self.bf16 && entry.shape.len() > 1 {
            t = t.to_dtype(DType::BF16)?;
        }
        self.pieces.insert(start, t.to_dtype(self.dtype)?);
        Ok(())
    }

    /// The table of the plan's frozen parameters, if every tensor came. Tensors that lie side by side in one parameter become one.
    pub fn finish(mut self, plan: &Plan, partition: &Partition) -> Result<Table> {
        if let Some(e) = partition.frozen.entries().iter().find(|e| !self.pieces.contains_key(&e.range.start)) {
            return Err(EngineError::Tensor {
                name: e.name.clone(),
                expected: e.shape.clone(),
                found: "no such frozen tensor".into(),
            });
        }
        let mut table = Table::new();
        for (p, shape) in params(plan).into_iter().filter(|(p, _)| p.part == Part::Frozen) {
            let inside: Vec<usize> = self.pieces.range(p.range.clone()).map(|(&start, _)| start).collect();
            let parts: Vec<Tensor> = inside.iter().filter_map(|start| self.pieces.remove(start)).collect();
            table.insert(p.range.start, Tensor::cat(&parts, 0)?.reshape(shape)?);
        }
        Ok(table)
    }
}
