//! One stream of bytes, from relays and the coordinator in turn: what a source has sent stays when it fails, the next one goes on from there,
//! and the whole must have the digest that the coordinator states (INV-8).

use super::locate::{Delivery, Located, Stream, locate};
use super::{ClientError, Session};
use crate::digest::Sha256;
use bytes::Bytes;
use quorum_proto::v1;
use std::time::Duration;
use tokio::time::Instant;

/// Longest wait for the coordinator's next chunk.
const CHUNK: Duration = Duration::from_secs(30);
/// Relays tried before the coordinator is left alone with the rest.
const RELAYS: usize = 3;

/// Takes the bytes in order.
pub trait Sink: Send {
    /// A transfer of `total` bytes with this SHA-256 begins, or begins again: what came before does not count.
    ///
    /// # Errors
    /// It is not what is expected.
    fn begin(&mut self, stream: Stream, total: u64, digest: &str) -> Result<(), String>;

    /// The next bytes.
    ///
    /// # Errors
    /// They cannot be used.
    fn add(&mut self, part: &Bytes) -> Result<(), String>;

    /// Whether nobody can be served from here.
    fn passive(&self) -> bool {
        true
    }
}

/// A transfer under way.
struct Progress {
    have: u64,
    hash: Sha256,
    how: Delivery,
    /// Failures that the coordinator has not been told of.
    untold: Vec<v1::RelayFailure>,
    /// Relays that sent some of the bytes at hand.
    from: Vec<String>,
}

/// Why a source was given up.
enum Stopped {
    /// It or the way to it: ask another.
    Source(&'static str, String),
    /// This process's own trouble.
    Own(ClientError),
}

/// Fetches what `located` says into `sink`.
///
/// # Errors
/// The coordinator's own stream failed, or has another digest than it stated; relays only cost time.
pub(super) async fn transfer(
    session: &Session,
    mut located: Located,
    have: &[u64],
    sink: &mut dyn Sink,
) -> Result<(Located, Delivery), ClientError> {
    let mut at =
        Progress { have: 0, hash: Sha256::new(), how: Delivery::default(), untold: Vec::new(), from: Vec::new() };
    begin(session, &located, sink, &mut at)?;
    let mut relays = 0;
    loop {
        let relay = located.relay.clone().filter(|_| relays < RELAYS);
        let stopped = pull(session, &located, relay.as_ref(), sink, &mut at).await;
        let source = relay.map(|r| r.caller_id).unwrap_or_default();
        match (stopped, source.is_empty()) {
            (Ok(()), _) => match whole(session, &located, &mut at) {
                Ok(()) => {
                    at.how.source = source;
                    return Ok((located, at.how));
                }
                Err(error) if at.from.is_empty() => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, from = at.from.join(", "), "relayed bytes are wrong: all again from the coordinator");
                    for id in std::mem::take(&mut at.from) {
                        note(&mut at, &id, "checksum");
                    }
                    begin(session, &located, sink, &mut at)?;
                    relays = RELAYS;
                }
            },
            (Err(Stopped::Own(error)), _) => return Err(error),
            (Err(Stopped::Source(kind, reason)), true) => return Err(broken(session, located.stream, kind, reason)),
            (Err(Stopped::Source(kind, reason)), false) => {
                tracing::warn!(relay = source, reason, "the next source is asked");
                note(&mut at, &source, kind);
                relays += 1;
                located = elsewhere(session, located, have, sink, &mut at).await?;
            }
        }
    }
}

/// Asks for another source; begins again if the coordinator speaks of other bytes now.
async fn elsewhere(
    session: &Session,
    before: Located,
    have: &[u64],
    sink: &mut dyn Sink,
    at: &mut Progress,
) -> Result<Located, ClientError> {
    let version = match before.stream {
        Stream::Frozen => None,
        Stream::Whole(version) | Stream::Delta(_, version) => Some(version),
    };
    let now = locate(session, version, have, &std::mem::take(&mut at.untold), sink.passive()).await?;
    if (now.stream, now.total, &now.digest) != (before.stream, before.total, &before.digest) {
        begin(session, &now, sink, at)?;
    }
    Ok(now)
}

