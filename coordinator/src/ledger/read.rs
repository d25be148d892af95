//! What a ledger says: read whole at a start, and by `export`, reports and tests.

use rusqlite::{Connection, OptionalExtension, Row, params};
use std::collections::BTreeMap;

/// A committed step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepRow {
    pub step: u64,
    pub version: u64,
    pub digest: String,
    /// One line of metrics.jsonl.
    pub metrics: String,
    /// One line of timing.jsonl.
    pub timings: String,
    /// Empty = none was made.
    pub checkpoint: String,
    pub manifest: String,
}

/// A checkpoint the ledger names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointRow {
    pub name: String,
    /// Steps contained in it.
    pub steps: u64,
    /// SHA-256 of its MANIFEST.json.
    pub manifest: String,
}

/// An answered evaluation question.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalRow {
    pub version: u64,
    pub purpose: String,
    pub slot: u32,
    pub row: u64,
    pub outcome: String,
}

/// A prompt that was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuarantineRow {
    pub purpose: String,
    pub step: u64,
    pub slot: u32,
    pub row: u64,
    pub reasons: String,
}

/// Everything but the bodies of groups.
#[derive(Debug, Clone, Default)]
pub struct History {
    pub meta: BTreeMap<String, String>,
    pub steps: Vec<StepRow>,
    pub evals: Vec<EvalRow>,
    pub quarantine: Vec<QuarantineRow>,
    /// Slots of groups of uncommitted steps.
    pub open_groups: Vec<(u64, u32)>,
    /// Wall seconds of all epochs.
    pub seconds: f64,
    /// Training samples in all groups.
    pub samples: u64,
    /// Groups accepted from each worker.
    pub workers: BTreeMap<String, u64>,
    /// Last epoch; 0 = none yet.
    pub epoch: u64,
}

impl History {
    /// Named checkpoints, newest first.
    pub fn checkpoints(&self) -> Vec<CheckpointRow> {
        let named = self.steps.iter().rev().filter(|s| !s.checkpoint.is_empty());
        named
            .map(|s| CheckpointRow { name: s.checkpoint.clone(), steps: s.version, manifest: s.manifest.clone() })
            .collect()
    }

    /// Steps committed.
    pub fn committed(&self) -> u64 {
        self.steps.len() as u64
    }
}

pub(super) fn uint(row: &Row<'_>, i: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(i).map(i64::unsigned_abs)
}

/// A row of `step, version, digest, metrics, timings, checkpoint, manifest`.
pub(super) fn step_row(r: &Row<'_>) -> rusqlite::Result<StepRow> {
    Ok(StepRow {
        step: uint(r, 0)?,
        version: uint(r, 1)?,
        digest: r.get(2)?,
        metrics: r.get(3)?,
        timings: r.get(4)?,
        checkpoint: r.get(5)?,
        manifest: r.get(6)?,
    })
}

/// Reads the whole history.
pub(super) fn history(c: &Connection) -> rusqlite::Result<History> {
    let steps = collect(
        c,
        "SELECT step, version, digest, metrics, timings, checkpoint, manifest FROM steps ORDER BY step",
        step_row,
    )?;
    let evals =
        collect(c, "SELECT version, purpose, slot, row, outcome FROM evals ORDER BY version, purpose, slot", |r| {
            Ok(EvalRow {
                version: uint(r, 0)?,
                purpose: r.get(1)?,
                slot: r.get(2)?,
                row: uint(r, 3)?,
                outcome: r.get(4)?,
            })
        })?;
    let quarantine =
        collect(c, "SELECT purpose, step, slot, row, reasons FROM quarantine ORDER BY step, purpose, slot", |r| {
            Ok(QuarantineRow {
                purpose: r.get(0)?,
                step: uint(r, 1)?,
                slot: r.get(2)?,
                row: uint(r, 3)?,
                reasons: r.get(4)?,
            })
        })?;
    let open = "SELECT step, slot FROM groups WHERE step >= (SELECT COUNT(*) FROM steps) ORDER BY step, slot";
    let sums = |sql: &str| c.query_row(sql, [], |r| r.get::<_, f64>(0));
    Ok(History {
        meta: collect(c, "SELECT key, value FROM meta", |r| Ok((r.get(0)?, r.get(1)?)))?.into_iter().collect(),
        open_groups: collect(c, open, |r| Ok((uint(r, 0)?, r.get(1)?)))?,
        seconds: sums("SELECT CAST(COALESCE(SUM(seconds), 0) AS REAL) FROM epochs")?,
        samples: sums("SELECT CAST(COALESCE(SUM(samples), 0) AS REAL) FROM groups")? as u64,
        workers: collect(c, "SELECT worker, COUNT(*) FROM groups WHERE worker <> '' GROUP BY worker", |r| {
            Ok((r.get(0)?, uint(r, 1)?))
        })?
        .into_iter()
        .collect(),
        epoch: c
            .query_row("SELECT MAX(epoch) FROM epochs", [], |r| r.get::<_, Option<i64>>(0))?
            .unwrap_or(0)
            .unsigned_abs(),
        steps,
        evals,
        quarantine,
    })
}

/// Encoded groups of a step in slot order; `None` where the tokens were pruned.
pub(super) fn groups(c: &Connection, step: u64) -> rusqlite::Result<Vec<(u32, Option<Vec<u8>>)>> {
    let mut statement = c.prepare_cached("SELECT slot, body FROM groups WHERE step = ?1 ORDER BY slot")?;
    let rows = statement.query_map(params![i64::try_from(step).unwrap_or(i64::MAX)], |r| Ok((r.get(0)?, r.get(1)?)))?;
    rows.collect()
}

/// One value of `meta`.
pub(super) fn meta(c: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    c.query_row("SELECT value FROM meta WHERE key = ?1", params![key], |r| r.get(0)).optional()
}

fn collect<T>(c: &Connection, sql: &str, map: impl FnMut(&Row<'_>) -> rusqlite::Result<T>) -> rusqlite::Result<Vec<T>> {
    let mut statement = c.prepare(sql)?;
    let rows = statement.query_map([], map)?;
    rows.collect()
}
