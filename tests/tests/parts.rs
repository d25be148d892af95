//! Runs in which not everything learns, or in another precision, keep the promises of full training: the same end whatever the number of
//! workers and whoever was killed, and no difference between the log-probs of workers and learner.

use quorum_tests::Cluster;
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);
const LORA: [&str; 2] = ["train.lora.rank=4", "optim.learning_rate=1e-3"];

fn digest(report: &Value) -> String {
    assert_eq!(report["mismatch_nats_max"], 0.0, "rollout and learner log-probs are the same bits");
    report["weights_sha256"].as_str().expect("report has weights_sha256").to_owned()
}

fn run(scratch: &Path, name: &str, workers: u32, sets: &[&str]) -> (String, String) {
    let dir = scratch.join(format!("{name}-{workers}"));
    let digest = digest(&Cluster::fresh(&dir, workers, sets).finish(LIMIT));
    (digest, std::fs::read_to_string(dir.join("metrics.jsonl")).expect("metrics.jsonl"))
}

#[test]
fn adapters_learn_and_survive_any_kill() {
    let scratch = tempfile::tempdir().unwrap();
    let reference = run(scratch.path(), "lora", 1, &LORA);
    let dir = scratch.path().join("killed");
    let report = Cluster::killed_three_ways(&dir, &LORA, LIMIT);
    assert_eq!(digest(&report), reference.0, "killed and resumed, the run ends elsewhere");
    assert_eq!(std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap(), reference.1);
    let checkpoint = dir.join("checkpoints/step-000004");
    let size = |file: &str| std::fs::metadata(checkpoint.join(file)).map_or(0, |m| m.len());
    assert!(size("adapter.safetensors") > 0 && size("model.safetensors") == 0, "a checkpoint holds the adapters alone");
}

#[test]
fn frozen_parts_bf16_and_threads_inside_products_keep_the_promise() {
    let scratch = tempfile::tempdir().unwrap();
    let freeze = ["train.freeze=[\"vision\", \"embeddings\"]", "run.steps=2", "eval.enabled=false"];
    let bf16 = ["train.precision=bf16", "train.checkpointing=true", "run.steps=2", "eval.enabled=false"];
    let lanes = ["learner.lanes=1", "train.freeze=[\"vision\"]", "run.steps=2", "eval.enabled=false"];
    let mut ends = Vec::new();
    for (name, sets) in [("freeze", &freeze[..]), ("bf16", &bf16)] {
        let one = run(scratch.path(), name, 1, sets);
        assert!(run(scratch.path(), name, 2, sets) == one, "{name}: two workers end elsewhere than one");
        ends.push(one.0);
    }
    let one = run(scratch.path(), "lanes-threads", 1, &lanes);
    let single = ["learner.threads=1"].iter().chain(&lanes).copied().collect::<Vec<_>>();
    assert!(run(scratch.path(), "lanes-single", 1, &single) == one, "threads inside a product change a bit");
    ends.push(one.0);
    ends.sort();
    ends.dedup();
    assert_eq!(ends.len(), 3, "each setting changes what is learned");
}
