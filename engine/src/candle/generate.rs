//! Sampling on the device: prompts prefilled in parts, then all rows of all groups decoded together on a grid of slots that shrinks as
//! rows finish.

use super::draw::{Wanted, tokens};
use super::head::DevicePolicy;
use super::kv::{Cache, PromptKv};
use super::model::{Place, Reach};
use super::step::{Newest, Step};
use crate::error::EngineError;
use crate::kv::KvCount;
use crate::model::batch::Batch;
use crate::model::head::Policy;
use crate::rope_table::RopeTable;
use crate::types::{GenRequest, Sample};
use candle_core::Tensor;
use quorum_core::seed::Stream;
use quorum_core::types::Finish;
use std::ops::Range;

type Result<T> = std::result::Result<T, EngineError>;

/// What to sample.
pub struct Job<'a> {
    pub rope: &'a RopeTable,
    pub groups: &'a [GenRequest<'a>],
    pub policies: &'a [Policy],
    /// Prompt rows prefilled together.
    pub rows: usize,
    pub cancel: &'a (dyn Fn() -> bool + Sync),
}

/// One response in the making.
struct Row {
    group: usize,
    stream: Stream,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    finish: Option<Finish>,
}

/// The grid: `rows[slot]` is the response decoded there.
struct Grid {
    /// Of the job.
    groups: Vec<usize>,
    width: usize,
    slots: Vec<Option<usize>>,
}

