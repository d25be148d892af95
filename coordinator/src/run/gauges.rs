//! The run as gauges, and every count from zero: a counter that appears with its first event hides that event from rates.

use super::actor::Actor;
use super::status::role_name;
use crate::material::Material;
use crate::rundir::RunDir;
use crate::state::{MISSED_HEARTBEATS, Seconds};
use quorum_core::metric;
use quorum_core::vote::Outcome;
use quorum_proto::v1::Role;
use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

/// What stands for the training data in metric labels.
pub(super) const TRAIN: &str = "train";
/// Seconds between two settings of the gauges.
const EVERY: Seconds = 1.0;
/// Seconds for which a process that went silent is shown as lost.
const REMEMBERED: Seconds = 900.0;
/// Missed heartbeats after which a process is suspect.
const SUSPECT: f64 = MISSED_HEARTBEATS / 2.0;

/// What gauges need to know of the past.
#[derive(Debug, Default)]
pub(super) struct Gauges {
    set_at: Option<Seconds>,
    /// Role of each process that was a member, and when it last was.
    seen: BTreeMap<String, (Role, Seconds)>,
}

impl Gauges {
    /// A process left by itself, or is known to have ended: it is not lost.
    pub(super) fn forget(&mut self, id: &str) {
        self.seen.remove(id);
    }

    /// How many processes there are by role and state. `members`: id, role, and whether a heartbeat is overdue.
    fn count<'a>(
        &mut self,
        now: Seconds,
        members: impl Iterator<Item = (&'a str, Role, bool)>,
    ) -> BTreeMap<(&'static str, &'static str), u32> {
        let mut counts = BTreeMap::new();
        for (id, role, overdue) in members {
            let state = if overdue { "suspect" } else { "ready" };
            *counts.entry((role_name(role), state)).or_insert(0) += 1;
            match self.seen.get_mut(id) {
                Some(known) => *known = (role, now),
                None => {
                    self.seen.insert(id.to_owned(), (role, now));
                }
            }
        }
        self.seen.retain(|_, (_, at)| now - *at < REMEMBERED);
        for (role, _) in self.seen.values().filter(|(_, at)| *at < now) {
            *counts.entry((role_name(*role), "lost")).or_insert(0) += 1;
        }
        counts
    }
}

/// Shows what is known at the start of a run.
pub(super) fn begin(material: &Material, dir: &RunDir, newest_checkpoint: Option<&str>) {
    let zero = |counter: metrics::Counter| counter.increment(0);
    for outcome in ["accepted", "duplicate", "stale_fence", "stale_version", "invalid"] {
        zero(metric::COORDINATOR_SUBMISSIONS.with([outcome]));
    }
    for reason in ["deadline", "worker_lost", "drain"] {
        zero(metric::COORDINATOR_LEASES_EXPIRED.with([reason]));
    }
    for reason in ["unauthenticated", "forbidden", "too_large", "malformed"] {
        zero(metric::COORDINATOR_RPC_REJECTED.with([reason]));
    }
    for outcome in Outcome::ALL {
        zero(metric::VOTE_GROUPS.with([TRAIN, outcome.label()]));
    }
    zero(metric::COORDINATOR_LEASES_GRANTED.with([]));
    zero(metric::VOTE_UNPARSED_ANSWERS.with([TRAIN]));
    zero(metric::WEIGHT_SYNC_FAILURES.with(["checksum"]));
    for reason in ["bad_json", "missing_field", "image_decode", "too_long", "unfit"] {
        zero(metric::DATA_RECORDS_REJECTED.with([TRAIN, reason]));
    }
    for (set, kind, count) in material.set_aside_by_kind() {
        metric::DATA_RECORDS_REJECTED.with([set, kind]).increment(count);
    }
    let written = newest_checkpoint.and_then(|name| std::fs::metadata(dir.checkpoint(name)).ok()?.modified().ok());
    if let Some(unix) = written.and_then(|time| time.duration_since(UNIX_EPOCH).ok()) {
        metric::CHECKPOINT_LAST_SUCCESS_TIMESTAMP_SECONDS.with([]).set(unix.as_secs_f64());
    }
}

impl Actor {
    /// Sets the gauges, at most once a second.
    pub(super) fn gauges(&mut self) {
        let now = self.now();
        if self.gauges.set_at.is_some_and(|at| now - at < EVERY) {
            return;
        }
        self.gauges.set_at = Some(now);
        let (tasks, pending, leased, open) = self.state.counts();
        for (state, n) in [("ready", pending), ("leased", leased), ("graded", tasks - open)] {
            metric::COORDINATOR_PROMPTS.with([state]).set(n as f64);
        }
        let trained = self.state.committed() * u64::from(self.material.config.rollout.prompts_per_step);
        metric::COORDINATOR_PROMPTS.with(["trained"]).set(trained as f64);
        metric::COORDINATOR_PROMPTS.with(["quarantined"]).set(self.quarantined as f64);
        metric::LEARNER_STEP.with([]).set(self.state.committed() as f64);
        let remaining = self.state.plan().steps.saturating_sub(self.state.committed());
        metric::COORDINATOR_STEPS_REMAINING.with([]).set(remaining as f64);
        let ledger = self.dir.ledger();
        let wal = ledger.with_extension("db-wal");
        let bytes = [ledger, wal].iter().filter_map(|path| std::fs::metadata(path).ok()).map(|m| m.len()).sum::<u64>();
        metric::COORDINATOR_LEDGER_BYTES.with([]).set(bytes as f64);
        self.workers_by_state(now);
    }

    fn workers_by_state(&mut self, now: Seconds) {
        let overdue = now - SUSPECT * self.state.plan().heartbeat_seconds;
        let members = self.state.members().map(|(id, m)| (id.as_str(), m.role, m.last_seen < overdue));
        let counts = self.gauges.count(now, members);
        for role in [Role::RolloutWorker, Role::Learner].map(role_name) {
            for state in ["ready", "suspect", "lost"] {
                let n = counts.get(&(role, state)).copied().unwrap_or(0);
                metric::COORDINATOR_WORKERS.with([role, state]).set(f64::from(n));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_goes_silent_is_lost_for_a_while_and_who_leaves_is_not() {
        const W: Role = Role::RolloutWorker;
        let mut gauges = Gauges::default();
        let counts = gauges.count(0.0, [("a", W, false), ("b", W, true), ("c", W, false)].into_iter());
        assert_eq!((counts[&("rollout_worker", "ready")], counts[&("rollout_worker", "suspect")]), (2, 1));
        gauges.forget("c");
        let counts = gauges.count(10.0, [("a", W, false)].into_iter());
        assert_eq!(
            (counts[&("rollout_worker", "ready")], counts[&("rollout_worker", "lost")]),
            (1, 1),
            "b alone is lost"
        );
        let counts = gauges.count(11.0, [("a", W, false), ("b", W, false)].into_iter());
        assert_eq!(counts.get(&("rollout_worker", "lost")), None, "b is back");
        let counts = gauges.count(11.0 + REMEMBERED, [("a", W, false)].into_iter());
        assert_eq!(counts.get(&("rollout_worker", "lost")), None, "that was long ago");
    }
}
