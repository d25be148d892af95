//! Batches out, weights and commits in.

use super::Shared;
use super::poll::Wait;
use crate::run::{Batch, Head};
use crate::state::{CommitVerdict, Formation, Meeting, PublishVerdict, Work};
use crate::weights::Upload;
use quorum_core::types::Purpose;
use quorum_proto::v1::batch_part::Part;
use quorum_proto::v1::learner_server::Learner;
use quorum_proto::v1::{self, BatchState, GroupState};
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

/// Longest silence inside an upload.
const UPLOAD_PAUSE: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub(super) struct LearnerService(pub(super) Shared);

impl LearnerService {
    fn parts(&self, step: u64, batch: Batch) -> Result<Vec<v1::BatchPart>, Status> {
        let (state, expected_digest, checkpoint) = match batch.head {
            Head::Pending => (BatchState::Pending, String::new(), false),
            Head::RunComplete => (BatchState::RunComplete, String::new(), false),
            Head::Ready { expected_digest, checkpoint } => (BatchState::Ready, expected_digest, checkpoint),
        };
        let items = batch.groups.len() as u32;
        let head = v1::BatchHead { state: state.into(), step, items, expected_digest, checkpoint };
        let mut parts = vec![v1::BatchPart { part: Some(Part::Head(head)) }];
        for group in batch.groups {
            let work = Work { purpose: Purpose::Train, step, slot: group.slot };
            let prompt = self.0.material.prompt(work).map_err(|e| Status::internal(e.to_string()))?;
            parts.push(v1::BatchPart {
                part: Some(Part::Item(v1::BatchItem { prompt: Some(prompt), group: Some(group) })),
            });
        }
        Ok(parts)
    }
}

#[tonic::async_trait]
impl Learner for LearnerService {
    async fn form_group(&self, request: Request<v1::FormGroupRequest>) -> Result<Response<v1::FormGroupReply>, Status> {
        let r = request.into_inner();
        let caller = r.caller.unwrap_or_default();
        let meeting = Meeting { rank: r.rank, world: r.world, transport: r.transport, collective_id: r.collective_id };
        let mut wait = Wait::new(&self.0.run, r.wait_seconds);
        let mut answer = self.0.run.form_group(caller.clone(), meeting.clone()).await?;
        while matches!(answer.1, Formation::Pending { .. }) && wait.again().await? {
            answer = self.0.run.form_group(caller.clone(), meeting.clone()).await?;
        }
        let (generation, formation) = answer;
        let reply = v1::FormGroupReply { generation, ..Default::default() };
        Ok(Response::new(match formation {
            Formation::Pending { missing } => {
                v1::FormGroupReply { state: GroupState::Pending.into(), missing, ..reply }
            }
            Formation::Ready { collective_id, members } => {
                v1::FormGroupReply { state: GroupState::Ready.into(), collective_id, members, ..reply }
            }
            Formation::Refused(reason) => v1::FormGroupReply { state: GroupState::Refused.into(), reason, ..reply },
        }))
    }

    type NextBatchStream = Pin<Box<dyn Stream<Item = Result<v1::BatchPart, Status>> + Send>>;

    async fn next_batch(
        &self,
        request: Request<v1::NextBatchRequest>,
    ) -> Result<Response<Self::NextBatchStream>, Status> {
        let r = request.into_inner();
        let caller = r.caller.unwrap_or_default();
        let mut wait = Wait::new(&self.0.run, r.wait_seconds);
        let mut batch = self.0.run.next_batch(caller.clone(), r.step).await?;
        while batch.head == Head::Pending && wait.again().await? {
            batch = self.0.run.next_batch(caller.clone(), r.step).await?;
        }
        let parts = self.parts(r.step, batch)?;
        Ok(Response::new(Box::pin(tokio_stream::iter(parts.into_iter().map(Ok)))))
    }

    async fn publish(
        &self,
        request: Request<Streaming<v1::PublishChunk>>,
    ) -> Result<Response<v1::PublishReply>, Status> {
        let mut stream = request.into_inner();
        let no = |reason: String| Ok(Response::new(v1::PublishReply { accepted: false, reason }));
        let mut caller = None;
        let mut upload: Option<Upload> = None;
        let dir = Path::new(&self.0.material.config.run.dir);
        loop {
            let message = tokio::time::timeout(UPLOAD_PAUSE, stream.message())
                .await
                .map_err(|_| Status::deadline_exceeded("the upload stopped in the middle"))??;
            let Some(message) = message else { break };
            caller = caller.or(message.caller);
            let Some(chunk) = message.chunk else { return no("a message of the upload has no chunk".into()) };
            if upload.is_none() {
                match Upload::begin(&chunk, self.0.material.slab_bytes(), dir) {
                    Ok(u) => upload = Some(u),
                    Err(reason) => return no(reason),
                }
            }
            if let Some(Err(reason)) = upload.as_mut().map(|u| u.add(&chunk)) {
                quorum_core::metric::WEIGHT_SYNC_FAILURES.with(["checksum"]).increment(1);
                return no(reason);
            }
        }
        let Some(upload) = upload else { return no("the upload is empty".into()) };
        let published = match upload.finish() {
            Ok(published) => published,
            Err(reason) => {
                quorum_core::metric::WEIGHT_SYNC_FAILURES.with(["checksum"]).increment(1);
                return no(reason);
            }
        };
        let verdict = self.0.run.publish(caller.unwrap_or_default(), published).await?;
        match verdict {
            PublishVerdict::Keep | PublishVerdict::Known => {
                Ok(Response::new(v1::PublishReply { accepted: true, reason: String::new() }))
            }
            PublishVerdict::Refused(reason) | PublishVerdict::Diverged(reason) => no(reason),
        }
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Result<Response<v1::CommitReply>, Status> {
        let verdict = self.0.run.commit(request.into_inner()).await?;
        Ok(Response::new(match verdict {
            CommitVerdict::Fresh | CommitVerdict::Replayed => v1::CommitReply { accepted: true, reason: String::new() },
            CommitVerdict::Refused(reason) | CommitVerdict::Diverged(reason) => {
                v1::CommitReply { accepted: false, reason }
            }
        }))
    }
}
