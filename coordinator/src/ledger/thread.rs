//! The thread that owns the connection, and the handle to it.

use super::read::{self, History};
use super::write::{self, Write};
use super::{LedgerError, schema};
use quorum_core::metric;
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot};

/// Requests waiting for the thread; senders wait when it is full.
const QUEUE: usize = 4096;
/// Most requests that share one transaction.
const BATCH: usize = 1024;

type Reply<T> = oneshot::Sender<Result<T, LedgerError>>;
/// Slot and encoded group (`None` = pruned).
pub type EncodedGroups = Vec<(u32, Option<Vec<u8>>)>;

/// Told, on the ledger's thread, once the changes are durable or cannot be made so. It must not wait for anything.
pub type Note = Box<dyn FnOnce(Result<(), LedgerError>) + Send>;

enum Request {
    Write(Vec<Write>, Note),
    Groups(u64, Reply<EncodedGroups>),
}

/// Handle to an open ledger; cheap to clone. The thread ends when the last handle is gone.
#[derive(Clone)]
pub struct Ledger {
    queue: mpsc::Sender<Request>,
    path: PathBuf,
}

impl Ledger {
    /// Opens (or makes) the ledger, begins an epoch, and returns what it says.
    ///
    /// # Errors
    /// A file that is no ledger, of another schema, damaged, or not writable.
    pub fn open(path: &Path) -> Result<(Self, History), LedgerError> {
        let wrap = |e: rusqlite::Error| schema::explain(path, &e);
        let mut connection = schema::open(path)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        let tx = connection.transaction().map_err(wrap)?;
        let epoch = write::begin_epoch(&tx, now).map_err(wrap)?;
        tx.commit().map_err(wrap)?;
        let history = read::history(&connection).map_err(wrap)?;
        let (queue, requests) = mpsc::channel(QUEUE);
        let owned = path.to_path_buf();
        std::thread::Builder::new()
            .name("ledger".into())
            .spawn(move || serve(connection, requests, epoch, &owned))
            .map_err(|e| LedgerError::Stopped(e.to_string()))?;
        Ok((Self { queue, path: path.to_path_buf() }, history))
    }

    /// Reads a ledger without beginning an epoch.
    ///
    /// # Errors
    /// As `open`.
    pub fn inspect(path: &Path) -> Result<History, LedgerError> {
        let connection = schema::open_read_only(path)?;
        read::history(&connection).map_err(|e| schema::explain(path, &e))
    }

    /// One value of `meta` of a ledger that is not opened.
    ///
    /// # Errors
    /// As `open`.
    pub fn inspect_meta(path: &Path, key: &str) -> Result<Option<String>, LedgerError> {
        let connection = schema::open_read_only(path)?;
        read::meta(&connection, key).map_err(|e| schema::explain(path, &e))
    }

    /// Writes a consistent copy of the ledger at `path` to the new file `to`, beside a coordinator that may be writing.
    ///
    /// # Errors
    /// It cannot be read, or the copy not written.
    pub fn copy(path: &Path, to: &Path) -> Result<(), LedgerError> {
        let connection = schema::open_read_only(path)?;
        let target = to.to_string_lossy().into_owned();
        connection.execute("VACUUM INTO ?1", [target]).map_err(|e| schema::explain(to, &e))?;
        std::fs::File::open(to)
            .and_then(|f| f.sync_all())
            .map_err(|e| LedgerError::Sql { path: to.into(), reason: e.to_string() })
    }

    /// Makes the next epoch of a ledger that is not open higher than `epoch`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn raise_epoch(path: &Path, epoch: u64) -> Result<(), LedgerError> {
        let connection = schema::open(path)?;
        let wrap = |e: rusqlite::Error| schema::explain(path, &e);
        if write::newest_epoch(&connection).map_err(wrap)? < epoch {
            write::skip_to_epoch(&connection, epoch).map_err(wrap)?;
        }
        Ok(())
    }

    /// Hands the changes over; the receiver answers after they are durable, all or none.
    pub async fn write(&self, writes: Vec<Write>) -> oneshot::Receiver<Result<(), LedgerError>> {
        let (reply, answer) = oneshot::channel();
        let note = Box::new(move |result| drop(reply.send(result)));
        self.write_noted(writes, note).await;
        answer
    }

    /// Hands the changes over; `note` is told after they are durable, all or none.
    pub async fn write_noted(&self, writes: Vec<Write>, note: Note) {
        if let Err(mpsc::error::SendError(Request::Write(_, note))) =
            self.queue.send(Request::Write(writes, note)).await
        {
            note(Err(self.stopped()));
        }
    }

    /// Writes and waits.
    ///
    /// # Errors
    /// The writer failed or has stopped.
    pub async fn commit(&self, writes: Vec<Write>) -> Result<(), LedgerError> {
        self.write(writes).await.await.unwrap_or_else(|_| Err(self.stopped()))
    }

    /// Groups of a step in slot order.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub async fn groups(&self, step: u64) -> Result<EncodedGroups, LedgerError> {
        let (reply, answer) = oneshot::channel();
        self.queue.send(Request::Groups(step, reply)).await.map_err(|_| self.stopped())?;
        answer.await.unwrap_or_else(|_| Err(self.stopped()))
    }

    fn stopped(&self) -> LedgerError {
        LedgerError::Stopped(self.path.display().to_string())
    }
}

fn serve(mut connection: Connection, mut requests: mpsc::Receiver<Request>, epoch: u64, path: &Path) {
    while let Some(first) = requests.blocking_recv() {
        let mut writes = Vec::new();
        let mut next = Some(first);
        while let Some(request) = next {
            match request {
                Request::Write(changes, note) => writes.push((changes, note)),
                Request::Groups(step, reply) => {
                    // Reads see what was asked to be written before them.
                    flush(&mut connection, std::mem::take(&mut writes), epoch, path);
                    let _ = reply.send(read::groups(&connection, step).map_err(|e| schema::explain(path, &e)));
                }
            }
            next = if writes.len() < BATCH { requests.try_recv().ok() } else { None };
        }
        flush(&mut connection, writes, epoch, path);
    }
    // Leaves one file behind a clean stop; after a crash SQLite does the same at the next opening.
    if let Err(e) = connection.pragma_update(None, "wal_checkpoint", "TRUNCATE") {
        tracing::debug!("ledger: final checkpoint: {e}");
    }
}

fn flush(connection: &mut Connection, writes: Vec<(Vec<Write>, Note)>, epoch: u64, path: &Path) {
    if writes.is_empty() {
        return;
    }
    let began = Instant::now();
    let result = match transact(connection, &writes, epoch) {
        Ok(newest) if newest == epoch => Ok(()),
        Ok(newest) => Err(LedgerError::Fenced { path: path.into(), epoch, newest }),
        Err(e) => Err(schema::explain(path, &e)),
    };
    metric::COORDINATOR_LEDGER_FSYNC_DURATION_SECONDS.with([]).record(began.elapsed().as_secs_f64());
    for (_, note) in writes {
        note(result.clone());
    }
}

/// Applies the writes, unless a newer epoch than `epoch` has begun: then nothing. Returns the newest epoch.
fn transact(connection: &mut Connection, writes: &[(Vec<Write>, Note)], epoch: u64) -> rusqlite::Result<u64> {
    let tx = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let newest = write::newest_epoch(&tx)?;
    if newest != epoch {
        return Ok(newest);
    }
    for change in writes.iter().flat_map(|(changes, _)| changes) {
        write::apply(&tx, change)?;
    }
    tx.commit().map(|()| newest)
}
