//! Who takes part: rollout workers and the ranks of the learner, and when they were last heard of.

use super::Seconds;
use quorum_proto::v1::Role;
use std::collections::BTreeMap;

/// A joined process.
#[derive(Debug, Clone)]
pub struct Member {
    pub role: Role,
    /// Of a learner in its group.
    pub rank: u32,
    /// 0 = not told.
    pub pid: u32,
    pub metrics_address: String,
    pub instruction_set: String,
    pub joined: Seconds,
    pub last_seen: Seconds,
    /// Policy version it serves.
    pub version: u64,
    pub tokens_per_second: f64,
    pub generated_tokens: u64,
    /// Groups of it that were accepted.
    pub delivered: u64,
    /// Leases taken back from it that it has not been told of.
    pub cancelled: Vec<u64>,
}

/// `id (process 12)`, for messages.
pub(super) fn named(id: &str, pid: u32) -> String {
    if pid == 0 { format!("`{id}`") } else { format!("`{id}` (process {pid})") }
}

impl Member {
    /// A process that joins now.
    pub fn new(role: Role, now: Seconds) -> Self {
        Self {
            role,
            rank: 0,
            pid: 0,
            metrics_address: String::new(),
            instruction_set: String::new(),
            joined: now,
            last_seen: now,
            version: 0,
            tokens_per_second: 0.0,
            generated_tokens: 0,
            delivered: 0,
            cancelled: Vec::new(),
        }
    }
}

/// Why a call is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Join (again) first.
    Rejoin(String),
    /// Never under this run.
    Forbidden(String),
    /// The run has failed, for this reason.
    Failed(String),
}

/// Answer to a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// Leases that are no longer the caller's.
    pub cancelled: Vec<u64>,
    /// Why the caller must stop, if it must.
    pub stop: Option<String>,
}

/// Members by caller id.
#[derive(Debug, Default)]
pub(super) struct Members {
    by_id: BTreeMap<String, Member>,
    /// Rollout workers among them: asked for with every lease.
    workers: usize,
}

impl Members {
    pub(super) fn insert(&mut self, id: &str, member: Member) {
        self.workers += usize::from(member.role == Role::RolloutWorker);
        let before = self.by_id.insert(id.to_owned(), member);
        self.workers -= usize::from(before.is_some_and(|m| m.role == Role::RolloutWorker));
    }

    pub(super) fn remove(&mut self, id: &str) -> Option<Member> {
        let member = self.by_id.remove(id)?;
        self.workers -= usize::from(member.role == Role::RolloutWorker);
        Some(member)
    }

    pub(super) fn get_mut(&mut self, id: &str) -> Option<&mut Member> {
        self.by_id.get_mut(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &Member)> {
        self.by_id.iter()
    }

    pub(super) fn count(&self, role: Role) -> usize {
        if role == Role::RolloutWorker {
            return self.workers;
        }
        self.by_id.values().filter(|m| m.role == role).count()
    }

    /// Learners by caller id.
    pub(super) fn learners(&self) -> impl Iterator<Item = (&String, &Member)> {
        self.by_id.iter().filter(|(_, m)| m.role == Role::Learner)
    }

    /// Who holds a rank of the learner.
    pub(super) fn rank(&self, rank: u32) -> Option<&String> {
        self.learners().find(|(_, m)| m.rank == rank).map(|(id, _)| id)
    }

    pub(super) fn get(&self, id: &str) -> Option<&Member> {
        self.by_id.get(id)
    }

    pub(super) fn with_pid(&self, pid: u32) -> Option<String> {
        self.by_id.iter().find(|(_, m)| pid != 0 && m.pid == pid).map(|(id, _)| id.clone())
    }

    /// Notes a sign of life.
    pub(super) fn touch(&mut self, id: &str, now: Seconds) -> Result<&mut Member, Refusal> {
        match self.by_id.get_mut(id) {
            Some(m) => {
                m.last_seen = m.last_seen.max(now);
                Ok(m)
            }
            None => Err(Refusal::Rejoin(format!("`{id}` is not joined (any more): join again"))),
        }
    }

    /// Everyone was heard of that much later.
    pub(super) fn forgive(&mut self, seconds: Seconds) {
        self.by_id.values_mut().for_each(|m| m.last_seen += seconds);
    }

    /// Members not heard of since `before`.
    pub(super) fn silent(&self, before: Seconds) -> Vec<String> {
        self.by_id.iter().filter(|(_, m)| m.last_seen < before).map(|(id, _)| id.clone()).collect()
    }
}
