//! Name → range table of the flat f32 slabs (parameters, gradients, optimiser moments).

mod families;

pub(crate) use families::elements;

use std::collections::HashMap;
use std::ops::Range;

/// One tensor inside a slab.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Hub name, e.g. `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Row-major shape as in the checkpoint.
    pub shape: Vec<usize>,
    /// Elements of the slab.
    pub range: Range<usize>,
}

/// All tensors of a model, in slab order.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    entries: Vec<Entry>,
    index: HashMap<String, usize>,
    total: usize,
}

impl Layout {
    /// Lays out `(name, shape)` pairs one after another.
    pub fn new(tensors: impl IntoIterator<Item = (String, Vec<usize>)>) -> Self {
        let mut entries = Vec::new();
        let mut index = HashMap::new();
        let mut total = 0;
        for (name, shape) in tensors {
            let len: usize = shape.iter().product();
            index.insert(name.clone(), entries.len());
            entries.push(Entry { name, shape, range: total..total + len });
            total += len;
        }
        Self { entries, index, total }
    }

    /// Tensors in slab order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The tensor of that hub name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.index.get(name).map(|&i| &self.entries[i])
    }

    /// Elements in a slab.
    pub fn total(&self) -> usize {
        self.total
    }
}
