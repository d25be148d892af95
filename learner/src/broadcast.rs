//! New weights to the workers of the learner's fabric, over NCCL: a group a version, of those that wait for it. It runs beside the loop; whatever becomes
//! of it, the coordinator has the version and serves it as a stream of chunks.

use quorum_core::client::Session;
use quorum_core::collective::{CollectiveError, Interrupt, Patience};
use quorum_core::config::Precision;
use quorum_core::digest::{policy_to_le, weight_size};
use quorum_core::metric;
use quorum_core::nccl::{Communicator, Way, broadcast, new_id};
use quorum_proto::v1;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Deadline of a call to the coordinator.
const SHORT: Duration = Duration::from_secs(10);

/// The learner's side of all rounds.
pub struct Broadcaster {
    fabric: String,
    device: usize,
    /// Made, and not used yet.
    id: Option<Vec<u8>>,
    under_way: Option<JoinHandle<()>>,
    stop: CancellationToken,
}

impl Broadcaster {
    /// Over `fabric` from CUDA device number `device`.
    pub fn new(fabric: String, device: usize) -> Self {
        Self { fabric, device, id: None, under_way: None, stop: CancellationToken::new() }
    }

    /// Begins a round for the published `version`, if workers wait for one. Needs a Tokio runtime; returns once the coordinator has answered, and the
    /// weights travel in the background.
    pub async fn begin(&mut self, session: &Session, weights: &Arc<Vec<f32>>, version: u64) {
        if self.under_way.as_ref().is_some_and(|task| !task.is_finished()) {
            tracing::info!(version, "the broadcast before is still under way: the stream of chunks serves");
            return;
        }
        match self.ask(session, version).await {
            Ok(round) if round.members.is_empty() => {}
            Ok(round) => {
                self.id = None;
                let interrupt = self.interrupt();
                let (device, fabric, session) = (self.device, self.fabric.clone(), session.clone());
                let weights = weights.clone();
                self.under_way = Some(tokio::spawn(async move {
                    let precision = session.config.train.precision;
                    let sent =
                        tokio::task::spawn_blocking(move || send(&round, device, &weights, precision, interrupt));
                    let failure = match sent.await {
                        Ok(Ok(())) => String::new(),
                        Ok(Err(error)) => error.to_string(),
                        Err(error) => error.to_string(),
                    };
                    if !failure.is_empty() {
                        tracing::warn!(
                            version,
                            fabric,
                            failure,
                            "a weight broadcast failed: the stream of chunks serves"
                        );
                    }
                    tell(&session, fabric, version, failure).await;
                }));
            }
            Err(reason) => tracing::warn!(version, reason, "no weight broadcast: the stream of chunks serves"),
        }
    }

    async fn ask(&mut self, session: &Session, version: u64) -> Result<v1::BroadcastReply, String> {
        let id = match self.id.clone() {
            Some(id) => id,
            // NCCL opens a socket for each: one that nobody came for is kept for the next round.
            None => self.id.insert(new_id().map_err(|e| e.to_string())?).clone(),
        };
        let request = v1::BroadcastRequest {
            caller: Some(session.caller("")),
            fabric: self.fabric.clone(),
            version: Some(version),
            collective_id: id.into(),
            wait_seconds: 0.0,
            outcome: None,
        };
        let link = &session.link;
        let asked = link.call("BroadcastWeights", SHORT, link.cluster().broadcast_weights(request)).await;
        asked.map_err(|e| e.to_string())
    }

    fn interrupt(&self) -> Interrupt {
        let stop = self.stop.clone();
        Arc::new(move || stop.is_cancelled().then(|| "the learner leaves".to_owned()))
    }
}

impl Drop for Broadcaster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// One round; returns when all bytes have gone out. Blocks.
fn send(
    round: &v1::BroadcastReply,
    device: usize,
    weights: &[f32],
    precision: Precision,
    interrupt: Interrupt,
) -> Result<(), CollectiveError> {
    let (start, size) = (Instant::now(), weight_size(precision));
    let total = (weights.len() * size) as u64;
    if total != round.weights_bytes {
        return Err(CollectiveError::Arguments {
            operation: "broadcast",
            reason: format!("{total} bytes are held, the coordinator announced {}", round.weights_bytes),
        });
    }
    let patience = Patience { deadline: Duration::from_secs_f64(round.seconds.clamp(0.0, 1e6)), interrupt };
    let mut group = Communicator::form(&round.collective_id, 0, round.members.len(), device, patience)?;
    // Parts are whole weights: their size is a multiple of that of every precision.
    let mut give = |offset: u64, len: usize| {
        let from = usize::try_from(offset).unwrap_or(usize::MAX) / size;
        policy_to_le(weights.get(from..from.saturating_add(len / size)).unwrap_or_default(), precision)
    };
    broadcast(&mut group, start, total, Way::Send(&mut give))?;
    group.close(start)?;
    metric::WEIGHT_SYNC_BYTES.with(["nccl"]).increment(total);
    let (version, members) = (round.version, round.members.len());
    tracing::debug!(version, members, bytes = total, seconds = start.elapsed().as_secs_f64(), "weights broadcast");
    Ok(())
}

/// Tells the coordinator how a round ended. That it fails is no reason to stop.
async fn tell(session: &Session, fabric: String, version: u64, failure: String) {
    let request = v1::BroadcastRequest {
        caller: Some(session.caller("")),
        fabric,
        outcome: Some(v1::BroadcastOutcome { version, failure }),
        ..Default::default()
    };
    let link = &session.link;
    if let Err(error) = link.call("BroadcastWeights", SHORT, link.cluster().broadcast_weights(request)).await {
        tracing::debug!(%error, "the end of a broadcast is not told");
    }
}
