//! The engine: shapes and caches behind a cheap handle; entry points for scoring. Generation and training have their own files.

#[cfg(feature = "candle")]
use crate::candle::Call;
use crate::device::{Device, Devices};
use crate::error::EngineError;
use crate::kernels::isa::{Isa, isa};
use crate::kernels::threads::with_threads;
use crate::model::batch::{Batch, check_prompt, pack_len};
use crate::model::head::Policy;
use crate::model::plan::Plan;
use crate::pool::Pool;
use crate::store::{Filler, Frozen};
use crate::types::{Pack, PackScores, PolicyDist};
use quorum_model::{Layout, ModelConfig, Partition, RawTensor};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Rows that are run together when packs are small. Results do not depend on it.
const BATCH_ROWS: usize = 384;

/// A model's arithmetic without its weights. Cheap to clone; clones share caches.
#[derive(Clone)]
pub struct Engine {
    pub(crate) plan: Arc<Plan>,
    pub(crate) pool: Arc<Pool>,
    parts: Arc<Partition>,
    pub(crate) threads: usize,
    devices: Devices,
    /// Computes everything instead of the kernels, if there is one.
    #[cfg(feature = "candle")]
    pub(crate) elsewhere: Option<Arc<crate::candle::Backend>>,
}

impl Engine {
    /// An engine for full training: every tensor of `layout` learns.
    ///
    /// # Errors
    /// Names the tensor or shape that does not fit; also on a processor without AVX2.
    pub fn new(config: &ModelConfig, layout: Arc<Layout>, threads: usize) -> Result<Self, EngineError> {
        Self::loader(config, Partition::full(layout), false, threads)?.finish()
    }

    /// Begins an engine with frozen weights, which the loader takes over tensor by tensor; with `bf16` their matrices are held as bf16.
    ///
    /// # Errors
    /// As for [`Engine::new`].
    pub fn loader(config: &ModelConfig, parts: Partition, bf16: bool, threads: usize) -> Result<Loader, EngineError> {
        Self::loader_on(Device::Cpu, config, parts, bf16, threads)
    }

    /// [`Engine::loader`] for another device, or for several that hold a part of the model each. A new backend changes the arithmetic, not the
    /// interface: see `docs/gpu.md` for what differs.
    ///
    /// # Errors
    /// As for [`Engine::new`], or a device that this executable or this machine does not have, or a number of them that does not fit the model.
    pub fn loader_on(
        devices: impl Into<Devices>,
        config: &ModelConfig,
        parts: Partition,
        bf16: bool,
        threads: usize,
    ) -> Result<Loader, EngineError> {
        Loader::new(devices.into(), config, parts, bf16, threads)
    }

