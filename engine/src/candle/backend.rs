//! The backend behind an [`Engine`]: its shards, one a device, and the calls that run on all of them.

use super::generate::Job;
use super::model::{Keeping, Reach};
use super::shard::{Call, Shard, Slab};
use super::store::{Filler, Grads, Table};
use super::team::{Seat, Team};
use crate::device::{Device, Devices};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::inspect::VisionTrace;
use crate::model::batch::Batch;
use crate::model::head::Policy;
use crate::model::plan::Plan;
use crate::model::vision::Stage;
use crate::model::vision_rows::VisionRows;
use crate::pool::fingerprint;
use crate::types::{GenRequest, PackScores, Sample};
use candle_core::{DType, Tensor};
use quorum_core::config::Precision;
use quorum_model::{EncodedImage, EncodedPrompt, Entry, Partition, RawTensor};

type Result<T> = std::result::Result<T, EngineError>;

/// dL/dlogp of pack `i` of the call, checked.
pub type Ask<'a> = dyn Fn(usize, &PackScores) -> Result<Vec<Vec<f32>>> + Sync + 'a;

/// Takes the frozen weights over.
pub struct BackendFiller {
    team: Team,
    bf16: bool,
    shards: Vec<(Shard, Filler)>,
}

impl BackendFiller {
    /// On `devices`. They compute in bf16 on CUDA where the policy does (`train.precision`), in f32 otherwise.
    pub fn new(devices: &Devices, plan: &Plan, parts: &Partition, bf16: bool) -> Result<Self> {
        let new = |(rank, device): (usize, &Device)| {
            let device = device.open()?;
            let narrow = device.is_cuda() && parts.precision == Precision::Bf16;
            let shard =
                Shard::new(plan, (rank, devices.count()), device, if narrow { DType::BF16 } else { DType::F32 })?;
            let filler = Filler::new(&shard.plan, shard.device.clone(), shard.dtype, bf16);
            Ok((shard, filler))
        };
        let shards = devices.all().iter().enumerate().map(new).collect::<Result<_>>()?;
        Ok(Self { team: Team::new(devices.clone()), bf16: parts.precision == Precision::Bf16, shards })
    }

    pub fn put(&mut self, entry: &Entry, tensor: &RawTensor) -> Result<()> {
        if tensor.len() != entry.range.len() {
            let (found, expected) = (tensor.len(), entry.range.len());
            return Err(EngineError::SlabLength { what: "a frozen tensor", found, expected });
        }
        let mut values = vec![0.0f32; tensor.len()];
        tensor.read(0, &mut values);
        self.shards.iter_mut().try_for_each(|(shard, filler)| filler.put(entry, &values, &shard.holdings))
    }

    pub fn finish(self, parts: &Partition) -> Result<Backend> {
        let finish = |(mut shard, filler): (Shard, Filler)| {
            shard.frozen = filler.finish(&shard.plan, parts)?;
            Ok(shard)
        };
        let shards = self.shards.into_iter().map(finish).collect::<Result<_>>()?;
        Ok(Backend { team: self.team, bf16: self.bf16, shards })
    }
}

/// A model's arithmetic on one device, or on several that hold a part of it each.
pub struct Backend {
    team: Team,
    /// Whether the policy computes with weights rounded to bf16.
    bf16: bool,
    shards: Vec<Shard>,
}

impl Backend {
    /// Nothing frozen, on the CPU, computing in `dtype`.
    #[cfg(test)]
    pub fn of_type(plan: &Plan, dtype: DType) -> Result<Self> {
        let shard = Shard::new(plan, (0, 1), candle_core::Device::Cpu, dtype)?;
        let team = Team::new(Device::CandleCpu.into());
        Ok(Self { team, bf16: dtype == DType::BF16, shards: vec![shard] })
    }

