//! Sharded steps of the tiny fixture model over any group, to be compared with a learner of one rank.

#![allow(dead_code)]

use quorum_core::config::Reduction;
use quorum_engine::{AdamW, Engine, Pack, PackScores, PolicyDist, StepStats, Trainer};
use quorum_learner::collective::{Collective, OneRank, shares};
use quorum_learner::share::Share;
use quorum_learner::zero::{StepError, Zero};
use quorum_model::{Checkpoint, EncodedPrompt};
use std::path::Path;

pub const LANES: usize = 5;

/// Packs of the steps: more than lanes, fewer than ranks, one, and as many as lanes and two.
pub const BATCHES: [usize; 4] = [11, 2, 1, 7];

/// What a rank saw.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Summed gradient of each batch, whole, under the start weights.
    pub gradients: Vec<Vec<f32>>,
    pub stats: Vec<StepStats>,
    /// After all steps.
    pub weights: Vec<f32>,
    /// Elements of both moments held here.
    pub moments: usize,
    pub total: usize,
}

fn checkpoint() -> Checkpoint {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/qwen2_5_vl");
    Checkpoint::open(&dir).expect("the fixture is in the repository")
}

fn prompt(i: usize) -> EncodedPrompt {
    let ids: Vec<u32> = (0..4 + i % 3).map(|k| (20 + 7 * i + 3 * k) as u32 % 60).collect();
    let positions: Vec<i32> = (0..ids.len() as i32).collect();
    let next_position = ids.len() as i32;
    EncodedPrompt {
        ids,
        positions: [positions.clone(), positions.clone(), positions],
        next_position,
        images: Vec::new(),
    }
}

fn completions(i: usize) -> Vec<Vec<u32>> {
    (0..2 + i % 2).map(|s| (0..3 + (i + s) % 4).map(|k| (5 + 11 * i + 5 * s + k) as u32 % 60).collect()).collect()
}

/// One rank of a group at work.
struct Rank {
    share: Share,
    zero: Zero,
    trainer: Trainer,
    weights: Vec<f32>,
}

impl Rank {
    fn new(ranks: &dyn Collective, reduction: Reduction) -> Result<Self, StepError> {
        let model = checkpoint();
        let weights = model.load_weights().expect("the fixture has weights");
        let engine = Engine::new(&model.config, model.layout.clone(), 1)?;
        let share = Share { rank: ranks.rank(), world: ranks.world(), lanes: LANES };
        let zero = Zero::new(engine.layout().total(), share, reduction);
        let optim = AdamW { max_grad_norm: 0.5, ..AdamW::default() };
        let trainer = Trainer::sharded(engine, share.own_lanes(), optim, zero.owned());
        Ok(Self { share, zero, trainer, weights })
    }

    /// Adds the gradient of this rank's packs of a batch. `scale` multiplies the pull on its log-probs.
    fn accumulate(&mut self, step: usize, count: usize, scale: f32) -> Result<(), StepError> {
        let own: Vec<usize> = (0..count).filter(|i| self.share.owns(*i)).map(|i| 100 * step + i).collect();
        let prompts: Vec<EncodedPrompt> = own.iter().map(|i| prompt(*i)).collect();
        let completions: Vec<Vec<Vec<u32>>> = own.iter().map(|i| completions(*i)).collect();
        let packs: Vec<Pack> = prompts
            .iter()
            .zip(&completions)
            .map(|(prompt, c)| Pack { prompt, completions: c.iter().map(Vec::as_slice).collect() })
            .collect();
        let pull = |i: usize, scores: &PackScores| {
            let weight = 0.1 + 0.01 * (own[i] % 7) as f32;
            let one = |lp: &f32| scale * (weight * lp.exp() - 0.05);
            scores.logprobs.iter().map(|c| c.iter().map(one).collect()).collect()
        };
        self.trainer.accumulate(&self.weights, &packs, &PolicyDist::unmasked(), &pull)?;
        Ok(())
    }

