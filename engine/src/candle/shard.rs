//! One device of an engine: its part of the model, the newest versions of its trainable weights, and batches run on it.

use super::head::DevicePolicy;
use super::holdings::{Holdings, shard};
use super::model::Place;
use super::store::{Table, Weights, upload};
use super::team::Seat;
use crate::engine::{Engine, cut};
use crate::error::EngineError;
use crate::model::batch::Batch;
use crate::model::head::Policy;
use crate::model::plan::Plan;
use crate::types::{Pack, PackScores};
use candle_core::{DType, Device};
use std::sync::{Arc, Mutex, PoisonError};

type Result<T> = std::result::Result<T, EngineError>;

/// Rows run together on a GPU, and on the CPU.
const GPU_ROWS: usize = 8192;
const CPU_ROWS: usize = 384;
/// Trainable slabs beyond this many elements are held in one version: the policy or its reference, not both.
const LARGE: usize = 1 << 30;

/// What is on one device: the weights it holds, and the runs over them.
pub struct Shard {
    pub plan: Plan,
    pub holdings: Holdings,
    pub device: Device,
    pub dtype: DType,
    pub frozen: Table,
    #[cfg(feature = "cuda")]
    graphs: Option<super::graphs::Graphs>,
    /// Most recently used last.
    versions: Mutex<Vec<(u128, Arc<Table>)>>,
}

impl Shard {
    /// Part `rank` of `world`, without weights.
    pub fn new(plan: &Plan, (rank, world): (usize, usize), device: Device, dtype: DType) -> Result<Self> {
        let (plan, holdings) = shard(plan, rank, world)?;
        Ok(Self {
            plan,
            holdings,
            dtype,
            frozen: Table::new(),
            #[cfg(feature = "cuda")]
            graphs: device.as_cuda_device().ok().filter(|_| world == 1).map(super::graphs::Graphs::new),
            device,
            versions: Mutex::default(),
        })
    }

    /// The trainable weights on the device, sent again only if the slab's contents changed.
    pub fn version(&self, slab: Slab) -> Result<Arc<Table>> {
        let mut kept = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        let table = match kept.iter().position(|(p, _)| *p == slab.print) {
            Some(i) => kept.remove(i).1,
            None => {
                // Room first.
                while kept.len() >= if slab.weights.len() > LARGE { 1 } else { 2 } {
                    kept.remove(0);
                }
                Arc::new(upload(&self.plan, &self.holdings, slab.weights, slab.bf16, self.dtype, &self.device)?)
            }
        };
        kept.push((slab.print, table.clone()));
        Ok(table)
    }

    pub fn place<'a>(&'a self, trainable: &'a Table, seat: Seat<'a>) -> Place<'a> {
        let weights = Weights { frozen: &self.frozen, trainable, seat: Some(seat) };
        Place {
            plan: &self.plan,
            weights,
            seat,
            device: &self.device,
            dtype: self.dtype,
            #[cfg(feature = "cuda")]
            graphs: self.graphs.as_ref(),
        }
    }

    /// Rows run together.
    pub fn rows(&self) -> usize {
        if self.device.is_cuda() { GPU_ROWS } else { CPU_ROWS }
    }

    /// Cuts packs into batches and runs each one that scores anything: `step` gets its packs' numbers and their scores to fill.
    pub fn run(
        &self,
        seat: Seat,
        slab: Slab,
        call: &Call,
        mut step: impl FnMut(&Place, &Batch, &DevicePolicy, &[usize], &mut [PackScores]) -> Result<()>,
    ) -> Result<Vec<PackScores>> {
        let table = self.version(slab)?;
        let place = self.place(&table, seat);
        let policy = place.policy(call.policy)?;
        let rope = call.engine.pool.rope(&call.engine.plan, call.last);
        let mut all = Vec::with_capacity(call.members.len());
        for part in cut(call.packs, call.members, self.rows()) {
            let members = &call.members[part];
            let (batch, mut scores) = call.engine.batch(call.packs, members, &rope);
            if !batch.head_rows.is_empty() {
                step(&place, &batch, &policy, members, &mut scores)?;
            }
            all.extend(scores);
        }
        Ok(all)
    }
}

/// One version of the weights on the host.
#[derive(Clone, Copy)]
pub struct Slab<'a> {
    pub weights: &'a [f32],
    /// Tells versions apart.
    pub print: u128,
    /// Whether the policy computes with weights rounded to bf16.
    pub bf16: bool,
}

/// Packs that [`Engine::check_packs`] has seen, of which those of `members` are wanted; `last` is their largest position.
pub struct Call<'a> {
    pub engine: &'a Engine,
    pub packs: &'a [Pack<'a>],
    pub members: &'a [usize],
    pub policy: &'a Policy,
    pub last: i32,
}
