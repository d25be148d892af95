//! Harness: real executables in scratch directories. Every wait has a deadline and says what it waited for.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Repository root.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .expect("the repository is where this crate was built")
}

/// Directory of the three executables, built once a test process (a no-op when they are fresh).
pub fn executables() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo).args(["build", "--release", "--quiet"]).current_dir(repository()).status();
        assert!(status.is_ok_and(|s| s.success()), "cargo build --release failed");
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
        target.join("release")
    })
}

/// Path of one executable.
pub fn executable(name: &str) -> PathBuf {
    executables().join(name)
}

/// A coordinator process and its run directory; killed on drop, and its children die with it.
pub struct Cluster {
    child: Child,
    pub dir: PathBuf,
}

impl Cluster {
    /// Starts `coordinator` with `args`, from the repository root, its output in `<dir>.log`.
    pub fn start(dir: &Path, args: &[&str]) -> Self {
        let log = std::fs::File::options().create(true).append(true).open(log_path(dir)).expect("scratch is writable");
        let child = Command::new(executable("coordinator"))
            .args(args)
            .args(["--progress", "plain"])
            .current_dir(repository())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file handle can be cloned"))
            .stderr(log)
            .spawn()
            .expect("coordinator starts");
        Self { child, dir: dir.to_owned() }
    }

    /// A fresh run of `tests/configs/small.toml`.
    pub fn fresh(dir: &Path, workers: u32, sets: &[&str]) -> Self {
        let config = repository().join("tests/configs/small.toml");
        let workers = workers.to_string();
        let place = format!("run.dir={}", dir.display());
        let mut args = vec!["--config", config.to_str().expect("utf-8"), "--workers", &workers, "--set", &place];
        for set in sets {
            args.extend(["--set", set]);
        }
        Self::start(dir, &args)
    }

    /// Resumes the run in `dir`.
    pub fn resume(dir: &Path, workers: u32) -> Self {
        Self::start(dir, &["--resume", dir.to_str().expect("utf-8"), "--workers", &workers.to_string()])
    }

    /// Starts two workers, kills one of them, then the learner, then the coordinator, each after another step; resumes; the report.
    pub fn killed_three_ways(dir: &Path, sets: &[&str], within: Duration) -> Value {
        let mut cluster = Self::fresh(dir, 2, sets);
        cluster.wait_for_steps(1, within);
        kill(cluster.pid_of("worker-0", within));
        cluster.wait_for_steps(2, within);
        kill(cluster.pid_of("learner-0", within));
        cluster.wait_for_steps(3, within);
        assert!(!cluster.ended(), "the coordinator is killed while it runs");
        cluster.kill();
        Self::resume(dir, 2).finish(within)
    }

    /// Waits for a clean end.
    pub fn finish(mut self, within: Duration) -> Value {
        let start = Instant::now();
        loop {
            match self.child.try_wait().expect("the child can be waited for") {
                Some(status) if status.success() => return report(&self.dir),
                Some(status) => panic!("coordinator ended with {status}\n{}", self.log()),
                None if start.elapsed() > within => panic!("coordinator did not end within {within:?}\n{}", self.log()),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Has the process ended?
    pub fn ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|s| s.is_some())
    }

    /// SIGKILL to the coordinator.
    pub fn kill(mut self) {
        self.child.kill().expect("the child can be killed");
        self.child.wait().expect("the child can be waited for");
    }

    /// Process id of a child such as `learner-0` or `worker-0`.
    pub fn pid_of(&self, name: &str, within: Duration) -> i32 {
        let parent = self.child.id();
        self.wait_for(&format!("process {name}"), within, |_| child_named(parent, name))
    }

    /// Waits until `steps` steps are in metrics.jsonl.
    pub fn wait_for_steps(&self, steps: usize, within: Duration) {
        self.wait_for(&format!("{steps} committed steps"), within, |dir| {
            let text = std::fs::read_to_string(dir.join("metrics.jsonl")).ok()?;
            (text.lines().count() >= steps).then_some(())
        });
    }

    /// Polls `look` until it returns something.
    pub fn wait_for<T>(&self, what: &str, within: Duration, look: impl Fn(&Path) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(found) = look(&self.dir) {
                return found;
            }
            assert!(start.elapsed() < within, "waited {within:?} for {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What the coordinator printed so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(log_path(&self.dir)).unwrap_or_default()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The child of `parent` that was started with `--id name`.
fn child_named(parent: u32, name: &str) -> Option<i32> {
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        // pid (name) state ppid …; the name may hold spaces.
        let ppid: u32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let mut words = line.split(|b| *b == 0);
        let named = words.any(|w| w == b"--id") && words.next() == Some(name.as_bytes());
        (ppid == parent && named).then_some(pid)
    })
}

fn log_path(dir: &Path) -> PathBuf {
    dir.with_extension("log")
}

/// `report.json` of a finished run.
pub fn report(dir: &Path) -> Value {
    let text = std::fs::read(dir.join("report.json")).expect("a finished run has report.json");
    serde_json::from_slice(&text).expect("report.json is JSON")
}

/// Sends SIGKILL.
pub fn kill(pid: i32) {
    // SAFETY: kill(2) takes no pointers; the pid is that of a child the test started.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

/// Sends SIGSTOP: the process hangs, but its connections stay open.
pub fn stop(pid: i32) {
    // SAFETY: kill(2) takes no pointers; the pid is that of a child the test started.
    unsafe { libc::kill(pid, libc::SIGSTOP) };
}
