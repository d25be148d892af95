//! The backend behind an [`Engine`]: the device, the frozen weights on it, and the newest versions of the trainable ones.

use super::generate::Job;
use super::head::DevicePolicy;
use super::model::{Keeping, Place, Reach};
use super::store::{Filler, Grads, Table, Weights, upload};
use crate::device::Device;
use crate::engine::{Engine, cut};
use crate::error::EngineError;
use crate::inspect::VisionTrace;
use crate::model::batch::Batch;
use crate::model::head::Policy;
use crate::model::plan::Plan;
use crate::model::vision::Stage;
use crate::model::vision_rows::VisionRows;
use crate::pool::fingerprint;
use crate::types::{GenRequest, Pack, PackScores, Sample};
use candle_core::{DType, Tensor};
use quorum_core::config::Precision;
use quorum_model::{EncodedImage, EncodedPrompt, Entry, Partition, RawTensor};
use std::sync::{Arc, Mutex, PoisonError};

type Result<T> = std::result::Result<T, EngineError>;

/// dL/dlogp of pack `i` of the call, checked.
pub type Ask<'a> = dyn Fn(usize, &PackScores) -> Result<Vec<Vec<f32>>> + 'a;

/// Rows run together on a GPU, and on the CPU.
const GPU_ROWS: usize = 8192;
const CPU_ROWS: usize = 384;
/// Trainable slabs beyond this many elements are held in one version: the policy or its reference, not both.
const LARGE: usize = 1 << 30;

/// Takes the frozen weights over.
pub struct BackendFiller {
    device: candle_core::Device,
    dtype: DType,
    filler: Filler,
}

impl BackendFiller {
    /// On `device`. It computes in bf16 on CUDA where the policy does (`train.precision`), in f32 otherwise.
    pub fn new(device: Device, parts: &Partition, bf16: bool) -> Result<Self> {
        device.check()?;
        let device = device.open()?;
        let dtype = if device.is_cuda() && parts.precision == Precision::Bf16 { DType::BF16 } else { DType::F32 };
        Ok(Self { filler: Filler::new(device.clone(), dtype, bf16), device, dtype })
    }

    pub fn put(&mut self, entry: &Entry, tensor: &RawTensor) -> Result<()> {
        self.filler.put(entry, tensor)
    }

    pub fn finish(self, plan: &Plan, parts: &Partition) -> Result<Backend> {
        Ok(Backend {
            device: self.device,
            dtype: self.dtype,
            bf16: parts.precision == Precision::Bf16,
            frozen: self.filler.finish(plan, parts)?,
            versions: Mutex::default(),
        })
    }
}

/// A model's arithmetic on one device.
pub struct Backend {
    device: candle_core::Device,
    dtype: DType,
    /// Whether the policy computes with weights rounded to bf16.
    bf16: bool,
    frozen: Table,
    /// Most recently used last.
    versions: Mutex<Vec<(u128, Arc<Table>)>>,
}

impl Backend {
    /// Nothing frozen, on the CPU, computing in `dtype`.
    #[cfg(test)]
    pub fn of_type(dtype: DType) -> Self {
        let bf16 = dtype == DType::BF16;
        Self { device: candle_core::Device::Cpu, dtype, bf16, frozen: Table::new(), versions: Mutex::default() }
    }

    /// The trainable weights on the device, sent again only if the slab's contents changed.
    fn version(&self, plan: &Plan, slab: &[f32]) -> Result<Arc<Table>> {
        let expected = plan.sizes.trainable;
        if slab.len() != expected {
            return Err(EngineError::SlabLength { what: "the weights slab", found: slab.len(), expected });
        }
        let print = fingerprint(slab);
        let mut kept = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        let table = match kept.iter().position(|(p, _)| *p == print) {
            Some(i) => kept.remove(i).1,
            None => {
                // Room first.
                while kept.len() >= if expected > LARGE { 1 } else { 2 } {
                    kept.remove(0);
                }
                Arc::new(upload(plan, slab, self.bf16, self.dtype, &self.device)?)
            }
        };
        kept.push((print, table.clone()));
        Ok(table)
    }

