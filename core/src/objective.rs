//! Objectives on slices of log-probs, with their gradient with respect to each log-prob: clipped GRPO and SFT.
//! One call a sequence; the normaliser of the whole gradient batch is an input, so any split of a batch adds up to the same loss.

use crate::config::{LossMean, ObjectiveSection};
use serde::{Deserialize, Serialize};

/// What the sum over tokens is divided by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregation {
    /// All tokens of the gradient batch (BNPO, DAPO, EasyR1).
    Token,
    /// Each sequence by its length, then by the number of sequences (the paper).
    #[default]
    Sequence,
    /// Number of sequences times the length limit (Dr. GRPO).
    Constant,
}

/// The level of the importance ratio.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RatioLevel {
    #[default]
    Token,
    /// exp(mean over the sequence of logπ − logπ_old) for every token (GSPO).
    Sequence,
}

/// The KL estimator against the reference.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlEstimator {
    /// exp(d) − d − 1, d = logπ_ref − logπ.
    #[default]
    K3,
    /// k3 with d in [−20, 20] and the value at most 10; the gradient is 0 where it is cut.
    K3Clamped,
    /// k3 times the importance ratio: unbiased off policy.
    K3Corrected,
}

/// Settings of the clipped objective.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GrpoRule {
    /// Lower clip: 1 − ε_low.
    pub epsilon_low: f32,
    /// Upper clip: 1 + ε_high.
    pub epsilon_high: f32,
    /// Bound c on the loss of negative advantages, c·|A|; none = off.
    pub dual_clip: Option<f32>,
    /// Weight β of the KL term.
    pub beta: f32,
    pub aggregation: Aggregation,
    pub ratio: RatioLevel,
    pub kl: KlEstimator,
    /// Cap of the importance weight π_old / π_sampler of stale samples.
    pub importance_cap: f32,
}

impl Default for GrpoRule {
    fn default() -> Self {
        Self {
            epsilon_low: 0.2,
            epsilon_high: 0.3,
            dual_clip: Some(3.0),
            beta: 0.01,
            aggregation: Aggregation::Sequence,
            ratio: RatioLevel::Token,
            kl: KlEstimator::K3,
            importance_cap: 2.0,
        }
    }
}

impl From<&ObjectiveSection> for GrpoRule {
    fn from(c: &ObjectiveSection) -> Self {
        Self {
            epsilon_low: c.epsilon_low,
            epsilon_high: c.epsilon_high,
            dual_clip: (c.dual_clip > 0.0).then_some(c.dual_clip),
            beta: c.beta,
            aggregation: c.loss_mean.into(),
            ..Self::default()
        }
    }
}

impl From<LossMean> for Aggregation {
    fn from(mean: LossMean) -> Self {
        match mean {
            LossMean::Token => Aggregation::Token,
            LossMean::Sequence => Aggregation::Sequence,
        }
    }
}

/// A sequence whose parts do not fit together.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ObjectiveError {
    #[error("{what} has {got} entries for {want} tokens; give one log-prob a token")]
    Length { what: &'static str, got: usize, want: usize },
    #[error("beta is {0} but the sequence has no reference log-probs; score it with the reference model first")]
    NoReference(f32),
}

/// One sequence: per-token log-probs in nats and its advantage.
#[derive(Debug, Clone, Copy)]
pub struct Sequence<'a> {
    /// logπ under the weights being trained.
    pub logp: &'a [f32],
    /// logπ_old: under the weights at the start of the gradient batches of this step.
    pub old: &'a [f32],
    /// logπ_ref; needed when β > 0.
    pub reference: Option<&'a [f32]>,
    /// Log-probs under the older weights that sampled it, when these are not those of `old`.
    pub sampler: Option<&'a [f32]>,
    pub advantage: f32,
}

/// Sums over tokens; merge in a fixed order, divide at the end.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stats {
    pub sequences: u64,
    pub tokens: u64,
    /// Tokens whose loss is cut at 1 − ε_low.
    pub clipped_low: u64,
    /// Tokens whose loss is cut at 1 + ε_high.
    pub clipped_high: u64,
    /// Tokens whose loss is cut at c·|A|.
    pub clipped_dual: u64,
    pub ratio_sum: f64,
    pub ratio_max: f64,
    /// Σ k3 against the reference, nats (0 without one).
    pub kl_sum: f64,
}

impl Stats {
    /// Adds another part of the batch.
    pub fn merge(&mut self, other: &Stats) {
        self.sequences += other.sequences;
        self.tokens += other.tokens;
        self.clipped_low += other.clipped_low;
        self.clipped_high += other.clipped_high;
        self.clipped_dual += other.clipped_dual;
        self.ratio_sum += other.ratio_sum;
        self.ratio_max = self.ratio_max.max(other.ratio_max);
        self.kl_sum += other.kl_sum;
    }

