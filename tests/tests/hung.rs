//! A child that hangs (stopped, so that its connections stay open) is noticed by its missing heartbeats, killed and started again; the result is the same.

use quorum_tests::{Cluster, stop};
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn hung_children_are_replaced_and_the_end_state_is_the_same() {
    let scratch = tempfile::tempdir().unwrap();
    let sets = ["eval.enabled=false", "cluster.heartbeat_seconds=0.3", "run.steps=40"];
    let undisturbed = Cluster::fresh(&scratch.path().join("undisturbed"), 1, &sets).finish(LIMIT);

    let dir = scratch.path().join("hung");
    let cluster = Cluster::fresh(&dir, 1, &sets);
    cluster.wait_for_steps(1, LIMIT);
    let worker = cluster.pid_of("worker-0", LIMIT);
    stop(worker);
    cluster.wait_for("a new worker", LIMIT, |_| {
        let pid = cluster.pid_of("worker-0", LIMIT);
        (pid != worker).then_some(())
    });
    let lines = |dir: &Path| std::fs::read_to_string(dir.join("metrics.jsonl")).map_or(0, |t| t.lines().count());
    cluster.wait_for_steps(lines(&dir) + 1, LIMIT);
    let learner = cluster.pid_of("learner-0", LIMIT);
    stop(learner);
    cluster.wait_for("word of the hung learner", LIMIT, |_| {
        cluster.log().contains(&format!("learner-0 (process {learner}) was lost")).then_some(())
    });
    let report = cluster.finish(LIMIT);
    assert_eq!(report["weights_sha256"], undisturbed["weights_sha256"]);
    assert!(!dir.join("endpoints.json").exists(), "nobody answers at these addresses any more");
}