    fn place<'a>(&'a self, plan: &'a Plan, trainable: &'a Table) -> Place<'a> {
        let weights = Weights { frozen: &self.frozen, trainable };
        Place { plan, weights, device: &self.device, dtype: self.dtype }
    }

    /// Bytes in use on the device, if it is a GPU that says so.
    pub fn gpu_memory(&self) -> Option<u64> {
        #[cfg(feature = "cuda")]
        if let candle_core::Device::Cuda(device) = &self.device {
            let (free, all) = device.cuda_stream().context().mem_get_info().ok()?;
            return Some((all - free) as u64);
        }
        None
    }

    fn rows(&self) -> usize {
        if self.device.is_cuda() { GPU_ROWS } else { CPU_ROWS }
    }

    /// Log-probs and entropies of packs that [`Engine::check_packs`] has seen; `last` is their largest position.
    pub fn score(
        &self,
        engine: &Engine,
        slab: &[f32],
        packs: &[Pack],
        policy: &Policy,
        last: i32,
    ) -> Result<Vec<PackScores>> {
        let members: Vec<usize> = (0..packs.len()).collect();
        self.run(engine, slab, packs, &members, policy, last, |place, batch, policy, mut scores| {
            if batch.head_rows.is_empty() {
                return Ok(scores);
            }
            let passed = place.forward(batch, Reach::NONE, &mut |_, _| Ok(()))?;
            place.head_scores(batch, &passed.x, policy, &mut scores)?;
            Ok(scores)
        })
    }

    /// Scores the packs `members` and adds the gradient of `ask` to `lane`. Returns their scores in order.
    pub fn accumulate(
        &self,
        engine: &Engine,
        slab: &[f32],
        packs: &[Pack],
        members: &[usize],
        policy: &Policy,
        last: i32,
        checkpointing: bool,
        ask: &Ask,
        lane: &mut [f32],
    ) -> Result<Vec<PackScores>> {
        let mut grads = Grads::default();
        let mut done = 0;
        let scores = self.run(engine, slab, packs, members, policy, last, |place, batch, policy, mut scores| {
            if batch.head_rows.is_empty() {
                done += scores.len();
                return Ok(scores);
            }
            let reach = Reach::of(place.plan, batch, checkpointing);
            let passed = place.forward(batch, reach, &mut |_, _| Ok(()))?;
            let predicting = place.head_scores(batch, &passed.x, policy, &mut scores)?;
            let wanted =
                scores.iter().enumerate().map(|(k, s)| ask(members[done + k], s)).collect::<Result<Vec<_>>>()?;
            done += scores.len();
            let dx = place.head_backward(batch, &predicting, policy, &wanted, &mut grads)?;
            place.backward(batch, passed, reach, dx, &mut grads)?;
            Ok(scores)
        })?;
        grads.into_slab(lane)?;
        Ok(scores)
    }

    /// Cuts `members` into batches and runs each one that scores anything.
    fn run(
        &self,
        engine: &Engine,
        slab: &[f32],
        packs: &[Pack],
        members: &[usize],
        policy: &Policy,
        last: i32,
        mut step: impl FnMut(&Place, &Batch, &DevicePolicy, Vec<PackScores>) -> Result<Vec<PackScores>>,
    ) -> Result<Vec<PackScores>> {
        let table = self.version(&engine.plan, slab)?;
        let place = self.place(&engine.plan, &table);
        let policy = place.policy(policy)?;
        let rope = engine.pool.rope(&engine.plan, last);
        let mut all = Vec::with_capacity(members.len());
        for part in cut(packs, members, self.rows()) {
            let (batch, scores) = engine.batch(packs, &members[part], &rope);
            all.extend(step(&place, &batch, &policy, scores)?);
        }
        Ok(all)
    }

    /// Samples all groups, which were checked; `last` is their largest position.
    pub fn generate(
        &self,
        engine: &Engine,
        slab: &[f32],
        groups: &[GenRequest],
        policies: &[Policy],
        last: i32,
        cancel: &(dyn Fn() -> bool + Sync),
    ) -> Result<Vec<Vec<Sample>>> {
        let table = self.version(&engine.plan, slab)?;
        let rope = engine.pool.rope(&engine.plan, last);
        let job = Job { rope: &rope, groups, policies, rows: self.rows(), cancel };
        self.place(&engine.plan, &table).generate(&job)
    }

    /// Stages of the vision tower.
    pub fn vision_trace(&self, engine: &Engine, slab: &[f32], images: &[&EncodedImage]) -> Result<VisionTrace> {
        let none = || EngineError::Request("the model has no vision tower".into());
        let vision = engine.plan.vision.as_ref().ok_or_else(none)?;
        let table = self.version(&engine.plan, slab)?;
        let place = self.place(&engine.plan, &table);
        let host = |x: &Tensor| Ok::<_, EngineError>(x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?);
        let (mut patches, mut blocks) = (Vec::new(), Vec::new());
        let seen = place.weights.see(vision, images, Keeping::Nothing, self.dtype, &self.device, &mut |stage, x| {
            match stage {
                Stage::Patches => patches = host(x)?,
                Stage::Block => blocks.push(host(x)?),
            }
            Ok(())
        })?;
        let (rows, d) = (VisionRows::new(&vision.config, images)?, vision.config.hidden_size);
        let mut patch_embed = vec![0.0; patches.len()];
        for (row, &to) in patches.chunks_exact(d).zip(&rows.source) {
            patch_embed[to * d..(to + 1) * d].copy_from_slice(row);
        }
        let deepstack = seen.deep.iter().map(|m| host(&m.out)).collect::<Result<_>>()?;
        Ok(VisionTrace { patch_embed, blocks, out: host(&seen.main.out)?, deepstack })
    }

    /// Logits `[tokens, vocab]` of a prompt, which was checked.
    pub fn logits(&self, engine: &Engine, slab: &[f32], prompt: &EncodedPrompt, last: i32) -> Result<Vec<f32>> {
        let table = self.version(&engine.plan, slab)?;
        let place = self.place(&engine.plan, &table);
        let mut batch = Batch::default();
        batch.push(&engine.plan, &engine.pool.rope(&engine.plan, last), prompt, &[]);
        let passed = place.forward(&batch, Reach::NONE, &mut |_, _| Ok(()))?;
        let logits = place.weights.linear(&engine.plan.head, &place.head_norm(&passed.x)?)?;
        Ok(logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }
}
