//! Reading beside the writer, for the page and reports: a few read-only connections that never hold the writer up.

use super::read::{StepRow, step_row, uint};
use super::write::int;
use super::{LedgerError, schema};
use rusqlite::{Connection, Row, params};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Connections kept open between reads.
const KEPT: usize = 4;
/// A reader waits this long for a lock, which in WAL mode only a recovery takes.
const BUSY: Duration = Duration::from_secs(5);

/// One group as the ledger has it.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupRow {
    pub step: u64,
    pub slot: u32,
    /// Row of the question in its data set.
    pub prompt: u64,
    pub version: u64,
    /// `VoteRecord` as JSON.
    pub vote: String,
    /// JSON array.
    pub rewards: String,
    pub worker: String,
    /// Encoded group; none once its tokens were pruned, or where they were not asked for.
    pub body: Option<Vec<u8>>,
    /// Whether the ledger still has its tokens.
    pub kept: bool,
}

/// Readers of one ledger.
#[derive(Debug)]
pub struct Browser {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

const GROUP: &str = "step, slot, prompt, version, vote, rewards, worker, body IS NOT NULL";

impl Browser {
    /// Readers of the ledger at `path`, opened when they are needed.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_path_buf(), idle: Mutex::default() }
    }

    /// Committed steps from `from` on, at most `limit`.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn steps(&self, from: u64, limit: usize) -> Result<Vec<StepRow>, LedgerError> {
        let sql = "SELECT step, version, digest, metrics, timings, checkpoint, manifest FROM steps WHERE step >= ?1 ORDER BY step LIMIT ?2";
        self.rows(sql, params![int(from), int(limit as u64)], step_row)
    }

    /// Groups of the steps `from..until`, newest step first, without their tokens.
    ///
    /// # Errors
    /// As for `steps`.
    pub fn groups(&self, from: u64, until: u64) -> Result<Vec<GroupRow>, LedgerError> {
        let sql = format!("SELECT {GROUP} FROM groups WHERE step >= ?1 AND step < ?2 ORDER BY step DESC, slot");
        self.rows(&sql, params![int(from), int(until)], group)
    }

    /// One group with its tokens.
    ///
    /// # Errors
    /// As for `steps`.
    pub fn group(&self, step: u64, slot: u32) -> Result<Option<GroupRow>, LedgerError> {
        let sql = format!("SELECT {GROUP}, body FROM groups WHERE step = ?1 AND slot = ?2");
        let row = |r: &Row<'_>| Ok(GroupRow { body: r.get(8)?, ..group(r)? });
        Ok(self.rows(&sql, params![int(step), slot], row)?.pop())
    }

    /// (step, slot, prompt) of every group of steps from `from` on, in order.
    ///
    /// # Errors
    /// As for `steps`.
    pub fn visits(&self, from: u64) -> Result<Vec<(u64, u32, u64)>, LedgerError> {
        let sql = "SELECT step, slot, prompt FROM groups WHERE step >= ?1 ORDER BY step, slot";
        self.rows(sql, params![int(from)], |r| Ok((uint(r, 0)?, r.get(1)?, uint(r, 2)?)))
    }

    fn rows<T>(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
        map: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, LedgerError> {
        let wrap = |e: rusqlite::Error| schema::explain(&self.path, &e);
        let held = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match held {
            Some(connection) => connection,
            None => self.connect()?,
        };
        let read = || -> rusqlite::Result<Vec<T>> {
            let mut statement = connection.prepare_cached(sql)?;
            statement.query_map(params, map)?.collect()
        };
        let found = read().map_err(wrap);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < KEPT {
            idle.push(connection);
        }
        found
    }

    fn connect(&self) -> Result<Connection, LedgerError> {
        let connection = schema::reader(&self.path)?;
        connection.busy_timeout(BUSY).map_err(|e| schema::explain(&self.path, &e))?;
        Ok(connection)
    }
}

fn group(r: &Row<'_>) -> rusqlite::Result<GroupRow> {
    Ok(GroupRow {
        step: uint(r, 0)?,
        slot: r.get(1)?,
        prompt: uint(r, 2)?,
        version: uint(r, 3)?,
        vote: r.get(4)?,
        rewards: r.get(5)?,
        worker: r.get(6)?,
        body: None,
        kept: r.get(7)?,
    })
}
