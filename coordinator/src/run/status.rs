//! The run as JSON for `/status`.

use super::actor::Actor;
use super::command::RunEnd;
use crate::evaluate::figures_by_version;
use crate::state::Phase;
use quorum_proto::v1::Role;
use serde_json::{Value, json};

pub(super) fn role_name(role: Role) -> &'static str {
    match role {
        Role::Learner => "learner",
        Role::RolloutWorker => "rollout_worker",
        Role::Unspecified => "unspecified",
    }
}

/// What is done, and for which step (from 0) or version.
fn doing(phase: Phase) -> Value {
    match phase {
        Phase::Evaluate { version } => json!({ "phase": "evaluate", "version": version }),
        Phase::Sample { step } => json!({ "phase": "sample", "step": step }),
        Phase::Train { step } => json!({ "phase": "train", "step": step }),
        Phase::Complete => json!({ "phase": "complete" }),
    }
}

impl Actor {
    /// How the run stands, and why it failed.
    fn standing(&self) -> (&'static str, Option<String>) {
        match &*self.end.borrow() {
            None => ("running", None),
            Some(end @ RunEnd::Failed(reason)) => (end.word(), Some(reason.clone())),
            Some(end) => (end.word(), None),
        }
    }

    pub(super) fn status(&self) -> Value {
        let now = self.now();
        let (tasks, pending, leased, open) = self.state.counts();
        let held = self.state.held();
        let members: Vec<Value> = self
            .state
            .members()
            .map(|(id, m)| {
                let (whence, relay) = self.weights.fanout.whence(id);
                json!({
                    "id": id,
                    "role": role_name(m.role),
                    "rank": m.rank,
                    "pid": m.pid,
                    "version": m.version,
                    "instruction_set": m.instruction_set,
                    "leases": held.get(id.as_str()).copied().unwrap_or(0),
                    "delivered": m.delivered,
                    "tokens_per_second": m.tokens_per_second,
                    "generated_tokens": m.generated_tokens,
                    "metrics_address": m.metrics_address,
                    "relay": relay,
                    "weights": whence.map(|w| json!({
                        "version": w.version,
                        "from": if w.source.is_empty() { "coordinator" } else { w.source.as_str() },
                        "transport": w.transport,
                        "bytes": w.bytes,
                        "seconds": w.seconds,
                        "hops": w.hops,
                    })),
                    "joined_seconds_ago": now - m.joined,
                    "last_seen_seconds_ago": now - m.last_seen,
                })
            })
            .collect();
        let (steps, committed) = (self.state.plan().steps, self.state.committed());
        let (state, reason) = self.standing();
        let pace = self.pace.known().then(|| {
            json!({
                "step_seconds": self.pace.newest,
                "tokens_per_second": self.pace.tokens_per_second,
                "seconds_left": self.pace.seconds_left(steps - committed),
            })
        });
        let questions = self.state.plan().questions;
        let evaluations = figures_by_version(&self.evaluations, questions);
        json!({
            "run_id": self.run_id,
            "run_dir": self.dir.path().display().to_string(),
            "epoch": self.epoch,
            "config_digest": self.material.config_digest,
            "state": state,
            "reason": reason,
            "phase": self.state.phase().describe(),
            "doing": doing(self.state.phase()),
            "complete": self.state.phase() == Phase::Complete,
            "steps": steps,
            "committed": committed,
            "pace": pace,
            "serving_version": self.state.served(),
            "versions_held": self.weights.held(),
            "learner": {
                "ranks": self.state.plan().ranks,
                "formed": self.state.group_formed(),
                "missing": self.state.missing_ranks(),
                "generation": self.state.generation(),
            },
            "tasks": { "all": tasks, "pending": pending, "leased": leased, "open": open },
            "samples": self.samples,
            "quarantined": self.quarantined,
            "seconds": self.seconds(),
            "members": members,
            "evaluations": evaluations,
            "last_step": self.last_metrics,
        })
    }
}