    fn step(&mut self, ranks: &mut dyn Collective, count: usize) -> Result<StepStats, StepError> {
        self.zero.step(ranks, &mut self.trainer, &mut self.weights, count, 1e-3)
    }
}

/// Goes through `BATCHES` as the rank of `ranks` twice: for the gradients under the start weights, and for steps.
pub fn train(ranks: &mut dyn Collective, reduction: Reduction) -> Result<Outcome, StepError> {
    let mut rank = Rank::new(ranks, reduction)?;
    let (world, total) = (rank.share.world, rank.weights.len());
    let (mut gradients, mut stats) = (Vec::new(), Vec::new());
    for (step, count) in BATCHES.into_iter().enumerate() {
        rank.accumulate(step, count, 1.0)?;
        if world == 1 {
            gradients.push(rank.trainer.gradient().to_vec());
            rank.trainer.clear();
        } else {
            rank.zero.reduce(ranks, &mut rank.trainer, count)?;
            let mut whole = vec![0.0; total];
            whole[rank.zero.owned()].copy_from_slice(rank.zero.gradient());
            ranks.all_gather(&mut whole, &shares(total, world))?;
            gradients.push(whole);
        }
    }
    for (step, count) in BATCHES.into_iter().enumerate() {
        rank.accumulate(step, count, 1.0)?;
        stats.push(rank.step(ranks, count)?);
    }
    let state = rank.trainer.state();
    let moments = state.m.len() + state.v.len();
    Ok(Outcome { gradients, stats, weights: rank.weights, moments, total })
}

/// Whether two steps were finite: one in which the gradient of rank 1 overflows, and one after it. The first must leave nothing behind.
pub fn poisoned(ranks: &mut dyn Collective, reduction: Reduction) -> Result<[bool; 2], StepError> {
    let mut rank = Rank::new(ranks, reduction)?;
    let before = rank.weights.clone();
    rank.accumulate(0, 4, if rank.share.rank == 1 { f32::MAX } else { 1.0 })?;
    let first = rank.step(ranks, 4)?;
    assert!(rank.weights == before && rank.trainer.state().m.iter().all(|m| *m == 0.0), "the step changed something");
    rank.accumulate(1, 4, 1.0)?;
    let second = rank.step(ranks, 4)?;
    assert!(rank.weights != before && rank.weights.iter().all(|w| w.is_finite()));
    Ok([first.finite, second.finite])
}

/// Distance of two gradients relative to the second, in the Euclidean norm.
pub fn distance(a: &[f32], b: &[f32]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let apart = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    apart / norm(&mut b.iter().map(|b| f64::from(*b)))
}

/// What a learner of one rank sees.
pub fn alone() -> Outcome {
    train(&mut OneRank, Reduction::Fast).expect("one rank trains")
}

/// Checks what a rank of several saw against one rank.
pub fn check(outcome: &Outcome, one: &Outcome, world: usize, reduction: Reduction) {
    let what = format!("{world} ranks, {reduction:?}");
    match reduction {
        Reduction::Fixed => {
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            for (ours, theirs) in outcome.gradients.iter().zip(&one.gradients) {
                assert!(ours == theirs, "{what}: gradients differ");
            }
            assert!(bits(&outcome.weights) == bits(&one.weights), "{what}: weights differ");
            assert_eq!(outcome.stats, one.stats, "{what}");
        }
        Reduction::Fast => {
            for (ours, theirs) in outcome.gradients.iter().zip(&one.gradients) {
                let apart = distance(ours, theirs);
                assert!(apart <= 1e-6, "{what}: the gradient is {apart:e} off");
            }
            assert!(distance(&outcome.weights, &one.weights) < 1e-4, "{what}: weights");
        }
    }
    assert_eq!(outcome.gradients.len(), BATCHES.len());
    let most = 2 * outcome.total.div_ceil(4096).div_ceil(world) * 4096;
    assert!(
        outcome.moments <= most,
        "{what}: {} of {} moments are held, at most {most} should be",
        outcome.moments,
        2 * outcome.total
    );
    assert_eq!(one.moments, 2 * one.total);
}
