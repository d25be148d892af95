//! Which processes a machine runs, and how its cores are divided.

use std::path::{Path, PathBuf};

/// A process to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    pub name: String,
    pub program: PathBuf,
    pub args: Vec<String>,
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
}

/// What the plan depends on.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub workers: u32,
    pub url: String,
    pub cores: usize,
    /// 0 = all cores.
    pub learner_threads: u32,
    pub token_file: String,
    pub tls_ca: String,
    pub log: String,
}

/// The learner and `workers` rollout workers. Workers share the cores; the learner takes all, because workers idle while it works.
///
/// # Errors
/// An executable is missing.
pub fn plan(wanted: &Wanted) -> Result<Vec<Launch>, LaunchError> {
    let own = std::env::current_exe().map_err(LaunchError::OwnPath)?;
    let mut common = vec!["--coordinator".to_owned(), wanted.url.clone(), "--log".into(), wanted.log.clone()];
    for (flag, value) in [("--token-file", &wanted.token_file), ("--tls-ca", &wanted.tls_ca)] {
        if !value.is_empty() {
            common.extend([flag.to_owned(), value.clone()]);
        }
    }
    let args = |name: &str, threads: usize| {
        let mut args = common.clone();
        args.extend(["--id".to_owned(), name.to_owned(), "--threads".into(), threads.to_string()]);
        args
    };
    let all = wanted.cores.max(1);
    let learner_threads = if wanted.learner_threads == 0 { all } else { wanted.learner_threads as usize };
    let learner = sibling(&own, "learner")?;
    let mut launches =
        vec![Launch { name: "learner-0".into(), program: learner, args: args("learner-0", learner_threads) }];
    if wanted.workers > 0 {
        let worker = sibling(&own, "rollout-worker")?;
        for i in 0..wanted.workers as usize {
            let name = format!("worker-{i}");
            let args = args(&name, share(all, wanted.workers as usize, i));
            launches.push(Launch { name, program: worker.clone(), args });
        }
    }
    Ok(launches)
}

/// Whether the executables are there, before anything begins.
///
/// # Errors
/// One is missing.
pub fn check() -> Result<(), LaunchError> {
    let own = std::env::current_exe().map_err(LaunchError::OwnPath)?;
    ["learner", "rollout-worker"].into_iter().try_for_each(|program| sibling(&own, program).map(|_| ()))
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
    fn a_missing_sibling_says_how_to_build_it() {
        let e = sibling(Path::new("/nonexistent/coordinator"), "learner").unwrap_err().to_string();
        assert!(e.contains("learner") && e.contains("cargo build --release"), "{e}");
    }
}
