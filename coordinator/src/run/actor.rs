//! The owner task: takes commands one by one, ticks, and announces changes. The decisions are in `state`, the durability in `ledger`.

use super::command::{Command, Handle, Joined, RunEnd};
use super::durable::Durable;
use super::event::{Event, Observer};
use super::gauges::{self, Gauges};
use super::pace::Pace;
use super::preempt::Preempt;
use super::recover::Recovery;
use super::works::Works;
use crate::evaluate::Evaluation;
use crate::launcher::Roster;
use crate::ledger::{Ledger, Write};
use crate::material::Material;
use crate::rundir::RunDir;
use crate::state::{MISSED_HEARTBEATS, Phase, Plan, Refusal, RunState, Seconds, Work};
use crate::weights::WeightStore;
use quorum_core::metric;
use quorum_proto::v1::{self, Role};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};

/// Commands waiting for the actor; senders wait when it is full.
const QUEUE: usize = 4096;
/// Commands taken from the queue at once.
const BURST: usize = 256;
const TICK: Duration = Duration::from_millis(100);
/// Seconds between two ticks beyond which this task itself was held up.
const STALL: Seconds = 0.5;
/// Why a member that said goodbye is gone.
const LEFT: &str = "left";

/// What a run is made of.
pub struct Parts {
    pub material: Arc<Material>,
    pub ledger: Ledger,
    pub dir: RunDir,
    pub weights: WeightStore,
    pub recovery: Recovery,
    pub observer: Arc<dyn Observer>,
    pub run_id: String,
    pub epoch: u64,
    /// Processes started beside the coordinator.
    pub children: Roster,
}

/// Waiting for one task to become durable: (what to answer, whom).
pub(super) type Waiting = Vec<(v1::SubmitOutcome, oneshot::Sender<Result<v1::SubmitReply, Refusal>>)>;

pub(super) struct Actor {
    pub(super) state: RunState,
    pub(super) material: Arc<Material>,
    pub(super) ledger: Ledger,
    pub(super) dir: RunDir,
    pub(super) weights: WeightStore,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) run_id: String,
    pub(super) epoch: u64,
    pub(super) began: Instant,
    ticked: Seconds,
    /// Wall seconds of earlier epochs.
    pub(super) earlier_seconds: f64,
    pub(super) evaluations: BTreeMap<u64, Evaluation>,
    pub(super) checkpoints: Vec<crate::ledger::CheckpointRow>,
    pub(super) samples: u64,
    pub(super) quarantined: u64,
    pub(super) bad_rows: BTreeSet<u64>,
    /// Step and number of its slots given up since this start.
    pub(super) given_up: (u64, u32),
    pub(super) last_metrics: Option<serde_json::Value>,
    pub(super) waiting: HashMap<Work, Waiting>,
    pub(super) shown: Option<Phase>,
    pub(super) step_began: Seconds,
    pub(super) step_tokens: u64,
    pub(super) pace: Pace,
    pub(super) ended: bool,
    children: Roster,
    pub(super) preempt: Preempt,
    pub(super) gauges: Gauges,
    pub(super) durable: Durable,
    /// Answers handed to the ledger and not taken back from it.
    pub(super) in_flight: usize,
    changes: watch::Sender<u64>,
    pub(super) end: watch::Sender<Option<RunEnd>>,
}

/// What the state machine must know of a configuration and its data.
pub fn plan_of(material: &Material) -> Plan {
    let c = &material.config;
    Plan {
        steps: c.run.steps,
        ranks: c.learner.ranks,
        leased_slots: if material.supervised() { 0 } else { c.rollout.prompts_per_step },
        questions: if c.eval.enabled { material.questions() } else { 0 },
        eval_every: c.eval.every,
        lease_seconds: c.cluster.lease_seconds,
        heartbeat_seconds: c.cluster.heartbeat_seconds,
        join_seconds: c.cluster.join_seconds,
        step_seconds: c.cluster.step_seconds,
    }
}

