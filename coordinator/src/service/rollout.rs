//! Leases out, groups in. A group is checked here, beside other calls; the actor only decides and records.

use super::Shared;
use super::poll::Wait;
use crate::check::{Checked, check};
use crate::run::{Answer, group_row};
use crate::state::{Grant, Work};
use quorum_core::types::Group;
use quorum_proto::v1::rollout_server::Rollout;
use quorum_proto::v1::{self, SubmitOutcome};
use tonic::{Request, Response, Status};

#[derive(Clone)]
pub(super) struct RolloutService(pub(super) Shared);

impl RolloutService {
    fn grant(&self, grant: Grant) -> Result<v1::LeaseGrant, Status> {
        let material = &self.0.material;
        let Work { purpose, step, slot } = grant.work;
        let prompt = material.prompt(grant.work).map_err(|e| Status::internal(e.to_string()))?;
        let samples = material.samples(purpose).into_iter().map(|(sample, view)| v1::SampleSpec { sample, view });
        Ok(v1::LeaseGrant {
            lease_id: grant.lease,
            fence: grant.fence,
            purpose: v1::Purpose::from(purpose).into(),
            step,
            slot,
            version: grant.version,
            seed: material.config.run.seed,
            prompt: Some(prompt),
            sampling: Some(material.sampling(purpose).into()),
            samples: samples.collect(),
            deadline_seconds: grant.seconds,
        })
    }

    /// Reads and checks the group of a submission.
    fn answer(&self, caller: &v1::Caller, work: Work, submission: v1::SubmitRequest) -> Result<Answer, String> {
        let message = submission.group.ok_or("neither a group nor a failure was submitted")?;
        let group = Group::try_from(message).map_err(|e| e.to_string())?;
        let version = group.version;
        // The version is judged by the state: a stale one is no malformed group.
        let checked = check(&self.0.material, work, version, group)?;
        let row = match &checked {
            Checked::Train(group) => Some(Box::new(group_row(group, &caller.caller_id)?)),
            Checked::Eval(_) => None,
        };
        Ok(Answer::Group { checked: Box::new(checked), row, version, generate_seconds: submission.generate_seconds })
    }
}

#[tonic::async_trait]
impl Rollout for RolloutService {
    async fn lease(&self, request: Request<v1::LeaseRequest>) -> Result<Response<v1::LeaseReply>, Status> {
        let r = request.into_inner();
        let caller = r.caller.unwrap_or_default();
        let capacity = r.capacity;
        let mut wait = Wait::new(&self.0.run, r.wait_seconds);
        let (mut grants, mut run_complete) = self.0.run.lease(caller.clone(), capacity).await?;
        while grants.is_empty() && !run_complete && wait.again().await? {
            (grants, run_complete) = self.0.run.lease(caller.clone(), capacity).await?;
        }
        let leases = grants.into_iter().map(|g| self.grant(g)).collect::<Result<_, _>>()?;
        Ok(Response::new(v1::LeaseReply { leases, run_complete }))
    }

    async fn submit(&self, request: Request<v1::SubmitRequest>) -> Result<Response<v1::SubmitReply>, Status> {
        let mut r = request.into_inner();
        let caller = r.caller.take().unwrap_or_default();
        let (lease, fence) = (r.lease_id, r.fence);
        let reply = |outcome: SubmitOutcome, reason: String| v1::SubmitReply { outcome: outcome.into(), reason };
        let Some(work) = self.0.run.work_of(&caller, lease).await? else {
            return Ok(Response::new(reply(
                SubmitOutcome::StaleFence,
                format!("lease {lease} is not known (any more)"),
            )));
        };
        let answer = match r.failure.is_empty() {
            false => Ok(Answer::Failure(std::mem::take(&mut r.failure))),
            true => self.answer(&caller, work, r),
        };
        let answered = match answer {
            Ok(answer) => self.0.run.submit(caller, lease, fence, answer).await?,
            Err(reason) => {
                self.0.run.invalid(caller, reason.clone()).await?;
                reply(SubmitOutcome::Invalid, reason)
            }
        };
        Ok(Response::new(answered))
    }
}
