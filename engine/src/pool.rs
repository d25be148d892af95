//! What an engine keeps between calls: workspaces, the rotary table, and the panels of the weights used last.

use crate::error::EngineError;
use crate::families::qwen2_5_vl::model::Workspace;
use crate::families::qwen2_5_vl::plan::Plan;
use crate::kernels::isa::simd;
use crate::linear::Weights;
use crate::rope_table::RopeTable;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Panels of one version of the weights.
#[derive(Default)]
pub struct Panels {
    forward: Vec<f32>,
    backward: Vec<f32>,
}

impl Panels {
    /// The weights view for a slab these panels were made of.
    pub fn weights<'a>(&'a self, slab: &'a [f32]) -> Weights<'a> {
        Weights { slab, forward: &self.forward, backward: &self.backward }
    }
}

/// Versions of the weights whose panels are kept: the policy and its frozen reference.
const VERSIONS: usize = 2;

/// Caches shared by the clones of an engine.
#[derive(Default)]
pub struct Pool {
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
    pub fn panels(&self, plan: &Plan, slab: &[f32], backward: bool) -> Result<Arc<Panels>, EngineError> {
        if slab.len() != plan.total {
            return Err(EngineError::SlabLength { what: "the weights slab", found: slab.len(), expected: plan.total });
        }
        let print = fingerprint(slab);
        let mut kept = lock(&self.panels);
        let mut panels = match kept.iter().position(|(p, _)| *p == print) {
            Some(i) => kept.remove(i).1,
            None => {
                // The least recently used buffers are reused when nobody reads them any more.
                let old = if kept.len() < VERSIONS { None } else { Some(kept.remove(0).1) };
                let mut old = old.and_then(|p| Arc::try_unwrap(p).ok()).unwrap_or_default();
                old.backward.clear();
                Arc::new(pack_forward(plan, slab, old))
            }
        };
        if backward && panels.backward.len() != plan.backward_len {
            let copy = |shared: Arc<Panels>| Panels { forward: shared.forward.clone(), backward: Vec::new() };
            let mut grown = Arc::try_unwrap(panels).unwrap_or_else(copy);
            grown.backward.resize(plan.backward_len, 0.0);
            for l in plan.linears() {
                l.pack_backward(slab, &mut grown.backward);
            }
            panels = Arc::new(grown);
        }
        kept.push((print, panels.clone()));
        Ok(panels)
    }
}

fn pack_forward(plan: &Plan, slab: &[f32], mut panels: Panels) -> Panels {
    panels.forward.resize(plan.forward_len, 0.0);
    for l in plan.linears() {
        l.pack_forward(slab, &mut panels.forward);
    }
    panels
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
fn fingerprint(slab: &[f32]) -> u128 {
    let mut lanes = [0x1234_5678u32; 32];
    mix(slab, &mut lanes);
    let mut h = slab.len() as u128;
    for l in lanes {
        h = (h ^ u128::from(l)).wrapping_mul(0x2360_ED05_1FC6_5DA4_4385_DF64_9FCC_F645).rotate_left(47);
    }
    h
}
