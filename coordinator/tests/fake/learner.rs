//! A learner whose step is a hash of the batch; it publishes, makes checkpoints, and replays like a real one.

use super::{caller, digest, join, start_weights, train};
use quorum_proto::v1;
use quorum_proto::v1::batch_part::Part;
use quorum_proto::v1::cluster_client::ClusterClient;
use quorum_proto::v1::learner_client::LearnerClient;
use std::path::{Path, PathBuf};
use tonic::Status;
use tonic::transport::Channel;

pub struct Learner {
    id: String,
    cluster: ClusterClient<Channel>,
    client: LearnerClient<Channel>,
    reply: v1::JoinReply,
    weights: Vec<u8>,
    version: u64,
    checkpoints: PathBuf,
    /// Wrong bits from this step on, to be found out.
    pub wrong_from: Option<u64>,
    /// Batches received: (step, rows in slot order).
    pub batches: Vec<(u64, Vec<u64>)>,
}

impl Learner {
    pub async fn join(url: &str, id: &str, dir: &Path) -> Result<Self, Status> {
        let channel = Channel::from_shared(url.to_owned())
            .unwrap()
            .connect()
            .await
            .map_err(|e| Status::unavailable(e.to_string()))?;
        let mut cluster = ClusterClient::new(channel.clone());
        let reply = cluster.join(join(v1::Role::Learner, id)).await?.into_inner();
        let start = reply.learner.clone().unwrap();
        let checkpoints = dir.join("run/checkpoints");
        let weights = match start.checkpoint.as_str() {
            "" => start_weights(),
            name => std::fs::read(checkpoints.join(name).join("slab")).unwrap(),
        };
        let client = LearnerClient::new(channel);
        let version = start.checkpoint_step;
        Ok(Self {
            id: id.into(),
            cluster,
            client,
            reply,
            weights,
            version,
            checkpoints,
            wrong_from: None,
            batches: Vec::new(),
        })
    }

    fn caller(&self) -> v1::Caller {
        caller(&self.reply, &self.id)
    }

    pub async fn publish(&mut self) -> Result<v1::PublishReply, Status> {
        let whole = digest(&self.weights);
        let half = self.weights.len() / 2;
        let chunks: Vec<v1::PublishChunk> = [(0, &self.weights[..half]), (half, &self.weights[half..])]
            .into_iter()
            .map(|(offset, data)| v1::PublishChunk {
                caller: (offset == 0).then(|| self.caller()),
                chunk: Some(v1::WeightChunk {
                    version: self.version,
                    offset: offset as u64,
                    total: self.weights.len() as u64,
                    data: data.to_vec().into(),
                    chunk_digest: blake3::hash(data).as_bytes().to_vec().into(),
                    weights_digest: whole.clone(),
                }),
            })
            .collect();
        Ok(self.client.publish(tokio_stream::iter(chunks)).await?.into_inner())
    }

    pub async fn batch(&mut self, wait_seconds: f64) -> Result<(v1::BatchHead, Vec<v1::BatchItem>), Status> {
        let request = v1::NextBatchRequest { caller: Some(self.caller()), step: self.version, wait_seconds };
        let mut stream = self.client.next_batch(request).await?.into_inner();
        let (mut head, mut items) = (None, Vec::new());
        while let Some(part) = stream.message().await? {
            match part.part.unwrap() {
                Part::Head(h) => head = Some(h),
                Part::Item(i) => items.push(i),
            }
        }
        let head = head.unwrap();
        assert_eq!(head.items as usize, items.len());
        Ok((head, items))
    }

    fn checkpoint(&self) -> String {
        let name = format!("step-{:06}", self.version);
        let dir = self.checkpoints.join(&name);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("slab"), &self.weights).unwrap();
        name
    }

    /// Trains until the run is complete, or stops before it would commit `stop_before`.
    pub async fn work(&mut self, stop_before: Option<u64>) -> Result<v1::CommitReply, Status> {
        let said = self.publish().await?;
        assert!(said.accepted, "{}", said.reason);
        loop {
            let heartbeat =
                v1::HeartbeatRequest { caller: Some(self.caller()), version: self.version, ..Default::default() };
            self.cluster.heartbeat(heartbeat).await?;
            let (head, items) = self.batch(0.2).await?;
            match head.state() {
                v1::BatchState::RunComplete => return Ok(v1::CommitReply { accepted: true, reason: String::new() }),
                v1::BatchState::Ready if stop_before == Some(self.version) => {
                    return Ok(v1::CommitReply { accepted: false, reason: "stopped".into() });
                }
                v1::BatchState::Ready => {
                    let reply = self.step(&head, &items).await?;
                    if !reply.accepted {
                        return Ok(reply);
                    }
                }
                _ => {}
            }
        }
    }

    async fn step(&mut self, head: &v1::BatchHead, items: &[v1::BatchItem]) -> Result<v1::CommitReply, Status> {
        let step = self.version;
        self.batches.push((step, items.iter().map(|i| i.prompt.as_ref().unwrap().row).collect()));
        self.weights = train(&self.weights, items);
        if self.wrong_from.is_some_and(|from| step >= from) {
            self.weights[0] ^= 1;
        }
        self.version += 1;
        let whole = digest(&self.weights);
        if self.wrong_from.is_none() && !head.expected_digest.is_empty() {
            assert_eq!(head.expected_digest, whole, "a replay of step {step} gives other bits");
        }
        let checkpoint = if head.checkpoint { self.checkpoint() } else { String::new() };
        let said = self.publish().await?;
        if !said.accepted {
            return Ok(v1::CommitReply { accepted: false, reason: said.reason });
        }
        let request = v1::CommitRequest {
            caller: Some(self.caller()),
            step,
            version: self.version,
            weights_digest: whole,
            metrics: [("loss".to_owned(), f64::from(self.weights[5]))].into(),
            timings: ["learner_seconds", "publish_seconds", "checkpoint_seconds"].map(|t| (t.to_owned(), 0.001)).into(),
            checkpoint,
            checkpoint_manifest: "m".into(),
        };
        let first = self.client.commit(request.clone()).await?.into_inner();
        // A reply may be lost: saying it again is harmless.
        let second = self.client.commit(request).await?.into_inner();
        assert_eq!(first.accepted, second.accepted);
        Ok(first)
    }
}
