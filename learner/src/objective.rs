//! Glue between the pure objectives of core and the engine's trainer: which log-probs go where, the loss mean of a gradient batch, and what each pack adds to its losses.

use crate::batch::{Outline, Part, TrainPack};
use crate::losses::{PackLosses, SequencePart};
use quorum_core::config::{ObjectiveKind, ObjectiveSection};
use quorum_core::objective::{self, Aggregation, GrpoRule, ObjectiveError, SequenceLoss};
use quorum_engine::PackScores;

/// Log-probs of every pack of the step: `[pack][sequence][token]`, nats.
pub type LogProbs = Vec<Vec<Vec<f32>>>;

/// The objective of a run.
#[derive(Debug, Clone)]
pub enum Rule {
    Grpo(GrpoRule),
    Sft(Aggregation),
}

impl Rule {
    /// As configured.
    pub fn of(section: &ObjectiveSection) -> Self {
        match section.kind {
            ObjectiveKind::Grpo => Self::Grpo(section.into()),
            ObjectiveKind::Sft => Self::Sft(section.loss_mean.into()),
        }
    }

    /// Whether a reference policy is needed.
    pub fn needs_reference(&self) -> bool {
        matches!(self, Self::Grpo(rule) if rule.beta > 0.0)
    }

    /// Divisor of a gradient batch. Flat groups that are not computed count too: leaving out a zero must not change the mean.
    pub fn normaliser(&self, outline: &Outline, part: &Part, length_limit: usize) -> f64 {
        let aggregation = match self {
            Self::Grpo(rule) => rule.aggregation,
            Self::Sft(aggregation) => *aggregation,
        };
        let lengths = outline.counted.iter().filter(|(slot, _)| part.slots.contains(slot)).map(|(_, n)| *n);
        objective::normaliser(aggregation, lengths, length_limit)
    }

    /// Loss of sequence `k` of a pack given its scores; without `old` the policy that sampled is the one being trained.
    fn loss(
        &self,
        pack: &TrainPack,
        k: usize,
        logp: &[f32],
        old: Option<&[f32]>,
        reference: Option<&[f32]>,
        normaliser: f64,
    ) -> Result<SequenceLoss, ObjectiveError> {
        match self {
            Self::Sft(aggregation) => Ok(objective::sft(logp, *aggregation, normaliser)),
            Self::Grpo(rule) => {
                let advantage = pack.sequences.get(k).map_or(0.0, |s| s.advantage);
                objective::grpo(
                    &objective::Sequence { logp, old: old.unwrap_or(logp), reference, sampler: None, advantage },
                    rule,
                    normaliser,
                )
            }
        }
    }
}

/// One gradient batch with everything its loss needs.
pub struct GradientBatch<'a> {
    pub rule: &'a Rule,
    pub packs: &'a [TrainPack],
    /// Of the same packs; none = ratio exactly 1.
    pub old: Option<&'a [Vec<Vec<f32>>]>,
    pub reference: Option<&'a [Vec<Vec<f32>>]>,
    pub normaliser: f64,
}

impl GradientBatch<'_> {
    /// dL/dlogp of pack `i`. An objective that cannot be formed gives the wrong shape, which the trainer refuses by name.
    pub fn gradient(&self, i: usize, scores: &PackScores) -> Vec<Vec<f32>> {
        self.losses(i, scores).map(|losses| losses.into_iter().map(|l| l.grad).collect()).unwrap_or_default()
    }

    fn losses(&self, i: usize, scores: &PackScores) -> Result<Vec<SequenceLoss>, ObjectiveError> {
        let Some(pack) = self.packs.get(i) else { return Ok(Vec::new()) };
        let of = |table: Option<&'_ [Vec<Vec<f32>>]>, k: usize| table.and_then(|t| t.get(i)?.get(k)).cloned();
        let one = |(k, logp): (usize, &Vec<f32>)| {
            let (old, reference) = (of(self.old, k), of(self.reference, k));
            self.rule.loss(pack, k, logp, old.as_deref(), reference.as_deref(), self.normaliser)
        };
        scores.logprobs.iter().enumerate().map(one).collect()
    }

    /// What each pack adds to the losses of the batch.
    ///
    /// # Errors
    /// Log-probs of different lengths.
    pub fn pack_losses(&self, scores: &[PackScores]) -> Result<Vec<PackLosses>, ObjectiveError> {
        let one = |(i, scores): (usize, &PackScores)| {
            let part = |l: SequenceLoss| SequencePart { policy: l.policy, kl: l.kl, stats: l.stats };
            let sequences = self.losses(i, scores)?.into_iter().map(part).collect();
            let entropy = scores.entropy.iter().flatten().map(|h| f64::from(*h)).sum::<f64>();
            let compared = self.packs.get(i).filter(|_| self.old.is_none());
            Ok(PackLosses { sequences, entropy, mismatch: compared.map_or(0.0, |p| mismatch(p, &scores.logprobs)) })
        };
        scores.iter().enumerate().map(one).collect()
    }
}

/// Largest |worker's log-prob − ours| over a pack, nats.
pub fn mismatch(pack: &TrainPack, logprobs: &[Vec<f32>]) -> f64 {
    let pairs = pack.sequences.iter().zip(logprobs).flat_map(|(s, ours)| s.sampler.iter().zip(ours));
    pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs()).fold(0.0, f64::max)
}
