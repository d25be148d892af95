//! Every wait has a deadline; when it passes, this names who is late.

use super::Seconds;
use super::phase::Phase;
use super::run::RunState;
use quorum_proto::v1::Role;

/// Lease times without a single accepted answer after which the holders are named.
const BARREN_LEASES: f64 = 5.0;

impl RunState {
    /// Why the run cannot be waited for any longer, if so.
    pub fn late(&self, now: Seconds) -> Option<String> {
        if self.phase == Phase::Complete {
            return None;
        }
        let join = self.plan.join_seconds;
        let learner = self.members.learner();
        let served = self.served == Some(self.committed);
        match learner {
            None if self.needs_learner() => {
                let waited = now - self.learner_gone_at;
                (waited > join).then(|| {
                    format!(
                        "no learner has joined for {join:.0} s while {}; start one with `learner --coordinator URL`, or use --workers N \
                         (cluster.join_seconds sets the limit)",
                        self.phase.describe()
                    )
                })
            }
            Some(id) if !served || matches!(self.phase, Phase::Train { .. }) => {
                let limit = self.plan.step_seconds;
                (now - self.progress_at > limit).then(|| {
                    format!("learner `{id}` has made no progress for {limit:.0} s while {} (cluster.step_seconds sets the limit)", self.phase.describe())
                })
            }
            _ => self.late_workers(now),
        }
    }

    fn needs_learner(&self) -> bool {
        self.served != Some(self.committed) || self.committed < self.plan.steps
    }

    fn late_workers(&self, now: Seconds) -> Option<String> {
        if self.board.open() == 0 || self.served != self.phase.version() {
            return None;
        }
        let (join, barren) = (self.plan.join_seconds, BARREN_LEASES * self.plan.lease_seconds);
        if self.members.count(Role::RolloutWorker) == 0 {
            return (now - self.workers_gone_at.max(self.progress_at) > join).then(|| {
                format!(
                    "no rollout worker has joined for {join:.0} s while {}; start one with `rollout-worker --coordinator URL`, or use --workers N \
                     (cluster.join_seconds sets the limit)",
                    self.phase.describe()
                )
            });
        }
        (now - self.progress_at > barren).then(|| {
            let holders: Vec<String> = self.board.holders().into_iter().collect();
            format!(
                "no answer has arrived for {barren:.0} s while {}; late: {} (cluster.lease_seconds sets the limit)",
                self.phase.describe(),
                if holders.is_empty() { "all workers, none asks for work".into() } else { holders.join(", ") }
            )
        })
    }
}
