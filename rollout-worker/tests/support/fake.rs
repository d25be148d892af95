//! The three services over shared state.

use futures::stream::{self, BoxStream, StreamExt};
use quorum_core::client::LinkOptions;
use quorum_core::config::{self, RunConfig};
use quorum_core::digest::{f32_from_le, f32_to_le, slab_digest};
use quorum_proto::v1;
use quorum_proto::v1::cluster_server::{Cluster, ClusterServer};
use quorum_proto::v1::learner_server::{Learner, LearnerServer};
use quorum_proto::v1::rollout_server::{Rollout, RolloutServer};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tonic::{Request, Response, Status, Streaming};

/// What the test puts in and takes out.
#[derive(Default)]
pub struct Inside {
    pub config: RunConfig,
    pub epoch: u64,
    pub blobs: BTreeMap<String, Vec<u8>>,
    pub model_files: Vec<v1::SideFile>,
    pub weights: BTreeMap<u64, Vec<f32>>,
    pub leases: VecDeque<v1::LeaseGrant>,
    pub batches: BTreeMap<u64, (v1::BatchHead, Vec<v1::BatchItem>)>,
    pub learner: v1::LearnerStart,
    pub start_digest: String,
    pub complete: bool,
    pub cancelled: Vec<u64>,
    /// Flips a bit in the first chunk of that many weight transfers.
    pub damage: u32,
    pub joins: Vec<v1::JoinRequest>,
    pub submissions: Vec<v1::SubmitRequest>,
    pub commits: Vec<v1::CommitRequest>,
    pub left: Vec<String>,
    pub heartbeats: u32,
}

/// The fake; cheap to clone.
#[derive(Clone, Default)]
pub struct Fake(Arc<Mutex<Inside>>);

/// A fake being served; stops when dropped.
pub struct Running {
    pub url: String,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Running {
    pub fn link(&self) -> LinkOptions {
        LinkOptions { url: self.url.clone(), ..LinkOptions::default() }
    }
}

impl Fake {
    pub fn new(config: RunConfig, side_files: &BTreeMap<String, Vec<u8>>) -> Self {
        let fake = Self::default();
        {
            let mut inside = fake.inside();
            inside.config = config;
            inside.epoch = 1;
        }
        for (name, bytes) in side_files {
            let hash = fake.blob(bytes);
            fake.inside().model_files.push(v1::SideFile { name: name.clone(), hash, bytes: bytes.len() as u64 });
        }
        fake
    }

    pub fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap()
    }

    /// Makes bytes fetchable; returns their hash.
    pub fn blob(&self, bytes: &[u8]) -> String {
        let hash = blake3::hash(bytes).to_hex().to_string();
        self.inside().blobs.insert(hash.clone(), bytes.to_vec());
        hash
    }

    /// Serves on a free loopback port.
    pub async fn serve(&self) -> Running {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tonic::transport::Server::builder()
            .add_service(ClusterServer::new(self.clone()))
            .add_service(RolloutServer::new(self.clone()))
            .add_service(LearnerServer::new(self.clone()))
            .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
        Running { url, server: tokio::spawn(async move { server.await.unwrap() }) }
    }