    /// Where it computes.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// The table of the trainable slab: weights, gradients and moments are slabs of it.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.parts.trainable
    }

    /// Which tensors learn.
    pub fn partition(&self) -> &Arc<Partition> {
        &self.parts
    }

    /// Bytes in use on the GPUs it computes on, by whatever process; `None` on another device.
    pub fn gpu_memory(&self) -> Option<u64> {
        #[cfg(feature = "candle")]
        {
            self.elsewhere.as_ref().and_then(|backend| backend.gpu_memory())
        }
        #[cfg(not(feature = "candle"))]
        {
            None
        }
    }

    /// Bytes of the weights that each of its devices holds: the frozen ones, and `weights` as they are held for computing. Empty on `cpu`.
    ///
    /// # Errors
    /// A slab of another length, or a device that fails.
    #[cfg(feature = "candle")]
    pub fn device_bytes(&self, weights: &[f32]) -> Result<Vec<usize>, EngineError> {
        self.elsewhere.as_ref().map_or(Ok(Vec::new()), |backend| backend.weight_bytes(self, weights))
    }

    /// Threads used at most.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Log-prob and entropy of given completions: the training forward, no gradient. Bit for bit what [`Engine::generate`] reports.
    ///
    /// # Errors
    /// A prompt or completion that does not fit the model, or logits that are not finite.
    pub fn score(&self, weights: &[f32], packs: &[Pack], policy: &PolicyDist) -> Result<Vec<PackScores>, EngineError> {
        let policy = Policy::new(policy, self.plan.head.n_out)?;
        let last = self.check_packs(packs, &policy)?;
        #[cfg(feature = "candle")]
        if let Some(backend) = &self.elsewhere {
            let members: Vec<usize> = (0..packs.len()).collect();
            let call = Call { engine: self, packs, members: &members, policy: &policy, last };
            return backend.score(weights, &call);
        }
        let panels = self.pool.panels(&self.plan, weights, self.threads)?;
        let rope = self.pool.rope(&self.plan, last);
        let order: Vec<usize> = (0..packs.len()).collect();
        let parts = batches(packs, &order);
        let inner = self.threads / parts.len().clamp(1, self.threads);
        let results = parallel(self.threads, parts.len(), |i| {
            let members = &order[parts[i].clone()];
            let (batch, mut scores) = self.batch(packs, members, &rope);
            let w = panels.weights(weights);
            let score = |ws: &mut _| self.plan.score(&w, &batch, &policy, &mut scores, ws);
            with_threads(inner, || self.pool.with_workspace(score))?;
            Ok(scores)
        })?;
        Ok(results.into_iter().flatten().collect())
    }

    /// The ragged batch of some packs, and score tables of their shape.
    pub(crate) fn batch<'a>(
        &self,
        packs: &[Pack<'a>],
        members: &[usize],
        rope: &crate::rope_table::RopeTable,
    ) -> (Batch<'a>, Vec<PackScores>) {
        let mut batch = Batch::default();
        let mut scores = Vec::with_capacity(members.len());
        for &i in members {
            batch.push(&self.plan, rope, packs[i].prompt, &packs[i].completions);
            let zeros: Vec<Vec<f32>> = packs[i].completions.iter().map(|c| vec![0.0; c.len()]).collect();
            scores.push(PackScores { logprobs: zeros.clone(), entropy: zeros });
        }
        (batch, scores)
    }

    /// Checks all packs; returns the largest position.
    pub(crate) fn check_packs(&self, packs: &[Pack], policy: &Policy) -> Result<i32, EngineError> {
        let mut last = 0;
        for pack in packs {
            let longest = pack.completions.iter().map(|c| c.len()).max().unwrap_or(0);
            last = last.max(check_prompt(&self.plan, pack.prompt, longest)?);
            for &token in pack.completions.iter().copied().flatten() {
                if token as usize >= self.plan.head.n_out || policy.forbids(token) {
                    let why = "which the policy gives no probability (outside the vocabulary or forbidden)";
                    return Err(EngineError::Request(format!("a completion holds token {token}, {why}")));
                }
            }
        }
        Ok(last)
    }
}

/// Takes the frozen weights over, then becomes an [`Engine`].
pub struct Loader {
    plan: Plan,
    parts: Partition,
    filler: Holder,
    threads: usize,
    devices: Devices,
}

/// Where the frozen weights go.
enum Holder {
    Panels(Box<Filler>),
    #[cfg(feature = "candle")]
    Elsewhere(Box<crate::candle::BackendFiller>),
}

impl Loader {
    fn new(
        devices: Devices,
        config: &ModelConfig,
        parts: Partition,
        bf16: bool,
        threads: usize,
    ) -> Result<Self, EngineError> {
        devices.check()?;
        let (plan, threads) = (Plan::new(config, &parts)?, threads.max(1));
        let filler = match devices.first() {
            #[cfg(feature = "candle")]
            Device::CandleCpu | Device::Cuda(_) => {
                Holder::Elsewhere(Box::new(crate::candle::BackendFiller::new(&devices, &plan, &parts, bf16)?))
            }
            _ if isa() == Isa::Baseline => return Err(EngineError::Processor),
            _ => Holder::Panels(Box::new(Filler::new(&plan, &parts, bf16, threads))),
        };
        Ok(Self { plan, parts, filler, threads, devices })
    }

