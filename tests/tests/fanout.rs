//! Relays and weight differences change nothing that is learned: whole runs end with the same bits without them, with them, and with a relay killed.

use quorum_tests::{Cluster, kill, repository};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(180);

/// Digest of the weights and the bytes of metrics.jsonl.
fn end_state(report: &Value, dir: &Path) -> (String, String) {
    let digest = report["weights_sha256"].as_str().expect("report has weights_sha256").to_owned();
    (digest, std::fs::read_to_string(dir.join("metrics.jsonl")).expect("metrics.jsonl"))
}

fn start(dir: &Path, sets: &[&str]) -> Cluster {
    let config = repository().join("tests/configs/small.toml");
    let place = format!("run.dir={}", dir.display());
    let config = config.to_str().expect("utf-8");
    let mut args =
        vec!["--config", config, "--workers", "3", "--log", "info,quorum_rollout_worker=debug", "--set", &place];
    for set in sets {
        args.extend(["--set", set]);
    }
    Cluster::start(dir, &args)
}

/// Lines of the workers' logs that say where a version came from.
fn fetched(dir: &Path) -> Vec<String> {
    let logs = std::fs::read_dir(dir.join("logs")).expect("logs").map(|e| e.expect("entry").path());
    let text = logs.map(|path| std::fs::read_to_string(path).unwrap_or_default()).collect::<String>();
    text.lines()
        .filter(|line| line.contains("weights fetched") && line.contains("stream="))
        .map(str::to_owned)
        .collect()
}

#[test]
fn relays_and_differences_end_with_the_same_bits() {
    let scratch = tempfile::tempdir().unwrap();
    for lora in [&[][..], &["train.lora.rank=4", "train.lora.alpha=8"]] {
        let name = lora.len();
        let plain = scratch.path().join(format!("plain-{name}"));
        let sets = [lora, &["cluster.relay_fanout=0"]].concat();
        let reference = end_state(&start(&plain, &sets).finish(LIMIT), &plain);
        assert!(fetched(&plain).iter().all(|line| !line.contains("from=\"worker") && !line.contains("Delta")));

        let relayed = scratch.path().join(format!("relayed-{name}"));
        let sets = [lora, &["cluster.relay_fanout=1", "cluster.weight_delta=true"]].concat();
        let report = start(&relayed, &sets).finish(LIMIT);
        let lines = fetched(&relayed);
        assert!(lines.iter().any(|line| line.contains("from=\"worker-")), "nothing came through a relay: {lines:?}");
        assert!(lines.iter().any(|line| line.contains("Delta")), "no difference was fetched: {lines:?}");
        assert!(end_state(&report, &relayed) == reference, "with relays and differences the run ends elsewhere");
    }
}

#[test]
fn a_killed_relay_changes_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let plain = scratch.path().join("plain");
    let reference = end_state(&start(&plain, &["cluster.relay_fanout=0"]).finish(LIMIT), &plain);
    let dir = scratch.path().join("killed");
    let sets = ["cluster.relay_fanout=1", "cluster.weight_delta=true", "cluster.relay_seconds=1"];
    let cluster = start(&dir, &sets);
    cluster.wait_for_steps(1, LIMIT);
    kill(cluster.pid_of("worker-0", LIMIT));
    assert!(end_state(&cluster.finish(LIMIT), &dir) == reference, "a killed relay changes the end");
}
