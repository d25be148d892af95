//! Learner groups over real tonic: ranks meet, one that is lost sends the others back, and a run gives its machine back with a checkpoint.

// Helpers outside #[test] functions may panic too: that fails the test.
#![allow(clippy::unwrap_used)]
// The helpers serve other tests too.
#![allow(dead_code)]

mod fake;

use fake::coordinator::{Coordinator, end_state};
use fake::learner::Learner;
use fake::worker::Worker;
use quorum_coordinator::run::RunEnd;
use quorum_proto::v1::cluster_client::ClusterClient;
use quorum_proto::v1::learner_client::LearnerClient;
use quorum_proto::v1::{self, GroupState};
use std::time::{Duration, Instant};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// A rank that only talks.
#[derive(Clone)]
struct Rank {
    rank: u32,
    cluster: ClusterClient<Channel>,
    learner: LearnerClient<Channel>,
    caller: v1::Caller,
}

impl Rank {
    async fn join(url: &str, id: &str, rank: u32, world: u32) -> Result<Self, Status> {
        let channel = Channel::from_shared(url.to_owned()).unwrap().connect().await.unwrap();
        let mut cluster = ClusterClient::new(channel.clone());
        let request = v1::JoinRequest { rank, world, ..fake::join(v1::Role::Learner, id) };
        let reply = cluster.join(request).await?.into_inner();
        Ok(Self { rank, cluster, learner: LearnerClient::new(channel), caller: fake::caller(&reply, id) })
    }

    async fn meet(&mut self, wait_seconds: f64) -> Result<v1::FormGroupReply, Status> {
        let collective_id = if self.rank == 0 { b"id".to_vec().into() } else { Vec::new().into() };
        let (caller, rank) = (Some(self.caller.clone()), self.rank);
        let transport = "nccl".into();
        let request = v1::FormGroupRequest { caller, rank, world: 2, collective_id, transport, wait_seconds };
        Ok(self.learner.form_group(request).await?.into_inner())
    }

    async fn commit(&mut self) -> Status {
        let request = v1::CommitRequest { caller: Some(self.caller.clone()), version: 1, ..Default::default() };
        self.learner.commit(request).await.unwrap_err()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ranks_meet_and_a_lost_one_sends_the_others_back() {
    let dir = tempfile::tempdir().unwrap();
    let c = Coordinator::start(dir.path(), &["learner.ranks=2", "cluster.heartbeat_seconds=30"]);
    let e = Rank::join(&c.url, "l0", 0, 1).await.err().unwrap();
    assert!(e.code() == Code::PermissionDenied && e.message().contains("learner.ranks = 2"), "{e}");
    let mut first = Rank::join(&c.url, "l0", 0, 2).await.unwrap();
    let alone = first.meet(0.0).await.unwrap();
    assert_eq!((alone.state(), alone.missing), (GroupState::Pending, vec![1]));
    // It waits for the other, and is answered at once when that one asks.
    let (began, mut waiting) = (Instant::now(), first.clone());
    let waiting = tokio::spawn(async move { waiting.meet(15.0).await.unwrap() });
    let mut second = Rank::join(&c.url, "l1", 1, 2).await.unwrap();
    let ready = second.meet(15.0).await.unwrap();
    assert_eq!((ready.state(), &ready.collective_id[..]), (GroupState::Ready, &b"id"[..]));
    assert_eq!(ready.members, ["l0", "l1"]);
    assert_eq!(waiting.await.unwrap(), ready);
    assert!(began.elapsed() < Duration::from_secs(10));
    let e = second.commit().await;
    assert!(e.code() == Code::PermissionDenied && e.message().contains("only rank 0"), "{e}");
    let e = Rank::join(&c.url, "other", 1, 2).await.err().unwrap();
    assert!(e.code() == Code::PermissionDenied && e.message().contains("`l1`"), "{e}");

    let leave = v1::LeaveRequest { caller: Some(second.caller.clone()), ..Default::default() };
    second.cluster.leave(leave).await.unwrap();
    let beat = v1::HeartbeatRequest { caller: Some(first.caller.clone()), ..Default::default() };
    let e = first.cluster.heartbeat(beat).await.unwrap_err();
    assert_eq!(e.code(), Code::FailedPrecondition, "{e}");
    let mut first = Rank::join(&c.url, "l0", 0, 2).await.unwrap();
    let mut other = Rank::join(&c.url, "other", 1, 2).await.unwrap();
    first.meet(0.0).await.unwrap();
    let again = other.meet(0.0).await.unwrap();
    assert!(again.state() == GroupState::Ready && again.generation > ready.generation, "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_given_back_with_a_checkpoint_and_the_run_ends_the_same() {
    let whole = tempfile::tempdir().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let set = ["checkpoint.every=4"];
    for (path, preempt) in [(whole.path(), false), (dir.path(), true), (dir.path(), false)] {
        let c = Coordinator::start(path, &set);
        let mut learner = Learner::join(&c.url, "learner", path).await.unwrap();
        let worker = tokio::spawn(Worker::join(&c.url, "w").await.unwrap().work(Duration::from_millis(2)));
        if preempt {
            // The second step is handed out when the signal comes: it makes no checkpoint, the third does.
            learner.work(Some(1)).await.unwrap();
            c.handle.preempt().await;
            tokio::select! {
                end = c.ended() => assert_eq!(end, RunEnd::Preempted),
                _ = learner.work(None) => panic!("the learner was told that the run is complete"),
            }
            worker.abort();
            assert_eq!(learner.batches.iter().map(|b| b.0).collect::<Vec<_>>(), [0, 1, 2]);
            let there = |n: u64| path.join(format!("run/checkpoints/step-{n:06}")).is_dir();
            assert_eq!([1, 2, 3].map(there), [false, false, true]);
            continue;
        }
        learner.work(None).await.unwrap();
        assert_eq!(c.ended().await, RunEnd::Complete);
        worker.await.unwrap().unwrap();
    }
    assert_eq!(end_state(whole.path()), end_state(dir.path()));
}
