//! The frozen weights of a run in the one form they are kept in: linears as panels (bf16 or f32), vectors in f32. Filled tensor by tensor, so that
//! nothing is held twice.

use crate::error::EngineError;
use crate::kernels::gemm::{NR, pack_panel};
use crate::kernels::numbers::{Element, Numbers, Values};
use crate::linear::Matrix;
use crate::model::plan::Plan;
use quorum_model::{Entry, Part, Partition, RawTensor};
use std::collections::HashSet;
use std::ops::Range;

/// Small tensors by the start of their range in a slab.
#[derive(Debug, Default)]
pub struct Table {
    /// (start in the slab, start in `values`), ascending.
    places: Vec<(usize, usize)>,
    values: Vec<f32>,
}

impl Table {
    /// Room for the tensors of these ranges, which ascend.
    pub fn new(ranges: impl IntoIterator<Item = Range<usize>>) -> Self {
        let mut at = 0;
        let mut places = Vec::new();
        for r in ranges {
            places.push((r.start, at));
            at += r.len();
        }
        Self { places, values: vec![0.0; at] }
    }

    fn find(&self, range: &Range<usize>) -> Range<usize> {
        let i = self.places.partition_point(|p| p.0 <= range.start) - 1;
        let at = self.places[i].1 + range.start - self.places[i].0;
        at..at + range.len()
    }

    /// A tensor, or several side by side.
    pub fn get(&self, range: &Range<usize>) -> &[f32] {
        &self.values[self.find(range)]
    }

    pub fn get_mut(&mut self, range: &Range<usize>) -> &mut [f32] {
        let at = self.find(range);
        &mut self.values[at]
    }

    /// Applies `f` to (start in the slab, values) of every tensor.
    pub fn fill(&mut self, mut f: impl FnMut(usize, &mut [f32])) {
        let ends: Vec<usize> = self.places.iter().skip(1).map(|p| p.1).chain([self.values.len()]).collect();
        for (&(start, at), end) in self.places.iter().zip(ends) {
            f(start, &mut self.values[at..end]);
        }
    }
}

/// The frozen slab.
#[derive(Debug, Default)]
pub struct Frozen {
    vectors: Table,
    panels: Numbers,
    /// Rows of the token embedding where no linear layer shares it.
    rows: Numbers,
    embedding: Embedding,
}

/// Where the rows of a frozen embedding are read.
#[derive(Debug, Default, Clone)]
enum Embedding {
    #[default]
    Trained,
    Rows,
    /// The output layer's panels (tied).
    Panels(Matrix),
}

impl Frozen {
    /// Panels of a frozen matrix.
    pub fn panels(&self, m: &Matrix) -> Values<'_> {
        self.panels.values().part(m.at, m.panel_len())
    }

    pub fn vector(&self, range: &Range<usize>) -> &[f32] {
        self.vectors.get(range)
    }

    pub fn copy_row(&self, range: &Range<usize>, row: usize, out: &mut [f32]) {
        let n = out.len();
        match &self.embedding {
            Embedding::Trained => out.copy_from_slice(&self.vectors.get(range)[row * n..(row + 1) * n]),
            Embedding::Rows => widen(self.rows.values().part(row * n, n), 1, out),
            Embedding::Panels(m) => {
                let panel = self.panels(m).tail(row / NR * NR * n);
                widen(panel.tail(row % NR), NR, out);
            }
        }
    }
}

/// Every `step`-th value.
fn widen(from: Values, step: usize, out: &mut [f32]) {
    fn copy<T: Element>(from: &[T], step: usize, out: &mut [f32]) {
        for (o, x) in out.iter_mut().zip(from.iter().step_by(step)) {
            *o = x.widen();
        }
    }
    match from {
        Values::F32(v) => copy(v, step, out),
        Values::Bf16(v) => copy(v, step, out),
    }
}

/// Fills a [`Frozen`] tensor by tensor.
pub struct Filler {
    frozen: Frozen,
    /// Frozen linears by the start of their weight.
    linears: Vec<Matrix>,
    embedding: Range<usize>,
    seen: HashSet<String>,
    threads: usize,
}

