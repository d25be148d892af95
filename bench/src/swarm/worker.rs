//! One simulated worker: lease, answer at once with a made-up group, submit.

use super::tally::Tally;
use prost::Message;
use quorum_core::answer;
use quorum_core::client::{ClientError, Heartbeat, Session, Vitals};
use quorum_core::vote::vote;
use quorum_proto::v1::{self, Finish, SubmitOutcome};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tokens of a response.
pub const TOKENS: u32 = 8;
const POLL: f64 = 15.0;
const CALL: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Worker {
    number: u32,
    session: Session,
    tally: Arc<Tally>,
    capacity: u32,
    resend: f64,
    /// Between two leases of this worker; none = at once.
    pace: Option<Duration>,
    began: Instant,
    /// What every group of this worker says; slot, row and version are filled in.
    group: v1::GroupMsg,
}

impl Worker {
    pub fn new(
        number: u32,
        session: Session,
        tally: Arc<Tally>,
        capacity: u32,
        resend: f64,
        pace: Option<Duration>,
        began: Instant,
    ) -> Self {
        let group = made_up(&session, number);
        Self { number, session, tally, capacity, resend, pace, began, group }
    }

    /// Until the run is complete. `phase` in 0..1 spreads the workers over the pace.
    pub async fn run(self, phase: f64) {
        let _heartbeat = Heartbeat::start(&self.session, Arc::new(Vitals::default()), PATIENCE);
        let (mut step, mut round) = (u64::MAX, 0u32);
        loop {
            let due = self.pace.map(|pace| self.began + pace.mul_f64(phase + f64::from(round)));
            if let Some(due) = due {
                tokio::time::sleep_until(due.into()).await;
            }
            round += 1;
            // What is late begins late: the wait counts as latency.
            let began = due.unwrap_or_else(Instant::now);
            let reply = match self.lease().await {
                Ok(reply) if reply.run_complete => return,
                Ok(reply) => reply,
                Err(_) => {
                    self.tally.error();
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
            };
            let Some(first) = reply.leases.first() else { continue };
            let opened = std::mem::replace(&mut step, first.step) != first.step;
            self.tally.leased((!opened).then(|| began.elapsed()), reply.encoded_len());
            let submissions = reply.leases.iter().map(|grant| self.submit(grant));
            futures::future::join_all(submissions).await;
        }
    }

    async fn lease(&self) -> Result<v1::LeaseReply, ClientError> {
        let link = &self.session.link;
        let request =
            v1::LeaseRequest { caller: Some(self.session.caller("")), capacity: self.capacity, wait_seconds: POLL };
        link.call("Lease", CALL, link.rollout().lease(request)).await
    }

    async fn submit(&self, grant: &v1::LeaseGrant) {
        let row = grant.prompt.as_ref().map_or(0, |p| p.row);
        let group = v1::GroupMsg {
            step: grant.step,
            slot: grant.slot,
            prompt: row,
            version: grant.version,
            ..self.group.clone()
        };
        let group_bytes = group.encoded_len();
        let request = v1::SubmitRequest {
            caller: Some(self.session.caller(format!("{}-{}", grant.lease_id, grant.fence))),
            lease_id: grant.lease_id,
            fence: grant.fence,
            group: Some(group),
            generate_seconds: 0.0,
            ..Default::default()
        };
        let twice = (grant.lease_id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11) as f64 / (1u64 << 53) as f64;
        if twice < self.resend {
            self.tally.resent();
            tokio::join!(self.deliver(grant, request.clone(), group_bytes), self.deliver(grant, request, group_bytes));
        } else {
            self.deliver(grant, request, group_bytes).await;
        }
    }

    async fn deliver(&self, grant: &v1::LeaseGrant, request: v1::SubmitRequest, group_bytes: usize) {
        let (began, bytes) = (Instant::now(), request.encoded_len());
        let sent = self
            .session
            .retry("Submit", PATIENCE, || {
                let (link, request) = (self.session.link.clone(), request.clone());
                async move { link.call("Submit", CALL, link.rollout().submit(request)).await }
            })
            .await;
        match sent.map(|r| (r.outcome(), r.reason)) {
            Ok((SubmitOutcome::Accepted, _)) => {
                self.tally.accepted(grant.step, grant.slot, began.elapsed(), group_bytes, bytes + 2);
            }
            Ok((SubmitOutcome::Duplicate, _)) => self.tally.duplicate(),
            Ok((outcome, reason)) => {
                eprintln!("worker {}: {outcome:?} {reason}", self.number);
                self.tally.error();
            }
            Err(_) => self.tally.error(),
        }
    }
}

/// A group of plausible responses: most agree, some do not, one has no answer.
fn made_up(session: &Session, number: u32) -> v1::GroupMsg {
    let rule = &session.config.vote;
    let samples = session.config.rollout.group_size;
    let text = |i: u32| match i {
        0 => "\\boxed{12}".to_owned(),
        1 => "I do not know".into(),
        i if i % 4 == 2 => format!("\\boxed{{{}}}", number % 7),
        _ => "so \\boxed{42}".into(),
    };
    let completions: Vec<v1::CompletionMsg> = (0..samples)
        .map(|i| v1::CompletionMsg {
            sample: i,
            view: 0,
            tokens: (0..TOKENS).map(|t| (number * 31 + i * 7 + t) % 500).collect(),
            logprobs: (0..TOKENS).map(|t| -0.01 * (1 + t + i) as f32).collect(),
            finish: Finish::Length.into(),
            text: text(i),
        })
        .collect();
    let answers: Vec<Option<String>> = completions.iter().map(|c| answer::extract(&c.text, &rule.extract)).collect();
    let record = vote(&answers, rule);
    v1::GroupMsg {
        rewards: vec![0.0; completions.len()],
        vote_json: serde_json::to_string(&record).unwrap_or_default(),
        completions,
        ..Default::default()
    }
}
