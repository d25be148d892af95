//! The executable as scripts see it: progress, logs and `status --watch` in pipes, of a run that fails because nobody joins.

// Helpers outside #[test] functions may panic too: that fails the test.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coordinator"));
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    command.args(args).env_remove("QUORUM_SET").current_dir(home).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A run that gives up after a second.
fn lonely_run(dir: &Path, more: &[&str]) -> Child {
    let run_dir = format!("run.dir={}", dir.display());
    let validation = "data.train=assets/data/validation.parquet";
    let sets =
        [&run_dir, validation, "cluster.listen=127.0.0.1:0", "cluster.http=127.0.0.1:0", "cluster.join_seconds=1"];
    let sets: Vec<&str> = sets.into_iter().flat_map(|s| ["--set", s]).collect();
    command(&[&sets[..], more].concat()).spawn().unwrap()
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
}

fn run_dir() -> (tempfile::TempDir, PathBuf) {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("run");
    (tmp, dir)
}

#[test]
fn json_logs_make_every_line_json() {
    let (_tmp, dir) = run_dir();
    let out = lonely_run(&dir, &["--log", "json,info"]).wait_with_output().unwrap();
    let (stdout, stderr) = texts(&out);
    assert_eq!(out.status.code(), Some(1), "{stderr}");
    let progress = json_lines(&stdout);
    let events: Vec<&str> = progress.iter().map(|l| l["event"].as_str().unwrap()).collect();
    assert_eq!(events[..2], ["start", "phase"], "{stdout}");
    assert_eq!(progress[0]["run_dir"].as_str(), dir.to_str());
    let log = json_lines(&stderr);
    let last = log.last().unwrap();
    assert_eq!((&last["level"], &last["process"]), (&"ERROR".into(), &"coordinator".into()));
    assert!(last["message"].as_str().unwrap().contains("--resume"), "{last}");
    assert!(last["run"].is_string() && last["step"].is_u64() && last["timestamp"].is_string(), "{last}");
}

#[test]
fn a_bar_in_a_pipe_is_lines_without_colour_and_logs_are_quiet() {
    let (_tmp, dir) = run_dir();
    let out = lonely_run(&dir, &["--progress", "bar"]).wait_with_output().unwrap();
    let (stdout, stderr) = texts(&out);
    let lines: Vec<&str> = stderr.lines().collect();
    assert_eq!(stdout, "");
    assert!(!stderr.contains(['\x1b', '\r']), "{stderr:?}");
    assert!(lines[0].starts_with("run directory") && lines[1].contains("training questions"), "{stderr}");
    assert!(lines[2].starts_with("evaluating version 0"), "{stderr}");
    assert!(lines.len() == 4 && lines[3].starts_with("error: "), "{stderr}");
}

#[test]
fn who_reads_no_more_does_not_end_the_run() {
    let (_tmp, dir) = run_dir();
    let mut child = lonely_run(&dir, &["--progress", "json"]);
    drop(child.stdout.take());
    let (_, stderr) = texts(&child.wait_with_output().unwrap());
    assert!(stderr.starts_with("error: ") && !stderr.contains("panicked"), "{stderr}");
    assert!(!stderr.contains("ended abnormally"), "{stderr}");
}

#[test]
fn a_watch_tells_each_change_and_how_the_run_failed() {
    let (_tmp, dir) = run_dir();
    let path = dir.to_str().unwrap();
    let none = command(&["status", path, "--watch"]).output().unwrap();
    assert!(!none.status.success() && texts(&none).1.contains("holds no run"));
    let one = command(&["status", path, "--watch", "--member", "worker-0"]).output().unwrap();
    assert!(!one.status.success() && texts(&one).1.contains("not worker-0 alone"));
    let run = lonely_run(&dir, &[]);
    let began = Instant::now();
    while !dir.join("endpoints.json").is_file() {
        assert!(began.elapsed() < Duration::from_secs(30), "the run does not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    let once = command(&["status", path]).output().unwrap();
    let status: Value = serde_json::from_slice(&once.stdout).unwrap();
    assert_eq!((&status["state"], &status["verdict"]["level"]), (&"running".into(), &"starting".into()));
    let out = command(&["status", path, "--watch"]).output().unwrap();
    let (stdout, stderr) = texts(&out);
    assert_eq!(out.status.code(), Some(1), "{stdout}{stderr}");
    assert!(stdout.lines().next().unwrap().starts_with("step 0/"), "{stdout}");
    assert!(!stdout.contains('\x1b') && stdout.lines().last().unwrap().contains("Failed"), "{stdout}");
    assert!(stderr.starts_with("error: the run failed: ") && stderr.contains("--resume"), "{stderr}");
    assert!(!run.wait_with_output().unwrap().status.success());
}
