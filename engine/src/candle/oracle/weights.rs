//! A slab as candle variables under their hub names, and gradients back into a slab. No arithmetic.

use super::error::CandleError;
use crate::error::EngineError;
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use quorum_model::{Family, Layout, ModelConfig, RopeScaling};
use std::sync::Arc;

/// One variable a layout entry, in layout order.
pub(super) struct Weights {
    layout: Arc<Layout>,
    vars: Vec<Var>,
}

impl Weights {
    /// Copies `slab` to `device` as `dtype`; fails if slab and layout do not belong to `config`.
    pub fn new(
        config: &ModelConfig,
        layout: Arc<Layout>,
        slab: &[f32],
        device: &Device,
        dtype: DType,
    ) -> Result<Self, CandleError> {
        check(config, &layout)?;
        check_length("the weights slab", slab.len(), layout.total())?;
        let vars = layout.entries().iter().map(|entry| {
            let values = Tensor::from_slice(&slab[entry.range.clone()], entry.shape.as_slice(), device)?;
            Var::from_tensor(&values.to_dtype(dtype)?)
        });
        let vars = vars.collect::<Result<_, _>>()?;
        Ok(Self { layout, vars })
    }

    /// The variable of that hub name, attached to the graph.
    pub fn get(&self, name: &str) -> Result<&Tensor, CandleError> {
        let index = self.layout.entries().iter().position(|entry| entry.name == name);
        let var = index.and_then(|i| self.vars.get(i));
        Ok(var.ok_or_else(|| EngineError::Tensor {
            name: name.to_owned(),
            expected: Vec::new(),
            found: "no such tensor".to_owned(),
        })?)
    }

    /// Adds the gradients of all variables to `slab` (layout order); a variable the loss does not depend on adds nothing.
    pub fn add_gradients(&self, gradients: &GradStore, slab: &mut [f32]) -> Result<(), CandleError> {
        check_length("the gradient slab", slab.len(), self.layout.total())?;
        for (entry, var) in self.layout.entries().iter().zip(&self.vars) {
            let Some(gradient) = gradients.get(var) else { continue };
            let values = gradient.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            for (sum, value) in slab[entry.range.clone()].iter_mut().zip(values) {
                *sum += value;
            }
        }
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.layout.total()
    }
}

/// The reference knows one decoder and one tower; the fixtures are the oracle of the other families.
fn check_supported(config: &ModelConfig) -> Result<(), EngineError> {
    let t = &config.text;
    let known = matches!(config.family, Family::Qwen2_5Vl | Family::Qwen2);
    if known && t.qkv_bias && !t.o_bias && !t.qk_norm && t.rope_scaling == RopeScaling::None {
        return Ok(());
    }
    Err(EngineError::Shape(format!(
        "the candle reference cannot run this {} configuration; use a checkpoint of qwen2_5_vl or qwen2 without rope scaling, or the cpu backend",
        config.family.model_type()
    )))
}

/// Every tensor that `config` implies is in `layout`, in its shape.
fn check(config: &ModelConfig, layout: &Layout) -> Result<(), EngineError> {
    check_supported(config)?;
    for wanted in Layout::of(config).entries() {
        let found = layout.get(&wanted.name);
        if found.is_none_or(|entry| entry.shape != wanted.shape) {
            return Err(EngineError::Tensor {
                name: wanted.name.clone(),
                expected: wanted.shape.clone(),
                found: found.map_or_else(|| "no such tensor".to_owned(), |entry| format!("{:?}", entry.shape)),
            });
        }
    }
    Ok(())
}

fn check_length(what: &'static str, found: usize, expected: usize) -> Result<(), EngineError> {
    if found == expected { Ok(()) } else { Err(EngineError::SlabLength { what, found, expected }) }
}
