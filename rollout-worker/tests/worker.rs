//! The worker against a coordinator in the same process, with the tiny fixture model.

#![allow(clippy::unwrap_used)]

mod support;

use clap::Parser;
use quorum_proto::v1;
use quorum_rollout_worker::worker::{Stop, run};
use quorum_rollout_worker::{Options, WorkerError};
use std::collections::BTreeMap;
use support::{Fake, Running, checkpoint, config, grant, image, prompt};
use tokio::task::JoinHandle;

fn options(running: &Running, threads: usize) -> Options {
    options_on(running, threads, "cpu")
}

fn options_on(running: &Running, threads: usize, devices: &str) -> Options {
    let threads = threads.to_string();
    let line =
        ["rollout-worker", "--coordinator", &running.url, "--threads", &threads, "--id", "worker-a", "--log", "off"];
    let line = line.into_iter().chain(["--device", devices]);
    Options::parse_from(line.chain(["--join-seconds", "10", "--reconnect-seconds", "10"]))
}

/// A fake with weights of version 0 and two images.
fn fake() -> Fake {
    let model = checkpoint();
    let fake = Fake::new(config(), model.side_files());
    fake.inside().weights.insert(0, model.load_weights().unwrap());
    for name in ["img_56x56.png", "img_84x56.png"] {
        fake.blob(&image(name));
    }
    fake
}

fn lease(fake: &Fake, id: u64, name: &str) {
    let grant = grant(&config(), id, id as u32, 0, prompt(id, &image(name)));
    fake.inside().leases.push_back(grant);
}

fn start(running: &Running, threads: usize) -> (Stop, JoinHandle<Result<(), WorkerError>>) {
    let stop = Stop::default();
    (stop.clone(), tokio::spawn(run(options(running, threads), stop)))
}

