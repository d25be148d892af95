//! The Relay service: streams of what is on the shelf, read along while it arrives. It states no digest that anybody trusts.

use super::shelf::Shelf;
use super::stash::{Read, Stash};
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt, unfold};
use quorum_core::client::Stream;
use quorum_core::metric;
use quorum_proto::v1;
use quorum_proto::v1::relay_server::Relay;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

type Chunks = BoxStream<'static, Result<v1::WeightChunk, Status>>;

/// Children are told this often in their patience that the relay lives.
const SIGNS: u32 = 5;

#[derive(Clone)]
pub(super) struct RelayService {
    pub(super) shelf: Shelf,
    pub(super) served: Arc<AtomicUsize>,
}

/// One stream under way; counts as served until it is dropped.
struct Reader {
    shelf: Shelf,
    stream: Stream,
    stash: Option<Arc<Stash>>,
    offset: u64,
    began: Instant,
    _served: Served,
}

struct Served(Arc<AtomicUsize>);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl RelayService {
    fn open(&self, caller: Option<&v1::Caller>, stream: Stream, offset: u64) -> Result<Response<Chunks>, Status> {
        let run = self.shelf.run_id();
        if caller.is_none_or(|c| c.run_id != run) {
            return Err(Status::permission_denied(format!("this relay serves run {run}")));
        }
        let served = Served(self.served.clone());
        // A child that went elsewhere may not be gone yet.
        let most = 2 * self.shelf.fanout();
        if self.served.fetch_add(1, Ordering::Relaxed) >= most {
            return Err(Status::resource_exhausted(format!("this relay serves {most} others already")));
        }
        let began = Instant::now();
        let reader = Reader { shelf: self.shelf.clone(), stream, stash: None, offset, began, _served: served };
        Ok(Response::new(unfold(Some(reader), |reader| async { reader?.next().await }).boxed()))
    }
}

impl Reader {
    /// The next chunk or sign of life, and the reader unless this was the end.
    async fn next(mut self) -> Option<(Result<v1::WeightChunk, Status>, Option<Self>)> {
        let patience = self.shelf.patience();
        let sign = Instant::now() + patience / SIGNS;
        loop {
            let (mut shelf, found) = (self.shelf.changes(), self.shelf.get(self.stream));
            let Some(stash) = self.stash.clone().or(found) else {
                if self.began.elapsed() > patience {
                    return Some((Err(Status::not_found("this relay was never asked to fetch that")), None));
                }
                if tokio::time::timeout_at(sign, shelf.changed()).await.is_err() {
                    let waiting = chunk(self.stream, "", 0, 0, Bytes::new());
                    return Some((Ok(waiting), Some(self)));
                }
                continue;
            };
            self.stash = Some(stash.clone());
            if self.offset >= stash.total {
                return None;
            }
            let mut changes = stash.changes();
            match stash.read(self.offset) {
                Read::Data(data) => {
                    let sent = chunk(self.stream, &stash.digest, self.offset, stash.total, data);
                    self.offset += sent.data.len() as u64;
                    metric::WEIGHT_SYNC_BYTES.with(["relay"]).increment(sent.data.len() as u64);
                    return Some((Ok(sent), Some(self)));
                }
                Read::Gone => return Some((Err(Status::aborted("this relay's own source failed")), None)),
                Read::Wait(have) => {
                    if tokio::time::timeout_at(sign, changes.changed()).await.is_err() {
                        let waiting = chunk(self.stream, &stash.digest, have, stash.total, Bytes::new());
                        return Some((Ok(waiting), Some(self)));
                    }
                }
            }
        }
    }
}

fn chunk(stream: Stream, digest: &str, offset: u64, total: u64, data: Bytes) -> v1::WeightChunk {
    let version = match stream {
        Stream::Frozen => 0,
        Stream::Whole(version) | Stream::Delta(_, version) => version,
    };
    let chunk_digest = Bytes::copy_from_slice(blake3::hash(&data).as_bytes());
    v1::WeightChunk { version, offset, total, data, chunk_digest, weights_digest: digest.to_owned() }
}

#[tonic::async_trait]
impl Relay for RelayService {
    type FetchWeightsStream = Chunks;

    async fn fetch_weights(&self, request: Request<v1::FetchWeightsRequest>) -> Result<Response<Chunks>, Status> {
        let r = request.into_inner();
        let stream = match r.base_version {
            None => Stream::Whole(r.version),
            Some(base) => Stream::Delta(base, r.version),
        };
        self.open(r.caller.as_ref(), stream, r.offset)
    }

    type FetchFrozenStream = Chunks;

    async fn fetch_frozen(&self, request: Request<v1::FetchFrozenRequest>) -> Result<Response<Chunks>, Status> {
        let r = request.into_inner();
        self.open(r.caller.as_ref(), Stream::Frozen, r.offset)
    }
}

/// HTTP/2 pings find children that are gone.
pub(super) const KEEPALIVE: Duration = Duration::from_secs(10);
