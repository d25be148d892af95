//! What the actor can be asked, and the handle that asks it. The channel never leaves this module and `actor`.

use super::works::Works;
use crate::check::Checked;
use crate::ledger::Write;
use crate::state::{Beat, CommitVerdict, Formation, Grant, Meeting, Member, PublishVerdict, Refusal, Work};
use crate::weights::Published;
use quorum_proto::v1;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::Status;

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunEnd {
    Complete,
    Failed(String),
    /// Stopped from outside; can be resumed.
    Stopped,
    /// Checkpointed (or at least durable) and ended, to be resumed: its members wait for it.
    Preempted,
}

impl RunEnd {
    /// In one word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Failed(_) => "failed",
            Self::Stopped => "stopped",
            Self::Preempted => "preempted",
        }
    }
}

/// Answer to Join.
#[derive(Debug, Clone)]
pub struct Joined {
    pub start_weights_digest: String,
    pub learner: Option<v1::LearnerStart>,
}

/// What a worker says about a lease.
#[derive(Debug)]
pub enum Answer {
    /// `row`: what the ledger keeps of a training group, made beside the actor.
    Group {
        checked: Box<Checked>,
        row: Option<Box<Write>>,
        version: u64,
        generate_seconds: f64,
    },
    Failure(String),
}

/// Head of the answer to NextBatch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Head {
    Pending,
    RunComplete,
    Ready { expected_digest: String, checkpoint: bool },
}

/// A batch: its head and, when ready, the groups in slot order.
#[derive(Debug)]
pub struct Batch {
    pub head: Head,
    pub groups: Vec<v1::GroupMsg>,
}

/// A commit as it came.
pub type Committing = v1::CommitRequest;

pub(super) type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

pub(super) enum Command {
    Join { id: String, member: Member, reply: Reply<Joined> },
    Heartbeat { caller: v1::Caller, version: u64, rate: f64, total: u64, reply: Reply<Beat> },
    Leave { caller: v1::Caller, reply: Reply<()> },
    Lease { caller: v1::Caller, capacity: u32, reply: Reply<(Vec<Grant>, bool)> },
    WorkOf { caller: v1::Caller, lease: u64, reply: Reply<Option<Work>> },
    Submit { caller: v1::Caller, lease: u64, fence: u64, answer: Answer, reply: Reply<v1::SubmitReply> },
    Invalid { caller: v1::Caller, reason: String, reply: Reply<()> },
    FormGroup { caller: v1::Caller, meeting: Meeting, reply: Reply<(u64, Formation)> },
    NextBatch { caller: v1::Caller, step: u64, reply: Reply<Batch> },
    Publish { caller: v1::Caller, published: Box<Published>, reply: Reply<PublishVerdict> },
    Commit { request: Box<Committing>, reply: Reply<CommitVerdict> },
    ProcessGone { pid: u32 },
    GroupGone,
    Preempt,
    Status { reply: oneshot::Sender<serde_json::Value> },
    Stop { end: RunEnd },
}

/// Talks to the run actor; cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) works: Works,
    pub(super) changes: watch::Receiver<u64>,
    pub(super) end: watch::Receiver<Option<RunEnd>>,
}

/// A refusal as gRPC status: FAILED_PRECONDITION = join again, PERMISSION_DENIED = never, ABORTED = the run has failed.
pub fn status_of(refusal: Refusal) -> Status {
    match refusal {
        Refusal::Rejoin(reason) => Status::failed_precondition(reason),
        Refusal::Forbidden(reason) => Status::permission_denied(reason),
        Refusal::Failed(reason) => Status::aborted(reason),
    }
}

