//! Leases and submissions: judge, make durable, answer. Writes of many submissions are under way together; each is answered after its own commit.

use super::actor::Actor;
use super::command::{Answer, Reply};
use super::durable::Recorded;
use super::event::Event;
use super::gauges::TRAIN;
use crate::check::Checked;
use crate::evaluate::{Outcome, purpose_name};
use crate::ledger::Write;
use crate::state::{Admission, Failure, Grant, Phase, Refusal, Work};
use prost::Message;
use quorum_core::metric;
use quorum_core::types::{Group, Purpose};
use quorum_core::vote::Outcome as VoteOutcome;
use quorum_proto::v1::{self, SubmitOutcome, SubmitReply};

fn reply_of(outcome: SubmitOutcome, reason: impl Into<String>) -> SubmitReply {
    SubmitReply { outcome: outcome.into(), reason: reason.into() }
}

impl Actor {
    pub(super) async fn lease(&mut self, caller: &v1::Caller, capacity: u32) -> Result<(Vec<Grant>, bool), Refusal> {
        self.known(caller)?;
        let complete = self.state.phase() == Phase::Complete;
        if self.ended {
            return Ok((Vec::new(), complete));
        }
        let now = self.now();
        let capacity = capacity.min(self.material.config.cluster.prompts_per_lease);
        let mut grants = Vec::new();
        loop {
            let room = capacity.saturating_sub(grants.len() as u32);
            let more = self.state.grant(now, &caller.caller_id, room)?;
            if more.is_empty() {
                break;
            }
            for grant in more {
                if !self.skip(&caller.caller_id, &grant).await {
                    grants.push(grant);
                }
            }
        }
        metric::COORDINATOR_LEASES_GRANTED.with([]).increment(grants.len() as u64);
        if self.observer.traces() {
            for grant in &grants {
                let row = self.material.record(grant.work).ok().map(|r| r.row);
                let (lease, work, worker) = (grant.lease, grant.work, caller.caller_id.clone());
                self.observer.event(&Event::Leased { lease, work, row, worker });
            }
        }
        Ok((grants, complete))
    }

    /// Tells observers that trace.
    pub(super) fn lease_ended(&self, lease: u64, outcome: &'static str, generate_seconds: Option<f64>) {
        if self.observer.traces() {
            self.observer.event(&Event::LeaseEnded { lease, outcome, generate_seconds });
        }
    }

    /// Whether the slot's row was given up in an earlier step: its group is empty again, and nobody is asked.
    async fn skip(&mut self, id: &str, grant: &Grant) -> bool {
        let work = grant.work;
        if work.purpose != Purpose::Train || self.bad_rows.is_empty() {
            return false;
        }
        let Ok(row) = self.material.record(work).map(|r| r.row) else { return false };
        if !self.bad_rows.contains(&row) || !self.state.give_up(id, grant) {
            return false;
        }
        match self.empty_group(work, row) {
            Ok(write) => self.write(work, 0, vec![write]).await,
            Err(reason) => self.fail(reason).await,
        }
        true
    }

    pub(super) async fn submit(
        &mut self,
        caller: &v1::Caller,
        lease: u64,
        fence: u64,
        answer: Answer,
        reply: Reply<SubmitReply>,
    ) {
        if let Err(refusal) = self.known(caller) {
            let _ = reply.send(Err(refusal));
            return;
        }
        match answer {
            Answer::Failure(reason) => self.failure(caller, lease, fence, &reason, reply).await,
            Answer::Group { checked, row, version, generate_seconds } => {
                metric::ROLLOUT_GROUP_DURATION_SECONDS.with([]).record(generate_seconds.max(0.0));
                self.group(caller, lease, fence, (version, generate_seconds), (*checked, row), reply).await;
            }
        }
    }

    async fn group(
        &mut self,
        caller: &v1::Caller,
        lease: u64,
        fence: u64,
        (version, seconds): (u64, f64),
        checked: (Checked, Option<Box<Write>>),
        reply: Reply<SubmitReply>,
    ) {
        let work = self.state.work_of(lease);
        let admission = self.state.submit(self.now(), &caller.caller_id, lease, fence, version);
        let (outcome, reason) = match (admission, work) {
            (Err(refusal), _) => {
                let _ = reply.send(Err(refusal));
                return;
            }
            (Ok(Admission::Record), Some(work)) => {
                self.lease_ended(lease, "accepted", Some(seconds));
                self.record(work, caller, checked, reply).await;
                return;
            }
            (Ok(Admission::Duplicate { durable: false }), Some(work)) => {
                self.count_submission(SubmitOutcome::Duplicate);
                self.waiting.entry(work).or_default().push((SubmitOutcome::Duplicate, reply));
                return;
            }
            (Ok(Admission::Duplicate { .. }), _) => (SubmitOutcome::Duplicate, String::new()),
            (Ok(Admission::StaleFence(reason)), _) => (SubmitOutcome::StaleFence, reason),
            (Ok(Admission::StaleVersion(reason)), _) => (SubmitOutcome::StaleVersion, reason),
            (Ok(Admission::Record), None) => (SubmitOutcome::StaleFence, "the lease is not known".into()),
        };
        self.count_submission(outcome);
        let _ = reply.send(Ok(reply_of(outcome, reason)));
    }