/// Starts the actor on the current runtime.
pub fn start(parts: Parts) -> Handle {
    let (commands, inbox) = mpsc::channel(QUEUE);
    let (changes, changes_seen) = watch::channel(0);
    let (end, end_seen) = watch::channel(None);
    let handle = Handle { commands, works: Works::default(), changes: changes_seen, end: end_seen };
    let plan = plan_of(&parts.material);
    let recovery = parts.recovery;
    metric::COORDINATOR_EPOCH.with([]).set(parts.epoch as f64);
    gauges::begin(&parts.material, &parts.dir, recovery.checkpoints.first().map(|c| c.name.as_str()));
    let actor = Actor {
        state: RunState::new(plan, recovery.recovered),
        material: parts.material,
        ledger: parts.ledger,
        dir: parts.dir,
        weights: parts.weights,
        observer: parts.observer,
        run_id: parts.run_id,
        epoch: parts.epoch,
        began: Instant::now(),
        ticked: 0.0,
        earlier_seconds: recovery.seconds,
        evaluations: recovery.evaluations,
        checkpoints: recovery.checkpoints,
        samples: recovery.samples,
        quarantined: recovery.quarantined,
        bad_rows: recovery.bad_rows,
        given_up: (0, 0),
        last_metrics: None,
        waiting: HashMap::new(),
        shown: None,
        step_began: 0.0,
        step_tokens: 0,
        pace: Pace::default(),
        ended: false,
        children: parts.children,
        preempt: Preempt::default(),
        gauges: Gauges::default(),
        durable: Durable::default(),
        in_flight: 0,
        changes,
        end,
    };
    tokio::spawn(actor.run(inbox));
    handle
}