    fn slab<'a>(&self, engine: &Engine, weights: &'a [f32]) -> Result<Slab<'a>> {
        let expected = engine.plan.sizes.trainable;
        if weights.len() != expected {
            return Err(EngineError::SlabLength { what: "the weights slab", found: weights.len(), expected });
        }
        Ok(Slab { weights, print: fingerprint(weights), bf16: self.bf16 })
    }

    /// Runs `work` for every shard, side by side; what they return, in their order.
    fn each<'s, R: Send>(&'s self, work: impl Fn(&'s Shard, Seat) -> Result<R> + Sync) -> Result<Vec<R>> {
        self.team.run(|seat| work(&self.shards[seat.rank()], seat))
    }

    /// The first shard's answer, which speaks for all.
    fn one<'s, R: Send>(&'s self, work: impl Fn(&'s Shard, Seat) -> Result<R> + Sync) -> Result<R> {
        let first = self.each(work)?.into_iter().next();
        first.ok_or_else(|| EngineError::Device("an engine without devices".into()))
    }

    /// Bytes in use on the devices, if they are GPUs that say so.
    pub fn gpu_memory(&self) -> Option<u64> {
        #[cfg(feature = "cuda")]
        {
            let used = |shard: &Shard| {
                let candle_core::Device::Cuda(device) = &shard.device else { return None };
                let (free, all) = device.cuda_stream().context().mem_get_info().ok()?;
                Some((all - free) as u64)
            };
            self.shards.iter().map(used).sum()
        }
        #[cfg(not(feature = "cuda"))]
        None
    }

    /// Bytes of weights on each device: the frozen ones and this version of the others.
    pub fn weight_bytes(&self, engine: &Engine, weights: &[f32]) -> Result<Vec<usize>> {
        let slab = self.slab(engine, weights)?;
        let bytes = |table: &Table| table.values().map(|t| t.elem_count() * t.dtype().size_in_bytes()).sum::<usize>();
        self.each(|shard, _| Ok(bytes(&shard.frozen) + bytes(&*shard.version(slab)?)))
    }

    /// Log-probs and entropies of packs.
    pub fn score(&self, weights: &[f32], call: &Call) -> Result<Vec<PackScores>> {
        let slab = self.slab(call.engine, weights)?;
        self.one(|shard, seat| {
            shard.run(seat, slab, call, |place, batch, policy, _, scores| {
                let passed = place.forward(batch, Reach::NONE, &mut |_, _| Ok(()))?;
                let predicting = place.predicting(batch, &passed.x)?;
                place.share(|| place.head_scores(batch, &predicting, policy, scores))?;
                Ok(())
            })
        })
    }

    /// Scores packs and adds the gradient of `ask` to `lane`. Returns their scores in order.
    pub fn accumulate(
        &self,
        weights: &[f32],
        call: &Call,
        checkpointing: bool,
        ask: &Ask,
        lane: &mut [f32],
    ) -> Result<Vec<PackScores>> {
        let slab = self.slab(call.engine, weights)?;
        let results = self.each(|shard, seat| {
            let mut grads = Grads::new(&shard.holdings);
            let scores = shard.run(seat, slab, call, |place, batch, policy, members, scores| {
                let reach = Reach::of(place.plan, batch, checkpointing);
                let passed = place.forward(batch, reach, &mut |_, _| Ok(()))?;
                let predicting = place.predicting(batch, &passed.x)?;
                let wanted = place.share(|| {
                    place.head_scores(batch, &predicting, policy, scores)?;
                    members.iter().zip(&*scores).map(|(&i, s)| ask(i, s)).collect::<Result<Vec<_>>>()
                })?;
                let dx = place.head_backward(batch, &predicting, policy, &wanted, &mut grads)?;
                place.backward(batch, passed, reach, dx, &mut grads)
            })?;
            Ok((scores, grads))
        })?;
        let (scores, grads): (Vec<_>, Vec<_>) = results.into_iter().unzip();
        grads.into_iter().try_for_each(|grads| grads.into_slab(lane))?;
        Ok(scores.into_iter().next().unwrap_or_default())
    }

    /// Samples all groups, which were checked; `last` is their largest position.
    pub fn generate(
        &self,
        engine: &Engine,
        weights: &[f32],
        groups: &[GenRequest],
        policies: &[Policy],
        last: i32,
        cancel: &(dyn Fn() -> bool + Sync),
    ) -> Result<Vec<Vec<Sample>>> {
        let slab = self.slab(engine, weights)?;
        let rope = engine.pool.rope(&engine.plan, last);
        self.one(|shard, seat| {
            let job = Job { rope: &rope, groups, policies, rows: shard.rows(), cancel };
            shard.place(&*shard.version(slab)?, seat).generate(&job)
        })
    }

    /// Stages of the vision tower, which every shard has whole.
    pub fn vision_trace(&self, engine: &Engine, weights: &[f32], images: &[&EncodedImage]) -> Result<VisionTrace> {
        let none = || EngineError::Request("the model has no vision tower".into());
        let vision = engine.plan.vision.as_ref().ok_or_else(none)?;
        let slab = self.slab(engine, weights)?;
        let host = |x: &Tensor| Ok::<_, EngineError>(x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?);
        self.one(|shard, seat| {
            let table = shard.version(slab)?;
            let place = shard.place(&table, seat);
            let (mut patches, mut blocks) = (Vec::new(), Vec::new());
            let mut watch = |stage, x: &Tensor| {
                match stage {
                    Stage::Patches => patches = host(x)?,
                    Stage::Block => blocks.push(host(x)?),
                }
                Ok(())
            };
            let tower = place.weights.whole();
            let seen = tower.see(vision, images, Keeping::Nothing, place.dtype, place.device, &mut watch)?;
            let (rows, d) = (VisionRows::new(&vision.config, images)?, vision.config.hidden_size);
            let mut patch_embed = vec![0.0; patches.len()];
            for (row, &to) in patches.chunks_exact(d).zip(&rows.source) {
                patch_embed[to * d..(to + 1) * d].copy_from_slice(row);
            }
            let deepstack = seen.deep.iter().map(|m| host(&m.out)).collect::<Result<_>>()?;
            Ok(VisionTrace { patch_embed, blocks, out: host(&seen.main.out)?, deepstack })
        })
    }

    /// Logits `[tokens, vocab]` of a prompt, which was checked.
    pub fn logits(&self, engine: &Engine, weights: &[f32], prompt: &EncodedPrompt, last: i32) -> Result<Vec<f32>> {
        let slab = self.slab(engine, weights)?;
        let mut batch = Batch::default();
        batch.push(&engine.plan, &engine.pool.rope(&engine.plan, last), prompt, &[]);
        self.one(|shard, seat| {
            let table = shard.version(slab)?;
            let place = shard.place(&table, seat);
            let passed = place.forward(&batch, Reach::NONE, &mut |_, _| Ok(()))?;
            let logits = place.weights.linear(&place.plan.head, &place.head_norm(&passed.x)?)?;
            Ok(logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
        })
    }
}
