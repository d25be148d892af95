//! Sampling: each prompt prefilled once (images encoded once), then all rows of all groups decoded together; finished rows leave.
//! A row's tokens and log-probs are a function of weights, prompt and sample key alone.

use crate::block::{BlockScratch, Hidden, Projected};
use crate::engine::{Engine, parallel};
use crate::error::EngineError;
use crate::kernels::attention::attend_step;
use crate::kernels::gemm::grow;
use crate::kv::{OwnKv, PrefixKv};
use crate::model::batch::{Batch, check_prompt};
use crate::model::forward::{Reach, Workspace};
use crate::model::head::{HeadBuffers, Policy, log_prob};
use crate::model::plan::Plan;
use crate::params::Weights;
use crate::rope_table::RopeTable;
use crate::sampling::{DrawRow, DrawScratch, check, draw};
use crate::types::{GenRequest, Sample};
use quorum_core::seed::Stream;
use quorum_core::types::Finish;

/// Prompt rows prefilled together.
const PREFILL_ROWS: usize = 384;

/// A prefilled prompt.
struct Prefilled {
    kv: PrefixKv,
    /// Hidden state of the prompt's last token.
    last: Vec<f32>,
}

/// One response in the making.
struct Row {
    group: usize,
    sample: usize,
    stream: Stream,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    finish: Option<Finish>,
}

/// What decoding needs to know of all groups.
struct Job<'a> {
    plan: &'a Plan,
    weights: Weights<'a>,
    rope: &'a RopeTable,
    groups: &'a [GenRequest<'a>],
    policies: Vec<Policy>,
    prefilled: Vec<Prefilled>,
    cancel: &'a (dyn Fn() -> bool + Sync),
}

impl Engine {
    /// Samples all groups in one ragged batch; every row is independent of what else is in the batch (bit for bit).
    /// `cancel` is asked once a token.
    ///
    /// # Errors
    /// A request that does not fit the model, logits that are not finite, or [`EngineError::Cancelled`].
    pub fn generate(
        &self,
        weights: &[f32],
        groups: &[GenRequest],
        cancel: &(dyn Fn() -> bool + Sync),
    ) -> Result<Vec<Vec<Sample>>, EngineError> {
        let plan = &*self.plan;
        let mut last = 0;
        for g in groups {
            check(&g.sampling)?;
            last = last.max(check_prompt(plan, g.prompt, g.sampling.max_new_tokens as usize)?);
        }
        let policies = groups.iter().map(|g| Policy::new(&g.policy, plan.head.n_out)).collect::<Result<Vec<_>, _>>()?;
        #[cfg(feature = "candle")]
        if let Some(backend) = &self.elsewhere {
            return backend.generate(self, weights, groups, &policies, last, cancel);
        }
        let panels = self.pool.panels(plan, weights, self.threads)?;
        let rope = self.pool.rope(plan, last);
        let mut job = Job {
            plan,
            weights: panels.weights(weights),
            rope: &rope,
            groups,
            policies,
            prefilled: Vec::new(),
            cancel,
        };
        let parts = prefill_parts(groups, self.threads);
        let prefilled =
            parallel(self.threads, parts.len(), |i| self.pool.with_workspace(|ws| job.prefill(parts[i].clone(), ws)))?;
        job.prefilled = prefilled.into_iter().flatten().collect();
        let rows: Vec<(usize, usize)> =
            groups.iter().enumerate().flat_map(|(g, r)| (0..r.samples.len()).map(move |s| (g, s))).collect();
        let share = rows.len().div_ceil(self.threads).max(1);
        let shards: Vec<&[(usize, usize)]> = rows.chunks(share).collect();
        let done = parallel(self.threads, shards.len(), |i| self.pool.with_workspace(|ws| job.decode(shards[i], ws)))?;
        let mut out: Vec<Vec<Sample>> = groups.iter().map(|g| Vec::with_capacity(g.samples.len())).collect();
        for row in done.into_iter().flatten() {
            debug_assert_eq!(out[row.group].len(), row.sample);
            out[row.group].push(Sample {
                tokens: row.tokens,
                logprobs: row.logprobs,
                finish: row.finish.unwrap_or(Finish::Length),
            });
        }
        Ok(out)
    }
}

