//! A policy version as a stream of chunks, each with its digest, for the coordinator to hand on (INV-8).

use crate::error::LearnerError;
use futures::stream;
use quorum_core::client::Session;
use quorum_core::digest::{policy_to_le, weight_size};
use quorum_proto::v1;
use std::sync::Arc;
use std::time::Duration;

/// Largest chunk, bytes.
const CHUNK: usize = 1 << 20;
/// A whole upload may take this long, and be repeated for as long as `PATIENCE`.
const CALL: Duration = Duration::from_secs(600);

/// Uploads `weights` as `version`, again after a passing failure.
///
/// # Errors
/// The coordinator is gone or refuses the version.
pub async fn publish(
    session: &Session,
    weights: &Arc<Vec<f32>>,
    version: u64,
    digest: &str,
    patience: Duration,
) -> Result<(), LearnerError> {
    let reply = session
        .retry("Publish", patience, || {
            let chunks = chunks(session, weights.clone(), version, digest.to_owned());
            let link = session.link.clone();
            async move { link.call("Publish", CALL, link.learner().publish(stream::iter(chunks))).await }
        })
        .await?;
    if reply.accepted {
        return Ok(());
    }
    Err(LearnerError::NotAccepted { what: format!("weights version {version}"), reason: reply.reason })
}

/// The chunks of a slab, made one by one as they are sent.
fn chunks(
    session: &Session,
    weights: Arc<Vec<f32>>,
    version: u64,
    digest: String,
) -> impl Iterator<Item = v1::PublishChunk> + Send + use<> {
    let mut caller = Some(session.caller(format!("version-{version}")));
    let precision = session.config.train.precision;
    let size = weight_size(precision);
    let values = (CHUNK.min(usize::try_from(session.reply.max_message_bytes / 2).unwrap_or(CHUNK)) / size).max(1);
    let count = weights.len().div_ceil(values);
    (0..count).map(move |i| {
        let part = weights.chunks(values).nth(i).unwrap_or_default();
        let data = policy_to_le(part, precision);
        let chunk = v1::WeightChunk {
            version,
            offset: (i * values * size) as u64,
            total: (weights.len() * size) as u64,
            chunk_digest: blake3::hash(&data).as_bytes().to_vec().into(),
            data: data.into(),
            weights_digest: digest.clone(),
        };
        v1::PublishChunk { caller: caller.take(), chunk: Some(chunk) }
    })
}