/// Groups by slot of one run over two prompts.
async fn groups(threads: usize, together: bool, devices: &str) -> BTreeMap<u32, v1::GroupMsg> {
    let fake = fake();
    let running = fake.serve().await;
    lease(&fake, 0, "img_56x56.png");
    if together {
        lease(&fake, 1, "img_84x56.png");
    }
    let worker = tokio::spawn(run(options_on(&running, threads, devices), Stop::default()));
    fake.until(60, "the first group", |i| !i.submissions.is_empty()).await;
    if !together {
        lease(&fake, 1, "img_84x56.png");
    }
    fake.until(60, "two groups", |i| i.submissions.len() == 2).await;
    fake.inside().complete = true;
    worker.await.unwrap().unwrap();
    fake.inside().submissions.iter().map(|s| s.group.clone().unwrap()).map(|g| (g.slot, g)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_are_whole_and_do_not_depend_on_batching_or_threads() {
    let a = groups(1, true, "cpu").await;
    for group in a.values() {
        let samples: Vec<(u32, u32)> = group.completions.iter().map(|c| (c.sample, c.view)).collect();
        assert_eq!(samples, [(0, 0), (1, 1), (2, 0), (3, 1)]);
        for c in &group.completions {
            assert!(!c.tokens.is_empty() && c.tokens.len() <= 12 && c.tokens.len() == c.logprobs.len());
            assert!(c.logprobs.iter().all(|l| *l <= 0.0 && l.is_finite()));
        }
        let group = quorum_core::types::Group::try_from(group.clone()).unwrap();
        assert_eq!(group.vote.answered + group.vote.missing, 4);
    }
    assert_ne!(a[&0].completions[0].tokens, a[&0].completions[2].tokens, "samples of one view differ by their key");
    assert_eq!(a, groups(2, false, "cpu").await);
    // An engine each for two devices: every lease goes to one of them.
    assert_eq!(a, groups(2, true, "cpu,cpu").await);
    assert_eq!(a, groups(1, false, "cpu,cpu,cpu").await);
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_device_that_is_not_there_is_refused_before_the_worker_joins() {
    let with = |devices: &str| {
        let line = ["rollout-worker", "--coordinator", "http://127.0.0.1:9", "--device", devices];
        Options::try_parse_from(line).map(|o| o.check_devices().map_err(|e| e.to_string()))
    };
    let refused = with("cuda:0").unwrap().unwrap_err();
    assert!(refused.contains("cuda:0") && refused.contains("--features cuda"), "{refused}");
    assert!(with("cuda:1,cuda:1").unwrap().is_err() && with("cpu").unwrap().is_ok());
    assert!(with("gpu").unwrap_err().to_string().contains("cuda:N"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreadable_image_is_reported_and_its_neighbours_are_answered() {
    let fake = fake();
    let running = fake.serve().await;
    fake.blob(b"no image at all");
    lease(&fake, 0, "img_56x56.png");
    let broken = grant(&config(), 1, 1, 0, prompt(1, b"no image at all"));
    let absent = grant(&config(), 2, 2, 0, prompt(2, b"never uploaded"));
    fake.inside().leases.extend([broken, absent]);
    let (stop, worker) = start(&running, 1);
    fake.until(60, "three answers", |i| i.submissions.len() == 3).await;
    stop.drain.cancel();
    worker.await.unwrap().unwrap();
    let inside = fake.inside();
    let of = |id| inside.submissions.iter().find(|s| s.lease_id == id).unwrap();
    assert!(of(0).group.is_some() && of(0).failure.is_empty());
    assert!(of(1).group.is_none() && of(1).failure.contains("image"), "{}", of(1).failure);
    assert!(of(2).group.is_none() && of(2).failure.contains("blob"), "{}", of(2).failure);
    assert_eq!((of(1).fence, of(1).caller.as_ref().unwrap().caller_id.as_str()), (101, "worker-a"));
    assert_eq!(inside.left, ["drained"]);
    assert!(inside.heartbeats > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_weights_are_fetched_again() {
    let fake = fake();
    let running = fake.serve().await;
    fake.inside().damage = 2;
    lease(&fake, 0, "img_56x56.png");
    let (stop, worker) = start(&running, 1);
    fake.until(60, "the group", |i| i.submissions.len() == 1).await;
    stop.drain.cancel();
    worker.await.unwrap().unwrap();
    assert_eq!(fake.inside().damage, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_epoch_is_joined_under_the_same_name() {
    let fake = fake();
    let running = fake.serve().await;
    let (stop, worker) = start(&running, 1);
    fake.until(20, "the first join", |i| i.joins.len() == 1).await;
    fake.inside().epoch = 2;
    fake.until(20, "the second join", |i| i.joins.len() == 2).await;
    lease(&fake, 0, "img_56x56.png");
    fake.until(60, "a group of the new epoch", |i| i.submissions.len() == 1).await;
    stop.drain.cancel();
    worker.await.unwrap().unwrap();
    let inside = fake.inside();
    assert_eq!(inside.submissions[0].caller.as_ref().unwrap().epoch, 2);
    assert_eq!(inside.joins[1].caller_id, inside.joins[0].caller_id);
    assert_eq!(inside.joins[1].run_id, "run-1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_taken_back_is_not_answered() {
    let fake = fake();
    let running = fake.serve().await;
    fake.inside().config.cluster.prompts_per_lease = 1;
    fake.inside().cancelled = vec![7];
    let (stop, worker) = start(&running, 1);
    fake.until(20, "a heartbeat", |i| i.heartbeats > 1).await;
    lease(&fake, 7, "img_56x56.png");
    lease(&fake, 8, "img_84x56.png");
    fake.until(60, "the other group", |i| i.submissions.iter().any(|s| s.lease_id == 8)).await;
    stop.drain.cancel();
    worker.await.unwrap().unwrap();
    assert_eq!(fake.inside().submissions.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_run_or_an_absent_coordinator_is_one_clear_line() {
    let fake = fake();
    let running = fake.serve().await;
    let mut other = options(&running, 1);
    other.member.run = "run-2".into();
    let error = run(other, Stop::default()).await.unwrap_err().to_string();
    assert!(error.contains(&running.url) && error.contains("run-1") && error.contains("run-2"), "{error}");
    let mut absent = options(&running, 1);
    (absent.member.coordinator, absent.member.join_seconds) = (Some("127.0.0.1:9".into()), 0.5);
    let error = run(absent, Stop::default()).await.unwrap_err().to_string();
    assert!(error.contains("http://127.0.0.1:9") && error.contains("did not answer"), "{error}");
    assert!(!error.contains('\n'));
}