fn begin(session: &Session, located: &Located, sink: &mut dyn Sink, at: &mut Progress) -> Result<(), ClientError> {
    (at.have, at.hash) = (0, Sha256::new());
    at.from.clear();
    let begun = sink.begin(located.stream, located.total, &located.digest);
    begun.map_err(|reason| damaged(session, located.stream, reason))
}

fn note(at: &mut Progress, id: &str, reason: &str) {
    let failure = v1::RelayFailure { caller_id: id.to_owned(), reason: reason.to_owned() };
    crate::metric::WEIGHT_SYNC_FAILURES.with([reason]).increment(1);
    at.untold.push(failure.clone());
    at.how.failed.push(failure);
}

/// The digest of all that came.
fn whole(session: &Session, located: &Located, at: &mut Progress) -> Result<(), ClientError> {
    let found = std::mem::take(&mut at.hash).finish_hex();
    if at.have == located.total && found == located.digest {
        return Ok(());
    }
    let (have, total, stated) = (at.have, located.total, &located.digest);
    let reason = format!("{have} of {total} bytes came with SHA-256 {found}, the coordinator states {stated}");
    Err(damaged(session, located.stream, reason))
}

/// Takes what is missing from one source, until its stream ends.
async fn pull(
    session: &Session,
    located: &Located,
    relay: Option<&v1::WeightSource>,
    sink: &mut dyn Sink,
    at: &mut Progress,
) -> Result<(), Stopped> {
    let silence = if relay.is_some() { session.relay_patience() } else { CHUNK };
    let mut stream = open(session, located.stream, relay, at.have, silence).await?;
    // A relay that waits for its own source says so: it may take a little longer than silence may.
    let (mut seen, mut moved) = (at.have, Instant::now());
    while at.have < located.total {
        let next = tokio::time::timeout(silence, stream.message()).await;
        let next = next.map_err(|_| late("no sign of life", silence))?;
        let chunk = next.map_err(|status| match relay {
            Some(_) => Stopped::Source("disconnected", status.message().to_owned()),
            None => Stopped::Own(ClientError::from_status(session.link.url(), "FetchWeights", &status)),
        })?;
        let chunk =
            chunk.ok_or_else(|| Stopped::Source("disconnected", format!("it ended after {} bytes", at.have)))?;
        if chunk.data.is_empty() {
            if chunk.offset > seen {
                (seen, moved) = (chunk.offset, Instant::now());
            } else if moved.elapsed() > silence * 2 {
                return Err(late("it receives nothing itself", silence * 2));
            }
            continue;
        }
        (seen, moved) = (seen.max(chunk.offset), Instant::now());
        take(located, &chunk, at)?;
        sink.add(&chunk.data).map_err(|reason| Stopped::Own(damaged(session, located.stream, reason)))?;
        match relay {
            Some(relay) => {
                at.how.relayed += chunk.data.len() as u64;
                if !at.from.contains(&relay.caller_id) {
                    at.from.push(relay.caller_id.clone());
                }
            }
            None => at.how.direct += chunk.data.len() as u64,
        }
    }
    Ok(())
}

fn late(what: &str, after: Duration) -> Stopped {
    Stopped::Source("timeout", format!("{what} for {:.1} s", after.as_secs_f64()))
}

/// Checks that a chunk is whole and continues what is there.
fn take(located: &Located, chunk: &v1::WeightChunk, at: &mut Progress) -> Result<(), Stopped> {
    let wrong = |reason: String| Err(Stopped::Source("checksum", reason));
    let version = match located.stream {
        Stream::Frozen => 0,
        Stream::Whole(version) | Stream::Delta(_, version) => version,
    };
    if (chunk.version, chunk.total) != (version, located.total) {
        return wrong(format!(
            "a chunk belongs to version {} of {} bytes; version {version} has {}",
            chunk.version, chunk.total, located.total
        ));
    }
    if chunk.offset != at.have || chunk.data.len() as u64 > located.total - at.have {
        return wrong(format!("a chunk of {} bytes at {} does not follow {}", chunk.data.len(), chunk.offset, at.have));
    }
    if blake3::hash(&chunk.data).as_bytes().as_slice() != &chunk.chunk_digest[..] {
        return wrong(format!("the chunk at {} has another digest than promised", chunk.offset));
    }
    at.hash.update(&chunk.data);
    at.have += chunk.data.len() as u64;
    Ok(())
}

