//! The learner's side of the protocol without a model: takes batches, checks that every slot is there once, publishes and commits.

use super::tally::Tally;
use anyhow::{Context, ensure};
use quorum_core::client::{Heartbeat, Session, Vitals};
use quorum_core::config::RunConfig;
use quorum_core::digest::{sha256_hex, weight_size};
use quorum_model::{Checkpoint, Partition};
use quorum_proto::v1::{self, BatchState, batch_part::Part};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const CALL: Duration = Duration::from_secs(120);
const PATIENCE: Duration = Duration::from_secs(60);
const CHUNK: usize = 1 << 20;

/// Bytes of a version of the bundled model.
pub fn slab_bytes() -> anyhow::Result<usize> {
    let config = RunConfig::default();
    let model = Checkpoint::open(Path::new(&config.model.path)).context("run it from the repository's root")?;
    let parts = Partition::of(&model.config, &model.layout, &config.train)?;
    Ok(parts.trainable.total() * weight_size(config.train.precision))
}

/// Uploads made-up weights as `version`; their digest.
pub async fn publish(session: &Session, version: u64, bytes: usize) -> anyhow::Result<String> {
    let mut slab = vec![0u8; bytes];
    slab.iter_mut().zip(version.to_le_bytes()).for_each(|(to, from)| *to = from);
    let digest = sha256_hex(&slab);
    let mut caller = Some(session.caller(format!("version-{version}")));
    let chunks: Vec<v1::PublishChunk> = slab
        .chunks(CHUNK)
        .enumerate()
        .map(|(i, part)| {
            let chunk = v1::WeightChunk {
                version,
                offset: (i * CHUNK) as u64,
                total: bytes as u64,
                data: part.to_vec().into(),
                chunk_digest: blake3::hash(part).as_bytes().to_vec().into(),
                weights_digest: digest.clone(),
            };
            v1::PublishChunk { caller: caller.take(), chunk: Some(chunk) }
        })
        .collect();
    let link = &session.link;
    let reply = link.call("Publish", CALL, link.learner().publish(tokio_stream::iter(chunks))).await?;
    ensure!(reply.accepted, "version {version} was refused: {}", reply.reason);
    Ok(digest)
}

/// All steps, then goodbye.
pub async fn run(session: Session, tally: Arc<Tally>, steps: u64, bytes: usize) -> anyhow::Result<()> {
    let _heartbeat = Heartbeat::start(&session, Arc::new(Vitals::default()), PATIENCE);
    for step in 0..steps {
        let slots = batch(&session, step).await?;
        tally.learned(&slots);
        let weights_digest = publish(&session, step + 1, bytes).await?;
        let request = v1::CommitRequest {
            caller: Some(session.caller(format!("commit-{step}"))),
            step,
            version: step + 1,
            weights_digest,
            ..Default::default()
        };
        let link = &session.link;
        let reply = link.call("Commit", CALL, link.learner().commit(request)).await?;
        ensure!(reply.accepted, "the commit of step {step} was refused: {}", reply.reason);
    }
    session.leave("complete").await;
    Ok(())
}

/// Slots of the batch of a step.
async fn batch(session: &Session, step: u64) -> anyhow::Result<Vec<u32>> {
    let link = &session.link;
    loop {
        let request = v1::NextBatchRequest { caller: Some(session.caller("")), step, wait_seconds: 15.0 };
        let mut stream = link.call("NextBatch", CALL, link.learner().next_batch(request)).await?;
        let mut slots = Vec::new();
        let mut state = BatchState::Unspecified;
        let mut items = 0;
        while let Some(part) = link.next("NextBatch", CALL, &mut stream).await? {
            match part.part {
                Some(Part::Head(head)) => (state, items) = (head.state(), head.items),
                Some(Part::Item(item)) => slots.extend(item.group.map(|g| g.slot)),
                _ => {}
            }
        }
        match state {
            BatchState::Ready => {
                ensure!(slots.len() == items as usize, "{} of {items} groups of step {step} arrived", slots.len());
                return Ok(slots);
            }
            BatchState::Pending => {}
            other => anyhow::bail!("the batch of step {step} is {other:?}"),
        }
    }
}
