//! Log-probs under fixed weights: the reference policy (the untouched start weights), and π_old at the start of a step.

use crate::batch::TrainPack;
use crate::objective::LogProbs;
use quorum_engine::{Engine, EngineError, Pack, PackScores, PolicyDist};

/// The engine's view of packs.
pub fn packs(packs: &[TrainPack]) -> Vec<Pack<'_>> {
    packs
        .iter()
        .map(|p| Pack { prompt: &p.prompt, completions: p.sequences.iter().map(|s| s.tokens.as_slice()).collect() })
        .collect()
}

/// Scores all packs under `weights`.
///
/// # Errors
/// As the engine's.
pub fn logprobs(
    engine: &Engine,
    weights: &[f32],
    train: &[TrainPack],
    policy: &PolicyDist,
) -> Result<LogProbs, EngineError> {
    let scores = engine.score(weights, &packs(train), policy)?;
    Ok(scores.into_iter().map(|s: PackScores| s.logprobs).collect())
}
