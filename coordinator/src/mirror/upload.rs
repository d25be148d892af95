//! The task that uploads: the newest checkpoint only, one at a time.

use super::manifest::{Entry, FORMAT, Manifest, name};
use super::store::Store;
use super::{MirrorError, Place, claim};
use crate::ledger::{CheckpointRow, Ledger};
use crate::rundir::RunDir;
use quorum_core::metric;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// One upload with everything in it.
const UPLOAD: Duration = Duration::from_secs(3600);
/// Where an upload is prepared, in the run directory.
const STAGE: &str = ".mirror";

#[derive(Debug, Clone, Default)]
struct Wish {
    newest: Option<CheckpointRow>,
    closing: bool,
}

#[derive(Debug, Clone, Default)]
struct News {
    fenced: Option<String>,
    ended: bool,
}

/// Handle to the task; cheap to clone.
#[derive(Debug, Clone)]
pub struct Mirror {
    wish: watch::Sender<Wish>,
    news: watch::Receiver<News>,
}

impl Mirror {
    /// Claims the place for this epoch and starts the task. Complete copies beyond the newest `keep` are removed as new ones arrive.
    ///
    /// # Errors
    /// The bucket cannot be used, belongs to another run, or a newer coordinator writes there.
    pub async fn start(place: Place, dir: &RunDir, run_id: &str, epoch: u64, keep: u32) -> Result<Self, MirrorError> {
        let store = Store::open(&place)?;
        claim::claim(&store, run_id, epoch).await?;
        let uploader = Uploader {
            store,
            dir: dir.path().to_path_buf(),
            run_id: run_id.to_owned(),
            epoch,
            keep: keep.max(2) as usize,
        };
        Ok(Self::with(uploader))
    }

    fn with(uploader: Uploader) -> Self {
        let (wish, wishes) = watch::channel(Wish::default());
        let (tell, news) = watch::channel(News::default());
        tokio::spawn(uploader.run(wishes, tell));
        Self { wish, news }
    }

    /// Asks for a copy of the run with this checkpoint; one that still waits is dropped for it.
    pub fn offer(&self, checkpoint: &CheckpointRow) {
        self.wish.send_modify(|w| w.newest = Some(checkpoint.clone()));
    }

    /// Waits until a newer coordinator takes over; the reason for the user. For ever if none does.
    pub async fn fenced(&self) -> String {
        let mut news = self.news.clone();
        let reason = news.wait_for(|n| n.fenced.is_some()).await.ok().and_then(|n| n.fenced.clone());
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }

    /// Waits for what was offered, at most so long.
    pub async fn finish(&self, patience: Duration) {
        self.wish.send_modify(|w| w.closing = true);
        let mut news = self.news.clone();
        if tokio::time::timeout(patience, news.wait_for(|n| n.ended)).await.is_err() {
            tracing::warn!("the last upload to run.mirror did not end within {} s", patience.as_secs());
        }
    }
}

pub(super) struct Uploader {
    pub(super) store: Store,
    pub(super) dir: PathBuf,
    pub(super) run_id: String,
    pub(super) epoch: u64,
    pub(super) keep: usize,
}

impl Uploader {
    async fn run(self, mut wishes: watch::Receiver<Wish>, tell: watch::Sender<News>) {
        let mut done: Option<CheckpointRow> = None;
        loop {
            let wish = wishes.borrow_and_update().clone();
            match wish.newest.filter(|newest| done.as_ref() != Some(newest)) {
                Some(newest) => {
                    match self.one(&newest).await {
                        Err(error @ MirrorError::Fenced { .. }) => {
                            tell.send_modify(|n| (n.fenced, n.ended) = (Some(error.to_string()), true));
                            return;
                        }
                        Err(error) => {
                            metric::CHECKPOINT_FAILURES.with(["mirror"]).increment(1);
                            tracing::warn!(
                                "run.mirror: {} was not copied: {error}; the run goes on, the next checkpoint tries again",
                                newest.name
                            );
                        }
                        Ok(()) => {}
                    }
                    done = Some(newest);
                }
                None if wish.closing => break,
                None => {
                    if wishes.changed().await.is_err() {
                        break;
                    }
                }
            }
        }
        tell.send_modify(|n| n.ended = true);
    }

    /// One copy, under its deadline.
    async fn one(&self, row: &CheckpointRow) -> Result<(), MirrorError> {
        let began = Instant::now();
        let copied = tokio::time::timeout(UPLOAD, self.copy(row)).await;
        let _ = tokio::fs::remove_dir_all(self.dir.join(STAGE)).await;
        let late = || {
            let reason = format!("it took longer than {} s", UPLOAD.as_secs());
            MirrorError::Store { place: self.store.place.clone(), action: "uploading".into(), reason }
        };
        copied.map_err(|_| late())??;
        metric::CHECKPOINT_DURATION_SECONDS.with(["mirror"]).record(began.elapsed().as_secs_f64());
        tracing::info!(checkpoint = row.name, place = %self.store.place, seconds = began.elapsed().as_secs_f64(), "copied");
        Ok(())
    }

