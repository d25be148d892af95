//! Where a tensor lies among the two slabs, and views of weights and gradients by that address. No arithmetic.

use crate::kernels::numbers::{Numbers, through_bf16};
use crate::store::{Frozen, Table};
use quorum_model::Part;
use std::ops::Range;

/// One tensor, or several that lie side by side, of the model: a range of the slab it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Param {
    pub part: Part,
    pub range: Range<usize>,
}

impl Param {
    /// Elements.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether it learns; what does not costs no gradient.
    pub fn trained(&self) -> bool {
        self.part == Part::Trainable
    }
}

/// One version of the weights, as the kernels read it.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    /// The trainable slab, full precision.
    pub(crate) slab: &'a [f32],
    /// Panels of the trainable linears.
    pub(crate) panels: &'a Numbers,
    /// Set where the policy computes with bf16 weights: the trainable vectors, rounded.
    pub(crate) rounded: Option<&'a Table>,
    pub(crate) frozen: &'a Frozen,
}

impl<'a> Weights<'a> {
    /// A norm weight, a bias, a table that is no linear layer.
    pub fn vector(&self, p: &Param) -> &'a [f32] {
        match (p.part, self.rounded) {
            (Part::Frozen, _) => self.frozen.vector(&p.range),
            (Part::Trainable, Some(rounded)) => rounded.get(&p.range),
            (Part::Trainable, None) => &self.slab[p.range.clone()],
        }
    }

    /// Row `row` of a matrix with `out.len()` columns (an embedding).
    pub fn copy_row(&self, p: &Param, row: usize, out: &mut [f32]) {
        if p.part == Part::Frozen {
            return self.frozen.copy_row(&p.range, row, out);
        }
        let at = p.range.start + row * out.len();
        let from = &self.slab[at..at + out.len()];
        match self.rounded {
            Some(_) => through_bf16(from, out),
            None => out.copy_from_slice(from),
        }
    }
}

/// The gradient slab of one lane.
pub struct Grads<'a> {
    slab: &'a mut [f32],
}

impl<'a> Grads<'a> {
    /// Over a slab in the layout of the trainable parameters.
    pub fn new(slab: &'a mut [f32]) -> Self {
        Self { slab }
    }

    /// Whether the tensor is trained; what is not costs no gradient.
    pub fn wants(&self, p: &Param) -> bool {
        p.trained()
    }

    /// Where the tensor's gradient is summed; `None` for a frozen tensor.
    pub fn of(&mut self, p: &Param) -> Option<&mut [f32]> {
        p.trained().then(|| &mut self.slab[p.range.clone()])
    }
}
