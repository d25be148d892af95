//! Supervision of real processes.

use super::*;
use std::sync::mpsc;

fn shell(name: &str, script: &str) -> Launch {
    Launch { name: name.into(), program: "/bin/sh".into(), args: vec!["-c".into(), script.into()], group: false }
}

fn start(launches: Vec<Launch>, logs: &std::path::Path) -> (Launcher, mpsc::Receiver<ChildEvent>) {
    let (launcher, events, ..) = start_watched(launches, logs);
    (launcher, events)
}

fn start_watched(
    launches: Vec<Launch>,
    logs: &std::path::Path,
) -> (Launcher, mpsc::Receiver<ChildEvent>, Hung, Roster) {
    let (send, events) = mpsc::channel();
    let (tell, inbox) = hung();
    let roster = Roster::default();
    let launcher = Launcher::start(launches, logs.into(), roster.clone(), inbox, move |e| drop(send.send(e))).unwrap();
    (launcher, events, tell, roster)
}

const WAIT: Duration = Duration::from_secs(20);

#[test]
fn a_child_that_keeps_dying_is_given_up_with_its_last_error() {
    let tmp = tempfile::tempdir().unwrap();
    let (launcher, events) =
        start(vec![shell("w", "echo starting >&2; echo 'error: no such thing' >&2; echo bye >&2; exit 3")], tmp.path());
    let mut restarts = 0;
    let reason = loop {
        match events.recv_timeout(WAIT).unwrap() {
            ChildEvent::Gone { .. } | ChildEvent::GroupGone => {}
            ChildEvent::Restart { why, .. } => {
                assert!(why.contains("exit status 3") && why.contains("no such thing"), "{why}");
                restarts += 1;
            }
            ChildEvent::GaveUp { reason } => break reason,
        }
    };
    assert_eq!(restarts, 4);
    assert!(reason.contains("w died 5 times") && reason.contains("error: no such thing"), "{reason}");
    drop(launcher);
    let log = std::fs::read_to_string(tmp.path().join("w.log")).unwrap();
    assert_eq!(log.matches("starting").count(), 5);
}

#[test]
fn the_last_error_is_found_in_json_logs_too() {
    let tmp = tempfile::tempdir().unwrap();
    let lines = r#"echo '{"level":"ERROR","message":"no such thing"}' >&2; echo '{"level":"INFO","message":"bye"}' >&2; exit 3"#;
    let (launcher, events) = start(vec![shell("w", lines)], tmp.path());
    let why = loop {
        if let ChildEvent::Restart { why, .. } = events.recv_timeout(WAIT).unwrap() {
            break why;
        }
    };
    assert_eq!(why, "exit status 3: no such thing");
    drop(launcher);
}

#[test]
fn who_leaves_because_the_run_is_over_is_done_and_the_rest_is_stopped() {
    let tmp = tempfile::tempdir().unwrap();
    // 70: the run has failed.
    let leaving = [shell("done", "exit 0"), shell("told", "exit 70")];
    let (launcher, events) = start([&leaving[..], &[shell("stays", "exec sleep 600")]].concat(), tmp.path());
    for _ in leaving {
        let ChildEvent::Gone { pid } = events.recv_timeout(WAIT).unwrap() else { panic!("no restart was due") };
        assert!(pid > 0);
    }
    assert!(events.recv_timeout(Duration::from_millis(300)).is_err(), "it is not started again");
    let began = Instant::now();
    launcher.finish(Duration::ZERO);
    assert!(began.elapsed() < Duration::from_secs(3), "SIGTERM was not sent");
    assert!(events.try_recv().is_err(), "a child that is stopped is no death");
}

