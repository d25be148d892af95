//! Copies in a bucket held in memory: what is torn is not used, what is damaged is passed over, and only the newest coordinator writes.

#![allow(clippy::unwrap_used)]

use super::manifest::name;
use super::store::Store;
use super::upload::Uploader;
use super::{MirrorError, Place, claim, restore};
use crate::ledger::{CheckpointRow, Ledger, Write};
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use quorum_core::digest::sha256_hex;
use std::path::Path;
use std::sync::Arc;

struct Run {
    dir: tempfile::TempDir,
    ledger: Ledger,
    memory: Arc<InMemory>,
    store: Store,
}

fn place() -> Place {
    Place::parse("s3://bucket/some/run").unwrap()
}

async fn run() -> Run {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _) = Ledger::open(&dir.path().join("ledger.db")).unwrap();
    std::fs::write(dir.path().join("config.resolved.toml"), "[run]").unwrap();
    std::fs::write(dir.path().join("eval-before.jsonl"), "{}").unwrap();
    let memory = Arc::new(InMemory::new());
    let store = Store::of(memory.clone(), &place());
    Run { dir, ledger, memory, store }
}

impl Run {
    fn uploader(&self, epoch: u64) -> Uploader {
        let (store, dir) = (self.store.clone(), self.dir.path().to_path_buf());
        Uploader { store, dir, run_id: "r".into(), epoch, keep: 2 }
    }

    /// Commits a step with a checkpoint.
    async fn step(&self, step: u64) -> CheckpointRow {
        let row_name = format!("step-{:06}", step + 1);
        let dir = self.dir.path().join("checkpoints").join(&row_name);
        std::fs::create_dir_all(&dir).unwrap();
        let content = format!("weights {step}").repeat(1000);
        std::fs::write(dir.join("model.safetensors"), &content).unwrap();
        let file = serde_json::json!({"sha256": sha256_hex(content.as_bytes()), "bytes": content.len()});
        let manifest = serde_json::json!({"files": {"model.safetensors": file}}).to_string();
        std::fs::write(dir.join("MANIFEST.json"), &manifest).unwrap();
        let row = CheckpointRow { name: row_name, steps: step + 1, manifest: sha256_hex(manifest.as_bytes()) };
        let commit = Write::Commit {
            step,
            version: step + 1,
            digest: "d".into(),
            metrics: "{}".into(),
            timings: "{}".into(),
            checkpoint: row.name.clone(),
            manifest: row.manifest.clone(),
        };
        self.ledger.commit(vec![commit]).await.unwrap();
        row
    }

    async fn restored(&self) -> Result<(u64, tempfile::TempDir), MirrorError> {
        let to = tempfile::tempdir().unwrap();
        restore::from(&self.store, to.path()).await.map(|steps| (steps, to))
    }
}

#[tokio::test]
async fn the_newest_complete_copy_comes_back_and_old_ones_go() {
    let run = run().await;
    claim::claim(&run.store, "r", 1).await.unwrap();
    assert!(run.restored().await.unwrap_err().to_string().contains("no complete copy"));
    for step in 0..4 {
        let row = run.step(step).await;
        run.uploader(1).copy(&row).await.unwrap();
    }
    let names = run.store.list("snapshots").await.unwrap();
    let manifests: Vec<&String> = names.iter().filter(|n| n.ends_with("1.json")).collect();
    assert_eq!(manifests, [&format!("{}.json", name(3, 1)), &format!("{}.json", name(4, 1))]);
    assert!(names.iter().all(|n| n.starts_with(&name(3, 1)) || n.starts_with(&name(4, 1))), "{names:?}");
    let (steps, to) = run.restored().await.unwrap();
    let read = |base: &Path, file: &str| std::fs::read(base.join(file)).unwrap();
    let file = "checkpoints/step-000004/model.safetensors";
    assert_eq!((steps, read(to.path(), file)), (4, read(run.dir.path(), file)));
    assert_eq!(read(to.path(), "eval-before.jsonl"), b"{}");
    let (_, history) = Ledger::open(&to.path().join("ledger.db")).unwrap();
    assert_eq!((history.committed(), history.epoch), (4, 2));
    let taken = restore::from(&run.store, to.path()).await.unwrap_err().to_string();
    assert!(taken.contains("empty --run-dir"), "{taken}");
}

#[tokio::test]
async fn torn_and_damaged_copies_are_passed_over() {
    let run = run().await;
    claim::claim(&run.store, "r", 1).await.unwrap();
    let first = run.step(0).await;
    run.uploader(1).copy(&first).await.unwrap();
    let second = run.step(1).await;
    run.uploader(1).copy(&second).await.unwrap();
    let key = |file: &str| object_store::path::Path::from(format!("some/run/{file}"));
    // One flipped file: the copy before it is used.
    let model = format!("{}/checkpoints/step-000002/model.safetensors", name(2, 1));
    run.memory.put(&key(&model), bytes::Bytes::from_static(b"other").into()).await.unwrap();
    assert_eq!(run.restored().await.unwrap().0, 1);
    // Without its manifest a copy is not even looked at.
    run.memory.delete(&key(&format!("{}.json", name(1, 1)))).await.unwrap();
    let nothing = run.restored().await.unwrap_err().to_string();
    assert!(nothing.contains("model.safetensors") && nothing.contains("no complete copy"), "{nothing}");
}

#[tokio::test]
async fn only_the_newest_coordinator_writes() {
    let run = run().await;
    claim::claim(&run.store, "r", 1).await.unwrap();
    let twin = claim::claim(&run.store, "r", 1).await.unwrap_err();
    assert!(matches!(twin, MirrorError::Fenced { own: 1, theirs: 1, .. }), "{twin}");
    let foreign = claim::claim(&run.store, "other", 2).await.unwrap_err();
    assert!(matches!(foreign, MirrorError::Foreign { .. }), "{foreign}");
    let row = run.step(0).await;
    run.uploader(1).copy(&row).await.unwrap();
    let (_, to) = run.restored().await.unwrap();
    let (_, history) = Ledger::open(&to.path().join("ledger.db")).unwrap();
    claim::claim(&run.store, "r", history.epoch).await.unwrap();
    let next = run.step(1).await;
    let late = run.uploader(1).copy(&next).await.unwrap_err();
    assert!(matches!(late, MirrorError::Fenced { own: 1, theirs: 2, .. }), "{late}");
    assert!(!run.store.list("snapshots").await.unwrap().iter().any(|n| n.starts_with(&name(2, 1))));
}