    async fn record(
        &mut self,
        work: Work,
        caller: &v1::Caller,
        (checked, row): (Checked, Option<Box<Write>>),
        reply: Reply<SubmitReply>,
    ) {
        self.count_submission(SubmitOutcome::Accepted);
        let (write, tokens) = match checked {
            Checked::Train(group) => {
                self.observe_group(&group);
                let tokens = group.completions.iter().map(|c| c.tokens.len() as u64).sum();
                match row.map_or_else(|| group_row(&group, &caller.caller_id), |row| Ok(*row)) {
                    Ok(write) => (write, tokens),
                    Err(reason) => return self.fail(reason).await,
                }
            }
            Checked::Eval(outcome) => {
                let tokens = outcome.tokens;
                match self.eval_write(work, outcome) {
                    Ok(write) => (write, tokens),
                    Err(reason) => return self.fail(reason).await,
                }
            }
        };
        self.waiting.entry(work).or_default().push((SubmitOutcome::Accepted, reply));
        self.write(work, tokens, vec![write]).await;
    }

    /// Hands writes over; they come back through `recorded` when they are durable.
    async fn write(&mut self, work: Work, tokens: u64, writes: Vec<Write>) {
        self.in_flight += 1;
        let note = self.durable.note(work, tokens);
        self.ledger.write_noted(writes, note).await;
    }

    /// Books everything that became durable, and answers those who wait for it.
    pub(super) async fn recorded(&mut self) {
        for Recorded { work, tokens, result } in self.durable.take() {
            self.in_flight -= 1;
            let waiting = self.waiting.remove(&work).unwrap_or_default();
            if let Err(error) = result {
                // Nothing is answered: the callers see the stream end and ask a later coordinator.
                drop(waiting);
                self.fail(error.to_string()).await;
                continue;
            }
            self.step_tokens += tokens;
            self.state.recorded(self.now(), work);
            for (outcome, reply) in waiting {
                let _ = reply.send(Ok(reply_of(outcome, "")));
            }
            let (all, _, _, open) = self.state.counts();
            self.observer.event(&Event::Progress { done: all - open, all, tokens });
            if work.purpose != Purpose::Train && self.state.phase() != (Phase::Evaluate { version: work.step }) {
                self.announce_evaluation(work.step);
            }
        }
        self.react().await;
    }

    async fn failure(&mut self, caller: &v1::Caller, lease: u64, fence: u64, reason: &str, reply: Reply<SubmitReply>) {
        let work = self.state.work_of(lease);
        let failure = match self.state.fail(self.now(), &caller.caller_id, lease, fence, reason) {
            Ok(failure) => failure,
            Err(refusal) => return drop(reply.send(Err(refusal))),
        };
        if failure != Failure::Ignored {
            self.lease_ended(lease, "failed", None);
        }
        let (Failure::Quarantine(reasons), Some(work)) = (&failure, work) else {
            let outcome =
                if failure == Failure::Requeued { SubmitOutcome::Accepted } else { SubmitOutcome::StaleFence };
            tracing::info!(
                worker = caller.caller_id,
                step = work.map(|w| w.step),
                slot = work.map(|w| w.slot),
                reason,
                "a prompt failed"
            );
            self.wake();
            return drop(reply.send(Ok(reply_of(outcome, ""))));
        };
        if self.whole_step_failed(work) {
            let last = reasons.last().map_or("", String::as_str);
            return self
                .fail(format!("every prompt of step {} failed twice, the last one because: {last}", work.step))
                .await;
        }
        match self.quarantine_writes(work, reasons) {
            Ok(writes) => {
                self.quarantined += 1;
                self.waiting.entry(work).or_default().push((SubmitOutcome::Accepted, reply));
                self.write(work, 0, writes).await;
            }
            Err(reason) => self.fail(reason).await,
        }
    }

    /// Counts a slot that is given up. When no slot of a step is left, the prompts are not to blame: the model or the machine is.
    fn whole_step_failed(&mut self, work: Work) -> bool {
        if work.purpose != Purpose::Train {
            return false;
        }
        let before = if self.given_up.0 == work.step { self.given_up.1 } else { 0 };
        self.given_up = (work.step, before + 1);
        let slots = self.material.config.rollout.prompts_per_step;
        slots > 1 && self.given_up.1 >= slots
    }