impl Place<'_> {
    /// Samples of every group, in the order of its keys.
    pub fn generate(&self, job: &Job) -> Result<Vec<Vec<Sample>>> {
        let mut prompts = Vec::with_capacity(job.groups.len());
        let mut last = Vec::with_capacity(job.groups.len());
        for part in parts(job) {
            self.prefill(job, part, &mut prompts, &mut last)?;
        }
        let mut rows = Vec::new();
        for (group, g) in job.groups.iter().enumerate() {
            let new = |key| Row {
                group,
                stream: Stream::of_sample(key),
                tokens: Vec::new(),
                logprobs: Vec::new(),
                finish: None,
            };
            rows.extend(g.samples.iter().map(new));
        }
        if !rows.is_empty() {
            let policies = job.policies.iter().map(|p| self.policy(p)).collect::<Result<Vec<_>>>()?;
            self.first_tokens(job, &policies, &Tensor::cat(&last, 0)?, &mut rows)?;
            self.decode(job, &policies, &prompts, &mut rows)?;
        }
        let mut out: Vec<Vec<Sample>> = job.groups.iter().map(|g| Vec::with_capacity(g.samples.len())).collect();
        for row in rows {
            let finish = row.finish.unwrap_or(Finish::Length);
            out[row.group].push(Sample { tokens: row.tokens, logprobs: row.logprobs, finish });
        }
        Ok(out)
    }

    /// All shards stop at the same place.
    fn go_on(&self, job: &Job) -> Result<()> {
        self.share(|| if (job.cancel)() { Err(EngineError::Cancelled) } else { Ok(()) })?;
        Ok(())
    }

    /// Keys and values of some prompts, and the rows behind their last tokens `[1, hidden]`.
    fn prefill(
        &self,
        job: &Job,
        part: Range<usize>,
        prompts: &mut Vec<Vec<PromptKv>>,
        last: &mut Vec<Tensor>,
    ) -> Result<()> {
        self.go_on(job)?;
        let mut batch = Batch::default();
        for g in &job.groups[part] {
            batch.push(self.plan, job.rope, g.prompt, &[]);
        }
        let runs: Vec<_> = batch.packs.iter().filter_map(|p| p.prefix).collect();
        let mut kv: Vec<Vec<PromptKv>> = runs.iter().map(|_| Vec::new()).collect();
        let passed = self.forward(&batch, Reach::NONE, &mut |_, p| {
            for (kv, run) in kv.iter_mut().zip(&runs) {
                // Copies: a view would keep the whole batch alive.
                let own = |x: &Tensor| x.narrow(0, run.start, run.len)?.force_contiguous();
                kv.push((own(&p.k)?, own(&p.v)?));
            }
            Ok(())
        })?;
        prompts.append(&mut kv);
        for run in &runs {
            last.push(passed.x.narrow(0, run.start + run.len - 1, 1)?);
        }
        Ok(())
    }

    /// The first token of every row, from its prompt's last row.
    fn first_tokens(&self, job: &Job, policies: &[DevicePolicy], last: &Tensor, rows: &mut [Row]) -> Result<()> {
        let all: Vec<usize> = (0..rows.len()).collect();
        let from: Vec<usize> = rows.iter().map(|r| r.group).collect();
        self.next_tokens(job, policies, last, &from, &all, rows)
    }

    /// Books the next token of the rows `alive`; `from[i]` is the row of x (behind the last block) that predicts it, ascending.
    fn next_tokens(
        &self,
        job: &Job,
        policies: &[DevicePolicy],
        x: &Tensor,
        from: &[usize],
        alive: &[usize],
        rows: &mut [Row],
    ) -> Result<()> {
        let drawn = self.share(|| self.draw(job, policies, x, from, alive, rows))?;
        for (&i, &(token, logprob)) in alive.iter().zip(&*drawn) {
            take(job, &mut rows[i], token, logprob);
        }
        Ok(())
    }

    /// Tokens of the rows `alive` and their log-probs.
    fn draw(
        &self,
        job: &Job,
        policies: &[DevicePolicy],
        x: &Tensor,
        from: &[usize],
        alive: &[usize],
        rows: &mut [Row],
    ) -> Result<Vec<(u32, f32)>> {
        let mut all = Vec::with_capacity(alive.len());
        let mut at = 0;
        while at < alive.len() {
            let (group, start) = (rows[alive[at]].group, from[at]);
            let same = |i: usize| {
                let (a, b) = (rows[alive[i]].group, group);
                job.policies[a] == job.policies[b] && job.groups[a].sampling == job.groups[b].sampling
            };
            let n = (at..alive.len()).take_while(|&i| same(i) && from[i] - start < self.chunk()).count();
            let height = from[at + n - 1] - start + 1;
            let normed = self.head_norm(&x.narrow(0, start, height)?)?;
            let policy = self.policy_rows(&normed, &policies[group])?;
            let mut wanted = |i: usize| {
                let row = &mut rows[alive[i]];
                Wanted { row: from[i] - start, u: row.stream.uniform(row.tokens.len() as u64) }
            };
            let wanted: Vec<Wanted> = (at..at + n).map(&mut wanted).collect();
            let inverse_temperature = job.policies[group].inverse_temperature;
            all.extend(tokens(&policy, &wanted, &job.groups[group].sampling, inverse_temperature)?);
            at += n;
        }
        Ok(all)
    }

    fn decode(&self, job: &Job, policies: &[DevicePolicy], prompts: &[Vec<PromptKv>], rows: &mut [Row]) -> Result<()> {
        let Some(mut grid) = Grid::of(rows) else { return Ok(()) };
        let kv: Vec<&Vec<PromptKv>> = grid.groups.iter().map(|&g| &prompts[g]).collect();
        let limit = |r: &Row| job.groups[r.group].sampling.max_new_tokens as usize;
        // Counted once, whatever the number of shards.
        let first = self.seat.first();
        let room = rows.iter().filter(|r| first && r.finish.is_none()).map(|r| limit(r) - 1).sum();
        let mut count = KvCount::new(room);
        let mut cache = Cache::new(&kv, grid.width, self.dtype, self.device)?;
        let mut step = Step::new(self, grid.slots.len(), cache.room)?;
        for t in 0.. {
            self.go_on(job)?;
            let Some(smaller) = grid.shrink(rows, &mut cache)? else { break };
            if cache.reserve(t)? || smaller {
                step = Step::new(self, grid.slots.len(), cache.room)?;
            }
            let x = step.run(self, &cache, self.newest(job, t, &grid, rows))?;
            let living = |slot: usize| grid.slots[slot].filter(|&i| rows[i].finish.is_none()).map(|i| (slot, i));
            let (from, alive): (Vec<usize>, Vec<usize>) = (0..grid.slots.len()).filter_map(living).unzip();
            count.add(if first { alive.len() } else { 0 });
            self.next_tokens(job, policies, x, &from, &alive, rows)?;
        }
        Ok(())
    }

    /// The newest token of every slot, number `t` of its response.
    fn newest(&self, job: &Job, t: usize, grid: &Grid, rows: &[Row]) -> Newest {
        let last = |slot: &Option<usize>| slot.and_then(|i| rows[i].tokens.last().copied()).unwrap_or(0);
        let mut newest = Newest { ids: grid.slots.iter().map(last).collect(), cos: Vec::new(), sin: Vec::new(), t };
        for &group in grid.groups.iter().flat_map(|g| std::iter::repeat_n(g, grid.width)) {
            let position = job.groups[group].prompt.next_position + t as i32;
            job.rope.extend([position; 3], &mut newest.cos, &mut newest.sin);
        }
        newest
    }
}

