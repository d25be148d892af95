//! Every wait has a deadline; when it passes, this names who is late.

use super::Seconds;
use super::members::named;
use super::phase::Phase;
use super::run::RunState;
use quorum_proto::v1::Role;

/// Lease times without a single accepted answer after which the holders are named.
const BARREN_LEASES: f64 = 5.0;

impl RunState {
    /// Why the run cannot be waited for any longer, if so. `launched` are the children of this coordinator: (name, process id).
    pub fn late(&self, now: Seconds, launched: &[(String, u32)]) -> Option<String> {
        if self.phase == Phase::Complete {
            return None;
        }
        let served = self.served == Some(self.committed);
        if self.needs_learner() && !self.group_formed() {
            return self.late_ranks(now, launched);
        }
        if self.group_formed() && (!served || matches!(self.phase, Phase::Train { .. })) {
            let limit = self.plan.step_seconds;
            return (now - self.progress_at > limit).then(|| {
                let who = self.slowest().join(", ");
                let phase = self.phase.describe();
                format!("learner {who} has made no progress for {limit:.0} s while {phase} (cluster.step_seconds sets the limit)")
            });
        }
        self.late_workers(now, launched)
    }

    fn late_ranks(&self, now: Seconds, launched: &[(String, u32)]) -> Option<String> {
        let join = self.plan.join_seconds;
        (now - self.learner_gone_at > join).then(|| {
            let (ranks, absent) = (self.plan.ranks, self.missing_ranks());
            let who = match ranks {
                0 | 1 => "no learner has joined".to_owned(),
                _ if absent.len() == 1 => format!("learner rank {} of {ranks} has not joined its group", absent[0]),
                _ => format!("learner ranks {} of {ranks} have not joined their group", list(&absent)),
            };
            let how = match ranks {
                0 | 1 => "start one with `learner --coordinator URL`, or use --workers N".to_owned(),
                n => {
                    format!("start all with `mpirun -n {n} learner --coordinator URL`, or use --workers N --ranks {n}")
                }
            };
            format!(
                "{who} for {join:.0} s while {}; {} (cluster.join_seconds sets the limit)",
                self.phase.describe(),
                missing(launched, "learner", &how)
            )
        })
    }

    /// Learners that are behind the others, or all if none is.
    fn slowest(&self) -> Vec<String> {
        let least = self.members.learners().map(|(_, m)| m.version).min();
        let behind = self.members.learners().filter(|(_, m)| Some(m.version) == least);
        behind.map(|(id, _)| self.who(id)).collect()
    }

    /// A member by name and process.
    fn who(&self, id: &str) -> String {
        named(id, self.members.get(id).map_or(0, |m| m.pid))
    }

    pub(super) fn needs_learner(&self) -> bool {
        self.served != Some(self.committed) || self.committed < self.plan.steps
    }

    fn late_workers(&self, now: Seconds, launched: &[(String, u32)]) -> Option<String> {
        if self.board.open() == 0 || self.served != self.phase.version() {
            return None;
        }
        let (join, barren) = (self.plan.join_seconds, BARREN_LEASES * self.plan.lease_seconds);
        if self.members.count(Role::RolloutWorker) == 0 {
            return (now - self.workers_gone_at.max(self.progress_at) > join).then(|| {
                let cure = "start one with `rollout-worker --coordinator URL`, or use --workers N";
                format!(
                    "no rollout worker has joined for {join:.0} s while {}; {} (cluster.join_seconds sets the limit)",
                    self.phase.describe(),
                    missing(launched, "worker", cure)
                )
            });
        }
        (now - self.progress_at > barren).then(|| {
            let holders: Vec<String> = self.board.holders().iter().map(|id| self.who(id)).collect();
            let workers = self.members.iter().filter(|(_, m)| m.role == Role::RolloutWorker);
            let all: Vec<String> = workers.map(|(id, _)| self.who(id)).collect();
            format!(
                "no answer has arrived for {barren:.0} s while {}; late: {} (cluster.lease_seconds sets the limit)",
                self.phase.describe(),
                if holders.is_empty() { format!("{}, none asks for work", all.join(", ")) } else { holders.join(", ") }
            )
        })
    }
}

fn list(ranks: &[u32]) -> String {
    ranks.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

/// Which children were started and have not joined, or what to start.
fn missing(launched: &[(String, u32)], kind: &str, cure: &str) -> String {
    let names = launched.iter().filter(|(name, _)| name.starts_with(kind)).map(|(name, pid)| named(name, *pid));
    let late: Vec<String> = names.collect();
    if late.is_empty() { cure.to_owned() } else { format!("late: {}; see its log in RUN_DIR/logs", late.join(", ")) }
}