impl Actor {
    async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.react().await;
        let durable = self.durable.clone();
        let (mut open, mut burst) = (true, Vec::with_capacity(BURST));
        // What is being written is answered before the actor ends.
        while open || self.in_flight > 0 {
            tokio::select! {
                n = inbox.recv_many(&mut burst, BURST), if open => {
                    open = n > 0;
                    for command in burst.drain(..) {
                        self.handle(command).await;
                    }
                }
                () = durable.arrived() => self.recorded().await,
                _ = ticks.tick() => self.tick().await,
            }
        }
    }

    pub(super) fn now(&self) -> Seconds {
        self.began.elapsed().as_secs_f64()
    }

    /// Wall seconds of the run over all its epochs.
    pub(super) fn seconds(&self) -> f64 {
        self.earlier_seconds + self.now()
    }

    async fn handle(&mut self, command: Command) {
        match command {
            Command::Join { id, member, reply } => drop(reply.send(self.join(&id, member))),
            Command::Heartbeat { caller, version, rate, total, reply } => {
                let now = self.now();
                let known = self.known(&caller);
                drop(
                    reply.send(known.and_then(|()| self.state.heartbeat(now, &caller.caller_id, version, rate, total))),
                );
            }
            Command::Leave { caller, reply } => {
                let own = self.own(&caller);
                if own.is_ok() {
                    self.lose(&caller.caller_id, LEFT);
                }
                drop(reply.send(own));
            }
            Command::Lease { caller, capacity, reply } => {
                let granted = self.lease(&caller, capacity).await;
                if let Err(Ok((grants, _))) = reply.send(granted) {
                    // The call was given up while it waited: nobody knows of these leases.
                    self.state.ungrant(&grants);
                }
            }
            Command::WorkOf { caller, lease, reply } => {
                drop(reply.send(self.known(&caller).map(|()| self.state.work_of(lease))));
            }
            Command::Submit { caller, lease, fence, answer, reply } => {
                self.submit(&caller, lease, fence, answer, reply).await
            }
            Command::Invalid { caller, reason, reply } => {
                tracing::warn!(worker = caller.caller_id, reason, "invalid submission");
                self.count_submission(v1::SubmitOutcome::Invalid);
                drop(reply.send(self.known(&caller)));
            }
            Command::FormGroup { caller, meeting, reply } => drop(reply.send(self.form_group(&caller, meeting))),
            Command::NextBatch { caller, step, reply } => {
                let batch = self.next_batch(&caller, step).await;
                drop(reply.send(batch));
            }
            Command::Publish { caller, published, reply } => {
                let verdict = self.publish(&caller, *published).await;
                drop(reply.send(verdict));
            }
            Command::Commit { request, reply } => {
                let verdict = self.commit(*request).await;
                drop(reply.send(verdict));
            }
            Command::ProcessGone { pid } => {
                if let Some(id) = self.state.member_of_pid(pid) {
                    self.lose(&id, "its process ended");
                }
            }
            Command::GroupGone => {
                for id in self.state.learners() {
                    self.lose(&id, "its group ended");
                }
            }
            Command::Preempt => self.preempt().await,
            Command::Status { reply } => drop(reply.send(self.status())),
            Command::Stop { end } => self.finish(end).await,
        }
        self.react().await;
    }

    /// Whether the caller may speak: this run, this epoch, and it has not failed. Membership is the state's business.
    pub(super) fn known(&self, caller: &v1::Caller) -> Result<(), Refusal> {
        self.own(caller)?;
        self.not_failed()
    }

    fn not_failed(&self) -> Result<(), Refusal> {
        match &*self.end.borrow() {
            Some(RunEnd::Failed(reason)) => Err(Refusal::Failed(reason.clone())),
            _ => Ok(()),
        }
    }

    /// Whether the caller is of this run and this epoch.
    fn own(&self, caller: &v1::Caller) -> Result<(), Refusal> {
        if caller.run_id != self.run_id {
            return Err(Refusal::Forbidden(format!("this is run {}, not {}", self.run_id, caller.run_id)));
        }
        if caller.epoch != self.epoch {
            return Err(Refusal::Rejoin(format!(
                "the coordinator is in epoch {}, the call is of {}: join again",
                self.epoch, caller.epoch
            )));
        }
        Ok(())
    }

    fn join(&mut self, id: &str, member: crate::state::Member) -> Result<Joined, Refusal> {
        self.not_failed()?;
        let now = self.now();
        let (role, rank) = (member.role, member.rank);
        let member = crate::state::Member { joined: now, last_seen: now, ..member };
        self.state.join(now, id, member)?;
        tracing::info!(id, ?role, rank, "joined");
        if role == Role::Learner {
            self.wake();
        }
        let start_weights_digest = self.state.digest(0).unwrap_or_default().to_owned();
        let learner = (role == Role::Learner).then(|| self.learner_start());
        Ok(Joined { start_weights_digest, learner })
    }

    pub(super) fn lose(&mut self, id: &str, why: &str) {
        let taken = self.state.remove(self.now(), id);
        self.weights.fanout.lose(id);
        tracing::info!(id, why, leases = taken, "member gone");
        self.gauges.forget(id);
        let reason = if why == LEFT { "drain" } else { "worker_lost" };
        metric::COORDINATOR_LEASES_EXPIRED.with([reason]).increment(taken);
        self.wake();
    }

    async fn tick(&mut self) {
        let now = self.now();
        // A slow disk stops this task: heartbeats and answers that wait in its queue are not late.
        let stood_still = now - self.ticked - TICK.as_secs_f64();
        self.ticked = now;
        if stood_still > STALL {
            self.state.forgive(stood_still);
        }
        let expired = self.state.tick(now);
        self.tell_ended();
        let seconds = MISSED_HEARTBEATS * self.state.plan().heartbeat_seconds;
        let lost = !expired.members.is_empty();
        for (id, pid) in expired.members {
            tracing::info!(id, pid, "lost: no heartbeat");
            self.weights.fanout.lose(&id);
            self.observer.event(&Event::Lost { id, pid, seconds });
        }
        metric::COORDINATOR_LEASES_EXPIRED.with(["deadline"]).increment(expired.deadline);
        metric::COORDINATOR_LEASES_EXPIRED.with(["worker_lost"]).increment(expired.lost);
        if expired.deadline + expired.lost > 0 || lost {
            self.wake();
        }
        self.gauges();
        if let Some(reason) = self.dir.lost().filter(|_| !self.ended) {
            self.fail(reason).await;
        }
        self.preempt_late().await;
        if !self.ended
            && let Some(reason) = self.state.late(now, &self.children.list())
        {
            self.fail(reason).await;
        }
    }

    /// Lets long polls look again.
    pub(super) fn wake(&self) {
        self.changes.send_modify(|n| *n += 1);
    }

    /// Announces leases that ended without an answer.
    fn tell_ended(&mut self) {
        for (lease, outcome) in self.state.take_ended() {
            self.lease_ended(lease, outcome, None);
        }
    }

    /// Announces a new phase, and the end.
    pub(super) async fn react(&mut self) {
        self.tell_ended();
        let phase = self.state.phase();
        if self.shown == Some(phase) {
            return;
        }
        let previous = self.shown.replace(phase);
        if let Phase::Sample { .. } = phase {
            self.step_began = self.now();
            self.step_tokens = 0;
        }
        if matches!(phase, Phase::Train { .. }) && self.material.supervised() {
            self.step_began = self.now();
        }
        quorum_core::logging::about_step(phase.version().unwrap_or(self.state.committed()));
        self.observer.event(&Event::Phase(phase));
        if previous.is_some() {
            self.note_time().await;
        }
        self.wake();
        if phase == Phase::Complete {
            self.finish(RunEnd::Complete).await;
        }
    }

    /// Ends the run with an error.
    pub(super) async fn fail(&mut self, reason: String) {
        tracing::info!(reason, "the run fails");
        self.finish(RunEnd::Failed(reason)).await;
    }

    /// The first end counts.
    pub(super) async fn finish(&mut self, end: RunEnd) {
        if self.ended {
            return;
        }
        self.ended = true;
        self.note_time().await;
        self.wake();
        self.end.send_replace(Some(end));
    }

    /// Keeps the wall time, so that it adds up over resumes.
    async fn note_time(&mut self) {
        let write = Write::Seconds { epoch: self.epoch, seconds: self.now() };
        if let Err(e) = self.ledger.commit(vec![write]).await {
            tracing::warn!("{e}");
        }
    }
}
