//! The training loop, a page of verbs. What each verb does is in the file of its name.

use crate::error::LearnerError;
use crate::learner::Learner;
use crate::metrics::StepRecord;
use crate::schedule::learning_rate;

/// Trains until the coordinator has no more steps. Every rank of a learner runs it; rank 0 alone publishes and commits. Replays of committed steps (after a crash) take the same path and must end in the same bits.
///
/// # Errors
/// Anything that keeps a step from being committed; an uncommitted step leaves no trace (INV-10).
pub fn run(learner: &mut Learner) -> Result<(), LearnerError> {
    steps(learner).map_err(|error| learner.cause(error))
}

fn steps(learner: &mut Learner) -> Result<(), LearnerError> {
    learner.publish()?;
    while let Some(batch) = learner.receive_batch()? {
        let packs = learner.encode(&batch)?;
        let reference = learner.reference_logprobs(&packs)?;
        let old = learner.old_logprobs(&packs)?;
        let rate = learning_rate(&learner.config.optim, learner.config.run.steps, learner.step());
        let mut record = StepRecord::of(&batch, rate);
        for part in &packs.parts {
            if let Some(losses) = learner.accumulate(&packs, part, old.as_deref(), reference.as_deref())? {
                let stats = learner.optimizer_step(part, rate)?;
                record.add(&losses, &stats);
            } else {
                record.skip_non_finite();
            }
        }
        learner.advance(&batch)?;
        let checkpoint = learner.checkpoint(&batch)?;
        learner.publish()?;
        learner.commit(record, checkpoint)?;
    }
    Ok(())
}
