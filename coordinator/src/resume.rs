//! What must be the same when a run goes on: settings that determine the result, and the contents of model and data.

use crate::ledger::Ledger;
use crate::prepare::{Hashes, PrepareError};
use quorum_core::config::{self, RunConfig};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// What the ledger says the run began with.
#[derive(Debug, Clone)]
pub struct Stored {
    pub run_id: String,
    path: PathBuf,
    config: String,
    meta: BTreeMap<String, String>,
}

/// Reads it.
pub(crate) fn stored(dir: &Path) -> Result<Stored, PrepareError> {
    let path = dir.join(crate::rundir::LEDGER);
    if !path.is_file() {
        return Err(
            crate::rundir::RunDirError::NoRun { path: dir.to_path_buf(), missing: crate::rundir::LEDGER }.into()
        );
    }
    let meta = Ledger::inspect(&path)?.meta;
    let (Some(run_id), Some(config)) = (meta.get("run_id").cloned(), meta.get("config").cloned()) else {
        return Err(PrepareError::Unfit(format!(
            "run directory {} was cut off before its run began; remove it and start again",
            dir.display()
        )));
    };
    Ok(Stored { run_id, config, path: dir.to_path_buf(), meta })
}

/// Fails with the keys that differ and matter.
pub(crate) fn same_configuration(stored: &Stored, now: &RunConfig) -> Result<(), PrepareError> {
    let then = config::from_toml(&stored.config, "the ledger")?;
    if config::digest(&then) == config::digest(now) {
        return Ok(());
    }
    let keys = differing(&then, now)?;
    let ranks = keys.iter().any(|key| key.starts_with("learner.ranks"));
    let why = if ranks { "; with learner.reduction = \"fast\" the bits depend on the number of ranks" } else { "" };
    Err(PrepareError::Unfit(format!(
        "run {} was begun with another configuration; different: {}{why}. Resume it without these settings, or start a new run",
        stored.path.display(),
        keys.join(", ")
    )))
}

/// Keys whose change alone changes the digest, with both values.
fn differing(then: &RunConfig, now: &RunConfig) -> Result<Vec<String>, PrepareError> {
    let table = |c: &RunConfig| Table::try_from(c).map_err(|e| PrepareError::Unfit(e.to_string()));
    let (old, new) = (flat(&table(then)?), flat(&table(now)?));
    let digest = config::digest(then);
    let mut keys = Vec::new();
    for (key, value) in &new {
        let before = old.get(key);
        if before == Some(value) {
            continue;
        }
        let mut changed = table(then)?;
        config::put(&mut changed, key, value.clone());
        let matters = Value::Table(changed).try_into::<RunConfig>().is_ok_and(|c| config::digest(&c) != digest);
        if matters {
            keys.push(format!(
                "{key} (was {}, is {value})",
                before.map_or_else(|| "unset".to_owned(), Value::to_string)
            ));
        }
    }
    Ok(keys)
}

fn flat(table: &Table) -> BTreeMap<String, Value> {
    let mut out = BTreeMap::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) => out.extend(flat(inner).into_iter().map(|(k, v)| (format!("{key}.{k}"), v))),
            value => drop(out.insert(key.clone(), value.clone())),
        }
    }
    out
}

/// Fails if model or data changed since the run began.
pub(crate) fn same_content(stored: &Stored, hashes: &Hashes) -> Result<(), PrepareError> {
    for (key, hash) in hashes {
        let name = match *key {
            "model_files" | "frozen_sha256" => "model.path",
            "data_train" => "data.train",
            _ => "data.test",
        };
        if stored.meta.get(*key).is_some_and(|then| then != hash) {
            return Err(PrepareError::Unfit(format!(
                "the content of {name} changed since run {} began; put the old files back, or start a new run",
                stored.path.display()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorum_core::config::Reduction;

    #[test]
    fn differing_keys_are_named_and_places_are_not() {
        let then = RunConfig::default();
        let mut now = then.clone();
        now.run.steps = 7;
        now.vote.band_low = 0.5;
        now.run.dir = "elsewhere".into();
        now.cluster.listen = "127.0.0.1:0".into();
        let keys = differing(&then, &now).unwrap();
        assert_eq!(keys.len(), 2, "{keys:?}");
        assert!(keys.iter().any(|k| k.starts_with("run.steps (was 100, is 7)")), "{keys:?}");
        assert!(keys.iter().any(|k| k.starts_with("vote.band_low")), "{keys:?}");
    }

    #[test]
    fn a_fast_group_keeps_its_size_and_a_fixed_one_may_change_it() {
        let of = |ranks, reduction| {
            let mut c = RunConfig::default();
            (c.learner.ranks, c.learner.reduction) = (ranks, reduction);
            c
        };
        let check = |then: &RunConfig, now: &RunConfig| {
            let config = config::to_toml(then).unwrap();
            let stored = Stored { run_id: "r".into(), path: "p".into(), config, meta: BTreeMap::new() };
            same_configuration(&stored, now).map_err(|e| e.to_string())
        };
        let e = check(&of(2, Reduction::Fast), &of(4, Reduction::Fast)).unwrap_err();
        assert!(e.contains("learner.ranks (was 2, is 4)") && e.contains("depend on the number of ranks"), "{e}");
        check(&of(2, Reduction::Fixed), &of(4, Reduction::Fixed)).unwrap();
        check(&of(1, Reduction::Fast), &of(4, Reduction::Fixed)).unwrap();
    }
}