/// Consecutive groups whose prompts are run together.
fn prefill_parts(groups: &[GenRequest], threads: usize) -> Vec<std::ops::Range<usize>> {
    let total: usize = groups.iter().map(|g| g.prompt.ids.len()).sum();
    let limit = PREFILL_ROWS.min(total.div_ceil(threads)).max(1);
    let mut parts = Vec::new();
    let (mut start, mut rows) = (0, 0);
    for (i, g) in groups.iter().enumerate() {
        if i > start && rows + g.prompt.ids.len() > limit {
            parts.push(start..i);
            (start, rows) = (i, 0);
        }
        rows += g.prompt.ids.len();
    }
    if start < groups.len() {
        parts.push(start..groups.len());
    }
    parts
}

/// Buffers of one decoding step.
#[derive(Default)]
struct StepBuffers {
    x: Vec<f32>,
    h: Vec<f32>,
    projected: Projected,
    att: Vec<f32>,
    hidden: Hidden,
    block: BlockScratch,
    scores: Vec<f32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
    draw: DrawScratch,
}

impl Job<'_> {
    fn prefill(&self, part: std::ops::Range<usize>, ws: &mut Workspace) -> Result<Vec<Prefilled>, EngineError> {
        if (self.cancel)() {
            return Err(EngineError::Cancelled);
        }
        let mut batch = Batch::default();
        for g in &self.groups[part] {
            batch.push(self.plan, self.rope, g.prompt, &[]);
        }
        let runs: Vec<_> = batch.packs.iter().filter_map(|p| p.prefix).collect();
        let mut kv: Vec<PrefixKv> = runs.iter().map(|_| PrefixKv::default()).collect();
        self.plan.forward(&self.weights, &batch, ws, Reach::NONE, &mut |layer, qkv| {
            let block = &self.plan.blocks[layer];
            for (kv, run) in kv.iter_mut().zip(&runs) {
                kv.push(block.heads, run.len, &qkv[run.start * block.qkv.n_out..], block.qkv.n_out);
            }
        })?;
        let d = self.plan.hidden();
        let of = |(kv, run): (PrefixKv, &crate::kernels::packs::Run)| {
            let at = (run.start + run.len - 1) * d;
            Prefilled { kv, last: ws.x[at..at + d].to_vec() }
        };
        Ok(kv.into_iter().zip(&runs).map(of).collect())
    }

    fn decode(&self, shard: &[(usize, usize)], ws: &mut Workspace) -> Result<Vec<Row>, EngineError> {
        let new = |&(group, sample): &(usize, usize)| {
            let stream = Stream::of_sample(&self.groups[group].samples[sample]);
            Row { group, sample, stream, tokens: Vec::new(), logprobs: Vec::new(), finish: None }
        };
        let mut rows: Vec<Row> = shard.iter().map(new).collect();
        let longest = rows.iter().map(|r| self.limit(r)).max().unwrap_or(0);
        let Some(first) = self.plan.blocks.first() else { return Ok(rows) };
        let mut own = OwnKv::new(first.heads, self.plan.blocks.len(), rows.len(), longest.saturating_sub(1));
        let mut b = StepBuffers::default();
        self.first_tokens(&mut rows, &mut ws.head, &mut b.draw)?;
        for t in 0..longest {
            if (self.cancel)() {
                return Err(EngineError::Cancelled);
            }
            let alive: Vec<usize> = (0..rows.len()).filter(|&i| rows[i].finish.is_none()).collect();
            if alive.is_empty() {
                break;
            }
            self.step(t, &alive, &rows, &mut own, &mut b);
            self.next_tokens(&alive, &mut rows, &mut b, &mut ws.head)?;
        }
        Ok(rows)
    }

    /// The first token of every row, from the prompt's last hidden state.
    fn first_tokens(
        &self,
        rows: &mut [Row],
        head: &mut HeadBuffers,
        scratch: &mut DrawScratch,
    ) -> Result<(), EngineError> {
        for part in rows.chunk_by_mut(|a, b| a.group == b.group) {
            let g = part[0].group;
            self.plan.policy_rows(&self.weights, &self.prefilled[g].last, 1, &self.policies[g], head)?;
            for row in part {
                self.take(row, 0, head, scratch);
            }
        }
        Ok(())
    }

    /// Hidden states of the newest token of every living row, into `b.x`.
    fn step(&self, t: usize, alive: &[usize], rows: &[Row], own: &mut OwnKv, b: &mut StepBuffers) {
        let (n, d, w) = (alive.len(), self.plan.hidden(), &self.weights);
        let ids: Vec<u32> = alive.iter().filter_map(|&i| rows[i].tokens.last().copied()).collect();
        grow(&mut b.x, n * d);
        self.plan.embed_tokens(w, &ids, &mut b.x[..n * d]);
        b.cos.clear();
        b.sin.clear();
        for &i in alive {
            let position = self.groups[rows[i].group].prompt.next_position + t as i32;
            self.rope.extend([position; 3], &mut b.cos, &mut b.sin);
        }
        for (layer, block) in self.plan.blocks.iter().enumerate() {
            let (ld, ldo) = (block.qkv.n_out, block.out.n_in);
            block.project(w, n, &b.cos, &b.sin, &b.x, &mut b.projected, &mut b.h, false);
            let qkv = &b.projected.qkv;
            for (r, &slot) in alive.iter().enumerate() {
                own.append(layer, slot, t, &qkv[r * ld..(r + 1) * ld]);
            }
            grow(&mut b.att, n * ldo);
            let mut at = 0;
            for part in alive.chunk_by(|&a, &c| rows[a].group == rows[c].group) {
                let prefix = &self.prefilled[rows[part[0]].group].kv;
                attend_step(
                    &qkv[at * ld..],
                    ld,
                    part.len(),
                    block.heads,
                    |g| prefix.segment(block.heads, layer, g),
                    |r, g| own.segment(layer, part[r], g, t + 1),
                    &mut b.scores,
                    &mut b.att[at * ldo..],
                    ldo,
                );
                at += part.len();
            }
            block.finish(w, n, &b.att, &mut b.x[..n * d], &mut b.hidden, &mut b.block, |_| {});
        }
    }

    /// Draws the next token of every living row from `b.x`.
    fn next_tokens(
        &self,
        alive: &[usize],
        rows: &mut [Row],
        b: &mut StepBuffers,
        head: &mut HeadBuffers,
    ) -> Result<(), EngineError> {
        let d = self.plan.hidden();
        let mut at = 0;
        while at < alive.len() {
            let policy = &self.policies[rows[alive[at]].group];
            let same = |&&i: &&usize| self.policies[rows[i].group] == *policy;
            let n = alive[at..].iter().take(self.plan.chunk()).take_while(same).count();
            self.plan.policy_rows(&self.weights, &b.x[at * d..(at + n) * d], n, policy, head)?;
            for (k, &i) in alive[at..at + n].iter().enumerate() {
                self.take(&mut rows[i], k, head, &mut b.draw);
            }
            at += n;
        }
        Ok(())
    }

    /// Draws a token from row `k` of the head's buffers and books it.
    fn take(&self, row: &mut Row, k: usize, head: &HeadBuffers, scratch: &mut DrawScratch) {
        let g = &self.groups[row.group];
        let v = self.plan.head.n_out;
        let (z, p, policy) = (&head.z[k * v..(k + 1) * v], &head.p[k * v..(k + 1) * v], &head.rows[k]);
        let inverse_temperature = self.policies[row.group].inverse_temperature;
        let counter = row.tokens.len() as u64;
        let token = draw(
            DrawRow { z, p, max: policy.max, inverse_temperature },
            &g.sampling,
            || row.stream.uniform(counter),
            scratch,
        );
        row.tokens.push(token as u32);
        row.logprobs.push(log_prob(z[token], policy));
        if g.policy.stop.contains(&(token as u32)) {
            row.finish = Some(Finish::Stop);
        } else if row.tokens.len() >= self.limit(row) {
            row.finish = Some(Finish::Length);
        }
    }

    fn limit(&self, row: &Row) -> usize {
        self.groups[row.group].sampling.max_new_tokens as usize
    }
}
