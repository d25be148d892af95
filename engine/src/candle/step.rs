//! One decoding step of all slots: from their newest tokens to the rows behind the last block. What it reads and writes keeps its place
//! and its shape from token to token, so that a GPU can record the step once and repeat it by one launch.

use super::kv::Cache;
use super::model::Place;
use super::ops;
use super::rows::NEVER;
use crate::error::EngineError;
use candle_core::{DType, Tensor};

type Result<T> = std::result::Result<T, EngineError>;

/// What a step reads and writes, for as long as grid and cache keep their shapes.
pub struct Step {
    /// Newest tokens `[slots]`.
    ids: Tensor,
    /// Rotary tables `[slots, head_dim / 2]`, f32.
    cos: Tensor,
    sin: Tensor,
    /// The tokens' number in their responses: `[1]`.
    at: Tensor,
    /// Own tokens that are there: 0, or never behind them: `[room]`, f32.
    own_mask: Tensor,
    /// Rows behind the last block `[slots, hidden]`.
    x: Tensor,
    #[cfg(feature = "cuda")]
    recording: super::recording::Recording<candle_core::cuda::cudarc::driver::CudaGraph>,
}

/// What changes from token to token.
pub struct Newest {
    pub ids: Vec<u32>,
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
    /// The tokens' number in their responses.
    pub t: usize,
}

impl Step {
    /// For `slots` slots with room for `room` tokens each.
    pub fn new(place: &Place, slots: usize, room: usize) -> Result<Self> {
        let device = place.device;
        let table = || Tensor::zeros((slots, place.plan.config.text.head_dim / 2), DType::F32, device);
        Ok(Self {
            ids: Tensor::zeros(slots, DType::U32, device)?,
            cos: table()?,
            sin: table()?,
            at: Tensor::zeros(1, DType::U32, device)?,
            own_mask: Tensor::zeros(room, DType::F32, device)?,
            x: Tensor::zeros((slots, place.plan.hidden()), place.dtype, device)?,
            #[cfg(feature = "cuda")]
            recording: super::recording::Recording::default(),
        })
    }

    /// Rows `[slots, hidden]` behind the last block of the newest tokens, whose keys and values are booked.
    pub fn run(&mut self, place: &Place, cache: &Cache, newest: Newest) -> Result<&Tensor> {
        self.set(newest)?;
        #[cfg(feature = "cuda")]
        if let Some(graphs) = place.graphs {
            // After an error it is gone, as it should be.
            let mut recording = std::mem::take(&mut self.recording);
            recording.run(graphs, &self.x, &|| self.compute(place, cache))?;
            self.recording = recording;
            return Ok(&self.x);
        }
        self.compute(place, cache)?;
        Ok(&self.x)
    }

    fn set(&self, newest: Newest) -> Result<()> {
        let (room, t) = (self.own_mask.elem_count(), newest.t);
        let mask = (0..room).map(|i| if i <= t { 0.0 } else { NEVER }).collect();
        write(&self.ids, newest.ids)?;
        write(&self.cos, newest.cos)?;
        write(&self.sin, newest.sin)?;
        write(&self.at, vec![t as u32])?;
        write(&self.own_mask, mask)
    }

    /// All that is recorded: from token to token nothing changes but the tensors' values.
    fn compute(&self, place: &Place, cache: &Cache) -> Result<()> {
        let mut x = place.embed_tokens(&self.ids)?;
        let places = cache.places(&self.at)?;
        for (layer, block) in place.plan.blocks.iter().enumerate() {
            let p = place.weights.project(block, &x, &self.cos, &self.sin)?;
            let kv = cache.step(layer, &places, &self.own_mask, &p.k, &p.v)?;
            let mixed = ops::attend_step(&p.q, &kv, f64::from(block.scale()))?;
            x = place.weights.finish(block, &x, &mixed)?.2;
        }
        self.x.slice_set(&x, 0, 0)?;
        Ok(())
    }
}

/// Puts values where the tensor's are.
fn write<T: candle_core::WithDType>(to: &Tensor, values: Vec<T>) -> Result<()> {
    to.slice_set(&Tensor::from_vec(values, to.shape(), to.device())?, 0, 0)?;
    Ok(())
}