    /// A token sum as a mean over tokens; 0 without tokens.
    pub fn per_token(&self, sum: f64) -> f64 {
        if self.tokens == 0 { 0.0 } else { sum / self.tokens as f64 }
    }

    /// Share of tokens cut at 1 − ε_low.
    pub fn clip_fraction_low(&self) -> f64 {
        self.per_token(self.clipped_low as f64)
    }

    /// Share of tokens cut at 1 + ε_high (or by the dual clip, which lies beyond it).
    pub fn clip_fraction_high(&self) -> f64 {
        self.per_token((self.clipped_high + self.clipped_dual) as f64)
    }

    /// Mean importance ratio.
    pub fn mean_ratio(&self) -> f64 {
        self.per_token(self.ratio_sum)
    }

    /// Mean k3 against the reference, nats.
    pub fn mean_kl(&self) -> f64 {
        self.per_token(self.kl_sum)
    }
}

/// This sequence's part of the batch loss.
#[derive(Debug, Clone, PartialEq)]
pub struct SequenceLoss {
    /// Policy term.
    pub policy: f64,
    /// β-weighted KL term.
    pub kl: f64,
    /// d(policy + kl)/d logp, one entry a token.
    pub grad: Vec<f32>,
    pub stats: Stats,
}

impl SequenceLoss {
    /// policy + kl.
    pub fn total(&self) -> f64 {
        self.policy + self.kl
    }
}

/// The divisor of a gradient batch: total tokens, number of sequences, or sequences × `length_limit`.
/// `lengths` are those of all sequences of the batch on all ranks, empty ones left out of no count.
pub fn normaliser(aggregation: Aggregation, lengths: impl IntoIterator<Item = usize>, length_limit: usize) -> f64 {
    let (mut sequences, mut tokens) = (0u64, 0u64);
    for n in lengths {
        sequences += 1;
        tokens += n as u64;
    }
    let n = match aggregation {
        Aggregation::Token => tokens,
        Aggregation::Sequence => sequences,
        Aggregation::Constant => sequences * length_limit as u64,
    };
    n.max(1) as f64
}

/// k3 at d = logπ_ref − logπ, and its derivative with respect to logπ.
pub fn k3(d: f64) -> (f64, f64) {
    (d.exp_m1() - d, -d.exp_m1())
}

/// k3 with d cut to [−20, 20] and the value to at most 10.
pub fn k3_clamped(d: f64) -> (f64, f64) {
    let (value, slope) = k3(d.clamp(-20.0, 20.0));
    if value > 10.0 { (10.0, 0.0) } else { (value, if d.abs() > 20.0 { 0.0 } else { slope }) }
}

/// Log-ratios beyond ± this are cut (and give no gradient): e^20 is already far outside every clip.
const LOG_RATIO_LIMIT: f64 = 20.0;

/// The clipped objective of one sequence (METHOD §1). Where the ratio is exactly 1, the policy gradient is exactly −A / normaliser
/// (times 1/length for `Aggregation::Sequence`).
///
/// # Errors
/// Slices of different lengths, or β > 0 without reference log-probs.
pub fn grpo(s: &Sequence<'_>, rule: &GrpoRule, normaliser: f64) -> Result<SequenceLoss, ObjectiveError> {
    check(s, rule)?;
    let n = s.logp.len();
    let divisor = normaliser * if rule.aggregation == Aggregation::Sequence { n as f64 } else { 1.0 };
    let mut out = SequenceLoss {
        policy: 0.0,
        kl: 0.0,
        grad: Vec::with_capacity(n),
        stats: Stats { sequences: 1, tokens: n as u64, ..Stats::default() },
    };
    let ratios = log_ratios(s, rule.ratio);
    let pull = ratio_pull(s, rule, &ratios);
    let weights = importance(s, rule);
    let beta = f64::from(rule.beta);
    for t in 0..n {
        let ratio = ratios[t].exp();
        let flat = ratios[t].abs() >= LOG_RATIO_LIMIT;
        let weight = weights[t];
        let (loss, slope) = clipped(ratio, f64::from(s.advantage), rule, &mut out.stats);
        let mut grad = if flat { 0.0 } else { weight * slope * ratio };
        out.policy += weight * loss;
        out.stats.ratio_sum += ratio;
        out.stats.ratio_max = out.stats.ratio_max.max(ratio);
        if let Some(reference) = s.reference {
            let d = f64::from(reference[t]) - f64::from(s.logp[t]);
            out.stats.kl_sum += k3(d).0;
            let (value, slope) = kl_term(d, ratio, pull, rule.kl);
            out.kl += beta * value;
            grad += beta * slope;
        }
        out.grad.push((grad / divisor) as f32);
    }
    if n > 0 {
        out.policy /= divisor;
        out.kl /= divisor;
    }
    Ok(out)
}