impl Filler {
    /// Room for everything frozen; matrices are held as bf16 if asked for.
    pub fn new(plan: &Plan, partition: &Partition, bf16: bool, threads: usize) -> Self {
        let mut linears: Vec<Matrix> =
            plan.linears().map(|l| &l.weight).filter(|m| m.param.part == Part::Frozen).cloned().collect();
        linears.sort_by_key(|m| m.param.range.start);
        let embedding = if plan.embed.trained() { 0..0 } else { plan.embed.range.clone() };
        let within = |e: &Entry| linears.iter().any(|m| m.param.range.contains(&e.range.start));
        let vectors =
            partition.frozen.entries().iter().filter(|e| !within(e) && e.range != embedding).map(|e| e.range.clone());
        let vectors = Table::new(vectors);
        let tied = linears.iter().find(|m| m.param.range == embedding).cloned();
        let rows = if tied.is_some() { 0 } else { embedding.len() };
        let place = match tied {
            _ if embedding.is_empty() => Embedding::Trained,
            Some(head) => Embedding::Panels(head),
            None => Embedding::Rows,
        };
        let frozen = Frozen {
            vectors,
            panels: Numbers::zeros(plan.sizes.frozen_panels, bf16),
            rows: Numbers::zeros(rows, bf16),
            embedding: place,
        };
        Self { frozen, linears, embedding, seen: HashSet::new(), threads }
    }

    /// Takes one tensor over. With bf16, values are rounded to the nearest (exact for what is bf16 already).
    pub fn put(&mut self, entry: &Entry, tensor: &RawTensor) -> Result<(), EngineError> {
        if tensor.len() != entry.range.len() {
            let (found, expected) = (tensor.len(), entry.range.len());
            return Err(EngineError::SlabLength { what: "a frozen tensor", found, expected });
        }
        let linear = self.linears.iter().find(|m| m.param.range.contains(&entry.range.start));
        if let Some(m) = linear {
            let first = (entry.range.start - m.param.range.start) / m.n_in;
            match &mut self.frozen.panels {
                Numbers::F32(v) => pack(m, first, tensor, &mut v[m.at..m.at + m.panel_len()], self.threads),
                Numbers::Bf16(v) => pack(m, first, tensor, &mut v[m.at..m.at + m.panel_len()], self.threads),
            }
        } else if entry.range == self.embedding {
            match &mut self.frozen.rows {
                Numbers::F32(v) => tensor.read(0, v),
                Numbers::Bf16(v) => {
                    let mut wide = vec![0.0; 1 << 14];
                    for (i, part) in v.chunks_mut(1 << 14).enumerate() {
                        tensor.read(i << 14, &mut wide[..part.len()]);
                        part.iter_mut().zip(&wide).for_each(|(o, &x)| *o = u16::round(x));
                    }
                }
            }
        } else {
            tensor.read(0, self.frozen.vectors.get_mut(&entry.range));
        }
        self.seen.insert(entry.name.clone());
        Ok(())
    }

    /// The whole, if every tensor came.
    pub fn finish(self, partition: &Partition) -> Result<Frozen, EngineError> {
        match partition.frozen.entries().iter().find(|e| !self.seen.contains(&e.name)) {
            None => Ok(self.frozen),
            Some(e) => Err(EngineError::Tensor {
                name: e.name.clone(),
                expected: e.shape.clone(),
                found: "no such frozen tensor".into(),
            }),
        }
    }
}

/// Rows `first..` of a matrix into its panels.
fn pack<T: Element>(m: &Matrix, first: usize, tensor: &RawTensor, panels: &mut [T], threads: usize) {
    let (k, rows) = (m.n_in, tensor.len() / m.n_in);
    let (from, until) = (first / NR, (first + rows).div_ceil(NR));
    let touched = &mut panels[from * NR * k..until * NR * k];
    let share = (until - from).div_ceil(threads.max(1)).max(1);
    std::thread::scope(|scope| {
        for (t, part) in touched.chunks_mut(share * NR * k).enumerate() {
            let mut job = move || {
                let mut wide = vec![0.0; NR * k];
                for (p, panel) in part.chunks_mut(NR * k).enumerate() {
                    let start = (from + t * share + p) * NR;
                    let (a, b) = (start.max(first), (start + NR).min(first + rows));
                    let wide = &mut wide[..(b - a) * k];
                    tensor.read((a - first) * k, wide);
                    pack_panel(k, a - start, b - a, wide, k, panel);
                }
            };
            // A small matrix is not worth a thread.
            if rows * k < 1 << 18 {
                job();
            } else {
                scope.spawn(job);
            }
        }
    });
}
