//! Asking the coordinator where weights are to be had, and telling it what is held.

use super::{ClientError, Session};
use quorum_proto::v1;
use std::time::Duration;

const SHORT: Duration = Duration::from_secs(10);
/// The first question may wait for a difference to be made.
const LOCATE: Duration = Duration::from_secs(60);

/// What is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stream {
    Frozen,
    Whole(u64),
    /// What leads from the first version to the second.
    Delta(u64, u64),
}

impl std::fmt::Display for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Frozen => f.write_str("the frozen weights"),
            Self::Whole(version) => write!(f, "weights version {version}"),
            Self::Delta(base, version) => write!(f, "the difference from weights version {base} to {version}"),
        }
    }
}

/// How the bytes came.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Delivery {
    /// Who sent the last ones; empty = the coordinator.
    pub source: String,
    /// Bytes from relays, and from the coordinator.
    pub relayed: u64,
    pub direct: u64,
    pub failed: Vec<v1::RelayFailure>,
    /// By a broadcast of `source`.
    pub broadcast: bool,
}

/// Where one stream is to be had.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Located {
    pub stream: Stream,
    pub total: u64,
    pub digest: String,
    /// SHA-256 of the version, also when its difference is fetched.
    pub weights_digest: String,
    pub base_digest: String,
    pub relay: Option<v1::WeightSource>,
}

/// Asks the coordinator for the sources of a version, or of the frozen weights; `have` may be the base of a difference.
pub(super) async fn locate(
    session: &Session,
    version: Option<u64>,
    have: &[u64],
    failed: &[v1::RelayFailure],
    passive: bool,
) -> Result<Located, ClientError> {
    let request = v1::LocateWeightsRequest {
        caller: Some(session.caller("")),
        version: version.unwrap_or_default(),
        frozen: version.is_none(),
        have_versions: have.to_vec(),
        failed: failed.to_vec(),
        passive,
    };
    let link = &session.link;
    let reply = link.call("LocateWeights", LOCATE, link.cluster().locate_weights(request)).await?;
    let relay = reply.sources.into_iter().find(|s| !s.address.is_empty());
    let (stream, total, digest, base_digest) = match (version, reply.delta) {
        (None, _) => (Stream::Frozen, reply.weights_bytes, reply.weights_digest.clone(), String::new()),
        (Some(v), None) => (Stream::Whole(v), reply.weights_bytes, reply.weights_digest.clone(), String::new()),
        (Some(v), Some(d)) => (Stream::Delta(d.base_version, v), d.bytes, d.digest, d.base_digest),
    };
    Ok(Located { stream, total, digest, weights_digest: reply.weights_digest, base_digest, relay })
}

/// Tells the coordinator what is held now, for others to be served from here. That it fails is no reason to stop.
pub(super) async fn report(session: &Session, version: Option<u64>, delta: bool, how: &Delivery, seconds: f64) {
    let request = v1::ReportWeightsRequest {
        caller: Some(session.caller("")),
        version: version.unwrap_or_default(),
        frozen: version.is_none(),
        source: how.source.clone(),
        delta,
        bytes: how.relayed + how.direct,
        seconds,
        failed: how.failed.clone(),
        broadcast: how.broadcast,
    };
    let link = &session.link;
    if let Err(error) = link.call("ReportWeights", SHORT, link.cluster().report_weights(request)).await {
        tracing::debug!(%error, "weights not reported");
    }
}

#[cfg(test)]
impl Located {
    pub(super) fn of(stream: Stream, total: u64, weights_digest: &str, base_digest: &str) -> Self {
        let (digest, weights_digest, base_digest) = (String::new(), weights_digest.to_owned(), base_digest.to_owned());
        Self { stream, total, digest, weights_digest, base_digest, relay: None }
    }
}