    pub(super) async fn copy(&self, row: &CheckpointRow) -> Result<(), MirrorError> {
        claim::check(&self.store, self.epoch).await?;
        let (dir, row_owned) = (self.dir.clone(), row.clone());
        let staged = tokio::task::spawn_blocking(move || stage(&dir, &row_owned)).await;
        let staged = staged.map_err(|e| self.local(&e.to_string()))?.map_err(|e| self.local(&e))?;
        let folder = name(row.steps, self.epoch);
        let mut files = Vec::new();
        for (path, file) in staged {
            let (bytes, sha256) = self.store.upload(&format!("{folder}/{path}"), &file).await?;
            files.push(Entry { path, bytes, sha256 });
        }
        let manifest = Manifest {
            format: FORMAT,
            run_id: self.run_id.clone(),
            epoch: self.epoch,
            steps: row.steps,
            checkpoint: row.name.clone(),
            files,
        };
        let text = serde_json::to_vec_pretty(&manifest).map_err(|e| self.local(&e.to_string()))?;
        claim::check(&self.store, self.epoch).await?;
        let file = format!("{folder}.json");
        if !self.store.create(&file, &text).await? && self.store.read(&file).await? != text {
            return Err(MirrorError::Fenced { place: self.store.place.clone(), own: self.epoch, theirs: self.epoch });
        }
        self.prune().await
    }

    fn local(&self, reason: &str) -> MirrorError {
        MirrorError::Local { path: self.dir.display().to_string(), reason: reason.to_owned() }
    }

    /// Removes complete copies but the newest ones, manifests first, and what was never completed and is older than those kept.
    pub(super) async fn prune(&self) -> Result<(), MirrorError> {
        let names = self.store.list("snapshots").await?;
        let manifests: Vec<&String> =
            names.iter().filter(|n| n.ends_with(".json") && n.matches('/').count() == 1).collect();
        let Some(oldest) = manifests.iter().rev().nth(self.keep - 1) else { return Ok(()) };
        let bound = oldest.trim_end_matches(".json");
        let folder = |n: &str| n.trim_end_matches(".json").splitn(3, '/').take(2).collect::<Vec<_>>().join("/");
        let (mut first, rest): (Vec<&String>, Vec<&String>) =
            names.iter().filter(|n| folder(n).as_str() < bound).partition(|n| manifests.contains(n));
        first.extend(rest);
        for name in first {
            self.store.remove(name).await?;
        }
        Ok(())
    }
}

/// Puts the files of a copy aside, so that pruning and writing cannot reach them: (path in the run directory, file).
fn stage(dir: &Path, row: &CheckpointRow) -> Result<Vec<(String, PathBuf)>, String> {
    let stage = dir.join(STAGE);
    let told = |path: &Path, e: std::io::Error| format!("{}: {e}", path.display());
    if stage.exists() {
        std::fs::remove_dir_all(&stage).map_err(|e| told(&stage, e))?;
    }
    std::fs::create_dir_all(&stage).map_err(|e| told(&stage, e))?;
    let mut files = Vec::new();
    let from = dir.join("checkpoints").join(&row.name);
    let mut keep = |relative: String, source: &Path| -> Result<(), String> {
        let to = stage.join(relative.replace('/', "~"));
        std::fs::hard_link(source, &to)
            .or_else(|_| std::fs::copy(source, &to).map(drop))
            .map_err(|e| told(source, e))?;
        files.push((relative, to));
        Ok(())
    };
    for entry in std::fs::read_dir(&from).map_err(|e| told(&from, e))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        keep(format!("checkpoints/{}/{name}", row.name), &entry.path())?;
    }
    // Files of the run directory are replaced, never changed in place: a second name keeps what was.
    for entry in std::fs::read_dir(dir).map_err(|e| told(dir, e))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == "config.resolved.toml" || (name.starts_with("eval-") && name.ends_with(".jsonl")) {
            keep(name, &entry.path())?;
        }
    }
    let ledger = stage.join(crate::rundir::LEDGER);
    Ledger::copy(&dir.join(crate::rundir::LEDGER), &ledger).map_err(|e| e.to_string())?;
    let named = Ledger::inspect(&ledger).map_err(|e| e.to_string())?.checkpoints();
    if !named.iter().take(2).any(|c| c == row) {
        return Err(format!("{} is no longer one of the two newest checkpoints", row.name));
    }
    files.push((crate::rundir::LEDGER.into(), ledger));
    Ok(files)
}
