//! Giving the machine back: after SIGUSR1 the run makes a checkpoint with the next step that is learned and ends, to be resumed elsewhere.

use super::actor::Actor;
use super::command::RunEnd;
use crate::state::{Phase, Seconds};

/// How long a step is waited for; batch systems kill soon after. Without it the ledger still has every group, and learned steps are replayed.
const PATIENCE: Seconds = 90.0;

/// Whether the machine must be given back, and what the learner was told.
#[derive(Debug, Default)]
pub(super) struct Preempt {
    since: Option<Seconds>,
    /// The step handed out last and whether it makes a checkpoint: all ranks must be told the same.
    handed: Option<(u64, bool)>,
}

impl Actor {
    /// Ends the run as soon as its state is in a checkpoint.
    pub(super) async fn preempt(&mut self) {
        if self.preempt.since.is_none() {
            tracing::info!("giving the machine back after the next checkpoint");
            self.preempt.since = Some(self.now());
        }
        let newest = self.checkpoints.first().map_or(0, |c| c.steps);
        // Answers to questions are kept one by one: there is no step to wait for.
        if newest == self.state.committed() && matches!(self.state.phase(), Phase::Evaluate { .. }) {
            self.finish(RunEnd::Preempted).await;
        }
    }

    /// Whether the open step makes a checkpoint; the answer to one step never changes.
    pub(super) fn checkpoint_of(&mut self, step: u64) -> bool {
        let due = match self.preempt.handed {
            Some((handed, due)) if handed == step => due,
            _ => self.preempt.since.is_some() || self.checkpoint_due(step),
        };
        self.preempt.handed = Some((step, due));
        due
    }

    /// A step is committed, with a checkpoint or without.
    pub(super) async fn preempt_with(&mut self, checkpoint: bool) {
        if checkpoint && self.preempt.since.is_some() {
            self.finish(RunEnd::Preempted).await;
        }
    }

    pub(super) async fn preempt_late(&mut self) {
        if self.preempt.since.is_some_and(|since| self.now() - since > PATIENCE) {
            self.finish(RunEnd::Preempted).await;
        }
    }
}
