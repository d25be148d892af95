//! Changes of the ledger, each one statement or a few, applied inside the writer's transaction.

use rusqlite::{OptionalExtension, Transaction, params};

/// One change.
#[derive(Debug, Clone)]
pub enum Write {
    Meta {
        key: &'static str,
        value: String,
    },
    /// An accepted group. `body` is its prost encoding.
    Group {
        step: u64,
        slot: u32,
        prompt: u64,
        version: u64,
        samples: u32,
        vote: String,
        rewards: String,
        worker: String,
        body: Vec<u8>,
    },
    /// An answered evaluation question.
    Eval {
        version: u64,
        purpose: &'static str,
        slot: u32,
        row: u64,
        outcome: String,
    },
    Quarantine {
        purpose: &'static str,
        step: u64,
        slot: u32,
        row: u64,
        reasons: String,
    },
    /// The commit point of a step.
    Commit {
        step: u64,
        version: u64,
        digest: String,
        metrics: String,
        timings: String,
        checkpoint: String,
        manifest: String,
    },
    /// Drops the bodies of groups of steps below this one, oldest first, as far as they are more than `keep` bytes; votes and rewards stay.
    Prune {
        below: u64,
        keep: u64,
    },
    /// Wall seconds of this epoch so far.
    Seconds {
        epoch: u64,
        seconds: f64,
    },
}

/// SQLite has signed integers; ours never reach 2^63.
pub(super) fn int(v: u64) -> i64 {
    i64::try_from(v).unwrap_or(i64::MAX)
}

/// Applies one change. A key that is already there is an error: nothing is written twice (INV-1).
pub(super) fn apply(tx: &Transaction<'_>, write: &Write) -> rusqlite::Result<()> {
    match write {
        Write::Meta { key, value } => {
            let sql = "INSERT INTO meta VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
            tx.prepare_cached(sql)?.execute(params![key, value])?;
        }
        Write::Group { step, slot, prompt, version, samples, vote, rewards, worker, body } => {
            let sql = "INSERT INTO groups VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
            let values = params![int(*step), slot, int(*prompt), int(*version), samples, vote, rewards, worker, body];
            tx.prepare_cached(sql)?.execute(values)?;
        }
        Write::Eval { version, purpose, slot, row, outcome } => {
            let sql = "INSERT INTO evals VALUES (?1, ?2, ?3, ?4, ?5)";
            tx.prepare_cached(sql)?.execute(params![int(*version), purpose, slot, int(*row), outcome])?;
        }
        Write::Quarantine { purpose, step, slot, row, reasons } => {
            let sql = "INSERT INTO quarantine VALUES (?1, ?2, ?3, ?4, ?5)";
            tx.prepare_cached(sql)?.execute(params![purpose, int(*step), slot, int(*row), reasons])?;
        }
        Write::Commit { step, version, digest, metrics, timings, checkpoint, manifest } => {
            let sql = "INSERT INTO steps VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
            let values = params![int(*step), int(*version), digest, metrics, timings, checkpoint, manifest];
            tx.prepare_cached(sql)?.execute(values)?;
        }
        Write::Prune { below, keep } => prune(tx, *below, *keep)?,
        Write::Seconds { epoch, seconds } => {
            let sql = "UPDATE epochs SET seconds = ?2 WHERE epoch = ?1";
            tx.prepare_cached(sql)?.execute(params![int(*epoch), seconds])?;
        }
    }
    Ok(())
}

/// Only steps that were not pruned before are looked at.
fn prune(tx: &Transaction<'_>, below: u64, keep: u64) -> rusqlite::Result<()> {
    let since = "SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'pruned_below'";
    let since: i64 = tx.query_row(since, [], |r| r.get(0)).optional()?.unwrap_or(0);
    let sizes =
        "SELECT step, SUM(LENGTH(body)) FROM groups WHERE step >= ?1 AND step < ?2 GROUP BY step ORDER BY step DESC";
    let mut statement = tx.prepare_cached(sizes)?;
    let mut rows = statement.query(params![since, int(below)])?;
    let mut total = 0;
    while let Some(row) = rows.next()? {
        let (step, bytes): (i64, Option<i64>) = (row.get(0)?, row.get(1)?);
        total += bytes.unwrap_or(0).unsigned_abs();
        if total > keep {
            let sql = "UPDATE groups SET body = NULL WHERE step >= ?1 AND step <= ?2 AND body IS NOT NULL";
            tx.prepare_cached(sql)?.execute(params![since, step])?;
            let value = (step + 1).to_string();
            return apply(tx, &Write::Meta { key: "pruned_below", value });
        }
    }
    Ok(())
}

/// The newest epoch.
pub(super) fn newest_epoch(connection: &rusqlite::Connection) -> rusqlite::Result<u64> {
    let sql = "SELECT COALESCE(MAX(epoch), 0) FROM epochs";
    connection.prepare_cached(sql)?.query_row([], |r| r.get::<_, i64>(0)).map(i64::unsigned_abs)
}

/// Begins a new epoch and returns its number.
pub(super) fn begin_epoch(tx: &Transaction<'_>, now_unix: f64) -> rusqlite::Result<u64> {
    tx.execute("INSERT INTO epochs (started_unix) VALUES (?1)", params![now_unix])?;
    Ok(tx.last_insert_rowid().unsigned_abs())
}

/// Notes `epoch` as used by somebody who wrote elsewhere.
pub(super) fn skip_to_epoch(connection: &rusqlite::Connection, epoch: u64) -> rusqlite::Result<()> {
    connection.execute("INSERT INTO epochs (epoch, started_unix) VALUES (?1, 0)", params![int(epoch)]).map(drop)
}
