//! The end state is a function of configuration, data and seed: not of the number of workers, and not of who was killed when.

use quorum_tests::Cluster;
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);

/// What must not differ: digest of the weights and the bytes of metrics.jsonl.
fn end_state(report: &Value, dir: &Path) -> (String, String) {
    let digest = report["weights_sha256"].as_str().expect("report has weights_sha256").to_owned();
    assert_eq!(digest.len(), 64, "a SHA-256 in hex");
    (digest, std::fs::read_to_string(dir.join("metrics.jsonl")).expect("metrics.jsonl"))
}

fn undisturbed(scratch: &Path, workers: u32) -> (String, String) {
    let dir = scratch.join(format!("workers-{workers}"));
    let report = Cluster::fresh(&dir, workers, &[]).finish(LIMIT);
    assert_eq!(report["steps"], 4);
    assert_eq!(report["mismatch_nats_max"], 0.0, "rollout and learner log-probs are the same bits");
    let delivered = report["workers"].as_object().expect("report names the workers");
    let busy = delivered.values().filter(|n| n.as_u64() > Some(0)).count();
    assert_eq!(busy, workers as usize, "every worker delivered groups: {delivered:?}");
    end_state(&report, &dir)
}

#[test]
fn any_number_of_workers_and_any_kill_ends_with_the_same_bits() {
    let scratch = tempfile::tempdir().unwrap();
    let reference = undisturbed(scratch.path(), 1);
    for workers in [2, 3] {
        assert!(undisturbed(scratch.path(), workers) == reference, "{workers} workers end elsewhere than one");
    }

    let dir = scratch.path().join("killed");
    let report = Cluster::killed_three_ways(&dir, &[], LIMIT);
    assert_eq!(report["epochs"], 2, "the run was resumed once");
    assert!(end_state(&report, &dir) == reference, "killed and resumed, the run ends elsewhere");
}

#[test]
fn another_seed_ends_elsewhere() {
    let scratch = tempfile::tempdir().unwrap();
    let runs: Vec<String> = ["run.seed=7", "run.seed=8"]
        .iter()
        .map(|seed| {
            let dir = scratch.path().join(seed);
            let report = Cluster::fresh(&dir, 1, &["run.steps=1", "eval.enabled=false", seed]).finish(LIMIT);
            end_state(&report, &dir).0
        })
        .collect();
    assert_ne!(runs[0], runs[1]);
}
