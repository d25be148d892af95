//! Whole runs over real tonic with fake arithmetic: the end state is the same whatever happens on the way.

// Helpers outside #[test] functions may panic too: that fails the test.
#![allow(clippy::unwrap_used)]

mod fake;

use fake::coordinator::{Coordinator, end_state, history};
use fake::learner::Learner;
use fake::worker::Worker;
use quorum_coordinator::run::RunEnd;
use quorum_core::types::Group;
use quorum_proto::v1::{self, SubmitOutcome};
use std::path::Path;
use std::time::Duration;
use tonic::Code;

/// An undisturbed run with the given pauses, one worker each.
async fn whole_run(dir: &Path, pauses: &[u64]) {
    let c = Coordinator::start(dir, &[]);
    let mut learner = Learner::join(&c.url, "learner", dir).await.unwrap();
    let mut workers = Vec::new();
    for (i, ms) in pauses.iter().enumerate() {
        let worker = Worker::join(&c.url, &format!("w{i}")).await.unwrap();
        workers.push(tokio::spawn(worker.work(Duration::from_millis(*ms))));
    }
    assert!(learner.work(None).await.unwrap().accepted);
    assert_eq!(c.ended().await, RunEnd::Complete);
    for w in workers {
        assert!(w.await.unwrap().unwrap() > 0, "a worker delivered nothing");
    }
}

fn reference(pauses: &'static [u64]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(whole_run(&path, pauses));
    dir
}