#[test]
fn a_stopped_child_is_killed_and_started_again() {
    let tmp = tempfile::tempdir().unwrap();
    let (_launcher, events, tell, roster) = start_watched(vec![shell("w", "exec sleep 600")], tmp.path());
    let running = |than: u32| {
        let began = Instant::now();
        loop {
            match roster.list().first() {
                Some((name, pid)) if *pid != than => {
                    assert_eq!(name, "w");
                    return *pid;
                }
                _ if began.elapsed() > WAIT => panic!("it does not run"),
                _ => std::thread::sleep(POLL),
            }
        }
    };
    let pid = running(0);
    // SAFETY: a signal to a child of this test.
    unsafe { libc::kill(i32::try_from(pid).unwrap(), libc::SIGSTOP) };
    tell.process(pid + 1_000_000);
    assert!(events.recv_timeout(Duration::from_millis(200)).is_err(), "a foreign process is nobody's business");
    tell.process(pid);
    assert_eq!(events.recv_timeout(WAIT).unwrap(), ChildEvent::Gone { pid });
    let ChildEvent::Restart { why, .. } = events.recv_timeout(WAIT).unwrap() else { panic!("no restart") };
    assert!(why.contains("did not answer") && why.contains(&pid.to_string()), "{why}");
    assert_ne!(running(pid), pid);
}

#[test]
fn a_silent_child_that_computes_is_left_alone_and_one_that_does_not_is_ended() {
    let tmp = tempfile::tempdir().unwrap();
    let children = vec![shell("busy", "while :; do :; done"), shell("idle", "exec sleep 600")];
    let (_launcher, events, tell, roster) = start_watched(children, tmp.path());
    let began = Instant::now();
    while roster.list().len() < 2 {
        assert!(began.elapsed() < WAIT, "they do not run");
        std::thread::sleep(POLL);
    }
    let pids = roster.list();
    pids.iter().for_each(|(_, pid)| tell.process(*pid));
    assert_eq!(events.recv_timeout(WAIT).unwrap(), ChildEvent::Gone { pid: pids[1].1 });
    assert!(matches!(events.recv_timeout(WAIT).unwrap(), ChildEvent::Restart { name, .. } if name == "idle"));
    assert_eq!(roster.list()[0], pids[0], "the busy one is the same process");
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let tmp = tempfile::tempdir().unwrap();
    let (_launcher, events) = start(vec![Launch { program: "/nonexistent/x".into(), ..shell("w", "") }], tmp.path());
    let ChildEvent::GaveUp { reason } = events.recv_timeout(WAIT).unwrap() else {
        panic!("it cannot have been started")
    };
    assert!(reason.contains("/nonexistent/x"), "{reason}");
}

#[test]
fn what_a_child_leaves_behind_holds_nobody_up() {
    let tmp = tempfile::tempdir().unwrap();
    // It holds the pipe of stderr for longer than the test waits.
    let script = "setsid sleep 60 & echo 'error: no such thing' >&2; exit 3";
    let (launcher, events) = start(vec![shell("w", script)], tmp.path());
    assert!(matches!(events.recv_timeout(WAIT).unwrap(), ChildEvent::Gone { .. }));
    let ChildEvent::Restart { why, .. } = events.recv_timeout(WAIT).unwrap() else { panic!("a restart was due") };
    assert_eq!(why, "exit status 3: error: no such thing");
    drop(launcher);
}

#[test]
fn a_stopped_rank_ends_its_whole_group() {
    let tmp = tempfile::tempdir().unwrap();
    let file = tmp.path().join("rank");
    let script = format!("trap '' HUP; sleep 600 & echo $! > {f}.tmp; mv {f}.tmp {f}; wait", f = file.display());
    let starter = Launch { group: true, ..shell("learner", &script) };
    let (_launcher, events, tell, _) = start_watched(vec![starter], tmp.path());
    let began = Instant::now();
    let rank = loop {
        match std::fs::read_to_string(&file) {
            Ok(pid) => break pid.trim().parse::<u32>().unwrap(),
            Err(_) => assert!(began.elapsed() < WAIT, "it does not run"),
        }
        std::thread::sleep(POLL);
    };
    let signal = |signal| {
        // SAFETY: a signal to a process that this test started.
        unsafe { libc::kill(i32::try_from(rank).unwrap(), signal) };
    };
    signal(libc::SIGSTOP);
    tell.process(rank);
    assert!(matches!(events.recv_timeout(WAIT).unwrap(), ChildEvent::Gone { .. }));
    assert_eq!(events.recv_timeout(WAIT).unwrap(), ChildEvent::GroupGone);
    assert!(matches!(events.recv_timeout(WAIT).unwrap(), ChildEvent::Restart { name, .. } if name == "learner"));
    signal(libc::SIGKILL);
}
