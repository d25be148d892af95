//! Finds tensors in the two slabs by name, checks their shapes and makes linear layers of them, with the adapters that belong to them.

use crate::error::EngineError;
use crate::linear::{Adapter, Linear, Matrix};
use crate::params::Param;
use quorum_model::{Entry, Part, Partition};

/// Elements of the slab and of the panels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    /// The trainable slab.
    pub trainable: usize,
    /// Panels of the trainable matrices.
    pub panels: usize,
    pub frozen_panels: usize,
}

/// Looks tensors up and hands out panel space.
pub struct Finder<'a> {
    parts: &'a Partition,
    sizes: Sizes,
}

impl<'a> Finder<'a> {
    /// In the slabs of a run.
    pub fn new(parts: &'a Partition) -> Self {
        Self { parts, sizes: Sizes { trainable: parts.trainable.total(), ..Sizes::default() } }
    }

    /// What was handed out.
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// A tensor that is no linear layer, or an embedding read row by row.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Param, EngineError> {
        let wrong = |found: String| EngineError::Tensor { name: name.to_owned(), expected: shape.to_vec(), found };
        let (part, entry) = self.parts.get(name).ok_or_else(|| wrong("no such tensor".into()))?;
        let same = entry.shape.iter().product::<usize>() == shape.iter().product::<usize>()
            && entry.shape.first() == shape.first();
        if same { Ok(Param { part, range: entry.range.clone() }) } else { Err(wrong(format!("{:?}", entry.shape))) }
    }

    /// Side-by-side tensors as one range.
    fn joined(&self, parts: &[(&str, Vec<usize>)]) -> Result<Param, EngineError> {
        let mut all: Option<Param> = None;
        for (name, shape) in parts {
            let p = self.tensor(name, shape)?;
            all = Some(match all {
                None => p,
                Some(a) if a.part == p.part && a.range.end == p.range.start => {
                    Param { part: a.part, range: a.range.start..p.range.end }
                }
                Some(_) => return Err(EngineError::Shape(format!("{name} must follow {} in the layout", parts[0].0))),
            });
        }
        all.ok_or_else(|| EngineError::Shape("a layer without tensors".into()))
    }

    /// A layer whose rows are the named tensors one after another; `biases` likewise, or none.
    pub fn linear(&mut self, weights: &[(&str, usize)], n_in: usize, biases: &[&str]) -> Result<Linear, EngineError> {
        let n_out = weights.iter().map(|w| w.1).sum();
        let parts: Vec<_> = weights.iter().map(|&(n, rows)| (n, vec![rows, n_in])).collect();
        let param = self.joined(&parts)?;
        let parts: Vec<_> = biases.iter().zip(weights).map(|(&n, w)| (n, vec![w.1])).collect();
        let bias = if biases.is_empty() { None } else { Some(self.joined(&parts)?) };
        let weight = self.matrix(param, n_out, n_in);
        let mut adapters = Vec::new();
        let mut first = 0;
        for &(name, rows) in weights {
            adapters.extend(self.adapter(name, rows, n_in, first)?);
            first += rows;
        }
        Ok(Linear { weight, bias, n_out, n_in, adapters })
    }

    fn adapter(&mut self, name: &str, rows: usize, n_in: usize, first: usize) -> Result<Option<Adapter>, EngineError> {
        let (Some(lora), Some((a, b))) = (&self.parts.lora, self.parts.adapter(name)) else { return Ok(None) };
        for (e, shape) in [(a, [lora.rank, n_in]), (b, [rows, lora.rank])] {
            if e.shape != shape {
                let (name, found) = (e.name.clone(), format!("{:?}", e.shape));
                return Err(EngineError::Tensor { name, expected: shape.to_vec(), found });
            }
        }
        let param = |e: &Entry| Param { part: Part::Trainable, range: e.range.clone() };
        let (a, b, rank, scale) = (param(a), param(b), lora.rank, lora.scale());
        Ok(Some(Adapter { first, down: self.matrix(a, rank, n_in), up: self.matrix(b, rows, rank), scale }))
    }

    fn matrix(&mut self, param: Param, n_out: usize, n_in: usize) -> Matrix {
        let next = if param.trained() { &mut self.sizes.panels } else { &mut self.sizes.frozen_panels };
        let m = Matrix { param, n_out, n_in, at: *next };
        *next += m.panel_len();
        m
    }
}