#[test]
fn any_number_of_workers_in_any_order_ends_the_same() {
    let (one, three) = (reference(&[0]), reference(&[1, 13, 5]));
    let (a, b) = (end_state(one.path()), end_state(three.path()));
    assert_eq!(a, b);
    assert_eq!(a.0.lines().count(), 4);
    assert!(a.0.lines().all(|l| l.contains("\"reward_mean\"") && l.contains("\"loss\"")), "{}", a.0);
    assert_eq!((a.1.lines().count(), a.2.lines().count()), (fake::TEST, fake::TEST));
    let h = history(one.path());
    assert_eq!((h.samples, h.evals.len()), (4 * 4 * 3, 2 * 3 * fake::TEST));
    assert!(h.seconds > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn late_repeated_foreign_and_false_submissions_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let c = Coordinator::start(
        dir.path(),
        &["eval.enabled=false", "cluster.lease_seconds=0.6", "cluster.heartbeat_seconds=5"],
    );
    let mut learner = Learner::join(&c.url, "learner", dir.path()).await.unwrap();
    assert!(learner.publish().await.unwrap().accepted);
    let mut slow = Worker::join(&c.url, "slow").await.unwrap();
    let mut quick = Worker::join(&c.url, "quick").await.unwrap();
    let held = slow.lease(1, 1.0).await.unwrap().leases.remove(0);
    let group = slow.group(&held).await.unwrap();

    // Another worker cannot answer it, nor the right one under another fence.
    assert_eq!(quick.submit(&held, Some(group.clone()), "").await.unwrap().outcome(), SubmitOutcome::StaleFence);
    let other = v1::LeaseGrant { fence: held.fence + 1, ..held.clone() };
    assert_eq!(slow.submit(&other, Some(group.clone()), "").await.unwrap().outcome(), SubmitOutcome::StaleFence);

    // False groups are refused with the reason, and the lease lives on.
    let with = |change: &dyn Fn(&mut Group)| {
        let mut g = Group::try_from(group.clone()).unwrap();
        change(&mut g);
        v1::GroupMsg::try_from(&g).unwrap()
    };
    let false_groups = [
        ("vote", with(&|g| g.vote.majority = Some("none of them".into()))),
        ("vote", with(&|g| g.completions[0].text = "so \\boxed{999}".into())),
        ("sample", with(&|g| g.completions[0].view = 1)),
        ("tokens", with(&|g| g.completions[0].tokens = vec![1; 7])),
        ("row", with(&|g| g.prompt += 1)),
    ];
    for (word, bad) in false_groups {
        let said = slow.submit(&held, Some(bad), "").await.unwrap();
        assert_eq!(said.outcome(), SubmitOutcome::Invalid, "{word}");
        assert!(said.reason.contains(word), "{word}: {}", said.reason);
    }
    let nan = v1::GroupMsg {
        completions: vec![v1::CompletionMsg {
            tokens: vec![1],
            logprobs: vec![f32::NAN],
            finish: 1,
            ..Default::default()
        }],
        rewards: vec![0.0],
        ..group.clone()
    };
    assert_eq!(slow.submit(&held, Some(nan), "").await.unwrap().outcome(), SubmitOutcome::Invalid);
    assert_eq!(slow.submit(&held, None, "").await.unwrap().outcome(), SubmitOutcome::Invalid);

    // Too late: the prompt was given to another worker, under a higher fence.
    tokio::time::sleep(Duration::from_millis(900)).await;
    let again = quick.lease(1, 1.0).await.unwrap().leases.remove(0);
    assert_eq!((again.slot, again.prompt.clone()), (held.slot, held.prompt.clone()));
    assert!(again.fence > held.fence);
    assert_eq!(slow.submit(&held, Some(group.clone()), "").await.unwrap().outcome(), SubmitOutcome::StaleFence);
    assert!(slow.beat().await.unwrap().cancelled_leases.contains(&held.lease_id));
    let same = quick.group(&again).await.unwrap();
    assert_eq!(same, group, "who answers does not matter");
    assert_eq!(quick.submit(&again, Some(same.clone()), "").await.unwrap().outcome(), SubmitOutcome::Accepted);
    assert_eq!(quick.submit(&again, Some(same), "").await.unwrap().outcome(), SubmitOutcome::Duplicate);
    assert_eq!(history(dir.path()).open_groups, [(0, held.slot)]);
}

#[test]
fn a_crash_in_the_middle_of_a_step_changes_nothing() {
    let undisturbed = reference(&[0]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    runtime.block_on(async {
        // Until the batch of step 3 is there, then two learners more; the checkpoint is that of step 2.
        let c = Coordinator::start(path, &[]);
        let worker = tokio::spawn(Worker::join(&c.url, "w0").await.unwrap().work(Duration::ZERO));
        let mut learner = Learner::join(&c.url, "learner", path).await.unwrap();
        learner.work(Some(1)).await.unwrap();
        let mut second = Learner::join(&c.url, "learner", path).await.unwrap();
        second.work(Some(3)).await.unwrap();
        assert_eq!(
            second.batches.iter().map(|b| b.0).collect::<Vec<_>>(),
            [0, 1, 2],
            "without a checkpoint it replays from the start"
        );
        assert_eq!(second.batches[0], learner.batches[0]);
        c.crash(path).await;
        let _ = worker.await;
        std::fs::create_dir_all(path.join("run/checkpoints/step-000099")).unwrap();

        // Step 3 is complete in the ledger: nobody samples it again.
        let c = Coordinator::start(path, &[]);
        assert!(!path.join("run/checkpoints/step-000099").exists(), "what the ledger does not name is removed");
        let stale = Worker::join(&c.url, "w0").await.unwrap();
        let mut learner = Learner::join(&c.url, "learner", path).await.unwrap();
        assert!(learner.work(None).await.unwrap().accepted);
        assert_eq!(learner.batches.iter().map(|b| b.0).collect::<Vec<_>>(), [2, 3], "from the checkpoint of step 2");
        let delivered = stale.work(Duration::ZERO).await.unwrap();
        assert_eq!(delivered, 3 * fake::TEST as u64, "only the evaluation was left");
        assert_eq!(c.ended().await, RunEnd::Complete);
    });
    assert_eq!(end_state(path), end_state(undisturbed.path()));
    assert_eq!(history(path).epoch, 2);
}

#[test]
fn after_a_crash_only_the_open_slots_are_leased() {
    let undisturbed = reference(&[0]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    runtime.block_on(async {
        let c = Coordinator::start(path, &["eval.enabled=false"]);
        let mut learner = Learner::join(&c.url, "learner", path).await.unwrap();
        learner.publish().await.unwrap();
        let mut w = Worker::join(&c.url, "w").await.unwrap();
        let leases = w.lease(2, 1.0).await.unwrap().leases;
        let group = w.group(&leases[1]).await.unwrap();
        assert_eq!(w.submit(&leases[1], Some(group), "").await.unwrap().outcome(), SubmitOutcome::Accepted);
        c.crash(path).await;

        let c = Coordinator::start(path, &["eval.enabled=false"]);
        let mut learner = Learner::join(&c.url, "learner", path).await.unwrap();
        learner.publish().await.unwrap();
        let error = w.lease(1, 0.0).await.unwrap_err();
        assert!(matches!(error.code(), Code::Unavailable | Code::FailedPrecondition), "{error}");
        let mut w = Worker::join(&c.url, "w").await.unwrap();
        let mut slots = Vec::new();
        loop {
            let more = w.lease(2, 0.1).await.unwrap().leases;
            if more.is_empty() {
                break;
            }
            assert!(more.iter().all(|l| l.fence > leases[1].fence && l.lease_id > leases[1].lease_id));
            slots.extend(more.iter().map(|l| (l.slot, l.prompt.as_ref().unwrap().row)));
        }
        assert_eq!(slots.iter().map(|s| s.0).collect::<Vec<_>>(), [0, 2, 3]);
        let first = leases[0].prompt.as_ref().unwrap().row;
        assert_eq!(slots[0].1, first, "the same prompts stand in the same slots");
        let goodbye = v1::LeaveRequest { caller: Some(w.caller()), reason: String::new() };
        w.cluster.leave(goodbye).await.unwrap();
        let worker = tokio::spawn(Worker::join(&c.url, "w").await.unwrap().work(Duration::ZERO));
        assert!(learner.work(None).await.unwrap().accepted);
        assert_eq!(c.ended().await, RunEnd::Complete);
        worker.await.unwrap().unwrap();
    });
    let metrics = |p: &Path| std::fs::read_to_string(p.join("run/metrics.jsonl")).unwrap();
    assert_eq!(metrics(path), metrics(undisturbed.path()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_worker_loses_only_its_leases() {
    let dir = tempfile::tempdir().unwrap();
    let c = Coordinator::start(dir.path(), &["eval.enabled=false"]);
    let mut learner = Learner::join(&c.url, "learner", dir.path()).await.unwrap();
    learner.publish().await.unwrap();
    let mut dead = Worker::join(&c.url, "dead").await.unwrap();
    assert_eq!(dead.lease(2, 1.0).await.unwrap().leases.len(), 2);
    // Nothing more is heard of it; the heartbeat is 0.2 s, the lease 120 s.
    let began = std::time::Instant::now();
    let worker = tokio::spawn(Worker::join(&c.url, "alive").await.unwrap().work(Duration::ZERO));
    learner.work(None).await.unwrap();
    assert_eq!(c.ended().await, RunEnd::Complete);
    assert!(began.elapsed() < Duration::from_secs(10), "its leases were waited for");
    assert_eq!(worker.await.unwrap().unwrap(), 16);
    let error = dead.beat().await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "it must join again: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_fails_twice_is_set_aside_and_the_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let c = Coordinator::start(dir.path(), &["eval.enabled=false", "run.steps=1"]);
    let mut learner = Learner::join(&c.url, "learner", dir.path()).await.unwrap();
    learner.publish().await.unwrap();
    let mut w = Worker::join(&c.url, "w").await.unwrap();
    for _ in 0..2 {
        let lease = w.lease(1, 1.0).await.unwrap().leases.remove(0);
        assert_eq!(lease.slot, 0);
        assert_eq!(w.submit(&lease, None, "image does not decode").await.unwrap().outcome(), SubmitOutcome::Accepted);
    }
    let worker = tokio::spawn(w.work(Duration::ZERO));
    learner.work(None).await.unwrap();
    assert_eq!(c.ended().await, RunEnd::Complete);
    assert_eq!(worker.await.unwrap().unwrap(), 3);
    let h = history(dir.path());
    assert_eq!(h.quarantine.len(), 1);
    assert!(h.quarantine[0].reasons.contains("does not decode"));
    assert!(h.steps[0].metrics.contains("\"groups_quarantined\":1.0"), "{}", h.steps[0].metrics);
    assert_eq!(h.samples, 9);
    let list = std::fs::read_to_string(dir.path().join("run/set-aside.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!(
        (&line["set"], &line["step"], line["row"].as_u64()),
        (&"train".into(), &0.into(), Some(h.quarantine[0].row))
    );
    assert!(line["file"].as_str().unwrap().ends_with("train.parquet"), "{list}");
    assert!(line["reason"].as_str().unwrap().starts_with("image does not decode"), "{list}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_given_up_is_not_asked_for_again() {
    let dir = tempfile::tempdir().unwrap();
    let c = Coordinator::start(dir.path(), &["eval.enabled=false"]);
    let mut learner = Learner::join(&c.url, "learner", dir.path()).await.unwrap();
    let mut w = Worker::join(&c.url, "w").await.unwrap();
    let training = tokio::spawn(async move { learner.work(None).await });
    let (mut bad, mut asked) = (None, 0);
    loop {
        w.beat().await.unwrap();
        let reply = w.lease(2, 0.1).await.unwrap();
        if reply.run_complete {
            break;
        }
        for lease in &reply.leases {
            let row = lease.prompt.as_ref().unwrap().row;
            if *bad.get_or_insert(row) == row {
                asked += 1;
                w.submit(lease, None, "image does not decode").await.unwrap();
            } else {
                let group = w.group(lease).await.unwrap();
                w.submit(lease, Some(group), "").await.unwrap();
            }
        }
    }
    assert!(training.await.unwrap().unwrap().accepted);
    assert_eq!(c.ended().await, RunEnd::Complete);
    // 16 slots over 10 rows: the row comes up in the second epoch, too.
    assert_eq!(asked, 2);
    let h = history(dir.path());
    assert_eq!(h.quarantine.len(), 1);
    let empty: Vec<bool> = h.steps.iter().map(|s| s.metrics.contains("\"groups_quarantined\":1.0")).collect();
    assert!(empty[0], "{empty:?}");
    assert_eq!(h.samples, 3 * (16 - empty.iter().filter(|e| **e).count() as u64));
}

#[test]
fn one_broken_worker_sets_nothing_aside() {
    let undisturbed = reference(&[0]);
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let c = Coordinator::start(dir.path(), &[]);
        let mut broken = Worker::join(&c.url, "broken").await.unwrap();
        let good = Worker::join(&c.url, "good").await.unwrap();
        let mut learner = Learner::join(&c.url, "learner", dir.path()).await.unwrap();
        let failing = tokio::spawn(async move {
            let mut failed = 0;
            while let Ok(reply) = broken.lease(2, 0.1).await {
                if reply.run_complete || broken.beat().await.is_err() {
                    break;
                }
                for lease in &reply.leases {
                    broken.submit(lease, None, "no space left on device").await.unwrap();
                    failed += 1;
                }
            }
            failed
        });
        let working = tokio::spawn(good.work(Duration::from_millis(3)));
        assert!(learner.work(None).await.unwrap().accepted);
        assert_eq!(c.ended().await, RunEnd::Complete);
        working.await.unwrap().unwrap();
        assert!(failing.await.unwrap() > 0, "the broken worker got no lease");
    });
    assert!(history(dir.path()).quarantine.is_empty());
    assert_eq!(end_state(dir.path()), end_state(undisturbed.path()));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_no_checkpoint_is_left_each_is_named_with_what_can_be_done() {
    let dir = tempfile::tempdir().unwrap();
    let c = Coordinator::start(dir.path(), &["eval.enabled=false", "checkpoint.every=1", "checkpoint.texts_mb=0"]);
    let worker = tokio::spawn(Worker::join(&c.url, "w").await.unwrap().work(Duration::ZERO));
    let mut learner = Learner::join(&c.url, "learner", dir.path()).await.unwrap();
    learner.work(Some(3)).await.unwrap();
    for name in ["step-000003", "step-000002"] {
        std::fs::remove_dir_all(dir.path().join("run/checkpoints").join(name)).unwrap();
    }
    let mut second = Learner::join(&c.url, "learner", dir.path()).await.unwrap();
    let refused = second.work(None).await.unwrap_err();
    let RunEnd::Failed(reason) = c.ended().await else { panic!("the run did not fail") };
    for word in ["step-000003: it is missing", "step-000002: it is missing", "from a copy", "start a new run"] {
        assert!(reason.contains(word) && refused.message().contains(word), "{word}: {reason}");
    }
    let _ = worker.await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_with_other_bits_ends_the_run_and_names_the_step() {
    let dir = tempfile::tempdir().unwrap();
    let c = Coordinator::start(dir.path(), &["eval.enabled=false"]);
    let worker = tokio::spawn(Worker::join(&c.url, "w").await.unwrap().work(Duration::ZERO));
    let mut learner = Learner::join(&c.url, "learner", dir.path()).await.unwrap();
    learner.work(Some(1)).await.unwrap();
    let mut broken = Learner::join(&c.url, "learner", dir.path()).await.unwrap();
    broken.wrong_from = Some(0);
    let said = broken.work(None).await.unwrap();
    assert!(!said.accepted);
    let RunEnd::Failed(reason) = c.ended().await else { panic!("the run did not fail") };
    let known = history(dir.path()).steps[0].digest.clone();
    assert!(reason.contains("step 0") && reason.contains(&known), "{reason}");
    let told = worker.await.unwrap().unwrap_err();
    assert!(told.code() == Code::Aborted && told.message() == reason, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_learn_that_the_run_failed_and_wait_for_one_that_was_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let c = Coordinator::start(dir.path(), &["eval.enabled=false"]);
    assert_eq!(get(&c.http, "/readyz").await.0, 200);
    let mut worker = Worker::join(&c.url, "w").await.unwrap();
    let mut learner = Learner::join(&c.url, "learner", dir.path()).await.unwrap();
    // One is in a long poll, the other calls after the end.
    let polling = tokio::spawn(async move { (worker.lease(2, 15.0).await, worker) });
    tokio::time::sleep(Duration::from_millis(200)).await;
    c.handle.stop(RunEnd::Failed("the disk is on fire".into())).await;
    let (polled, mut worker) = tokio::time::timeout(Duration::from_secs(5), polling).await.unwrap().unwrap();
    let refused = [
        polled.unwrap_err(),
        worker.beat().await.unwrap_err(),
        learner.work(None).await.unwrap_err(),
        Worker::join(&c.url, "late").await.err().unwrap(),
    ];
    for status in refused {
        assert_eq!((status.code(), status.message()), (Code::Aborted, "the disk is on fire"));
    }
    let (code, page) = get(&c.http, "/readyz").await;
    assert!(code == 503 && page.contains("failed"), "{page}");
    assert_eq!(get(&c.http, "/healthz").await.0, 200);
    c.crash(dir.path()).await;

    let c = Coordinator::start(dir.path(), &["eval.enabled=false"]);
    let mut worker = Worker::join(&c.url, "w").await.unwrap();
    let mut learner = Learner::join(&c.url, "learner", dir.path()).await.unwrap();
    learner.publish().await.unwrap();
    c.handle.stop(RunEnd::Stopped).await;
    let reply = worker.lease(2, 0.1).await.unwrap();
    assert!(reply.leases.is_empty() && !reply.run_complete, "it comes back: {reply:?}");
    assert!(!worker.beat().await.unwrap().stop);
    assert_eq!(learner.batch(0.1).await.unwrap().0.state(), v1::BatchState::Pending);
    assert_eq!(get(&c.http, "/readyz").await.0, 503);
}

/// Status and body of a page.
async fn get(http: &str, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut s = tokio::net::TcpStream::connect(http).await.unwrap();
    s.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut text = String::new();
    s.read_to_string(&mut text).await.unwrap();
    (text.split(' ').nth(1).unwrap().parse().unwrap(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_belong_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "a-token-of-enough-letters\n").unwrap();
    let open = Coordinator::start(dir.path(), &[]);
    let channel = tonic::transport::Channel::from_shared(open.url.clone()).unwrap().connect().await.unwrap();
    let mut client = v1::cluster_client::ClusterClient::new(channel);
    let base = fake::join(v1::Role::RolloutWorker, "w");
    let strangers = [
        ("run", v1::JoinRequest { run_id: "another".into(), ..base.clone() }),
        ("configuration", v1::JoinRequest { config_digest: "another".into(), ..base.clone() }),
        ("protocol", v1::JoinRequest { protocol_version: 99, ..base.clone() }),
        ("role", v1::JoinRequest { role: 0, ..base.clone() }),
        ("rank", v1::JoinRequest { role: v1::Role::Learner.into(), world: 2, ..base.clone() }),
        ("caller_id", v1::JoinRequest { caller_id: String::new(), ..base.clone() }),
    ];
    for (word, request) in strangers {
        let error = client.join(request).await.unwrap_err();
        assert_eq!(error.code(), Code::PermissionDenied);
        assert!(error.message().contains(word), "{word}: {error}");
    }
    let _one = Learner::join(&open.url, "one", dir.path()).await.unwrap();
    let second = Learner::join(&open.url, "two", dir.path()).await.err().unwrap();
    assert!(second.message().contains("`one`"), "{second}");
    open.crash(dir.path()).await;

    let set = format!("cluster.token_file={}", token.display());
    let guarded = Coordinator::start(dir.path(), &[&set]);
    let error = Worker::join(&guarded.url, "w").await.err().unwrap();
    assert_eq!(error.code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_http_page_answers() {
    let dir = tempfile::tempdir().unwrap();
    let c = Coordinator::start(dir.path(), &[]);
    let channel = tonic::transport::Channel::from_shared(c.url.clone()).unwrap().connect().await.unwrap();
    let mut client = v1::cluster_client::ClusterClient::new(channel);
    let request = v1::JoinRequest { metrics_address: "127.0.0.1:9".into(), ..fake::join(v1::Role::RolloutWorker, "w") };
    client.join(request).await.unwrap();
    for (path, word) in
        [("/healthz", "ok"), ("/status", "\"epoch\":1"), ("/sd", "127.0.0.1:9"), ("/metrics", "HTTP/1.1 200")]
    {
        let (_, text) = get(&c.http, path).await;
        assert!(text.contains(word), "{path}: {text}");
    }
    // The run directory tells where the page is; when nothing runs there, that is said.
    let run = dir.path().join("run");
    let status = |dir: &Path| {
        std::process::Command::new(env!("CARGO_BIN_EXE_coordinator")).arg("status").arg(dir).output().unwrap()
    };
    let nobody = String::from_utf8(status(&run).stderr).unwrap();
    assert!(nobody.contains("no coordinator runs in") && nobody.contains("--resume"), "{nobody}");
    std::fs::write(run.join("endpoints.json"), format!("{{\"http\":\"{}\"}}", c.http)).unwrap();
    let out = status(&run);
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success() && text.contains("\"run_id\": \"fake\""), "{text}");
    let json = client.status(v1::StatusRequest {}).await.unwrap().into_inner().json;
    assert!(json.contains("rollout_worker"), "{json}");
}
