//! The state and its transitions. Callers judge first (`submit`, `judge_commit`), make the result durable, then say so (`recorded`, `commit`).

use super::Seconds;
use super::board::{Admission, Board, Grant, Work};
use super::group::Group;
use super::members::{Beat, Member, Members, Refusal};
use super::phase::{MISSED_HEARTBEATS, Phase, Plan, Recovered};
use quorum_proto::v1::Role;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Leases taken back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expired {
    /// Past their deadline.
    pub deadline: u64,
    /// Their holder was lost.
    pub lost: u64,
    /// Members that were lost, with their process ids (0 = not told).
    pub members: Vec<(String, u32)>,
}

/// What becomes of a prompt that a worker could not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Another try.
    Requeued,
    /// Given up, for these reasons; make it durable, then call `recorded`.
    Quarantine(Vec<String>),
    /// Of no current lease; nothing changed.
    Ignored,
}

/// One run.
#[derive(Debug)]
pub struct RunState {
    pub(super) plan: Plan,
    pub(super) phase: Phase,
    pub(super) committed: u64,
    pub(super) evaluated: BTreeSet<u64>,
    /// Binding digests by version.
    pub(super) digests: BTreeMap<u64, String>,
    /// Newest version in the store.
    pub(super) served: Option<u64>,
    /// Last version the learner published.
    pub(super) offered: Option<(u64, String)>,
    pub(super) board: Board,
    pub(super) members: Members,
    pub(super) group: Group,
    pub(super) done: HashSet<Work>,
    pub(super) progress_at: Seconds,
    pub(super) learner_gone_at: Seconds,
    pub(super) workers_gone_at: Seconds,
    /// Leases that ended without an answer, and why; until they are asked for.
    ended: Vec<(u64, &'static str)>,
}

impl RunState {
    /// The state at a coordinator's start (time 0).
    pub fn new(plan: Plan, recovered: Recovered) -> Self {
        let mut state = Self {
            phase: Phase::Complete,
            committed: recovered.committed,
            evaluated: BTreeSet::new(),
            digests: recovered.digests,
            served: None,
            offered: None,
            board: Board::new(recovered.epoch),
            members: Members::default(),
            group: Group::default(),
            done: recovered.done,
            progress_at: 0.0,
            learner_gone_at: 0.0,
            workers_gone_at: 0.0,
            ended: Vec::new(),
            plan,
        };
        state.advance(0.0);
        state
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    pub fn committed(&self) -> u64 {
        self.committed
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Newest version the store holds.
    pub fn served(&self) -> Option<u64> {
        self.served
    }

    /// Digest of a version the ledger binds.
    pub fn digest(&self, version: u64) -> Option<&str> {
        self.digests.get(&version).map(String::as_str)
    }

    pub fn members(&self) -> impl Iterator<Item = (&String, &Member)> {
        self.members.iter()
    }

    /// (all, pending, leased, not durable) tasks of the phase.
    pub fn counts(&self) -> (usize, usize, usize, usize) {
        (self.board.len(), self.board.pending(), self.board.leased(), self.board.open())
    }

    /// Opens the phase that follows from what is committed and evaluated; skips phases that are already done.
    pub(super) fn advance(&mut self, now: Seconds) {
        loop {
            self.phase = self.plan.phase(self.committed, &self.evaluated);
            let version = self.phase.version().unwrap_or(self.committed);
            self.board.load(self.plan.tasks(self.phase), version, &self.done);
            self.progress_at = self.progress_at.max(now);
            if self.board.open() > 0 || !self.close() {
                return;
            }
        }
    }

    /// Leaves a phase whose tasks are all durable. True if another phase must be opened.
    fn close(&mut self) -> bool {
        match self.phase {
            Phase::Evaluate { version } => self.evaluated.insert(version),
            Phase::Sample { step } => {
                self.phase = Phase::Train { step };
                false
            }
            Phase::Train { .. } | Phase::Complete => false,
        }
    }

    /// A process joins or comes back. One process a rank of the learner.
    pub fn join(&mut self, now: Seconds, id: &str, member: Member) -> Result<(), Refusal> {
        if id.is_empty() {
            return Err(Refusal::Forbidden("caller_id is empty".into()));
        }
        let learner = member.role == Role::Learner;
        if learner {
            self.admit_rank(id, member.rank)?;
            self.progress_at = self.progress_at.max(now);
        }
        // A process that comes back under its name has lost what it was working on.
        self.remove(now, id);
        self.members.insert(id, member);
        if learner {
            self.rank_joined();
        }
        Ok(())
    }

    /// Notes a sign of life.
    pub fn touch(&mut self, now: Seconds, id: &str) -> Result<(), Refusal> {
        self.members.touch(id, now).map(|_| ())
    }

    pub fn heartbeat(&mut self, now: Seconds, id: &str, version: u64, rate: f64, total: u64) -> Result<Beat, Refusal> {
        let member = self.members.touch(id, now)?;
        member.version = version;
        member.tokens_per_second = if rate.is_finite() { rate.max(0.0) } else { 0.0 };
        member.generated_tokens = total;
        let cancelled = std::mem::take(&mut member.cancelled);
        let complete = (self.phase == Phase::Complete).then(|| "the run is complete".to_owned());
        Ok(Beat { cancelled, stop: complete })
    }

    /// A member says goodbye, or its process is known to be dead. Returns the number of leases taken back.
    pub fn remove(&mut self, now: Seconds, id: &str) -> u64 {
        let Some(member) = self.members.remove(id) else { return 0 };
        match member.role {
            Role::Learner => self.rank_gone(now, member.rank),
            _ if self.members.count(Role::RolloutWorker) == 0 => self.workers_gone_at = now,
            _ => {}
        }
        let taken = self.board.take_back(|_, holder, _| holder == id);
        self.ended.extend(taken.iter().map(|(lease, _)| (*lease, "worker gone")));
        taken.len() as u64
    }

    /// Leases that ended without an answer since the last call, and why.
    pub fn take_ended(&mut self) -> Vec<(u64, &'static str)> {
        std::mem::take(&mut self.ended)
    }

    /// The member with this process id, if any.
    pub fn member_of_pid(&self, pid: u32) -> Option<String> {
        self.members.with_pid(pid)
    }

    /// Leases for a worker with room for `capacity` prompts. None while the version needed is not in the store.
    pub fn grant(&mut self, now: Seconds, id: &str, capacity: u32) -> Result<Vec<Grant>, Refusal> {
        let member = self.members.touch(id, now)?;
        if member.role != Role::RolloutWorker {
            return Err(Refusal::Forbidden(format!("`{id}` is not a rollout worker")));
        }
        let ready = self.phase.version().is_some() && self.served == self.phase.version();
        let capacity = if ready { capacity as usize } else { 0 };
        let alone = self.alone();
        Ok(self.board.grant(now, id, capacity, self.plan.lease_seconds, alone))
    }

    /// Whether there is but one worker.
    fn alone(&self) -> bool {
        self.members.count(Role::RolloutWorker) <= 1
    }

    /// Ends a lease whose task needs no answer. True if it must be made durable now and reported with `recorded`.
    pub fn give_up(&mut self, id: &str, grant: &Grant) -> bool {
        self.board.submit(id, grant.lease, grant.fence, grant.version) == Admission::Record
    }

    /// Takes back leases that never reached their holder.
    pub fn ungrant(&mut self, grants: &[Grant]) {
        let ids: HashSet<u64> = grants.iter().map(|g| g.lease).collect();
        let taken = self.board.take_back(|id, _, _| ids.contains(&id));
        self.ended.extend(taken.iter().map(|(lease, _)| (*lease, "not delivered")));
    }

    /// The work a lease was granted for.
    pub fn work_of(&self, lease: u64) -> Option<Work> {
        self.board.work_of(lease)
    }

    /// How many live leases each member holds.
    pub fn held(&self) -> HashMap<&str, usize> {
        self.board.held()
    }

    /// Live leases of `id`.
    #[cfg(test)]
    pub fn holds(&self, id: &str) -> Vec<u64> {
        let mut held: Vec<u64> = self.board.held_by(id).collect();
        held.sort_unstable();
        held
    }

    /// Judges an answer. After `Record` it must be made durable and reported with `recorded`.
    pub fn submit(
        &mut self,
        now: Seconds,
        id: &str,
        lease: u64,
        fence: u64,
        version: u64,
    ) -> Result<Admission, Refusal> {
        self.members.touch(id, now)?;
        let admission = self.board.submit(id, lease, fence, version);
        if admission == Admission::Record {
            self.progress_at = self.progress_at.max(now);
            if let Some(m) = self.members.get_mut(id) {
                m.delivered += 1;
            }
        }
        Ok(admission)
    }

    /// A worker cannot answer a prompt.
    pub fn fail(&mut self, now: Seconds, id: &str, lease: u64, fence: u64, reason: &str) -> Result<Failure, Refusal> {
        self.members.touch(id, now)?;
        let Some(version) = self.phase.version() else { return Ok(Failure::Ignored) };
        if self.board.submit(id, lease, fence, version) != Admission::Record {
            return Ok(Failure::Ignored);
        }
        self.progress_at = self.progress_at.max(now);
        let alone = self.alone();
        Ok(match self.board.fail(lease, id, reason, alone) {
            Some(reasons) => Failure::Quarantine(reasons),
            None => Failure::Requeued,
        })
    }

    /// An answer is durable; opens the next phase when it was the last one. False if it was of no current task.
    pub fn recorded(&mut self, now: Seconds, work: Work) -> bool {
        if !self.board.recorded(work) {
            return false;
        }
        self.done.insert(work);
        if self.board.open() == 0 && self.close() {
            self.advance(now);
        }
        self.progress_at = self.progress_at.max(now);
        true
    }

    /// The coordinator itself stood still for this long: nobody else is late for it.
    pub fn forgive(&mut self, seconds: Seconds) {
        self.members.forgive(seconds);
        self.board.extend(seconds);
    }

    /// Takes back what is overdue (INV-7).
    pub fn tick(&mut self, now: Seconds) -> Expired {
        let silence = MISSED_HEARTBEATS * self.plan.heartbeat_seconds;
        let silent = self.members.silent(now - silence);
        let members = silent.into_iter().map(|id| (self.members.get(&id).map_or(0, |m| m.pid), id));
        let members: Vec<(String, u32)> = members.map(|(pid, id)| (id, pid)).collect();
        let lost = members.iter().map(|(id, _)| self.remove(now, id)).sum();
        let overdue = self.board.take_back(|_, _, deadline| deadline < now);
        self.ended.extend(overdue.iter().map(|(lease, _)| (*lease, "expired")));
        for (lease, holder) in &overdue {
            if let Some(member) = self.members.get_mut(holder) {
                member.cancelled.push(*lease);
            }
        }
        Expired { deadline: overdue.len() as u64, lost, members }
    }
}
