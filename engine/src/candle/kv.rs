//! Keys and values of a decoding batch on the device: each group's prefix once, padded to the longest, and every slot's own tokens in a
//! room of fixed size. Slots are a grid of groups × rows; slot = group · rows + row.

use super::rows::NEVER;
use crate::error::EngineError;
use candle_core::{DType, Device, Tensor};

type Result<T> = std::result::Result<T, EngineError>;

/// Own tokens there is room for at first; doubled when used up.
const FIRST: usize = 64;
/// Prefixes are padded to a multiple of this.
const ROUND: usize = 16;

/// What one decoding step attends to.
pub struct StepKv<'a> {
    pub groups: usize,
    pub kv_heads: usize,
    /// `[groups · kv_heads, longest prefix, hd]`.
    pub prefix_k: &'a Tensor,
    pub prefix_v: &'a Tensor,
    /// 0, or never behind a group's prefix: `[groups, 1, longest prefix]`, f32.
    pub prefix_mask: &'a Tensor,
    /// `[slots · kv_heads, room, hd]`.
    pub own_k: &'a Tensor,
    pub own_v: &'a Tensor,
    /// 0, or never behind the newest token: `[room]`, f32.
    pub own_mask: &'a Tensor,
}

/// Keys and values of one prompt and layer: `[tokens, kv_heads, hd]` each.
pub type PromptKv = (Tensor, Tensor);

struct Layer {
    prefix: [Tensor; 2],
    own: [Tensor; 2],
}

/// The cache of all layers.
pub struct Cache {
    layers: Vec<Layer>,
    prefix_mask: Tensor,
    pub groups: usize,
    kv_heads: usize,
    /// Own tokens of a slot that there is room for.
    pub room: usize,
}

impl Cache {
    /// From each group's prompt, layer by layer; `rows` slots a group.
    pub fn new(prompts: &[&Vec<PromptKv>], rows: usize, dtype: DType, device: &Device) -> Result<Self> {
        let none = || EngineError::Device("decoding needs a prompt and a layer".into());
        let first = prompts.first().and_then(|p| p.first()).ok_or_else(none)?;
        let (_, kv_heads, hd) = first.0.dims3()?;
        let lengths: Vec<usize> =
            prompts.iter().filter_map(|p| p.first()).map(|kv| kv.0.dim(0)).collect::<candle_core::Result<_>>()?;
        // Few different lengths: what a GPU keeps of a step's shapes stays small.
        let longest = lengths.iter().copied().max().unwrap_or(0).next_multiple_of(ROUND);
        let padded = |x: &Tensor| x.pad_with_zeros(0, 0, longest - x.dim(0)?)?.transpose(0, 1)?.contiguous();
        let own = || Tensor::zeros((prompts.len() * rows * kv_heads, FIRST, hd), dtype, device);
        let mut layers = Vec::new();
        for layer in 0..prompts.iter().map(|p| p.len()).min().unwrap_or(0) {
            let k = prompts.iter().map(|p| padded(&p[layer].0)).collect::<candle_core::Result<Vec<_>>>()?;
            let v = prompts.iter().map(|p| padded(&p[layer].1)).collect::<candle_core::Result<Vec<_>>>()?;
            layers.push(Layer { prefix: [Tensor::cat(&k, 0)?, Tensor::cat(&v, 0)?], own: [own()?, own()?] });
        }
        let mask: Vec<f32> =
            lengths.iter().flat_map(|&len| (0..longest).map(move |i| if i < len { 0.0 } else { NEVER })).collect();
        let prefix_mask = Tensor::from_vec(mask, (prompts.len(), 1, longest), device)?;
        Ok(Self { layers, prefix_mask, groups: prompts.len(), kv_heads, room: FIRST })
    }

    /// Makes room for token `t` of every slot. True: the tensors are others now.
    pub fn reserve(&mut self, t: usize) -> Result<bool> {
        if t < self.room {
            return Ok(false);
        }
        for own in self.layers.iter_mut().flat_map(|l| &mut l.own) {
            *own = own.pad_with_zeros(1, 0, self.room)?;
        }
        self.room *= 2;
        Ok(true)
    }

    /// Where [`Cache::step`] books a token whose number in its response is `at` `[1]`.
    pub fn places(&self, at: &Tensor) -> Result<Tensor> {
        let none = || EngineError::Device("decoding needs a layer".into());
        let (rows, _, hd) = self.layers.first().ok_or_else(none)?.own[0].dims3()?;
        Ok(at.reshape((1, 1, 1))?.broadcast_as((rows, 1, hd))?.contiguous()?)
    }

    /// Books keys and values `[slots, kv_heads, hd]` at `places`, and returns all that their token attends to.
    pub fn step<'a>(
        &'a self,
        layer: usize,
        places: &Tensor,
        own_mask: &'a Tensor,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<StepKv<'a>> {
        let l = &self.layers[layer];
        for (own, new) in l.own.iter().zip([k, v]) {
            own.scatter_set(places, &new.flatten_to(1)?.unsqueeze(1)?.contiguous()?, 1)?;
        }
        Ok(StepKv {
            groups: self.groups,
            kv_heads: self.kv_heads,
            prefix_k: &l.prefix[0],
            prefix_v: &l.prefix[1],
            prefix_mask: &self.prefix_mask,
            own_k: &l.own[0],
            own_v: &l.own[1],
            own_mask,
        })
    }

    /// Keeps these groups and slots (numbers of the present grid), in this order.
    pub fn keep(&mut self, groups: &[u32], slots: &[u32]) -> Result<()> {
        let device = self.prefix_mask.device().clone();
        let kv = self.kv_heads as u32;
        let spread = |of: &[u32]| {
            let all: Vec<u32> = of.iter().flat_map(|i| (0..kv).map(move |g| i * kv + g)).collect();
            Tensor::from_slice(&all, all.len(), &device)
        };
        let (prefixes, owns) = (spread(groups)?, spread(slots)?);
        for l in &mut self.layers {
            for x in &mut l.prefix {
                *x = x.index_select(&prefixes, 0)?;
            }
            for x in &mut l.own {
                *x = x.index_select(&owns, 0)?;
            }
        }
        let groups_at = Tensor::from_slice(groups, groups.len(), &device)?;
        self.prefix_mask = self.prefix_mask.index_select(&groups_at, 0)?;
        self.groups = groups.len();
        Ok(())
    }
}
