//! The coordinator as a process of its own: started, watched, killed; and what the kernel says about it and about us.

use anyhow::{Context, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const START: Duration = Duration::from_secs(60);

/// A running coordinator; killed on drop.
pub struct Coordinator {
    child: Child,
    dir: PathBuf,
    log: PathBuf,
}

impl Coordinator {
    /// Starts `program` (or the one beside this executable) on a new run directory.
    pub fn start(program: Option<&Path>, dir: &Path, sets: &[String]) -> anyhow::Result<Self> {
        Self::with(program, dir, &[], sets)
    }

    /// The same with more arguments.
    pub fn with(program: Option<&Path>, dir: &Path, args: &[&str], sets: &[String]) -> anyhow::Result<Self> {
        let own = std::env::current_exe()?.with_file_name("coordinator");
        let program = program.unwrap_or(&own);
        ensure!(!dir.exists(), "{} exists; remove it, or give another --dir", dir.display());
        let log = dir.with_extension("log");
        if let Some(parent) = dir.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let out = std::fs::File::create(&log).with_context(|| log.display().to_string())?;
        let mut command = Command::new(program);
        for set in sets {
            command.args(["--set", set]);
        }
        command
            .args(args)
            .args(["--progress", "plain", "--log", "warn"])
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out);
        let child = command.spawn().with_context(|| format!("{}: build it first", program.display()))?;
        Ok(Self { child, dir: dir.to_owned(), log })
    }

    /// Its gRPC address, once it listens.
    pub async fn url(&mut self) -> anyhow::Result<String> {
        Ok(format!("http://{}", self.address("grpc").await?))
    }

    /// What `endpoints.json` says for `key`, once it is there.
    pub async fn address(&mut self, key: &str) -> anyhow::Result<String> {
        let start = Instant::now();
        loop {
            let text = std::fs::read_to_string(self.dir.join("endpoints.json")).unwrap_or_default();
            let found = serde_json::from_str::<serde_json::Value>(&text).ok();
            if let Some(address) = found.as_ref().and_then(|v| v.get(key)?.as_str()) {
                return Ok(address.to_owned());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the coordinator ended with {status}:\n{}", self.said());
            }
            ensure!(start.elapsed() < START, "the coordinator does not listen after {START:?}:\n{}", self.said());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for a clean end of the run, at most `limit`.
    pub async fn ended(&mut self, limit: Duration) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("the coordinator ended with {status}:\n{}", self.said()),
                None => {
                    ensure!(start.elapsed() < limit, "the coordinator did not end within {limit:?}:\n{}", self.said())
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits for a clean end of the run, at most `limit`; processor seconds of the coordinator, and of it with all its children.
    pub fn cost(&mut self, limit: Duration) -> anyhow::Result<(f64, f64)> {
        let start = Instant::now();
        // Dead and not yet waited for, a process still has its times to read.
        while !self.stat().starts_with(" Z") {
            ensure!(start.elapsed() < limit, "the run did not end within {limit:?}:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
        let [own, children] = [self.cpu_seconds(), self.ticks(13)];
        let status = self.child.wait()?;
        ensure!(status.success(), "the coordinator ended with {status}:\n{}", self.said());
        Ok((own, own + children))
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Processor seconds in user and kernel mode so far.
    pub fn cpu_seconds(&self) -> f64 {
        self.ticks(11)
    }

    /// `/proc/PID/stat` after the name; empty when the process is gone.
    fn stat(&self) -> String {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        stat.rsplit_once(')').map_or_else(String::new, |(_, fields)| fields.to_owned())
    }

    /// Seconds of two successive fields of `/proc/PID/stat`, the first of which is `at` after the name.
    fn ticks(&self, at: usize) -> f64 {
        let stat = self.stat();
        let fields = stat.split_whitespace();
        let ticks: f64 = fields.skip(at).take(2).filter_map(|f| f.parse::<f64>().ok()).sum();
        // SAFETY: sysconf takes no pointers.
        ticks / unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64
    }

    /// Peak resident memory.
    pub fn rss_mb(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
    }

    /// Ledger transactions so far, from its metrics page; 0 if it does not answer.
    pub async fn transactions(&mut self) -> u64 {
        self.metric("quorum_coordinator_ledger_fsync_duration_seconds_count").await.unwrap_or(0.0) as u64
    }

    /// A value of the metrics page.
    pub async fn metric(&mut self, name: &str) -> anyhow::Result<f64> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let address = self.address("http").await?;
        let read = async {
            let mut stream = tokio::net::TcpStream::connect(&address).await?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
            let mut page = String::new();
            stream.read_to_string(&mut page).await?;
            anyhow::Ok(page)
        };
        let page = tokio::time::timeout(Duration::from_secs(10), read).await??;
        let value = page.lines().find_map(|l| l.strip_prefix(name)?.trim().parse().ok());
        value.with_context(|| format!("no {name} on the metrics page"))
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_file(&self.log);
    }
}

/// Processor seconds of this process.
pub fn own_cpu_seconds() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is valid for the call.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

/// Connections that the machine dropped because an accept queue was full, since it started.
pub fn listen_overflows() -> u64 {
    let text = std::fs::read_to_string("/proc/net/netstat").unwrap_or_default();
    let mut lines = text.lines().filter(|l| l.starts_with("TcpExt:"));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else { return 0 };
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    pairs.find(|(n, _)| *n == "ListenOverflows").and_then(|(_, v)| v.parse().ok()).unwrap_or(0)
}

/// A connection is a descriptor.
pub fn raise_file_limit() {
    // SAFETY: the pointers are valid for the calls.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}
