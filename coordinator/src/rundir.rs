//! The run directory: its lock, its files, and writing them so that a reader never sees half of one.

use crate::evaluate::Evaluation;
use crate::ledger::{CheckpointRow, StepRow};
use crate::owner::{Denied, Owner, Ownership, Pace};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A checkpoint whose files are older is nobody's work any more.
const WRITING: Duration = Duration::from_secs(60);

/// Addresses and process id of the coordinator, while one runs.
pub const ENDPOINTS: &str = "endpoints.json";
/// The ledger.
pub const LEDGER: &str = "ledger.db";

/// What can be wrong with a run directory.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    #[error("run directory {path} already holds a run; go on with `coordinator --resume {path}`, or choose another run.dir", path = .0.display())]
    Taken(PathBuf),
    #[error("run directory {path} holds no run ({missing} is missing); start one with `--set run.dir={path}`", path = .path.display())]
    NoRun { path: PathBuf, missing: &'static str },
    #[error("run directory {path} is in use by another coordinator (process {pid}); stop it first", path = .path.display())]
    Locked { path: PathBuf, pid: String },
    #[error("run directory {path} is in use by a coordinator on {host} (process {pid}); stop it first", path = .path.display())]
    Held { path: PathBuf, host: String, pid: u32 },
    #[error("{path}: cannot {action}: {source}", path = .path.display())]
    Io { path: PathBuf, action: &'static str, source: io::Error },
}

/// A locked run directory; cheap to clone. The lock goes with the last clone, or with the process.
#[derive(Debug, Clone)]
pub struct RunDir {
    path: PathBuf,
    /// Goes before the lock does.
    owned: Arc<Ownership>,
    _lock: Arc<File>,
}

fn io_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> RunDirError {
    let path = path.to_path_buf();
    move |source| RunDirError::Io { path, action, source }
}

impl RunDir {
    /// Makes a new run directory.
    ///
    /// # Errors
    /// It holds a run already, is locked, or cannot be written.
    pub fn create(path: &Path) -> Result<Self, RunDirError> {
        fs::create_dir_all(path).map_err(io_error(path, "make the run directory"))?;
        let dir = Self::lock(path)?;
        if dir.ledger().exists() {
            return Err(RunDirError::Taken(path.to_path_buf()));
        }
        dir.folders()?;
        Ok(dir)
    }

    /// Opens the directory of a run that was begun.
    ///
    /// # Errors
    /// There is none, it is locked, or it cannot be written.
    pub fn open(path: &Path) -> Result<Self, RunDirError> {
        for missing in [LEDGER, "config.resolved.toml"] {
            if !path.join(missing).is_file() {
                return Err(RunDirError::NoRun { path: path.to_path_buf(), missing });
            }
        }
        let dir = Self::lock(path)?;
        dir.folders()?;
        Ok(dir)
    }

    fn lock(path: &Path) -> Result<Self, RunDirError> {
        let file = path.join("lock");
        let mut lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&file)
            .map_err(io_error(&file, "open"))?;
        // SAFETY: flock on a descriptor that `lock` keeps open.
        if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            let pid = fs::read_to_string(&file).unwrap_or_default().trim().to_owned();
            return Err(RunDirError::Locked { path: path.to_path_buf(), pid });
        }
        let told = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        told.map_err(io_error(&file, "write"))?;
        let owned = Ownership::take(path, Owner::own(), Pace::USUAL).map_err(|denied| match denied {
            Denied::Held(by) => RunDirError::Held { path: path.to_path_buf(), host: by.host, pid: by.pid },
            Denied::Io(file, source) => RunDirError::Io { path: file, action: "write", source },
        })?;
        Ok(Self { path: path.to_path_buf(), owned: Arc::new(owned), _lock: Arc::new(lock) })
    }

    fn folders(&self) -> Result<(), RunDirError> {
        for name in ["checkpoints", "logs"] {
            let path = self.path.join(name);
            fs::create_dir_all(&path).map_err(io_error(&path, "make the directory"))?;
        }
        Ok(())
    }

    /// Why this coordinator must stop, if another one has taken the directory over.
    pub fn lost(&self) -> Option<String> {
        self.owned.lost()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn ledger(&self) -> PathBuf {
        self.path.join(LEDGER)
    }

    /// Directory of a checkpoint.
    pub fn checkpoint(&self, name: &str) -> PathBuf {
        self.path.join("checkpoints").join(name)
    }

    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// Replaces a file: temporary name, fsync, rename, fsync of the directory.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, name: &str, content: &str) -> Result<(), RunDirError> {
        let (path, temporary) = (self.path.join(name), self.path.join(format!(".{name}.tmp")));
        let written = File::create(&temporary).and_then(|mut f| {
            f.write_all(content.as_bytes())?;
            f.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&self.path)?.sync_all()
        });
        written.map_err(io_error(&path, "write"))
    }

    /// Removes a file; one that is not there is no error.
    pub fn remove(&self, name: &str) {
        if let Err(e) = fs::remove_file(self.path.join(name))
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("cannot remove {name}: {e}");
        }
    }

    /// Adds a line to a file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn append(&self, name: &str, line: &str) -> Result<(), RunDirError> {
        let path = self.path.join(name);
        // One write call, so that a reader sees whole lines.
        let added = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut f| f.write_all(format!("{line}\n").as_bytes()));
        added.map_err(io_error(&path, "write"))
    }

    /// Makes metrics.jsonl and timing.jsonl say what the ledger says.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn rewrite_metrics(&self, steps: &[StepRow]) -> Result<(), RunDirError> {
        let lines = |get: fn(&StepRow) -> &str| steps.iter().fold(String::new(), |out, s| out + get(s) + "\n");
        self.write("metrics.jsonl", &lines(|s| &s.metrics))?;
        self.write("timing.jsonl", &lines(|s| &s.timings))
    }

    /// Per-question outcomes of an evaluation: eval-before.jsonl, eval-after.jsonl, or eval-N.jsonl between.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_evaluation(&self, version: u64, steps: u64, evaluation: &Evaluation) -> Result<(), RunDirError> {
        let lines = evaluation.lines();
        if version == 0 {
            self.write("eval-before.jsonl", &lines)?;
        }
        if version == steps {
            self.write("eval-after.jsonl", &lines)?;
        }
        if version > 0 && version < steps {
            self.write(&format!("eval-{version}.jsonl"), &lines)?;
        }
        Ok(())
    }

    /// Removes what a learner left that the ledger does not name (INV-10). What is being written stays: its learner may have outlived the coordinator before.
    pub fn remove_unnamed_checkpoints(&self, named: &[CheckpointRow]) {
        let named: BTreeSet<&str> = named.iter().map(|c| c.name.as_str()).collect();
        self.remove_checkpoints(|name| !named.contains(name) && !self.in_the_making(name));
    }

    /// Whether somebody has written to this checkpoint, which has no name of its own yet, within the last minute.
    fn in_the_making(&self, name: &str) -> bool {
        let dir = self.path.join("checkpoints").join(name);
        // A time to come is another machine's clock.
        let fresh = |path: &Path| {
            let written = fs::metadata(path).and_then(|m| m.modified());
            written.is_ok_and(|at| at.elapsed().map_or(true, |age| age < WRITING))
        };
        let files = || fs::read_dir(&dir).into_iter().flatten().flatten();
        name.starts_with(".tmp-") && (fresh(&dir) || files().any(|file| fresh(&file.path())))
    }

    /// Keeps the newest `keep` of the named checkpoints. Unnamed ones may be in the making.
    pub fn prune_checkpoints(&self, newest_first: &[CheckpointRow], keep: usize) {
        let old: BTreeSet<&str> = newest_first.iter().skip(keep).map(|c| c.name.as_str()).collect();
        self.remove_checkpoints(|name| old.contains(name));
    }

    fn remove_checkpoints(&self, unwanted: impl Fn(&str) -> bool) {
        let Ok(entries) = fs::read_dir(self.path.join("checkpoints")) else { return };
        for entry in entries.flatten() {
            if entry.file_name().to_str().is_some_and(&unwanted)
                && let Err(e) = fs::remove_dir_all(entry.path())
            {
                tracing::warn!("cannot remove {}: {e}", entry.path().display());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_owner_at_a_time_and_no_run_is_overwritten() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("run");
        let dir = RunDir::create(&path).unwrap();
        let e = RunDir::create(&path).unwrap_err().to_string();
        assert!(e.contains("in use") && e.contains(&std::process::id().to_string()), "{e}");
        assert!(RunDir::open(&path).unwrap_err().to_string().contains("ledger.db is missing"));
        fs::write(dir.ledger(), b"").unwrap();
        drop(dir);
        let e = RunDir::create(&path).unwrap_err().to_string();
        assert!(e.contains("--resume"), "{e}");
        fs::write(path.join("config.resolved.toml"), b"").unwrap();
        RunDir::open(&path).unwrap();
    }

    #[test]
    fn checkpoints_that_nobody_names_go() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = RunDir::create(tmp.path()).unwrap();
        let names = ["step-000001", "step-000002", "step-000003", ".tmp-step-000004"];
        names.iter().for_each(|n| fs::create_dir(dir.checkpoint(n)).unwrap());
        let named: Vec<CheckpointRow> = [(3, "step-000003"), (2, "step-000002"), (1, "step-000001")]
            .map(|(steps, name)| CheckpointRow { name: name.into(), steps, manifest: String::new() })
            .into();
        dir.prune_checkpoints(&named, 2);
        let there = |n: &str| dir.checkpoint(n).exists();
        assert_eq!(names.map(there), [false, true, true, true]);
        dir.remove_unnamed_checkpoints(&named[..1]);
        assert_eq!(names.map(there), [false, false, true, true], "one may be in the making");
        let making = File::open(dir.checkpoint(".tmp-step-000004")).unwrap();
        making.set_modified(std::time::SystemTime::now() - 2 * WRITING).unwrap();
        dir.remove_unnamed_checkpoints(&named[..1]);
        assert_eq!(names.map(there), [false, false, true, false]);
    }
}
