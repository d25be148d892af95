//! Checkpoints as they lie on disk, checked against their manifest and the ledger. Loading them is the learner's business.

use crate::ledger::CheckpointRow;
use quorum_core::digest::{Sha256, sha256_hex};
use serde_json::Value;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The file with the trained weights of full training.
pub const MODEL: &str = "model.safetensors";
/// The same where adapters are trained.
pub const ADAPTER: &str = "adapter.safetensors";
const MANIFEST: &str = "MANIFEST.json";

/// What is wrong with a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub reason: String,
    /// Its weights are whole all the same: they can be exported.
    pub weights_whole: bool,
}

/// Checks the manifest against the ledger and every file against the manifest.
///
/// # Errors
/// What is missing or damaged.
pub fn verify(dir: &Path, row: &CheckpointRow) -> Result<(), Fault> {
    let fault = |reason: String| Fault { reason, weights_whole: false };
    if !dir.is_dir() {
        return Err(fault("it is missing".into()));
    }
    let text = std::fs::read(dir.join(MANIFEST)).map_err(|e| fault(format!("{MANIFEST}: {e}")))?;
    if sha256_hex(&text) != row.manifest {
        return Err(fault(format!("{MANIFEST} is not the one the ledger names")));
    }
    let manifest: Value = serde_json::from_slice(&text).map_err(|e| fault(format!("{MANIFEST}: {e}")))?;
    let files =
        manifest.get("files").and_then(Value::as_object).ok_or_else(|| fault(format!("{MANIFEST} lists no files")))?;
    let mut wrong: Vec<(&str, String)> = Vec::new();
    for (name, entry) in files {
        let promised = entry.get("sha256").and_then(Value::as_str).unwrap_or_default();
        match sha256_of(&dir.join(name)) {
            Ok(found) if found == promised => {}
            Ok(_) => wrong.push((name, "its SHA-256 is not the manifest's".into())),
            Err(e) => wrong.push((name, e.to_string())),
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let told: Vec<String> = wrong.iter().map(|(name, why)| format!("{name} is damaged ({why})")).collect();
    Err(Fault {
        reason: told.join(", "),
        weights_whole: wrong.iter().all(|(name, _)| ![MODEL, ADAPTER].contains(name)),
    })
}

/// Why a run whose groups were pruned cannot go on, checkpoint by checkpoint, and what can be done.
pub fn none_usable(run_dir: &Path, step: u64, kept: &[CheckpointRow]) -> String {
    let checked: Vec<(&CheckpointRow, Option<Fault>)> =
        kept.iter().map(|row| (row, verify(&run_dir.join("checkpoints").join(&row.name), row).err())).collect();
    let told = |(row, fault): &(&CheckpointRow, Option<Fault>)| match fault {
        Some(fault) => format!("{}: {}", row.name, fault.reason),
        None => format!("{}: the learner refused it, its log says why", row.name),
    };
    let all: Vec<String> = checked.iter().map(told).collect();
    let whole = checked.iter().find(|(_, fault)| fault.as_ref().is_none_or(|f| f.weights_whole));
    let export = whole.map_or_else(String::new, |(row, _)| {
        format!(
            "; the weights of {} are whole: `coordinator export {} --to DIR --step {}` saves them, and a new run can start there",
            row.name,
            run_dir.display(),
            row.steps
        )
    });
    format!(
        "no checkpoint can be used ({}), and step {step} cannot be replayed because the tokens of its groups were pruned: put one of the directories \
         back from a copy and resume, or start a new run{export}",
        all.join("; ")
    )
}

fn sha256_of(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut part = vec![0; 1 << 20];
    loop {
        match file.read(&mut part)? {
            0 => return Ok(hash.finish_hex()),
            n => hash.update(&part[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A checkpoint of two files and the row that names it.
    fn made(run: &Path, steps: u64) -> CheckpointRow {
        let name = format!("step-{steps:06}");
        let dir = run.join("checkpoints").join(&name);
        std::fs::create_dir_all(&dir).unwrap();
        let mut files = serde_json::Map::new();
        for file in [MODEL, "optimizer.safetensors"] {
            let content = format!("{file} of {steps}");
            std::fs::write(dir.join(file), &content).unwrap();
            files.insert(file.into(), json!({"sha256": sha256_hex(content.as_bytes()), "bytes": content.len()}));
        }
        let manifest = json!({ "files": files }).to_string();
        std::fs::write(dir.join(MANIFEST), &manifest).unwrap();
        CheckpointRow { name, steps, manifest: sha256_hex(manifest.as_bytes()) }
    }

    #[test]
    fn every_damage_is_named_and_what_is_left_is_said() {
        let run = tempfile::tempdir().unwrap();
        let rows = [made(run.path(), 4), made(run.path(), 2)];
        let dir = |i: usize| run.path().join("checkpoints").join(&rows[i].name);
        assert_eq!(verify(&dir(0), &rows[0]), Ok(()));
        std::fs::write(dir(0).join(MODEL), "other").unwrap();
        std::fs::write(dir(1).join("optimizer.safetensors"), "other").unwrap();
        let first = verify(&dir(0), &rows[0]).unwrap_err();
        assert!(first.reason.contains("model.safetensors is damaged") && !first.weights_whole, "{first:?}");
        assert!(verify(&dir(1), &rows[1]).unwrap_err().weights_whole);
        let text = none_usable(run.path(), 1, &rows);
        for word in ["step-000004", "step-000002", "step 1", "--step 2", "from a copy", "optimizer.safetensors"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        std::fs::remove_dir_all(dir(1)).unwrap();
        let text = none_usable(run.path(), 1, &rows);
        assert!(text.contains("step-000002: it is missing") && !text.contains("export"), "{text}");
    }
}