/// −Σ logp / normaliser: supervised fine-tuning on the given tokens. With `Aggregation::Sequence` also divided by the length.
pub fn sft(logp: &[f32], aggregation: Aggregation, normaliser: f64) -> SequenceLoss {
    let n = logp.len();
    let divisor = normaliser * if aggregation == Aggregation::Sequence { n.max(1) as f64 } else { 1.0 };
    let sum: f64 = logp.iter().map(|l| f64::from(*l)).sum();
    SequenceLoss {
        policy: -sum / divisor,
        kl: 0.0,
        grad: vec![(-1.0 / divisor) as f32; n],
        stats: Stats { sequences: 1, tokens: n as u64, ratio_sum: n as f64, ratio_max: 1.0, ..Stats::default() },
    }
}

fn check(s: &Sequence<'_>, rule: &GrpoRule) -> Result<(), ObjectiveError> {
    let want = s.logp.len();
    let parts =
        [("old log-probs", Some(s.old)), ("reference log-probs", s.reference), ("sampler log-probs", s.sampler)];
    for (what, part) in parts {
        if let Some(got) = part.map(<[f32]>::len).filter(|got| *got != want) {
            return Err(ObjectiveError::Length { what, got, want });
        }
    }
    if rule.beta > 0.0 && s.reference.is_none() {
        return Err(ObjectiveError::NoReference(rule.beta));
    }
    Ok(())
}

/// Log of the importance ratio of each token.
fn log_ratios(s: &Sequence<'_>, level: RatioLevel) -> Vec<f64> {
    let cut = |x: f64| x.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT);
    let each = s.logp.iter().zip(s.old).map(|(p, o)| f64::from(*p) - f64::from(*o));
    match level {
        RatioLevel::Token => each.map(cut).collect(),
        RatioLevel::Sequence => {
            let n = s.logp.len();
            vec![cut(each.sum::<f64>() / n.max(1) as f64); n]
        }
    }
}

/// What a change of the shared ratio does to the corrected KL of a whole sequence: mean k3. Unused for token ratios.
fn ratio_pull(s: &Sequence<'_>, rule: &GrpoRule, ratios: &[f64]) -> Option<f64> {
    if rule.ratio != RatioLevel::Sequence || rule.kl != KlEstimator::K3Corrected {
        return None;
    }
    let reference = s.reference?;
    let sum: f64 = reference.iter().zip(s.logp).map(|(r, p)| k3(f64::from(*r) - f64::from(*p)).0).sum();
    Some(sum / ratios.len().max(1) as f64)
}

fn kl_term(d: f64, ratio: f64, pull: Option<f64>, kind: KlEstimator) -> (f64, f64) {
    match kind {
        KlEstimator::K3 => k3(d),
        KlEstimator::K3Clamped => k3_clamped(d),
        KlEstimator::K3Corrected => {
            let (value, slope) = k3(d);
            (value * ratio, ratio * (slope + pull.unwrap_or(value)))
        }
    }
}

/// min(π_old / π_sampler, cap) of each token, at the level of the ratio: a constant, no gradient flows through it.
fn importance(s: &Sequence<'_>, rule: &GrpoRule) -> Vec<f64> {
    let Some(sampler) = s.sampler else { return vec![1.0; s.logp.len()] };
    let stale = Sequence { logp: s.old, old: sampler, ..*s };
    log_ratios(&stale, rule.ratio).into_iter().map(|l| l.exp().min(f64::from(rule.importance_cap))).collect()
}

/// The loss of one token and its slope with respect to the ratio; counts what was cut.
fn clipped(ratio: f64, a: f64, rule: &GrpoRule, stats: &mut Stats) -> (f64, f64) {
    let low = 1.0 - f64::from(rule.epsilon_low);
    let high = 1.0 + f64::from(rule.epsilon_high);
    if a > 0.0 && ratio > high {
        stats.clipped_high += 1;
        return (-high * a, 0.0);
    }
    if a < 0.0 && ratio < low {
        stats.clipped_low += 1;
        return (-low * a, 0.0);
    }
    if let Some(c) = rule.dual_clip.map(f64::from)
        && a < 0.0
        && ratio > c
    {
        stats.clipped_dual += 1;
        return (-c * a, 0.0);
    }
    (-ratio * a, -a)
}
