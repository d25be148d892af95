//! Weights out: where they can be had, the coordinator's own streams of them, and who holds what.

use super::cluster::Parts;
use super::{Shared, poll};
use crate::broadcast::Announced;
use crate::fanout::{Form, Item};
use crate::run::status_of;
use crate::state::Refusal;
use crate::weights::Published;
use bytes::Bytes;
use quorum_core::metric;
use quorum_proto::v1;
use tonic::Status;

/// Bytes of a part of the frozen weights.
const FROZEN_PART: usize = 1 << 20;
/// Longest name of a fabric.
const LONGEST_NAME: usize = 128;

/// The digest that counts, and the sources in the order to try.
pub(super) async fn locate(
    shared: &Shared,
    request: v1::LocateWeightsRequest,
) -> Result<v1::LocateWeightsReply, Status> {
    let id = known(shared, request.caller)?;
    let fanout = &shared.weights.fanout;
    fanout.failed(&id, &request.failed);
    let item = Item::of(request.frozen, request.version);
    let cluster = &shared.material.config.cluster;
    let mut delta = None;
    let (weights_digest, weights_bytes) = if request.frozen {
        let frozen = shared.material.frozen().ok_or_else(nothing_frozen)?;
        (frozen.digest.clone(), frozen.source.total())
    } else {
        let published = held(shared, request.version)?;
        let base = request.version.checked_sub(1).filter(|base| request.have_versions.contains(base));
        if base.is_some() && cluster.weight_delta {
            delta = shared.weights.delta(request.version, shared.material.config.train.precision).await;
        }
        (published.digest, published.body.size() as u64)
    };
    let form = delta.as_ref().map_or(Form::Whole, |d| Form::Delta(d.base_version));
    let relay = fanout.locate(&id, item, form, cluster.relay_fanout as usize, request.passive);
    let relay = relay.map(|(caller_id, address)| v1::WeightSource { caller_id, address });
    Ok(v1::LocateWeightsReply {
        weights_digest,
        weights_bytes,
        sources: relay.into_iter().chain([v1::WeightSource::default()]).collect(),
        delta: delta.map(|d| v1::WeightDelta {
            base_version: d.base_version,
            base_digest: d.base_digest,
            bytes: d.published.body.size() as u64,
            digest: d.published.digest,
        }),
    })
}

/// Notes who holds what, and who failed.
pub(super) fn report(shared: &Shared, request: v1::ReportWeightsRequest) -> Result<v1::ReportWeightsReply, Status> {
    let id = known(shared, request.caller.clone())?;
    let fanout = &shared.weights.fanout;
    fanout.failed(&id, &request.failed);
    fanout.holds(&id, Item::of(request.frozen, request.version), &request);
    Ok(v1::ReportWeightsReply {})
}

/// A worker waits for a round of broadcast; the learner begins one, or says how the last one went for it.
pub(super) async fn broadcast(shared: &Shared, request: v1::BroadcastRequest) -> Result<v1::BroadcastReply, Status> {
    let id = known(shared, request.caller)?;
    let (fabric, all) = (request.fabric, &shared.weights.broadcasts);
    if fabric.is_empty() || fabric.len() > LONGEST_NAME {
        return Err(Status::invalid_argument(format!("a fabric's name has 1 to {LONGEST_NAME} bytes")));
    }
    if let Some(outcome) = request.outcome {
        all.tell(&id, &fabric, outcome.version, outcome.failure);
    }
    if request.collective_id.is_empty() {
        let patience = poll::patience(request.wait_seconds);
        return Ok(all.wait(&id, &fabric, request.version, patience).await.unwrap_or_default());
    }
    let published = held(shared, request.version.unwrap_or_default())?;
    Ok(all.begin(Announced {
        learner: id,
        fabric,
        version: published.version,
        digest: published.digest,
        bytes: published.body.size() as u64,
        id: request.collective_id,
        seconds: shared.material.config.cluster.broadcast_seconds,
    }))
}

/// A version, or what leads to it, from `offset` on.
pub(super) async fn version(
    shared: &Shared,
    request: v1::FetchWeightsRequest,
) -> Result<Parts<v1::WeightChunk>, Status> {
    let (body, transport): (Published, _) = match request.base_version {
        None => (held(shared, request.version)?, "grpc"),
        Some(base) => {
            let made = shared.weights.delta(request.version, shared.material.config.train.precision).await;
            let delta = made.filter(|d| d.base_version == base).ok_or_else(|| {
                Status::not_found(format!("there is no difference from version {base} to {}", request.version))
            })?;
            (delta.published, "delta")
        }
    };
    let mut offset = usize::try_from(request.offset).unwrap_or(usize::MAX);
    let sent = metric::WEIGHT_SYNC_BYTES.with([transport]);
    let chunks = std::iter::from_fn(move || {
        let chunk = body.chunk(offset)?;
        offset += chunk.data.len();
        sent.increment(chunk.data.len() as u64);
        Some(Ok(chunk))
    });
    Ok(Box::pin(tokio_stream::iter(chunks)))
}

/// The frozen weights from `offset` on.
pub(super) fn frozen(shared: &Shared, request: &v1::FetchFrozenRequest) -> Result<Parts<v1::WeightChunk>, Status> {
    let frozen = shared.material.frozen().ok_or_else(nothing_frozen)?;
    let (source, digest, mut offset) = (frozen.source.clone(), frozen.digest.clone(), request.offset);
    let sent = metric::WEIGHT_SYNC_BYTES.with(["grpc"]);
    let chunks = std::iter::from_fn(move || {
        let data = Bytes::from(source.read(offset, FROZEN_PART));
        let at = offset;
        offset += data.len() as u64;
        sent.increment(data.len() as u64);
        let chunk_digest = Bytes::copy_from_slice(blake3::hash(&data).as_bytes());
        let (total, weights_digest) = (source.total(), digest.clone());
        (!data.is_empty())
            .then(|| Ok(v1::WeightChunk { version: 0, offset: at, total, data, chunk_digest, weights_digest }))
    });
    Ok(Box::pin(tokio_stream::iter(chunks)))
}

fn held(shared: &Shared, version: u64) -> Result<Published, Status> {
    shared.weights.get(version).ok_or_else(|| {
        Status::not_found(format!("version {version} is not held; held are {:?}", shared.weights.held()))
    })
}

fn nothing_frozen() -> Status {
    Status::not_found("this run has no frozen weights")
}

/// The caller's id, if it is a member of this run and epoch.
fn known(shared: &Shared, caller: Option<v1::Caller>) -> Result<String, Status> {
    let caller = caller.unwrap_or_default();
    if caller.run_id != shared.run_id {
        let refusal = format!("this is run {}, not {}", shared.run_id, caller.run_id);
        return Err(status_of(Refusal::Forbidden(refusal)));
    }
    if caller.epoch != shared.epoch || !shared.weights.fanout.knows(&caller.caller_id) {
        let refusal = format!("`{}` is not joined (any more): join again", caller.caller_id);
        return Err(status_of(Refusal::Rejoin(refusal)));
    }
    Ok(caller.caller_id)
}
