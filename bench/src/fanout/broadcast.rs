//! Weights by broadcast: the real coordinator service, the learner's and the workers' sides, and C libraries in place of the driver's and NCCL's, which
//! stand in for device memory, too. What NCCL and a GPU really do is not shown here.

#[path = "../../../learner/tests/nccl_fake/mod.rs"]
mod nccl_fake;

use super::cluster::{Client, Cluster};
use nccl_fake::{aborts, damage, inside};
use quorum_core::client::{Heartbeat, JoinOptions, LinkOptions, Session};
use quorum_core::digest::{policy_digest, policy_to_le};
use quorum_learner::broadcast::Broadcaster;
use quorum_proto::v1;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// 80 MB in f32: three parts.
const VALUES: usize = 20_000_003;
const FABRIC: &str = "ib0";

fn slab(version: u64) -> Vec<f32> {
    (0..VALUES).map(|i| (i as f32).mul_add(1e-3, version as f32)).collect()
}

/// A coordinator, and a learner that publishes and broadcasts.
struct Scene {
    cluster: Cluster,
    session: Session,
    broadcaster: Broadcaster,
    _heartbeat: Heartbeat,
    _dir: tempfile::TempDir,
}

impl Scene {
    async fn new(sets: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
        let cluster = Cluster::start(&dir.path().join("cluster"), VALUES, &sets, None).await.unwrap();
        let join = JoinOptions {
            link: LinkOptions { url: cluster.url.clone(), ..LinkOptions::default() },
            role: v1::Role::Learner,
            caller_id: "learner".into(),
            run_id: String::new(),
            config_digest: String::new(),
            instruction_set: "none".into(),
            metrics_address: String::new(),
            relay_address: String::new(),
            rank: 0,
            world: 1,
            patience: Duration::from_secs(30),
        };
        let session = Session::join(&join).await.unwrap();
        let heartbeat = Heartbeat::start(&session, Arc::default(), Duration::from_secs(30));
        let broadcaster = Broadcaster::new(FABRIC.into(), 0);
        Self { cluster, session, broadcaster, _heartbeat: heartbeat, _dir: dir }
    }

    async fn worker(&self, id: &str, fabric: &str) -> Client {
        self.cluster.join(id, None).await.unwrap().on(fabric, 1, VALUES)
    }

    /// Publishes `version` and broadcasts it once `workers` of the fabric wait for a round; its weights.
    async fn publish(&mut self, version: u64, workers: usize) -> Vec<f32> {
        let start = Instant::now();
        while self.cluster.weights.broadcasts.waiting(FABRIC) != workers {
            assert!(start.elapsed() < Duration::from_secs(20), "{workers} workers do not wait");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let slab = slab(version);
        self.cluster.publish(version, &slab);
        self.broadcaster.begin(&self.session, &Arc::new(slab.clone()), version).await;
        // Leases come later in a run, too: after the commit.
        tokio::time::sleep(Duration::from_millis(500)).await;
        slab
    }

    /// Takes `version` as a worker does; how it came, by the coordinator's books.
    async fn take(&self, worker: &mut Client, version: u64, slab: &[f32]) -> (&'static str, String) {
        let weights = worker.get(version).await.unwrap();
        let precision = self.cluster.precision();
        assert!(weights.version == version && policy_to_le(&weights.slab, precision) == policy_to_le(slab, precision));
        assert_eq!(weights.digest, policy_digest(slab, precision));
        let start = Instant::now();
        loop {
            match self.cluster.weights.fanout.whence(&worker.id).0 {
                Some(whence) if whence.version == version => return (whence.transport, whence.source),
                _ => assert!(start.elapsed() < Duration::from_secs(20), "{} has not reported {version}", worker.id),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn nccl() -> (&'static str, String) {
    ("nccl", "learner".to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_of_the_fabric_take_a_version_together() {
    if !inside("fanout::broadcast::workers_of_the_fabric_take_a_version_together") {
        return;
    }
    for precision in ["f32", "bf16"] {
        let mut scene = Scene::new(&[&format!("train.precision={precision}"), "cluster.relay_fanout=1"]).await;
        let (mut a, mut b) = (scene.worker("a", FABRIC).await, scene.worker("b", FABRIC).await);
        let mut other = scene.worker("other", "another").await;
        for version in [0, 1, 2] {
            let slab = scene.publish(version, 2).await;
            assert_eq!(scene.take(&mut a, version, &slab).await, nccl());
            assert_eq!(scene.take(&mut b, version, &slab).await, nccl());
            assert_eq!(scene.take(&mut other, version, &slab).await, ("grpc", String::new()));
            // The coordinator has no room for another, and who took part hands the version on.
            let mut late = scene.worker(&format!("late-{version}"), "another").await;
            let (transport, source) = scene.take(&mut late, version, &slab).await;
            assert!(transport == "relay" && ["a", "b"].contains(&source.as_str()), "{transport} from {source}");
        }
    }
    assert_eq!(aborts(), 0, "every group ended well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_never_comes_costs_the_deadline() {
    if !inside("fanout::broadcast::a_member_that_never_comes_costs_the_deadline") {
        return;
    }
    let mut scene = Scene::new(&["cluster.broadcast_seconds=0.5", "cluster.relay_fanout=0"]).await;
    let mut a = scene.worker("a", FABRIC).await;
    // It waits for a round, and then does nothing.
    let gone = scene.cluster.join("gone", None).await.unwrap();
    let request = v1::BroadcastRequest {
        caller: Some(gone.session.caller("")),
        fabric: FABRIC.into(),
        wait_seconds: 20.0,
        ..Default::default()
    };
    let link = gone.session.link.clone();
    let hung = tokio::spawn(async move { link.cluster().broadcast_weights(request).await });
    let start = Instant::now();
    let slab = scene.publish(0, 2).await;
    let round = hung.await.unwrap().unwrap().into_inner();
    assert_eq!(round.members, ["learner", "a", "gone"]);
    assert_eq!(scene.take(&mut a, 0, &slab).await, ("grpc", String::new()));
    let (deadline, taken) = (Duration::from_secs_f64(round.seconds), start.elapsed());
    assert!(taken > deadline && taken < deadline + Duration::from_secs(5), "{taken:?} of {deadline:?}");
    // Without the one that hangs the next version goes well.
    let start = Instant::now();
    while aborts() < 2 {
        assert!(start.elapsed() < Duration::from_secs(20), "learner and a abort the group");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let slab = scene.publish(1, 1).await;
    assert_eq!(scene.take(&mut a, 1, &slab).await, nccl());
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_bytes_are_refused_and_fetched() {
    if !inside("fanout::broadcast::damaged_bytes_are_refused_and_fetched") {
        return;
    }
    let mut scene = Scene::new(&["cluster.relay_fanout=0"]).await;
    let (mut a, mut b) = (scene.worker("a", FABRIC).await, scene.worker("b", FABRIC).await);
    damage(2);
    let slab = scene.publish(0, 2).await;
    assert_eq!(scene.take(&mut a, 0, &slab).await, nccl());
    assert_eq!(scene.take(&mut b, 0, &slab).await, ("grpc", String::new()));
    // The fabric rests: the stream of chunks serves.
    let slab = scene.publish(1, 2).await;
    assert_eq!(scene.take(&mut a, 1, &slab).await, ("grpc", String::new()));
}