async fn open(
    session: &Session,
    stream: Stream,
    relay: Option<&v1::WeightSource>,
    offset: u64,
    patience: Duration,
) -> Result<tonic::Streaming<v1::WeightChunk>, Stopped> {
    let caller = Some(session.caller(""));
    let request =
        |version, base_version| v1::FetchWeightsRequest { caller: caller.clone(), version, base_version, offset };
    let frozen = v1::FetchFrozenRequest { caller: caller.clone(), offset };
    let Some(relay) = relay else {
        let mut coordinator = session.link.cluster();
        let opened = match stream {
            Stream::Frozen => session.link.call("FetchFrozen", patience, coordinator.fetch_frozen(frozen)).await,
            Stream::Whole(v) => {
                session.link.call("FetchWeights", patience, coordinator.fetch_weights(request(v, None))).await
            }
            Stream::Delta(b, v) => {
                session.link.call("FetchWeights", patience, coordinator.fetch_weights(request(v, Some(b)))).await
            }
        };
        return opened.map_err(Stopped::Own);
    };
    let unusable = |reason: String| Stopped::Source("disconnected", reason);
    let link = session.link.beside(&relay.address).map_err(|e| unusable(e.to_string()))?;
    let mut client = link.relay();
    let opened = async {
        match stream {
            Stream::Frozen => client.fetch_frozen(frozen).await,
            Stream::Whole(v) => client.fetch_weights(request(v, None)).await,
            Stream::Delta(b, v) => client.fetch_weights(request(v, Some(b))).await,
        }
    };
    let opened = tokio::time::timeout(patience, opened).await.map_err(|_| late("no answer", patience))?;
    opened.map(tonic::Response::into_inner).map_err(|status| unusable(status.message().to_owned()))
}

pub(super) fn damaged(session: &Session, stream: Stream, reason: String) -> ClientError {
    ClientError::Damaged { url: session.link.url().into(), what: stream.to_string(), reason }
}

/// The coordinator's own stream failed.
fn broken(session: &Session, stream: Stream, kind: &str, reason: String) -> ClientError {
    crate::metric::WEIGHT_SYNC_FAILURES.with([kind]).increment(1);
    if kind == "checksum" {
        return damaged(session, stream, reason);
    }
    let call = if stream == Stream::Frozen { "FetchFrozen" } else { "FetchWeights" };
    ClientError::Transient { url: session.link.url().into(), call, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_that_is_damaged_foreign_or_out_of_place_is_refused() {
        let located = Located::of(Stream::Whole(3), 32, "", "");
        let data = Bytes::from_static(b"sixteen bytes...");
        let good = v1::WeightChunk {
            version: 3,
            offset: 16,
            total: 32,
            chunk_digest: blake3::hash(&data).as_bytes().to_vec().into(),
            data,
            weights_digest: String::new(),
        };
        let check = |chunk: &v1::WeightChunk| {
            let mut at =
                Progress { have: 16, hash: Sha256::new(), how: Delivery::default(), untold: vec![], from: vec![] };
            match take(&located, chunk, &mut at) {
                Ok(()) => Ok(at.have),
                Err(Stopped::Source("checksum", reason)) => Err(reason),
                Err(_) => panic!("another kind of failure"),
            }
        };
        assert_eq!(check(&good), Ok(32));
        let with = |change: fn(&mut v1::WeightChunk)| {
            let mut chunk = good.clone();
            change(&mut chunk);
            check(&chunk).unwrap_err()
        };
        assert!(with(|c| c.version = 4).contains("version 4"));
        assert!(with(|c| c.total = 33).contains("33 bytes"));
        assert!(with(|c| c.offset = 0).contains("does not follow"));
        assert!(with(|c| c.data = Bytes::from_static(b"sixteen bytes..!")).contains("another digest"));
        assert!(with(|c| c.data = Bytes::from_static(b"more than sixteen bytes")).contains("does not follow"));
    }
}