    /// A slot that is given up: an empty group, or a wrong answer, and the reason.
    fn quarantine_writes(&mut self, work: Work, reasons: &[String]) -> Result<Vec<Write>, String> {
        let row = self.material.record(work).map_err(|e| e.to_string())?.row;
        let aside = crate::aside::of_row(&self.material, work.purpose, work.step, row, reasons);
        self.observer.event(&Event::Note(format!("set aside: {aside}")));
        self.dir.append(crate::aside::FILE, crate::aside::lines(&[aside]).trim_end()).map_err(|e| e.to_string())?;
        let reasons_json = serde_json::to_string(reasons).map_err(|e| e.to_string())?;
        let purpose = purpose_name(work.purpose);
        let quarantine = Write::Quarantine { purpose, step: work.step, slot: work.slot, row, reasons: reasons_json };
        let stand_in = if work.purpose == Purpose::Train {
            self.bad_rows.insert(row);
            self.empty_group(work, row)?
        } else {
            let samples = self.material.samples(work.purpose).len();
            self.eval_write(work, Outcome::failed(samples))?
        };
        Ok(vec![stand_in, quarantine])
    }

    /// Stands for a prompt without an answer.
    fn empty_group(&self, work: Work, row: u64) -> Result<Write, String> {
        let vote = quorum_core::vote::vote(&[], &self.material.config.vote);
        let empty = Group {
            step: work.step,
            slot: work.slot,
            prompt: row,
            version: work.step,
            completions: Vec::new(),
            vote,
            rewards: Vec::new(),
        };
        group_row(&empty, "")
    }

    fn eval_write(&mut self, work: Work, outcome: Outcome) -> Result<Write, String> {
        let row = self.material.record(work).map_err(|e| e.to_string())?.row;
        let json = serde_json::to_string(&outcome).map_err(|e| e.to_string())?;
        self.evaluations.entry(work.step).or_default().add(work.slot, row, work.purpose, outcome);
        Ok(Write::Eval { version: work.step, purpose: purpose_name(work.purpose), slot: work.slot, row, outcome: json })
    }

    pub(super) fn count_submission(&self, outcome: SubmitOutcome) {
        let label = match outcome {
            SubmitOutcome::Accepted => "accepted",
            SubmitOutcome::Duplicate => "duplicate",
            SubmitOutcome::StaleFence => "stale_fence",
            SubmitOutcome::StaleVersion => "stale_version",
            SubmitOutcome::Invalid | SubmitOutcome::Unspecified => "invalid",
        };
        metric::COORDINATOR_SUBMISSIONS.with([label]).increment(1);
    }

    fn observe_group(&mut self, group: &Group) {
        self.samples += group.completions.len() as u64;
        metric::VOTE_MAJORITY_FRACTION.with([TRAIN]).record(f64::from(group.vote.agreement));
        metric::VOTE_DISTINCT_ANSWERS.with([TRAIN]).record(f64::from(group.vote.distinct));
        metric::VOTE_ENTROPY_NATS.with([TRAIN]).record(f64::from(group.vote.entropy_nats));
        metric::VOTE_UNPARSED_ANSWERS.with([TRAIN]).increment(u64::from(group.vote.missing));
        let outcome: VoteOutcome = group.vote.outcome;
        metric::VOTE_GROUPS.with([TRAIN, outcome.label()]).increment(1);
        let source = self.material.config.rollout.reward.label();
        let paid = metric::REWARD_VALUE.with([source]);
        group.rewards.iter().for_each(|r| paid.record(f64::from(*r)));
        metric::REWARD_GROUP_STD.with([]).record(deviation(&group.rewards));
    }
}

/// Standard deviation over all of them.
fn deviation(rewards: &[f32]) -> f64 {
    let n = rewards.len().max(1) as f64;
    let mean = rewards.iter().map(|r| f64::from(*r)).sum::<f64>() / n;
    (rewards.iter().map(|r| (f64::from(*r) - mean).powi(2)).sum::<f64>() / n).sqrt()
}

/// What the ledger keeps of a training group.
///
/// # Errors
/// The group cannot be encoded.
pub(crate) fn group_row(group: &Group, worker: &str) -> Result<Write, String> {
    Ok(Write::Group {
        step: group.step,
        slot: group.slot,
        prompt: group.prompt,
        version: group.version,
        samples: group.completions.len() as u32,
        vote: serde_json::to_string(&group.vote).map_err(|e| e.to_string())?,
        rewards: serde_json::to_string(&group.rewards).map_err(|e| e.to_string())?,
        worker: worker.to_owned(),
        body: v1::GroupMsg::try_from(group).map_err(|e| e.to_string())?.encode_to_vec(),
    })
}
