//! The learner's side of the wire: waits that end with an answer, a deadline or a stop, so that the training loop can stay plain code.

use crate::collective::Interrupt;
use crate::encode::Blobs;
use crate::error::LearnerError;
use crate::options::Options;
use quorum_core::client::{ByteCache, ClientError, Heartbeat, JoinOptions, Pulse, Session, Vitals, fetch_blob};
use quorum_proto::v1;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// Longest poll for a batch, and what the answer may take beyond it.
const POLL: Duration = Duration::from_secs(15);
const GRACE: Duration = Duration::from_secs(30);
/// Bytes of encoded images kept from step to step.
const CACHE: usize = 512 << 20;
const BLOB_PATIENCE: Duration = Duration::from_secs(60);

/// A joined learner.
pub struct Connection {
    pub session: Session,
    /// How long an absent coordinator is waited for.
    pub patience: Duration,
    runtime: Handle,
    heartbeat: Arc<Heartbeat>,
    vitals: Arc<Vitals>,
    stop: CancellationToken,
    images: ByteCache,
}

impl Connection {
    /// Joins and starts the heartbeats.
    ///
    /// # Errors
    /// The coordinator is absent, refuses, or `stop` was cancelled first.
    pub fn join(
        join: &JoinOptions,
        options: &Options,
        runtime: &Handle,
        stop: &CancellationToken,
    ) -> Result<Self, LearnerError> {
        let session = runtime.block_on(async {
            tokio::select! {
                joined = Session::join(join) => joined.map_err(LearnerError::from),
                () = stop.cancelled() => Err(asked()),
            }
        })?;
        let vitals = Arc::new(Vitals::default());
        let patience = options.member.reconnect_patience();
        let inside = runtime.enter();
        let heartbeat = Arc::new(Heartbeat::start(&session, vitals.clone(), patience));
        drop(inside);
        Ok(Self {
            session,
            patience,
            runtime: runtime.clone(),
            heartbeat,
            vitals,
            stop: stop.clone(),
            images: ByteCache::new(CACHE),
        })
    }

    /// Announces the version now held.
    pub fn holds(&self, version: u64) {
        self.vitals.version.store(version, Ordering::Relaxed);
    }

