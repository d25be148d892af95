//! The run as JSON for `/status`.

use super::actor::Actor;
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

impl Actor {
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
        let questions = self.state.plan().questions;
        let evaluations = figures_by_version(&self.evaluations, questions);
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