    /// Takes a frozen tensor over; a name that is not among the frozen ones is left alone.
    ///
    /// # Errors
    /// A tensor of another size.
    pub fn put(&mut self, name: &str, tensor: &RawTensor) -> Result<(), EngineError> {
        let Some(entry) = self.parts.frozen.get(name) else { return Ok(()) };
        match &mut self.filler {
            Holder::Panels(filler) => filler.put(entry, tensor),
            #[cfg(feature = "candle")]
            Holder::Elsewhere(filler) => filler.put(entry, tensor),
        }
    }

    /// The engine, once every frozen tensor was put.
    ///
    /// # Errors
    /// Names a tensor that did not come.
    pub fn finish(self) -> Result<Engine, EngineError> {
        #[cfg(feature = "candle")]
        let mut elsewhere = None;
        let frozen: Frozen = match self.filler {
            Holder::Panels(filler) => filler.finish(&self.parts)?,
            #[cfg(feature = "candle")]
            Holder::Elsewhere(filler) => {
                elsewhere = Some(Arc::new(filler.finish(&self.parts)?));
                Frozen::default()
            }
        };
        let pool = Arc::new(Pool::new(&self.plan, &self.parts, frozen));
        Ok(Engine {
            plan: Arc::new(self.plan),
            pool,
            parts: Arc::new(self.parts),
            threads: self.threads,
            devices: self.devices,
            #[cfg(feature = "candle")]
            elsewhere,
        })
    }
}

/// Cuts `order` into consecutive batches of about [`BATCH_ROWS`] rows.
pub(crate) fn batches(packs: &[Pack], order: &[usize]) -> Vec<Range<usize>> {
    cut(packs, order, BATCH_ROWS)
}

/// Cuts `order` into consecutive batches of at most `limit` rows, or a single pack.
pub(crate) fn cut(packs: &[Pack], order: &[usize], limit: usize) -> Vec<Range<usize>> {
    let mut out = Vec::new();
    let (mut start, mut rows) = (0, 0);
    for (k, &i) in order.iter().enumerate() {
        let n = pack_len(packs[i].prompt, &packs[i].completions);
        if k > start && rows + n > limit {
            out.push(start..k);
            (start, rows) = (k, 0);
        }
        rows += n;
    }
    if start < order.len() {
        out.push(start..order.len());
    }
    out
}

/// Runs jobs `0..n` on up to `threads` threads; results in job order. The first error in job order wins; a panic becomes an error.
pub(crate) fn parallel<R: Send>(
    threads: usize,
    n: usize,
    job: impl Fn(usize) -> Result<R, EngineError> + Sync,
) -> Result<Vec<R>, EngineError> {
    if threads.min(n) <= 1 {
        return (0..n).map(job).collect();
    }
    let next = AtomicUsize::new(0);
    let mut done: Vec<(usize, Result<R, EngineError>)> = std::thread::scope(|scope| {
        let work = || {
            let mut mine = Vec::new();
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= n {
                    return mine;
                }
                mine.push((i, job(i)));
            }
        };
        let handles: Vec<_> = (0..threads.min(n)).map(|_| scope.spawn(work)).collect();
        let join =
            |h: std::thread::ScopedJoinHandle<'_, Vec<_>>| h.join().map_err(|p| EngineError::Thread(panic_text(&*p)));
        handles.into_iter().map(join).collect::<Result<Vec<_>, _>>()
    })?
    .into_iter()
    .flatten()
    .collect();
    done.sort_by_key(|d| d.0);
    done.into_iter().map(|d| d.1).collect()
}

pub(crate) fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown panic".into())
}
