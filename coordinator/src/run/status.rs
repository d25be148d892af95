//! The run as JSON for `/status`, and as gauges.

use super::actor::Actor;
use crate::state::Phase;
use quorum_core::metric;
use quorum_proto::v1::Role;
use serde_json::{Value, json};

pub(super) fn role_name(role: Role) -> &'static str {
    match role {
        Role::Learner => "learner",
        Role::RolloutWorker => "rollout_worker",
        Role::Unspecified => "unspecified",
    }
}

impl Actor {
    pub(super) fn status(&self) -> Value {
        let now = self.now();
        let (tasks, pending, leased, open) = self.state.counts();
        let members: Vec<Value> = self
            .state
            .members()
            .map(|(id, m)| {
                json!({
                    "id": id,
                    "role": role_name(m.role),
                    "pid": m.pid,
                    "version": m.version,
                    "instruction_set": m.instruction_set,
                    "leases": self.state.holds(id).len(),
                    "delivered": m.delivered,
                    "tokens_per_second": m.tokens_per_second,
                    "generated_tokens": m.generated_tokens,
                    "metrics_address": m.metrics_address,
                    "joined_seconds_ago": now - m.joined,
                    "last_seen_seconds_ago": now - m.last_seen,
                })
            })
            .collect();
        let questions = self.state.plan().questions;
        let evaluations: serde_json::Map<String, Value> = self
            .evaluations
            .iter()
            .filter_map(|(v, e)| Some((v.to_string(), serde_json::to_value(e.figures(questions)?).ok()?)))
            .collect();
        json!({
            "run_id": self.run_id,
            "run_dir": self.dir.path().display().to_string(),
            "epoch": self.epoch,
            "config_digest": self.material.config_digest,
            "phase": self.state.phase().describe(),
            "complete": self.state.phase() == Phase::Complete,
            "steps": self.state.plan().steps,
            "committed": self.state.committed(),
            "serving_version": self.state.served(),
            "versions_held": self.weights.held(),
            "tasks": { "all": tasks, "pending": pending, "leased": leased, "open": open },
            "samples": self.samples,
            "quarantined": self.quarantined,
            "seconds": self.seconds(),
            "members": members,
            "evaluations": evaluations,
            "last_step": self.last_metrics,
        })
    }

    pub(super) fn gauges(&self) {
        let (tasks, pending, leased, open) = self.state.counts();
        let graded = tasks - open;
        for (state, n) in [("ready", pending), ("leased", leased), ("graded", graded)] {
            metric::COORDINATOR_PROMPTS.with([state]).set(n as f64);
        }
        metric::COORDINATOR_PROMPTS.with(["quarantined"]).set(self.quarantined as f64);
        for role in [Role::RolloutWorker, Role::Learner] {
            let n = self.state.members().filter(|(_, m)| m.role == role).count();
            metric::COORDINATOR_WORKERS.with([role_name(role), "ready"]).set(n as f64);
        }
        metric::LEARNER_STEP.with([]).set(self.state.committed() as f64);
    }
}
