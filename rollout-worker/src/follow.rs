//! Follows the learner's broadcasts over a fabric: waits for a round, takes the version on a thread of its own, checks it. What fails is left to the
//! stream of chunks.

use crate::arrivals::{Arrival, Arrivals};
use crate::relay::Shelf;
use quorum_core::client::{Fetched, Incoming, Session};
use quorum_core::collective::{CollectiveError, Patience};
use quorum_core::metric;
use quorum_core::nccl::{Communicator, Way, broadcast};
use quorum_proto::v1;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Longest wait for a round, and what the call may take beyond it.
const POLL: Duration = Duration::from_secs(15);
const GRACE: Duration = Duration::from_secs(10);
/// After a call that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// What every round needs.
#[derive(Clone)]
struct Member {
    session: Session,
    fabric: String,
    device: usize,
    elements: usize,
    stop: CancellationToken,
}

/// Takes part in the rounds of `fabric` with CUDA device number `device`, until the result is dropped. Versions have `elements` values, and are handed
/// on from `shelf`.
pub fn follow(session: &Session, fabric: &str, device: usize, elements: usize, shelf: Shelf) -> Arrivals {
    let state = Arc::new(watch::Sender::new(Arrival::Nothing));
    let stop = CancellationToken::new();
    let guard: DropGuard = stop.clone().drop_guard();
    let member = Member { session: session.clone(), fabric: fabric.to_owned(), device, elements, stop: stop.clone() };
    let arrived = state.clone();
    tokio::spawn(async move { stop.run_until_cancelled_owned(rounds(member, arrived, shelf)).await });
    Arrivals { state, _follower: Box::new(guard) }
}

async fn rounds(member: Member, state: Arc<watch::Sender<Arrival>>, shelf: Shelf) {
    let (mut holds, mut outcome) = (None, None);
    loop {
        let round = match member.wait(holds, outcome.clone()).await {
            Ok(round) => round,
            Err(error) if error.is_transient() => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            Err(error) if error.is_fenced() => return,
            Err(error) => {
                tracing::warn!(%error, fabric = member.fabric, "no weights by broadcast in this session");
                return;
            }
        };
        outcome = None;
        if round.members.is_empty() {
            continue;
        }
        let (version, start) = (round.version, Instant::now());
        let deadline = Duration::from_secs_f64(round.seconds.clamp(0.0, 1e6));
        state.send_replace(Arrival::Coming(version, tokio::time::Instant::now() + deadline));
        let taking = member.clone();
        let taken = tokio::task::spawn_blocking(move || taking.take(&round, start, deadline)).await;
        let taken = taken.unwrap_or_else(|error| Err(("disconnected", error.to_string())));
        outcome = Some(v1::BroadcastOutcome {
            version,
            failure: taken.as_ref().err().map(|e| e.1.clone()).unwrap_or_default(),
        });
        match taken {
            Ok(fetched) => {
                holds = Some(version);
                shelf.hold(&fetched.weights);
                state.send_replace(Arrival::Here(fetched.clone()));
                fetched.report(&member.session, start.elapsed().as_secs_f64()).await;
            }
            Err((kind, reason)) => {
                metric::WEIGHT_SYNC_FAILURES.with([kind]).increment(1);
                tracing::warn!(
                    version,
                    fabric = member.fabric,
                    reason,
                    "a weight broadcast failed: the stream of chunks serves"
                );
                state.send_replace(Arrival::Nothing);
            }
        }
    }
}

impl Member {
    /// The next round; without members if there is none yet.
    async fn wait(
        &self,
        holds: Option<u64>,
        outcome: Option<v1::BroadcastOutcome>,
    ) -> Result<v1::BroadcastReply, quorum_core::client::ClientError> {
        let request = v1::BroadcastRequest {
            caller: Some(self.session.caller("")),
            fabric: self.fabric.clone(),
            version: holds,
            collective_id: bytes::Bytes::new(),
            wait_seconds: POLL.as_secs_f64(),
            outcome,
        };
        let link = &self.session.link;
        link.call("BroadcastWeights", POLL + GRACE, link.cluster().broadcast_weights(request)).await
    }

    /// One round; an error is the kind of failure and its words. Blocks.
    fn take(
        &self,
        round: &v1::BroadcastReply,
        start: Instant,
        deadline: Duration,
    ) -> Result<Fetched, (&'static str, String)> {
        let me = self.session.caller("").caller_id;
        let rank = round.members.iter().position(|id| *id == me);
        let rank = rank.ok_or_else(|| ("disconnected", format!("`{me}` is no member of the round")))?;
        let precision = self.session.config.train.precision;
        let mut incoming = Incoming::new(round, self.elements, precision).map_err(|e| ("checksum", e))?;
        let stop = self.stop.clone();
        let interrupt = Arc::new(move || stop.is_cancelled().then(|| "the worker leaves".to_owned()));
        let patience = Patience { deadline, interrupt };
        let lost = |error: CollectiveError| match error {
            CollectiveError::Late { .. } => ("timeout", error.to_string()),
            other => ("disconnected", other.to_string()),
        };
        let members = round.members.len();
        let mut group = Communicator::form(&round.collective_id, rank, members, self.device, patience).map_err(lost)?;
        let total = incoming.total();
        broadcast(&mut group, start, total, Way::Take(&mut |part| incoming.add(part))).map_err(lost)?;
        let fetched = incoming.finish().map_err(|e| ("checksum", e));
        if let Err(error) = group.close(start) {
            // Every byte is here: what the others still miss is theirs to say.
            tracing::debug!(%error, version = round.version, "the broadcast's group ended early");
        }
        fetched
    }
}
