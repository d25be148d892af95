//! Bad input ends in one clear line that names the thing and what to do.

use quorum_tests::{Cluster, executable, repository};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn coordinator(args: &[&str]) -> Output {
    Command::new(executable("coordinator")).args(args).current_dir(repository()).output().expect("coordinator starts")
}

/// The process fails, and its last words hold all of `parts`, with no panic and no backtrace.
fn fails_saying(args: &[&str], parts: &[&str]) {
    let out = coordinator(args);
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success(), "{args:?} succeeded");
    assert!(!text.contains("panicked"), "{args:?} panicked: {text}");
    for part in parts {
        assert!(text.contains(part), "{args:?} does not say `{part}`: {text}");
    }
    assert!(text.trim().lines().count() <= 3, "more than a clear line: {text}");
}

#[test]
fn unknown_key_names_the_nearest() {
    fails_saying(&["--set", "run.stpes=3"], &["run.stpes", "run.steps"]);
}

#[test]
fn missing_model_directory_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = format!("run.dir={}", scratch.path().join("run").display());
    fails_saying(
        &["--workers", "1", "--set", &dir, "--set", "model.path=no/such/model"],
        &["no/such/model", "model.path"],
    );
}

#[test]
fn truncated_weights_are_named_before_anything_starts() {
    let scratch = tempfile::tempdir().unwrap();
    let model = scratch.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for file in std::fs::read_dir(repository().join("assets/model")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    let weights = std::fs::File::options().write(true).open(model.join("model.safetensors")).unwrap();
    weights.set_len(100_000).unwrap();
    let run = scratch.path().join("run");
    let sets = [format!("run.dir={}", run.display()), format!("model.path={}", model.display())];
    fails_saying(&["--workers", "1", "--set", &sets[0], "--set", &sets[1]], &["model.safetensors"]);
    assert!(!run.exists(), "no run was begun");
}

#[test]
fn missing_data_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = format!("run.dir={}", scratch.path().join("run").display());
    fails_saying(&["--workers", "1", "--set", &dir, "--set", "data.train=no/such.parquet"], &["no/such.parquet"]);
}

#[test]
fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let scratch = tempfile::tempdir().unwrap();
    let dir = format!("run.dir={}", scratch.path().join("run").display());
    let listen = format!("cluster.listen={address}");
    fails_saying(
        &["--workers", "1", "--set", &dir, "--set", &listen, "--set", "cluster.http=127.0.0.1:0"],
        &[&address, "cluster.listen"],
    );
}

#[test]
fn wide_open_ports_need_a_word() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = format!("run.dir={}", scratch.path().join("run").display());
    fails_saying(&["--workers", "1", "--set", &dir, "--set", "cluster.listen=0.0.0.0:0"], &["0.0.0.0:0", "--insecure"]);
}

#[test]
fn resuming_nothing_names_the_directory() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("nothing");
    fails_saying(&["--resume", dir.to_str().unwrap()], &[dir.to_str().unwrap()]);
}

#[test]
fn a_device_that_the_build_lacks_is_refused_with_the_build_command() {
    let scratch = tempfile::tempdir().expect("scratch");
    let dir = scratch.path().join("run");
    let place = format!("run.dir={}", dir.display());
    for (device, word) in [("cuda:9", "--features cuda"), ("cpu,gpu", "no device is called")] {
        fails_saying(&["--workers", "1", "--device", device, "--set", &place], &[device, word]);
        assert!(!dir.exists(), "{device} left a run directory behind");
    }
}

#[test]
fn members_of_a_run_that_failed_say_so_and_leave_with_a_status_of_their_own() {
    // Each waits for the other, which never comes.
    for (member, missing) in [("rollout-worker", "no learner has joined"), ("learner", "no rollout worker has joined")]
    {
        let scratch = tempfile::tempdir().expect("scratch");
        let dir = scratch.path().join("run");
        let sets = ["cluster.join_seconds=4", "cluster.listen=127.0.0.1:0", "cluster.http=127.0.0.1:0"];
        let mut cluster = Cluster::fresh(&dir, 0, &sets);
        let out = Command::new(executable(member))
            .arg("--coordinator-file")
            .arg(dir.join("endpoints.json"))
            .output()
            .expect("the member starts");
        let text = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(70), "{text}");
        assert!(text.contains("has failed") && text.contains(missing), "{text}");
        let late = Instant::now() + Duration::from_secs(10);
        while !cluster.ended() {
            assert!(Instant::now() < late, "the coordinator still waits\n{}", cluster.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(cluster.log().contains(missing), "{}", cluster.log());
    }
}

#[test]
fn a_worker_without_a_coordinator_names_it() {
    let out = Command::new(executable("rollout-worker"))
        .args(["--coordinator", "http://127.0.0.1:9", "--join-seconds", "1"])
        .output()
        .expect("rollout-worker starts");
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success());
    assert!(text.contains("127.0.0.1:9") && !text.contains("panicked"), "{text}");
}
