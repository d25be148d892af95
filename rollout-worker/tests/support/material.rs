//! The tiny fixture model, its images, and leases on them.

use quorum_core::config::RunConfig;
use quorum_model::Checkpoint;
use quorum_proto::v1;
use std::path::PathBuf;

/// A path under the repository's fixtures.
pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// The tiny random Qwen2.5-VL.
pub fn checkpoint() -> Checkpoint {
    Checkpoint::open(&fixture("qwen2_5_vl")).unwrap()
}

/// Encoded bytes of a fixture image.
pub fn image(name: &str) -> Vec<u8> {
    std::fs::read(fixture("images").join(name)).unwrap()
}

/// A small configuration: 4 samples a prompt over 2 views, short answers.
pub fn config() -> RunConfig {
    let mut config = RunConfig::default();
    config.run.seed = 11;
    config.run.steps = 2;
    config.view.count = 2;
    config.rollout.prompts_per_step = 3;
    config.rollout.group_size = 4;
    config.rollout.max_new_tokens = 12;
    config.cluster.heartbeat_seconds = 0.1;
    config.learner.lanes = 2;
    config
}

/// A prompt with one image.
pub fn prompt(row: u64, image: &[u8]) -> v1::PromptSpec {
    let text = format!("<image>What is number {row}?");
    v1::PromptSpec { row, text, images: vec![blake3::hash(image).to_hex().to_string()] }
}

/// A lease of a whole group on a prompt.
pub fn grant(config: &RunConfig, lease_id: u64, slot: u32, step: u64, prompt: v1::PromptSpec) -> v1::LeaseGrant {
    let samples = (0..config.rollout.group_size).map(|i| v1::SampleSpec { sample: i, view: i % config.view.count });
    v1::LeaseGrant {
        lease_id,
        fence: lease_id + 100,
        purpose: v1::Purpose::Train.into(),
        step,
        slot,
        version: step,
        seed: config.run.seed,
        prompt: Some(prompt),
        sampling: Some(v1::SamplingSpec {
            temperature: config.rollout.temperature,
            top_p: 1.0,
            top_k: 0,
            max_new_tokens: config.rollout.max_new_tokens,
        }),
        samples: samples.collect(),
        deadline_seconds: 20.0,
    }
}
