//! Which processes a machine runs, and how its cores are divided.

use super::group::Transport;
use super::probe::computes_on;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A process to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    pub name: String,
    pub program: PathBuf,
    pub args: Vec<String>,
    /// It is a starter such as mpirun, and the members of the run are its children.
    pub group: bool,
}

/// Why nothing is started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("{program} is not beside {own}; build all three executables with `cargo build --release`", program = .program, own = .own.display())]
    NoSibling { program: &'static str, own: PathBuf },
    #[error("cannot find this executable's own path: {0}")]
    OwnPath(std::io::Error),
    #[error("cannot start the launcher's thread: {0}")]
    Thread(std::io::Error),
    #[error(
        "learner.ranks = {ranks} needs a learner with feature {feature}, this one was built with: {built}; build it with: {build}"
    )]
    Feature { ranks: u32, feature: &'static str, built: String, build: &'static str },
    #[error(
        "learner ranks on one machine are started by mpirun, which is not on PATH: install it, e.g. apt-get install openmpi-bin"
    )]
    NoMpirun,
    #[error("learner.ranks = {ranks} on GPUs needs one device a rank, but --device names {devices}")]
    Devices { ranks: u32, devices: String },
    #[error("--device {devices} is not for this {program}: {reason}")]
    Device { devices: String, program: String, reason: String },
    #[error("cannot ask {program} what it was built with: {reason}", program = .program.display())]
    Probe { program: PathBuf, reason: String },
}

/// What the plan depends on.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub workers: u32,
    /// Ranks of the learner.
    pub ranks: u32,
    /// Devices of the children, dealt out in turn; empty = the processor.
    pub devices: Vec<String>,
    pub url: String,
    pub cores: usize,
    /// 0 = all cores.
    pub learner_threads: u32,
    pub token_file: String,
    pub tls_ca: String,
    pub tls_cert: String,
    pub tls_key: String,
    pub log: String,
}

/// The ranks of the learner and `workers` rollout workers. Workers share the cores, and so do the ranks, because workers idle while they work.
///
/// # Errors
/// An executable is missing.
pub fn plan(wanted: &Wanted) -> Result<Vec<Launch>, LaunchError> {
    let own = std::env::current_exe().map_err(LaunchError::OwnPath)?;
    let mut common = vec!["--coordinator".to_owned(), wanted.url.clone(), "--log".into(), wanted.log.clone()];
    let files = [
        ("--token-file", &wanted.token_file),
        ("--tls-ca", &wanted.tls_ca),
        ("--tls-cert", &wanted.tls_cert),
        ("--tls-key", &wanted.tls_key),
    ];
    for (flag, value) in files {
        if !value.is_empty() {
            common.extend([flag.to_owned(), value.clone()]);
        }
    }
    let all = wanted.cores.max(1);
    let ranks = wanted.ranks.max(1);
    let learner_threads = match wanted.learner_threads {
        0 => (all / ranks as usize).max(1),
        n => n as usize,
    };
    let transport = Transport::of(ranks, &wanted.devices);
    let mut launches = transport.launches(&sibling(&own, "learner")?, ranks, learner_threads, &wanted.devices, &common);
    if wanted.workers > 0 {
        let worker = sibling(&own, "rollout-worker")?;
        for i in 0..wanted.workers as usize {
            let name = format!("worker-{i}");
            let mut args = common.clone();
            args.extend(["--id".to_owned(), name.clone(), "--threads".into()]);
            args.push(share(all, wanted.workers as usize, i).to_string());
            let devices = dealt(&wanted.devices, wanted.workers as usize, i);
            if !devices.is_empty() {
                args.extend(["--device".to_owned(), devices.join(",")]);
            }
            launches.push(Launch { name, program: worker.clone(), args, group: false });
        }
    }
    Ok(launches)
}

/// Whether the executables are there, can run `ranks` learner ranks, and compute on `devices`, before anything begins.
///
/// # Errors
/// What is missing.
pub fn check(workers: u32, ranks: u32, devices: &[String]) -> Result<(), LaunchError> {
    let own = std::env::current_exe().map_err(LaunchError::OwnPath)?;
    let (worker, learner) = (sibling(&own, "rollout-worker")?, sibling(&own, "learner")?);
    let transport = Transport::of(ranks, devices);
    transport.check(&learner, ranks, devices)?;
    if devices.is_empty() {
        return Ok(());
    }
    let shares: BTreeSet<String> =
        (0..workers as usize).map(|i| dealt(devices, workers as usize, i).join(",")).collect();
    shares.iter().try_for_each(|share| computes_on(&worker, share))?;
    transport.devices(ranks, devices).iter().try_for_each(|device| computes_on(&learner, device))
}

/// Devices of worker `i` of `n`: every n-th, or one that it shares.
fn dealt(devices: &[String], n: usize, i: usize) -> Vec<String> {
    let own: Vec<String> = devices.iter().skip(i).step_by(n.max(1)).cloned().collect();
    match devices.get(i % devices.len().max(1)) {
        Some(shared) if own.is_empty() => vec![shared.clone()],
        _ => own,
    }
}

/// Cores of worker `i` of `n`: an even share, the first ones take the rest, at least 1.
fn share(cores: usize, n: usize, i: usize) -> usize {
    (cores / n + usize::from(i < cores % n)).max(1)
}

fn sibling(own: &Path, program: &'static str) -> Result<PathBuf, LaunchError> {
    let path = own.with_file_name(program);
    if path.is_file() { Ok(path) } else { Err(LaunchError::NoSibling { program, own: own.to_path_buf() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_shared_out_whole() {
        let shares = |cores, n| (0..n).map(|i| share(cores, n, i)).collect::<Vec<_>>();
        assert_eq!(shares(8, 3), [3, 3, 2]);
        assert_eq!(shares(2, 1), [2]);
        assert_eq!(shares(2, 4), [1, 1, 1, 1]);
    }

    #[test]
    fn devices_are_dealt_out_in_turn() {
        let devices = ["cuda:0", "cuda:1", "cuda:2"].map(str::to_owned);
        let of = |n| (0..n).map(|i| dealt(&devices, n, i).join(",")).collect::<Vec<_>>();
        assert_eq!(of(1), ["cuda:0,cuda:1,cuda:2"]);
        assert_eq!(of(2), ["cuda:0,cuda:2", "cuda:1"]);
        assert_eq!(of(4), ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]);
        assert!(dealt(&[], 2, 1).is_empty());
    }

    #[test]
    fn a_missing_sibling_says_how_to_build_it() {
        let e = sibling(Path::new("/nonexistent/coordinator"), "learner").unwrap_err().to_string();
        assert!(e.contains("learner") && e.contains("cargo build --release"), "{e}");
    }
}
