//! The arithmetic of a run: prompts, samples, tokens, gradient batches, epochs, leases. No divisibility rules: what does not divide is uneven. Pure.

use quorum_core::config::{ObjectiveKind, RunConfig};
use serde::Serialize;

/// Figures that follow from the configuration and the number of questions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Batch {
    pub prompts_per_step: u64,
    pub group_size: u64,
    /// Responses a step.
    pub samples_per_step: u64,
    /// Responses a step that are trained on.
    pub trained_per_step: u64,
    /// Tokens generated a step, at most.
    pub generated_tokens_per_step: u64,
    /// Prompts of each gradient batch (one optimiser step each).
    pub gradient_batches: Vec<u64>,
    pub steps: u64,
    pub optimizer_steps: u64,
    /// Times the training data are gone through.
    pub epochs: f64,
    /// Leases of training and of all evaluations.
    pub training_leases: u64,
    pub evaluation_leases: u64,
    pub evaluations: u64,
}

/// Computes them for `train` usable training and `test` evaluation questions.
pub fn batch(c: &RunConfig, train: u64, test: u64) -> Batch {
    let supervised = c.objective.kind == ObjectiveKind::Sft;
    let prompts = u64::from(c.rollout.prompts_per_step);
    let group = if supervised { 1 } else { u64::from(c.rollout.group_size) };
    let trained = match u64::from(c.rollout.train_size) {
        0 => group,
        n => n.min(group),
    };
    let parts = u64::from(c.optim.gradient_batches.max(1));
    let cut = |k: u64| k * prompts / parts;
    let inner = match c.eval.every {
        0 => 0,
        every => (c.run.steps.saturating_sub(1)) / every,
    };
    let evaluations = if c.eval.enabled && test > 0 { (1 + u64::from(c.run.steps > 0)) + inner } else { 0 };
    Batch {
        prompts_per_step: prompts,
        group_size: group,
        samples_per_step: prompts * group,
        trained_per_step: prompts * trained,
        generated_tokens_per_step: if supervised { 0 } else { prompts * group * u64::from(c.rollout.max_new_tokens) },
        gradient_batches: (0..parts).map(|k| cut(k + 1) - cut(k)).collect(),
        steps: c.run.steps,
        optimizer_steps: c.run.steps * parts,
        epochs: if train == 0 { 0.0 } else { (c.run.steps * prompts) as f64 / train as f64 },
        training_leases: if supervised { 0 } else { c.run.steps * prompts },
        evaluation_leases: evaluations * 3 * test,
        evaluations,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorum_core::config::load;

    #[test]
    fn what_does_not_divide_is_uneven() {
        let set = ["rollout.prompts_per_step=10", "optim.gradient_batches=3", "run.steps=7", "eval.every=2"];
        let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
        let b = batch(&load(None, &set).unwrap(), 40, 5);
        assert_eq!(b.gradient_batches, [3, 3, 4]);
        assert_eq!((b.samples_per_step, b.optimizer_steps, b.training_leases), (80, 21, 70));
        assert_eq!(b.epochs, 1.75);
        // Versions 0, 2, 4, 6 and 7.
        assert_eq!((b.evaluations, b.evaluation_leases), (5, 75));
    }
}