/// Consecutive groups whose prompts are run together.
fn parts(job: &Job) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let (mut start, mut rows) = (0, 0);
    for (i, g) in job.groups.iter().enumerate() {
        let n = g.prompt.ids.len();
        if i > start && rows + n > job.rows {
            parts.push(start..i);
            (start, rows) = (i, 0);
        }
        rows += n;
    }
    parts.push(start..job.groups.len());
    parts.retain(|p| !p.is_empty());
    parts
}

/// Books a drawn token.
fn take(job: &Job, row: &mut Row, token: u32, logprob: f32) {
    let g = &job.groups[row.group];
    row.tokens.push(token);
    row.logprobs.push(logprob);
    if g.policy.stop.contains(&token) {
        row.finish = Some(Finish::Stop);
    } else if row.tokens.len() >= g.sampling.max_new_tokens as usize {
        row.finish = Some(Finish::Length);
    }
}

impl Grid {
    /// The smallest grid that holds the unfinished rows; `None` if there are none.
    fn of(rows: &[Row]) -> Option<Self> {
        let mut groups: Vec<(usize, Vec<usize>)> = Vec::new();
        for (i, row) in rows.iter().enumerate().filter(|(_, r)| r.finish.is_none()) {
            match groups.last_mut() {
                Some((group, members)) if *group == row.group => members.push(i),
                _ => groups.push((row.group, vec![i])),
            }
        }
        let width = groups.iter().map(|g| g.1.len()).max()?;
        let slots = groups.iter().flat_map(|(_, m)| (0..width).map(|r| m.get(r).copied())).collect();
        Some(Self { groups: groups.iter().map(|g| g.0).collect(), width, slots })
    }

    /// Leaves finished rows behind once the grid halves by it, and says whether it did. `None`: nothing is left to decode.
    fn shrink(&mut self, rows: &[Row], cache: &mut Cache) -> Result<Option<bool>> {
        let Some(smaller) = Self::of(rows) else { return Ok(None) };
        if smaller.slots.len() * 2 > self.slots.len() {
            return Ok(Some(false));
        }
        let group = |g: &usize| self.groups.iter().position(|old| old == g).unwrap_or(0) as u32;
        let slot =
            |s: &Option<usize>| s.and_then(|i| self.slots.iter().position(|old| *old == Some(i))).unwrap_or(0) as u32;
        let (groups, slots): (Vec<u32>, Vec<u32>) =
            (smaller.groups.iter().map(group).collect(), smaller.slots.iter().map(slot).collect());
        cache.keep(&groups, &slots)?;
        *self = smaller;
        Ok(Some(true))
    }
}
