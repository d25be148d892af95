//! The engine: shapes and caches behind a cheap handle; entry points for scoring. Generation and training have their own files.

use crate::error::EngineError;
use crate::families::qwen2_5_vl::batch::{Batch, check_prompt, pack_len};
use crate::families::qwen2_5_vl::head::Policy;
use crate::families::qwen2_5_vl::plan::Plan;
use crate::kernels::isa::{Isa, isa};
use crate::pool::Pool;
use crate::types::{Pack, PackScores, PolicyDist};
use quorum_model::{Layout, ModelConfig};
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
    layout: Arc<Layout>,
    pub(crate) threads: usize,
}

impl Engine {
    /// Checks that the layout holds every tensor of the configuration.
    ///
    /// # Errors
    /// Names the tensor or shape that does not fit; also on a processor without AVX2.
    pub fn new(config: &ModelConfig, layout: Arc<Layout>, threads: usize) -> Result<Self, EngineError> {
        if isa() == Isa::Baseline {
            return Err(EngineError::Processor);
        }
        let plan = Arc::new(Plan::new(config, &layout)?);
        Ok(Self { plan, pool: Arc::default(), layout, threads: threads.max(1) })
    }

    /// The table of the slabs this engine works on.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
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
        let panels = self.pool.panels(&self.plan, weights, false)?;
        let rope = self.pool.rope(&self.plan, last);
        let order: Vec<usize> = (0..packs.len()).collect();
        let parts = batches(packs, &order);
        let results = parallel(self.threads, parts.len(), |i| {
            let members = &order[parts[i].clone()];
            let (batch, mut scores) = self.batch(packs, members, &rope);
            let w = panels.weights(weights);
            self.pool.with_workspace(|ws| self.plan.score(&w, &batch, &policy, &mut scores, ws))?;
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

/// Cuts `order` into consecutive batches of about [`BATCH_ROWS`] rows.
pub(crate) fn batches(packs: &[Pack], order: &[usize]) -> Vec<Range<usize>> {
    let mut out = Vec::new();
    let (mut start, mut rows) = (0, 0);
    for (k, &i) in order.iter().enumerate() {
        let n = pack_len(packs[i].prompt, &packs[i].completions);
        if k > start && rows + n > BATCH_ROWS {
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

fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown panic".into())
}
