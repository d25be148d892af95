//! The executable: bad input ends with one line on stderr that names it, and status 1; nothing is left behind.

// Helpers outside #[test] functions may panic too: that fails the test.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn coordinator(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_coordinator")).args(args).env_remove("QUORUM_SET").output().unwrap()
}

const PORTS: [&str; 4] = ["--set", "cluster.listen=127.0.0.1:0", "--set", "cluster.http=127.0.0.1:0"];

#[test]
fn bad_input_gets_one_line() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("run");
    let run_dir = format!("run.dir={}", dir.display());
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = held.local_addr().unwrap().to_string();
    let in_use = format!("cluster.listen={taken}");
    let nowhere = tmp.path().join("nowhere").display().to_string();
    let cases: [(&[&str], &[&str]); 8] = [
        (&["--set", "run.step=3"], &["`run.step`", "`run.steps`"]),
        (&["--set", "run.steps=many"], &["run.steps"]),
        (&["--set", "model.path=/nonexistent/model"], &["/nonexistent/model"]),
        (&["--config", "/nonexistent/run.toml"], &["/nonexistent/run.toml"]),
        (&["--set", &in_use], &[taken.as_str(), "cluster.listen"]),
        (&["--set", "cluster.listen=0.0.0.0:0"], &["cluster.listen", "--insecure"]),
        (&["--resume", &nowhere], &["nowhere", "holds no run"]),
        (&["export", &nowhere, "--to", "x"], &["nowhere", "holds no run"]),
    ];
    for (args, words) in cases {
        let mut all: Vec<&str> =
            if args[0] == "export" { Vec::new() } else { [&PORTS[..], &["--set", &run_dir]].concat() };
        all.extend(args);
        let out = coordinator(&all);
        let text = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(1), "{args:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
        assert!(text.starts_with("error: ") && words.iter().all(|w| text.contains(w)), "{args:?}: {text}");
        assert!(!dir.exists(), "{args:?} left a run directory behind");
    }
}

#[test]
fn grade_adds_the_verdict_to_each_line() {
    let tmp = tempfile::tempdir().unwrap();
    let pairs = tmp.path().join("pairs.jsonl");
    std::fs::write(&pairs, "{\"a\":\"1/2\",\"b\":\"0.5\"}\n{\"a\":\"12\",\"b\":\"13\"}\n").unwrap();
    let out = coordinator(&["grade", "--pairs", pairs.to_str().unwrap()]);
    assert!(out.status.success());
    let text = String::from_utf8(out.stdout).unwrap();
    assert_eq!(
        text,
        "{\"a\":\"1/2\",\"b\":\"0.5\",\"equivalent\":true}\n{\"a\":\"12\",\"b\":\"13\",\"equivalent\":false}\n"
    );
    std::fs::write(&pairs, "{\"a\":\"1\",\"b\":\"1\"}\nnonsense\n").unwrap();
    let out = coordinator(&["grade", "--pairs", pairs.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8(out.stderr).unwrap().contains("line 2"));
}

#[test]
fn the_resolved_configuration_is_printed() {
    let out = coordinator(&["config", "--set", "run.steps=3"]);
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success() && text.contains("steps = 3") && text.starts_with("# digest "), "{text}");
}