    /// Waits for `future` unless the run ends, the coordinator is lost or a signal comes first.
    ///
    /// # Errors
    /// The future's own, or why the wait was given up.
    pub fn wait<T, E: Into<LearnerError>>(
        &self,
        future: impl Future<Output = Result<T, E>>,
    ) -> Result<T, LearnerError> {
        let pulse = self.heartbeat.watch();
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                result = future => result.map_err(Into::into),
                pulse = pulse => Err(self.standing(pulse)),
                () = self.stop.cancelled() => Err(asked()),
            }
        })
    }

    /// Looks up from the arithmetic: is anybody still interested?
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), LearnerError> {
        if self.stop.is_cancelled() {
            return Err(asked());
        }
        match self.heartbeat.pulse() {
            Pulse::Beating => Ok(()),
            end => Err(self.standing(end)),
        }
    }

    /// What lies behind an error: a call between ranks that was given up says why in the words of the coordinator or the user.
    pub fn cause(&self, error: LearnerError) -> LearnerError {
        match error {
            LearnerError::Group { .. } => self.check().err().unwrap_or(error),
            other => other,
        }
    }

    fn standing(&self, pulse: Pulse) -> LearnerError {
        let url = self.session.link.url().to_owned();
        match pulse {
            Pulse::Stopped(reason) => LearnerError::Stopped(reason),
            Pulse::Lost(error) => error.into(),
            Pulse::Fenced(reason) => ClientError::Fenced { url, reason }.into(),
            Pulse::Beating => ClientError::Fenced { url, reason: "the heartbeats stopped".into() }.into(),
        }
    }

    /// What calls between ranks look at while they wait: the reason to give up, once there is one.
    pub fn interrupt(&self) -> Interrupt {
        let (heartbeat, stop) = (self.heartbeat.clone(), self.stop.clone());
        Arc::new(move || match heartbeat.pulse() {
            _ if stop.is_cancelled() => Some("asked to stop by a signal".into()),
            Pulse::Beating => None,
            Pulse::Stopped(reason) => Some(format!("the run stopped: {reason}")),
            Pulse::Fenced(reason) => Some(format!("the coordinator no longer counts on this rank: {reason}")),
            Pulse::Lost(error) => Some(error.to_string()),
        })
    }

    /// Meets the other ranks.
    ///
    /// # Errors
    /// As `wait`; refused, or ranks are missing for as long as an absent coordinator is waited for.
    pub fn form_group(&self, request: &v1::FormGroupRequest) -> Result<v1::FormGroupReply, LearnerError> {
        const CALL: &str = "FormGroup";
        let request = v1::FormGroupRequest { wait_seconds: POLL.as_secs_f64(), ..request.clone() };
        let start = Instant::now();
        loop {
            let reply = self.wait(self.session.retry(CALL, self.patience, || {
                let (link, request) = (self.session.link.clone(), request.clone());
                async move { link.call(CALL, POLL + GRACE, link.learner().form_group(request)).await }
            }))?;
            let missing = || reply.missing.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
            match reply.state() {
                v1::GroupState::Ready => return Ok(reply),
                v1::GroupState::Pending if start.elapsed() > self.patience => {
                    return Err(LearnerError::Missing { seconds: start.elapsed().as_secs_f64(), missing: missing() });
                }
                v1::GroupState::Pending => tracing::info!(missing = missing(), "waiting for the other ranks"),
                v1::GroupState::Refused | v1::GroupState::Unspecified => {
                    let what = format!("rank {} of {}", request.rank, request.world);
                    return Err(LearnerError::NotAccepted { what, reason: reply.reason });
                }
            }
        }
    }

    /// The batch of `step` once it is complete; `None` when the run has no more steps.
    ///
    /// # Errors
    /// As `wait`; a stream that breaks off is asked for again.
    pub fn next_batch(&self, step: u64) -> Result<Option<(v1::BatchHead, Vec<v1::BatchItem>)>, LearnerError> {
        loop {
            let (session, patience) = (&self.session, self.patience);
            let (head, items) = self.wait(session.retry("NextBatch", patience, || poll_batch(session, step)))?;
            match head.state() {
                v1::BatchState::Ready => return Ok(Some((head, items))),
                v1::BatchState::RunComplete => return Ok(None),
                v1::BatchState::Pending => {}
                v1::BatchState::Unspecified => {
                    return Err(LearnerError::Batch { step, reason: "its head has no state".into() });
                }
            }
        }
    }

    /// Images by content hash, each fetched at most once.
    ///
    /// # Errors
    /// Names the blob that cannot be had.
    pub fn images<'a>(&mut self, hashes: impl Iterator<Item = &'a String>) -> Result<Blobs, LearnerError> {
        let mut blobs = Blobs::new();
        for hash in hashes {
            if blobs.contains_key(hash) {
                continue;
            }
            let bytes = match self.images.get(hash) {
                Some(bytes) => bytes,
                None => {
                    let session = &self.session;
                    self.wait(session.retry("FetchBlob", BLOB_PATIENCE, || fetch_blob(session, hash)))?
                }
            };
            self.images.put(hash.clone(), bytes.clone());
            blobs.insert(hash.clone(), bytes);
        }
        Ok(blobs)
    }
}

fn asked() -> LearnerError {
    LearnerError::Stopped("asked to by a signal".into())
}

/// One poll: the head, and the items if it is ready.
async fn poll_batch(session: &Session, step: u64) -> Result<(v1::BatchHead, Vec<v1::BatchItem>), ClientError> {
    const CALL: &str = "NextBatch";
    let link = &session.link;
    let request = v1::NextBatchRequest { caller: Some(session.caller("")), step, wait_seconds: POLL.as_secs_f64() };
    let mut stream = link.call(CALL, POLL + GRACE, link.learner().next_batch(request)).await?;
    let mut head: Option<v1::BatchHead> = None;
    let mut items = Vec::new();
    while let Some(part) = link.next(CALL, POLL + GRACE, &mut stream).await? {
        match part.part {
            Some(v1::batch_part::Part::Head(h)) => head = Some(h),
            Some(v1::batch_part::Part::Item(item)) => items.push(item),
            None => {}
        }
    }
    let torn = |reason: String| ClientError::Transient { url: link.url().into(), call: CALL, reason };
    let head = head.ok_or_else(|| torn("the stream ended before its head".into()))?;
    if head.state() == v1::BatchState::Ready && items.len() != head.items as usize {
        return Err(torn(format!("the stream ended after {} of {} groups", items.len(), head.items)));
    }
    Ok((head, items))
}