impl Handle {
    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        let gone = || Status::unavailable("the coordinator is shutting down");
        self.commands.send(command(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?.map_err(status_of)
    }

    pub async fn join(&self, id: String, member: Member) -> Result<Joined, Status> {
        self.ask(|reply| Command::Join { id, member, reply }).await
    }

    pub async fn heartbeat(&self, caller: v1::Caller, version: u64, rate: f64, total: u64) -> Result<Beat, Status> {
        self.ask(|reply| Command::Heartbeat { caller, version, rate, total, reply }).await
    }

    pub async fn leave(&self, caller: v1::Caller) -> Result<(), Status> {
        self.ask(|reply| Command::Leave { caller, reply }).await
    }

    /// Leases, and whether the run is complete.
    pub async fn lease(&self, caller: v1::Caller, capacity: u32) -> Result<(Vec<Grant>, bool), Status> {
        let (grants, complete) = self.ask(|reply| Command::Lease { caller, capacity, reply }).await?;
        self.works.remember(&grants);
        Ok((grants, complete))
    }

    /// What a lease is for; it may have ended since.
    pub async fn work_of(&self, caller: &v1::Caller, lease: u64) -> Result<Option<Work>, Status> {
        if let Some(work) = self.works.of(lease) {
            return Ok(Some(work));
        }
        let caller = caller.clone();
        self.ask(|reply| Command::WorkOf { caller, lease, reply }).await
    }

    /// Answers once the group is durable.
    pub async fn submit(
        &self,
        caller: v1::Caller,
        lease: u64,
        fence: u64,
        answer: Answer,
    ) -> Result<v1::SubmitReply, Status> {
        self.ask(|reply| Command::Submit { caller, lease, fence, answer, reply }).await
    }

    /// Counts a submission that was found invalid before it reached the state.
    pub async fn invalid(&self, caller: v1::Caller, reason: String) -> Result<(), Status> {
        self.ask(|reply| Command::Invalid { caller, reason, reply }).await
    }

    /// The group's generation, and where it stands.
    pub async fn form_group(&self, caller: v1::Caller, meeting: Meeting) -> Result<(u64, Formation), Status> {
        self.ask(|reply| Command::FormGroup { caller, meeting, reply }).await
    }

    pub async fn next_batch(&self, caller: v1::Caller, step: u64) -> Result<Batch, Status> {
        self.ask(|reply| Command::NextBatch { caller, step, reply }).await
    }

    pub async fn publish(&self, caller: v1::Caller, published: Published) -> Result<PublishVerdict, Status> {
        self.ask(|reply| Command::Publish { caller, published: Box::new(published), reply }).await
    }

    /// Answers once the commit is durable.
    pub async fn commit(&self, request: Committing) -> Result<CommitVerdict, Status> {
        self.ask(|reply| Command::Commit { request: Box::new(request), reply }).await
    }

    /// A process of this machine is known to be dead.
    pub fn process_gone(&self, pid: u32) {
        // Heartbeats find it too, only later.
        let _ = self.commands.try_send(Command::ProcessGone { pid });
    }

    /// The learner ranks of this machine are known to be dead.
    pub fn group_gone(&self) {
        // As above.
        let _ = self.commands.try_send(Command::GroupGone);
    }

    pub async fn status(&self) -> Option<serde_json::Value> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Status { reply }).await.ok()?;
        answer.await.ok()
    }

    /// Ends the run with the next checkpoint; members wait for it to come back.
    pub async fn preempt(&self) {
        let _ = self.commands.send(Command::Preempt).await;
    }

    /// Ends the run: nothing more is granted. Members of a run that failed are told why; others wait for it to come back.
    pub async fn stop(&self, end: RunEnd) {
        let _ = self.commands.send(Command::Stop { end }).await;
    }

    /// Rises whenever a long poll may have something new.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// How the run stands, in one word: running, complete, failed, stopped or preempted.
    pub fn standing(&self) -> &'static str {
        match (&*self.end.borrow(), self.end.has_changed().is_err()) {
            (None, false) => "running",
            // Its owner ended abnormally.
            (None, true) => "failed",
            (Some(end), _) => end.word(),
        }
    }

    /// Waits for the end of the run.
    pub async fn ended(&self) -> RunEnd {
        let mut end = self.end.clone();
        match end.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or(RunEnd::Stopped),
            Err(_) => RunEnd::Failed("the run's owner ended abnormally; the log says why".into()),
        }
    }
}
