//! Membership, and what every process fetches.

use super::Shared;
use super::look::Look;
use crate::state::Member;
use bytes::Bytes;
use quorum_core::metric;
use quorum_proto::PROTOCOL_VERSION;
use quorum_proto::v1::cluster_server::Cluster;
use quorum_proto::v1::{self, Role};
use std::pin::Pin;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

/// Bytes of a part of a blob.
const BLOB_PART: usize = 256 << 10;
/// Longest caller id.
const LONGEST_ID: usize = 128;

pub(super) type Parts<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Clone)]
pub(super) struct ClusterService(pub(super) Shared, pub(super) Look);

impl ClusterService {
    fn admit(&self, request: &v1::JoinRequest) -> Result<Role, Status> {
        let refuse = |reason: String| {
            metric::COORDINATOR_RPC_REJECTED.with(["forbidden"]).increment(1);
            Err(Status::permission_denied(reason))
        };
        let material = &self.0.material;
        if request.protocol_version != PROTOCOL_VERSION {
            return refuse(format!(
                "protocol {} is spoken here, the caller speaks {} (Quorum {}): run processes of one version",
                PROTOCOL_VERSION, request.protocol_version, request.quorum_version
            ));
        }
        if !request.run_id.is_empty() && request.run_id != self.0.run_id {
            return refuse(format!("this is run {}, the caller wants run {}", self.0.run_id, request.run_id));
        }
        if !request.config_digest.is_empty() && request.config_digest != material.config_digest {
            return refuse(format!(
                "this run has configuration {}, the caller wants {}",
                material.config_digest, request.config_digest
            ));
        }
        if request.caller_id.is_empty() || request.caller_id.len() > LONGEST_ID {
            return refuse(format!("caller_id must have 1 to {LONGEST_ID} bytes"));
        }
        match Role::try_from(request.role) {
            Ok(Role::Learner) if request.world.max(1) != material.config.learner.ranks => refuse(format!(
                "this run has learner.ranks = {}, the caller is rank {} of {}",
                material.config.learner.ranks, request.rank, request.world
            )),
            Ok(Role::Unspecified) | Err(_) => refuse(format!("role {} is not known", request.role)),
            Ok(role) => Ok(role),
        }
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinReply>, Status> {
        let address = request.remote_addr().map(|a| a.ip().to_canonical());
        let request = request.into_inner();
        let role = self.admit(&request)?;
        let member = Member {
            rank: request.rank,
            pid: request.pid,
            metrics_address: request.metrics_address,
            instruction_set: request.instruction_set,
            ..Member::new(role, 0.0)
        };
        let joined = self.0.run.join(request.caller_id.clone(), member).await?;
        self.0.weights.fanout.join(&request.caller_id, request.relay_address, address);
        let material = &self.0.material;
        Ok(Response::new(v1::JoinReply {
            run_id: self.0.run_id.clone(),
            epoch: self.0.epoch,
            config_toml: material.config_toml.clone(),
            config_digest: material.config_digest.clone(),
            model_files: material.model_files().to_vec(),
            start_weights_digest: joined.start_weights_digest,
            heartbeat_seconds: material.config.cluster.heartbeat_seconds,
            max_message_bytes: material.config.cluster.max_message_bytes as u64,
            learner: joined.learner,
            frozen_digest: material.frozen().map(|f| f.digest.clone()).unwrap_or_default(),
            frozen_bf16: material.frozen().is_some_and(|f| f.source.bf16()),
        }))
    }

    async fn heartbeat(&self, request: Request<v1::HeartbeatRequest>) -> Result<Response<v1::HeartbeatReply>, Status> {
        let r = request.into_inner();
        let caller = r.caller.unwrap_or_default();
        let beat = self.0.run.heartbeat(caller, r.version, r.tokens_per_second, r.generated_tokens_total).await?;
        let (stop, reason) = (beat.stop.is_some(), beat.stop.unwrap_or_default());
        Ok(Response::new(v1::HeartbeatReply { stop, reason, cancelled_leases: beat.cancelled }))
    }

    async fn leave(&self, request: Request<v1::LeaveRequest>) -> Result<Response<v1::LeaveReply>, Status> {
        self.0.run.leave(request.into_inner().caller.unwrap_or_default()).await?;
        Ok(Response::new(v1::LeaveReply {}))
    }

    type FetchBlobStream = Parts<v1::BlobChunk>;

    async fn fetch_blob(
        &self,
        request: Request<v1::FetchBlobRequest>,
    ) -> Result<Response<Self::FetchBlobStream>, Status> {
        let hash = request.into_inner().hash;
        let blob = self.0.material.blob(&hash).ok_or_else(|| Status::not_found(format!("there is no blob {hash}")))?;
        let total = blob.len();
        // An empty blob is one empty part.
        let offsets = (0..total.max(1)).step_by(BLOB_PART);
        let parts = offsets.map(move |offset| {
            let data = Bytes::copy_from_slice(blob.get(offset..total.min(offset + BLOB_PART)).unwrap_or_default());
            Ok(v1::BlobChunk { offset: offset as u64, total: total as u64, data })
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(parts))))
    }

    type FetchWeightsStream = Parts<v1::WeightChunk>;

    async fn fetch_weights(
        &self,
        request: Request<v1::FetchWeightsRequest>,
    ) -> Result<Response<Self::FetchWeightsStream>, Status> {
        super::weights::version(&self.0, request.into_inner()).await.map(Response::new)
    }

    type FetchFrozenStream = Parts<v1::WeightChunk>;

    async fn fetch_frozen(
        &self,
        request: Request<v1::FetchFrozenRequest>,
    ) -> Result<Response<Self::FetchFrozenStream>, Status> {
        super::weights::frozen(&self.0, request.get_ref()).map(Response::new)
    }

    async fn locate_weights(
        &self,
        request: Request<v1::LocateWeightsRequest>,
    ) -> Result<Response<v1::LocateWeightsReply>, Status> {
        super::weights::locate(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn report_weights(
        &self,
        request: Request<v1::ReportWeightsRequest>,
    ) -> Result<Response<v1::ReportWeightsReply>, Status> {
        super::weights::report(&self.0, request.into_inner()).map(Response::new)
    }

    async fn broadcast_weights(
        &self,
        request: Request<v1::BroadcastRequest>,
    ) -> Result<Response<v1::BroadcastReply>, Status> {
        super::weights::broadcast(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
        let status = self.1.status().await.ok_or_else(|| Status::unavailable("the coordinator is shutting down"))?;
        Ok(Response::new(v1::StatusReply { json: status.to_string() }))
    }
}
