//! What an engine keeps between calls: workspaces, the rotary table, and the panels of the weights used last.

use crate::error::EngineError;
use crate::kernels::isa::simd;
use crate::kernels::numbers::{Element, Numbers, through_bf16};
use crate::linear::Matrix;
use crate::model::forward::Workspace;
use crate::model::plan::Plan;
use crate::params::Weights;
use crate::rope_table::RopeTable;
use crate::store::{Frozen, Table};
use quorum_core::config::Precision;
use quorum_model::Partition;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What the kernels read of one version of the trainable weights, besides the slab itself.
pub struct Panels {
    panels: Numbers,
    rounded: Option<Table>,
    frozen: Arc<Frozen>,
}

impl Panels {
    /// The weights view for a slab these panels were made of.
    pub fn weights<'a>(&'a self, slab: &'a [f32]) -> Weights<'a> {
        Weights { slab, panels: &self.panels, rounded: self.rounded.as_ref(), frozen: &self.frozen }
    }
}

/// Versions of the weights whose panels are kept: the policy and its frozen reference.
const VERSIONS: usize = 2;
/// Panels beyond this many elements are kept of one version only: packing again costs little where a step takes minutes.
const LARGE: usize = 1 << 26;

/// Caches shared by the clones of an engine.
pub struct Pool {
    frozen: Arc<Frozen>,
    bf16: bool,
    /// Trainable tensors that are neither linears nor the embedding.
    vectors: Vec<Range<usize>>,
    workspaces: Mutex<Vec<Workspace>>,
    rope: Mutex<Option<Arc<RopeTable>>>,
    /// Most recently used last.
    panels: Mutex<Vec<(u128, Arc<Panels>)>>,
}

/// A poisoned lock only means that some thread panicked while holding a cache; every cache is valid at every moment.
fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// Empty caches of a model.
    pub fn new(plan: &Plan, parts: &Partition, frozen: Frozen) -> Self {
        let matrices: Vec<&Matrix> = plan.linears().flat_map(|l| l.trained_matrices()).collect();
        let inside = |r: &Range<usize>| {
            matrices.iter().any(|m| m.param.range.contains(&r.start))
                || (plan.embed.trained() && plan.embed.range == *r)
        };
        let vectors = parts.trainable.entries().iter().map(|e| e.range.clone()).filter(|r| !inside(r)).collect();
        Self {
            frozen: Arc::new(frozen),
            bf16: parts.precision == Precision::Bf16,
            vectors,
            workspaces: Mutex::default(),
            rope: Mutex::default(),
            panels: Mutex::default(),
        }
    }

    /// Runs `f` with a workspace of its own.
    pub fn with_workspace<R>(&self, f: impl FnOnce(&mut Workspace) -> R) -> R {
        let mut ws = lock(&self.workspaces).pop().unwrap_or_default();
        let r = f(&mut ws);
        lock(&self.workspaces).push(ws);
        r
    }

    /// A rotary table that covers positions up to `last`.
    pub fn rope(&self, plan: &Plan, last: i32) -> Arc<RopeTable> {
        let mut slot = lock(&self.rope);
        let needed = usize::try_from(last).unwrap_or(0) + 1;
        match &*slot {
            Some(t) if t.positions() >= needed => t.clone(),
            _ => {
                let t = Arc::new(RopeTable::new(&plan.config.text, needed.next_multiple_of(256)));
                *slot = Some(t.clone());
                t
            }
        }
    }

    /// Panels of `slab`, packed again only if its contents changed since the last call.
    pub fn panels(&self, plan: &Plan, slab: &[f32], threads: usize) -> Result<Arc<Panels>, EngineError> {
        let expected = plan.sizes.trainable;
        if slab.len() != expected {
            return Err(EngineError::SlabLength { what: "the weights slab", found: slab.len(), expected });
        }
        let print = fingerprint(slab);
        let mut kept = lock(&self.panels);
        let panels = match kept.iter().position(|(p, _)| *p == print) {
            Some(i) => kept.remove(i).1,
            None => {
                // The least recently used buffers are reused when nobody reads them any more.
                let versions = if plan.sizes.panels > LARGE { 1 } else { VERSIONS };
                let old = if kept.len() < versions { None } else { Some(kept.remove(0).1) };
                let old = old.and_then(|p| Arc::try_unwrap(p).ok()).map(|p| p.panels);
                let buffer = old.unwrap_or_else(|| Numbers::zeros(plan.sizes.panels, self.bf16));
                Arc::new(self.pack(plan, slab, buffer, threads))
            }
        };
        kept.push((print, panels.clone()));
        Ok(panels)
    }

    fn pack(&self, plan: &Plan, slab: &[f32], mut panels: Numbers, threads: usize) -> Panels {
        let mut matrices: Vec<&Matrix> = plan.linears().flat_map(|l| l.trained_matrices()).collect();
        matrices.sort_by_key(|m| m.at);
        match &mut panels {
            Numbers::F32(v) => fill(&matrices, slab, v, threads),
            Numbers::Bf16(v) => fill(&matrices, slab, v, threads),
        }
        let rounded = self.bf16.then(|| {
            let mut table = Table::new(self.vectors.iter().cloned());
            table.fill(|start, out| through_bf16(&slab[start..start + out.len()], out));
            table
        });
        Panels { panels, rounded, frozen: self.frozen.clone() }
    }
}

/// Packs matrices that lie one after another, each on whichever thread is free.
fn fill<T: Element>(matrices: &[&Matrix], slab: &[f32], panels: &mut [T], threads: usize) {
    let mut rest = panels;
    let mut jobs = Vec::with_capacity(matrices.len());
    for m in matrices {
        let (own, others) = rest.split_at_mut(m.panel_len());
        jobs.push((*m, own));
        rest = others;
    }
    let threads = if slab.len() < 1 << 22 { 1 } else { threads };
    let jobs = Mutex::new(jobs.into_iter());
    let work = || {
        loop {
            let Some((m, out)) = lock(&jobs).next() else { return };
            m.pack(slab, out);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
}

simd! {
    /// Mixes the bits of every element into 32 words: any single change changes the result, others do but for a chance of 2⁻³² a lane.
    fn mix(slab: &[f32], lanes: &mut [u32; 32]) {
        let chunks = slab.chunks_exact(32);
        let rest = chunks.remainder();
        for c in chunks {
            for l in 0..32 {
                lanes[l] = (lanes[l] ^ c[l].to_bits()).wrapping_mul(0x9E37_79B1).rotate_left(13);
            }
        }
        for (l, x) in rest.iter().enumerate() {
            lanes[l] = (lanes[l] ^ x.to_bits()).wrapping_mul(0x85EB_CA6B).rotate_left(11);
        }
    }
}

/// A 128-bit fingerprint of a slab's contents, for telling versions apart (not for security).
pub fn fingerprint(slab: &[f32]) -> u128 {
    let mut lanes = [0x1234_5678u32; 32];
    mix(slab, &mut lanes);
    let mut h = slab.len() as u128;
    for l in lanes {
        h = (h ^ u128::from(l)).wrapping_mul(0x2360_ED05_1FC6_5DA4_4385_DF64_9FCC_F645).rotate_left(47);
    }
    h
}
