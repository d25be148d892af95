//! A worker whose answers are a hash of (weights, lease, sample).

use super::{caller, join};
use quorum_core::types::{Completion, Finish, Group};
use quorum_core::{answer, config, vote};
use quorum_proto::v1;
use quorum_proto::v1::cluster_client::ClusterClient;
use quorum_proto::v1::rollout_client::RolloutClient;
use std::collections::HashMap;
use std::time::Duration;
use tonic::Status;
use tonic::transport::Channel;

pub struct Worker {
    pub id: String,
    pub cluster: ClusterClient<Channel>,
    pub rollout: RolloutClient<Channel>,
    pub reply: v1::JoinReply,
    rule: vote::VoteRule,
    weights: HashMap<u64, Vec<u8>>,
}

impl Worker {
    pub async fn join(url: &str, id: &str) -> Result<Self, Status> {
        let channel = Channel::from_shared(url.to_owned())
            .unwrap()
            .connect()
            .await
            .map_err(|e| Status::unavailable(e.to_string()))?;
        let mut cluster = ClusterClient::new(channel.clone());
        let reply = cluster.join(join(v1::Role::RolloutWorker, id)).await?.into_inner();
        let rule = config::from_toml(&reply.config_toml, "join").unwrap().vote;
        Ok(Self { id: id.into(), cluster, rollout: RolloutClient::new(channel), reply, rule, weights: HashMap::new() })
    }

    pub fn caller(&self) -> v1::Caller {
        caller(&self.reply, &self.id)
    }

    pub async fn lease(&mut self, capacity: u32, wait_seconds: f64) -> Result<v1::LeaseReply, Status> {
        let request = v1::LeaseRequest { caller: Some(self.caller()), capacity, wait_seconds };
        Ok(self.rollout.lease(request).await?.into_inner())
    }

    pub async fn beat(&mut self) -> Result<v1::HeartbeatReply, Status> {
        let request =
            v1::HeartbeatRequest { caller: Some(self.caller()), tokens_per_second: 10.0, ..Default::default() };
        Ok(self.cluster.heartbeat(request).await?.into_inner())
    }

    async fn weights(&mut self, version: u64) -> Result<Vec<u8>, Status> {
        if let Some(w) = self.weights.get(&version) {
            return Ok(w.clone());
        }
        let request = v1::FetchWeightsRequest { caller: Some(self.caller()), version, ..Default::default() };
        let mut stream = self.cluster.fetch_weights(request).await?.into_inner();
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.message().await? {
            assert_eq!(blake3::hash(&chunk.data).as_bytes(), chunk.chunk_digest.as_ref());
            bytes.extend_from_slice(&chunk.data);
            assert_eq!(chunk.version, version);
        }
        self.weights.insert(version, bytes.clone());
        Ok(bytes)
    }

    /// The group a lease asks for. It fetches the lease's images, too.
    pub async fn group(&mut self, lease: &v1::LeaseGrant) -> Result<v1::GroupMsg, Status> {
        let weights = self.weights(lease.version).await?;
        let prompt = lease.prompt.clone().unwrap();
        for hash in &prompt.images {
            let request = v1::FetchBlobRequest { caller: Some(self.caller()), hash: hash.clone() };
            let mut stream = self.cluster.fetch_blob(request).await?.into_inner();
            let mut bytes = Vec::new();
            while let Some(part) = stream.message().await? {
                bytes.extend_from_slice(&part.data);
            }
            assert_eq!(blake3::hash(&bytes).to_hex().as_str(), hash);
        }
        let completions: Vec<Completion> =
            lease.samples.iter().map(|s| completion(&weights, lease, prompt.row, *s)).collect();
        let answers: Vec<Option<String>> =
            completions.iter().map(|c| answer::extract(&c.text, &answer::ExtractRule::default())).collect();
        let group = Group {
            step: lease.step,
            slot: lease.slot,
            prompt: prompt.row,
            version: lease.version,
            rewards: vec![0.0; completions.len()],
            vote: vote::vote(&answers, &self.rule),
            completions,
        };
        Ok(v1::GroupMsg::try_from(&group).unwrap())
    }

    pub async fn submit(
        &mut self,
        lease: &v1::LeaseGrant,
        group: Option<v1::GroupMsg>,
        failure: &str,
    ) -> Result<v1::SubmitReply, Status> {
        let request = v1::SubmitRequest {
            caller: Some(self.caller()),
            lease_id: lease.lease_id,
            fence: lease.fence,
            group,
            generate_seconds: 0.1,
            failure: failure.into(),
        };
        Ok(self.rollout.submit(request).await?.into_inner())
    }

    /// Works until the run is complete; pauses `pause` before each answer and says every third one twice.
    pub async fn work(mut self, pause: Duration) -> Result<u64, Status> {
        let mut delivered = 0;
        loop {
            self.beat().await?;
            let reply = self.lease(2, 0.1).await?;
            if reply.run_complete {
                return Ok(delivered);
            }
            for lease in &reply.leases {
                let group = self.group(lease).await?;
                tokio::time::sleep(pause).await;
                let said = self.submit(lease, Some(group.clone()), "").await?;
                delivered += u64::from(said.outcome() == v1::SubmitOutcome::Accepted);
                if lease.slot % 3 == 0 && said.outcome() == v1::SubmitOutcome::Accepted {
                    let again = self.submit(lease, Some(group), "").await?;
                    assert_eq!(again.outcome(), v1::SubmitOutcome::Duplicate, "{}", again.reason);
                }
            }
        }
    }
}

fn completion(weights: &[u8], lease: &v1::LeaseGrant, row: u64, sample: v1::SampleSpec) -> Completion {
    let mut h = blake3::Hasher::new();
    h.update(weights).update(&lease.seed.to_le_bytes()).update(&lease.step.to_le_bytes()).update(&row.to_le_bytes());
    h.update(&lease.purpose.to_le_bytes()).update(&sample.sample.to_le_bytes()).update(&sample.view.to_le_bytes());
    let bytes = *h.finalize().as_bytes();
    let n = 1 + usize::from(bytes[0]) % 5;
    Completion {
        sample: sample.sample,
        view: sample.view,
        tokens: bytes[1..=n].iter().map(|b| u32::from(*b)).collect(),
        logprobs: bytes[1..=n].iter().map(|b| -f32::from(*b) / 100.0).collect(),
        finish: Finish::Stop,
        text: format!("so \\boxed{{{}}}", bytes[9] % 3),
    }
}
