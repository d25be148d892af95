//! The ranks of the learner: all of them join, meet, and train together. Whenever one of a group that has met is lost, leaves or comes back anew, the
//! others are fenced: they join again, start from the newest checkpoint and replay. A learner of one rank has always met.

use super::Seconds;
use super::members::Refusal;
use super::run::RunState;
use bytes::Bytes;
use quorum_proto::v1::Role;
use std::collections::BTreeMap;

/// What a rank says when it asks to meet the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meeting {
    pub rank: u32,
    pub world: u32,
    /// `one`, `mpi` or `nccl`.
    pub transport: String,
    /// From rank 0 of an NCCL group: what the others connect with.
    pub collective_id: Bytes,
}

/// Where the group stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Formation {
    /// These ranks have not asked yet.
    Pending { missing: Vec<u32> },
    /// All are there; caller ids by rank.
    Ready { collective_id: Bytes, members: Vec<String> },
    /// This process cannot take part.
    Refused(String),
}

/// The group of this epoch.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// Rises with every rank that joins, leaves or is lost.
    generation: u64,
    /// Caller ids of the ranks that asked since they joined.
    asked: BTreeMap<u32, String>,
    transport: String,
    collective_id: Bytes,
    formed: bool,
}

impl RunState {
    /// Rises with every learner rank that joins, leaves or is lost.
    pub fn generation(&self) -> u64 {
        self.group.generation
    }

    /// Ranks that are joined, by caller id.
    pub fn learners(&self) -> Vec<String> {
        self.members.learners().map(|(id, _)| id.clone()).collect()
    }

    /// Whether all ranks have met.
    pub fn group_formed(&self) -> bool {
        match self.plan.ranks {
            0 | 1 => self.members.rank(0).is_some(),
            _ => self.group.formed,
        }
    }

    /// Ranks that have not met the others, in order.
    pub fn missing_ranks(&self) -> Vec<u32> {
        let ranks = 0..self.plan.ranks.max(1);
        let there = |rank: &u32| match self.plan.ranks {
            0 | 1 => self.members.rank(*rank).is_some(),
            _ => self.group.asked.contains_key(rank),
        };
        ranks.filter(|rank| !there(rank)).collect()
    }

    /// A joined rank asks to meet the others; asking again changes nothing.
    ///
    /// # Errors
    /// The caller is not joined (any more), or is no learner.
    pub fn form_group(&mut self, now: Seconds, id: &str, meeting: Meeting) -> Result<Formation, Refusal> {
        let rank = self.touch_rank(now, id)?;
        if let Some(reason) = self.unfit(rank, &meeting) {
            return Ok(Formation::Refused(reason));
        }
        let group = &mut self.group;
        if rank == 0 {
            if group.formed && group.collective_id != meeting.collective_id {
                return Err(Refusal::Rejoin(format!(
                    "`{id}` has met its group with another collective id: join again"
                )));
            }
            group.collective_id = meeting.collective_id;
        }
        group.transport = meeting.transport;
        group.asked.insert(rank, id.to_owned());
        let missing = self.missing_ranks();
        if !missing.is_empty() {
            return Ok(Formation::Pending { missing });
        }
        if !std::mem::replace(&mut self.group.formed, true) {
            self.progress_at = self.progress_at.max(now);
        }
        let members = self.group.asked.values().cloned().collect();
        Ok(Formation::Ready { collective_id: self.group.collective_id.clone(), members })
    }

    /// Why a rank cannot take part as it asks to.
    fn unfit(&self, rank: u32, meeting: &Meeting) -> Option<String> {
        let (ranks, others) = (self.plan.ranks.max(1), &self.group);
        let alone = others.asked.keys().all(|other| *other == rank);
        if meeting.rank != rank {
            return Some(format!("joined as rank {rank}, asks as rank {}", meeting.rank));
        }
        if meeting.world != ranks {
            return Some(format!("this run has learner.ranks = {ranks}, the caller counts {}", meeting.world));
        }
        if !alone && others.transport != meeting.transport {
            return Some(format!(
                "rank {rank} comes with transport `{}`, the others with `{}`: start all ranks alike",
                meeting.transport, others.transport
            ));
        }
        (meeting.transport == "nccl" && rank == 0 && meeting.collective_id.is_empty())
            .then(|| "rank 0 of an NCCL group must bring the collective id".to_owned())
    }

    /// Whether `id` may take a rank: it exists, and nobody else holds it.
    pub(super) fn admit_rank(&self, id: &str, rank: u32) -> Result<(), Refusal> {
        let ranks = self.plan.ranks.max(1);
        if rank >= ranks {
            return Err(Refusal::Forbidden(format!(
                "there is no learner rank {rank}: this run has learner.ranks = {ranks}"
            )));
        }
        match self.members.rank(rank) {
            Some(other) if other != id => Err(Refusal::Forbidden(match ranks {
                1 => format!("learner `{other}` has already joined; a run has one"),
                _ => format!("learner `{other}` has already joined as rank {rank} and is not lost"),
            })),
            _ => Ok(()),
        }
    }

    /// A learner joined.
    pub(super) fn rank_joined(&mut self) {
        self.group.generation += 1;
    }

    /// A rank is gone: the others of a group that had met cannot go on without it, unless nothing is left to learn.
    pub(super) fn rank_gone(&mut self, now: Seconds, rank: u32) {
        self.learner_gone_at = now;
        self.group.generation += 1;
        self.group.asked.remove(&rank);
        if std::mem::take(&mut self.group.formed) && self.needs_learner() {
            self.group.asked.clear();
            self.group.collective_id = Bytes::new();
            self.learners().iter().for_each(|id| drop(self.members.remove(id)));
        }
    }

    /// A call that any rank may make; its rank.
    ///
    /// # Errors
    /// The caller is not joined, or is no learner.
    pub fn touch_rank(&mut self, now: Seconds, id: &str) -> Result<u32, Refusal> {
        let member = self.members.touch(id, now)?;
        match member.role {
            Role::Learner => Ok(member.rank),
            _ => Err(Refusal::Forbidden(format!("`{id}` is not the learner"))),
        }
    }

    /// A rank that has met the others asks for the batch of `step`, and so has the weights of version `step`.
    ///
    /// # Errors
    /// As `touch_rank`; the group has not met.
    pub fn touch_learner(&mut self, now: Seconds, id: &str, step: u64) -> Result<(), Refusal> {
        self.touch_rank(now, id)?;
        self.met(id)?;
        if let Some(member) = self.members.get_mut(id) {
            member.version = step;
        }
        Ok(())
    }

    /// A call that rank 0 alone makes, for all.
    ///
    /// # Errors
    /// As `touch_rank`; the caller is another rank; the group has not met.
    pub fn touch_first(&mut self, now: Seconds, id: &str) -> Result<(), Refusal> {
        match self.touch_rank(now, id)? {
            0 => self.met(id),
            rank => Err(Refusal::Forbidden(format!("`{id}` is rank {rank}; only rank 0 publishes and commits"))),
        }
    }

    fn met(&self, id: &str) -> Result<(), Refusal> {
        if self.group_formed() || !self.needs_learner() {
            return Ok(());
        }
        let missing = self.missing_ranks();
        Err(Refusal::Forbidden(format!(
            "`{id}` has not met its group yet (missing: {missing:?}): FormGroup comes first"
        )))
    }
}
