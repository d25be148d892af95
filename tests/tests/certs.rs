//! `coordinator certs`: the commands that it prints are run as they are, in a shell, from a directory with a space in its name.

use quorum_tests::{executable, executables, repository};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Starts a printed line with `more` behind it, its output in `log`; the port is replaced by a free one.
fn shell(line: &str, port: u16, more: &str, log: &Path) -> Child {
    let path = format!("{}:{}", executables().display(), std::env::var("PATH").unwrap_or_default());
    let file = std::fs::File::create(log).expect("scratch is writable");
    Command::new("sh")
        .args(["-c", &format!("exec {} {more}", line.replace(":7070", &format!(":{port}")))])
        .env("PATH", path)
        .current_dir(repository())
        .stdin(Stdio::null())
        .stdout(file.try_clone().expect("a file handle can be cloned"))
        .stderr(file)
        .spawn()
        .expect("sh starts")
}

fn text_of(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn finish(mut child: Child, within: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    while start.elapsed() < within {
        if let Some(status) = child.try_wait().expect("the child can be waited for") {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    child.kill().expect("the child can be killed");
    child.wait().expect("the child can be waited for");
    None
}

#[test]
fn the_printed_commands_work_as_they_are() {
    let scratch = tempfile::tempdir().expect("scratch");
    let place = scratch.path().join("a place");
    let out = Command::new(executable("coordinator")).arg("certs").arg(&place).output().expect("coordinator starts");
    let text = String::from_utf8(out.stdout).expect("utf-8");
    let lines: Vec<&str> = text.lines().filter(|l| !l.starts_with('#')).collect();
    let [coordinator, launching, learner, worker] = lines[..] else { panic!("{text}") };
    let held = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = held.local_addr().expect("its address").port();
    drop(held);
    let more = |run: &str| {
        let dir = scratch.path().join(run).display().to_string();
        format!(
            "--config tests/configs/small.toml --set run.steps=1 --set eval.enabled=false --set cluster.listen=0.0.0.0:{port} --set cluster.http=127.0.0.1:0 --set 'run.dir={dir}' --progress plain"
        )
    };
    let log = |name: &str| scratch.path().join(name);
    let within = Duration::from_secs(120);

    let members = [(learner, "learner.log"), (worker, "worker.log")];
    let own = shell(coordinator, port, &more("dialled"), &log("dialled.log"));
    let members = members.map(|(line, name)| (shell(line, port, "", &log(name)), name));
    let ended = finish(own, within);
    assert!(ended.is_some_and(|s| s.success()), "{ended:?}\n{}", text_of(&log("dialled.log")));
    for (child, name) in members {
        let ended = finish(child, Duration::from_secs(20));
        assert!(ended.is_some_and(|s| s.success()), "{name}: {ended:?}\n{}", text_of(&log(name)));
    }

    let ended = finish(shell(launching, port, &more("launched"), &log("launched.log")), within);
    assert!(ended.is_some_and(|s| s.success()), "{ended:?}\n{}", text_of(&log("launched.log")));
}
