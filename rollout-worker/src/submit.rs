//! Submits one group or failure, again and again until it is answered or the lease is over. The coordinator makes it idempotent.

use quorum_core::client::{ClientError, Session};
use quorum_proto::v1::{SubmitOutcome, SubmitReply, SubmitRequest};
use std::time::Duration;
use tokio::time::Instant;

const CALL: Duration = Duration::from_secs(30);
/// A lease that ran out is still worth one try: nobody else may have answered it.
const LEAST: Duration = Duration::from_secs(2);

/// Delivers `request` before `deadline`. What becomes of it is logged; nothing here ends the worker.
pub async fn submit(session: Session, request: SubmitRequest, deadline: Instant) {
    let (lease, fence, failure) = (request.lease_id, request.fence, request.failure.clone());
    let patience = deadline.saturating_duration_since(Instant::now()).max(LEAST);
    let sent = session
        .retry("Submit", patience, || {
            let (link, request) = (session.link.clone(), request.clone());
            async move { link.call("Submit", CALL, link.rollout().submit(request)).await }
        })
        .await;
    match sent {
        Ok(reply) => log(lease, fence, &failure, &reply),
        Err(ClientError::Fenced { reason, .. }) => {
            tracing::info!(lease, reason, "group dropped: the lease belongs to an earlier epoch")
        }
        Err(error) => tracing::warn!(lease, %error, "group lost; its prompt will be given to another worker"),
    }
}

fn log(lease: u64, fence: u64, failure: &str, reply: &SubmitReply) {
    let reason = &reply.reason;
    match reply.outcome() {
        SubmitOutcome::Accepted if !failure.is_empty() => {
            tracing::warn!(lease, failure, "prompt reported as unanswerable")
        }
        SubmitOutcome::Accepted | SubmitOutcome::Duplicate => tracing::debug!(lease, fence, "group accepted"),
        SubmitOutcome::StaleFence | SubmitOutcome::StaleVersion => {
            tracing::info!(lease, fence, reason, "group dropped: stale")
        }
        SubmitOutcome::Invalid | SubmitOutcome::Unspecified => {
            tracing::warn!(
                lease,
                reason,
                "the coordinator refused a group; do worker and coordinator have the same version?"
            );
        }
    }
}