    /// Waits until `done` holds, at most `seconds`.
    pub async fn until(&self, seconds: u64, what: &str, done: impl Fn(&Inside) -> bool) {
        for _ in 0..seconds * 50 {
            if done(&self.inside()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{what} did not happen within {seconds} s");
    }

    fn known(&self, caller: Option<&v1::Caller>) -> Result<(), Status> {
        let epoch = caller.map_or(0, |c| c.epoch);
        let current = self.inside().epoch;
        if epoch == current { Ok(()) } else { Err(Status::failed_precondition(format!("epoch {epoch} is over"))) }
    }
}

type Reply<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Cluster for Fake {
    type FetchBlobStream = BoxStream<'static, Result<v1::BlobChunk, Status>>;
    type FetchWeightsStream = BoxStream<'static, Result<v1::WeightChunk, Status>>;

    async fn join(&self, request: Request<v1::JoinRequest>) -> Reply<v1::JoinReply> {
        let request = request.into_inner();
        let mut inside = self.inside();
        if !request.run_id.is_empty() && request.run_id != "run-1" {
            return Err(Status::permission_denied(format!("this is run run-1, not {}", request.run_id)));
        }
        inside.joins.push(request);
        Ok(Response::new(v1::JoinReply {
            run_id: "run-1".into(),
            epoch: inside.epoch,
            config_toml: config::to_toml(&inside.config).unwrap(),
            config_digest: config::digest(&inside.config),
            model_files: inside.model_files.clone(),
            start_weights_digest: inside.start_digest.clone(),
            heartbeat_seconds: inside.config.cluster.heartbeat_seconds,
            max_message_bytes: 64 << 20,
            learner: Some(inside.learner.clone()),
            ..Default::default()
        }))
    }

    async fn heartbeat(&self, request: Request<v1::HeartbeatRequest>) -> Reply<v1::HeartbeatReply> {
        self.known(request.get_ref().caller.as_ref())?;
        let mut inside = self.inside();
        inside.heartbeats += 1;
        Ok(Response::new(v1::HeartbeatReply { cancelled_leases: inside.cancelled.clone(), ..Default::default() }))
    }

    async fn leave(&self, request: Request<v1::LeaveRequest>) -> Reply<v1::LeaveReply> {
        self.inside().left.push(request.into_inner().reason);
        Ok(Response::new(v1::LeaveReply {}))
    }

    async fn fetch_blob(&self, request: Request<v1::FetchBlobRequest>) -> Reply<Self::FetchBlobStream> {
        let hash = request.into_inner().hash;
        let bytes = self.inside().blobs.get(&hash).cloned().ok_or_else(|| Status::not_found("no such blob"))?;
        let total = bytes.len() as u64;
        let chunk =
            |(i, part): (usize, &[u8])| v1::BlobChunk { offset: i as u64 * 1000, total, data: part.to_vec().into() };
        let chunks: Vec<_> = bytes.chunks(1000).enumerate().map(chunk).map(Ok).collect();
        Ok(Response::new(stream::iter(chunks).boxed()))
    }

    async fn fetch_weights(&self, request: Request<v1::FetchWeightsRequest>) -> Reply<Self::FetchWeightsStream> {
        let version = request.into_inner().version;
        let mut inside = self.inside();
        let slab = inside.weights.get(&version).cloned().ok_or_else(|| Status::not_found("no such version"))?;
        let (bytes, digest, size) = (f32_to_le(&slab), slab_digest(&slab), 1 << 18);
        let mut chunks = Vec::new();
        for (i, part) in bytes.chunks(size).enumerate() {
            let mut data = part.to_vec();
            if i == 0 && inside.damage > 0 {
                inside.damage -= 1;
                data[17] ^= 4;
            }
            chunks.push(Ok(v1::WeightChunk {
                version,
                offset: (i * size) as u64,
                total: bytes.len() as u64,
                data: data.into(),
                chunk_digest: blake3::hash(part).as_bytes().to_vec().into(),
                weights_digest: digest.clone(),
            }));
        }
        Ok(Response::new(stream::iter(chunks).boxed()))
    }

    type FetchFrozenStream = BoxStream<'static, Result<v1::WeightChunk, Status>>;

    async fn fetch_frozen(&self, _: Request<v1::FetchFrozenRequest>) -> Reply<Self::FetchFrozenStream> {
        Err(Status::not_found("nothing is frozen"))
    }

    async fn locate_weights(&self, request: Request<v1::LocateWeightsRequest>) -> Reply<v1::LocateWeightsReply> {
        let version = request.into_inner().version;
        let slab = self.inside().weights.get(&version).cloned().ok_or_else(|| Status::not_found("no such version"))?;
        Ok(Response::new(v1::LocateWeightsReply {
            weights_digest: slab_digest(&slab),
            weights_bytes: slab.len() as u64 * 4,
            sources: vec![v1::WeightSource::default()],
            delta: None,
        }))
    }

    async fn report_weights(&self, _: Request<v1::ReportWeightsRequest>) -> Reply<v1::ReportWeightsReply> {
        Ok(Response::new(v1::ReportWeightsReply {}))
    }

    async fn broadcast_weights(&self, _: Request<v1::BroadcastRequest>) -> Reply<v1::BroadcastReply> {
        Err(Status::unimplemented("there is no fabric here"))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Reply<v1::StatusReply> {
        Ok(Response::new(v1::StatusReply::default()))
    }
}

#[tonic::async_trait]
impl Rollout for Fake {
    async fn lease(&self, request: Request<v1::LeaseRequest>) -> Reply<v1::LeaseReply> {
        let request = request.into_inner();
        self.known(request.caller.as_ref())?;
        for _ in 0..20 {
            {
                let mut inside = self.inside();
                let n = inside.leases.len().min(request.capacity as usize);
                let leases: Vec<_> = inside.leases.drain(..n).collect();
                if !leases.is_empty() || inside.complete {
                    return Ok(Response::new(v1::LeaseReply { run_complete: leases.is_empty(), leases }));
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(Response::new(v1::LeaseReply::default()))
    }

    async fn submit(&self, request: Request<v1::SubmitRequest>) -> Reply<v1::SubmitReply> {
        let request = request.into_inner();
        self.known(request.caller.as_ref())?;
        self.inside().submissions.push(request);
        Ok(Response::new(v1::SubmitReply { outcome: v1::SubmitOutcome::Accepted.into(), reason: String::new() }))
    }
}

#[tonic::async_trait]
impl Learner for Fake {
    /// A group of one.
    async fn form_group(&self, request: Request<v1::FormGroupRequest>) -> Reply<v1::FormGroupReply> {
        let request = request.into_inner();
        self.known(request.caller.as_ref())?;
        let members = vec![request.caller.map(|c| c.caller_id).unwrap_or_default()];
        let state = v1::GroupState::Ready.into();
        Ok(Response::new(v1::FormGroupReply { state, generation: 1, members, ..Default::default() }))
    }

    type NextBatchStream = BoxStream<'static, Result<v1::BatchPart, Status>>;

    async fn next_batch(&self, request: Request<v1::NextBatchRequest>) -> Reply<Self::NextBatchStream> {
        let request = request.into_inner();
        self.known(request.caller.as_ref())?;
        let (head, items) = self.inside().batches.get(&request.step).cloned().unwrap_or_else(|| {
            let state = v1::BatchState::RunComplete.into();
            (v1::BatchHead { state, step: request.step, ..Default::default() }, Vec::new())
        });
        let head = v1::BatchPart { part: Some(v1::batch_part::Part::Head(head)) };
        let items = items.into_iter().map(|i| v1::BatchPart { part: Some(v1::batch_part::Part::Item(i)) });
        let parts: Vec<_> = [head].into_iter().chain(items).map(Ok).collect();
        Ok(Response::new(stream::iter(parts).boxed()))
    }

    async fn publish(&self, request: Request<Streaming<v1::PublishChunk>>) -> Reply<v1::PublishReply> {
        let mut chunks = request.into_inner();
        let (mut slab, mut version, mut digest) = (Vec::new(), 0, String::new());
        let mut callers = 0;
        while let Some(message) = chunks.message().await? {
            callers += u32::from(message.caller.is_some());
            let chunk = message.chunk.unwrap();
            assert_eq!(chunk.offset, slab.len() as u64 * 4);
            assert_eq!(blake3::hash(&chunk.data).as_bytes().as_slice(), &chunk.chunk_digest[..]);
            f32_from_le(&chunk.data, &mut slab);
            (version, digest) = (chunk.version, chunk.weights_digest);
        }
        assert_eq!((callers, slab_digest(&slab)), (1, digest));
        self.inside().weights.insert(version, slab);
        Ok(Response::new(v1::PublishReply { accepted: true, reason: String::new() }))
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Reply<v1::CommitReply> {
        let request = request.into_inner();
        self.known(request.caller.as_ref())?;
        self.inside().commits.push(request);
        Ok(Response::new(v1::CommitReply { accepted: true, reason: String::new() }))
    }
}
