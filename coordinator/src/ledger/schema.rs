//! Tables, and the opening of the file with the settings that make a commit durable.

use super::LedgerError;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::path::{Path, PathBuf};

/// "Quor" in ASCII: tells our files from other SQLite files.
const APPLICATION_ID: i64 = 0x5175_6f72;
const SCHEMA: i64 = 1;

const TABLES: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
-- One row a start of the coordinator; its number is the fencing epoch.
CREATE TABLE epochs (epoch INTEGER PRIMARY KEY, started_unix REAL NOT NULL, seconds REAL NOT NULL DEFAULT 0) STRICT;
-- body: prost bytes of the group; NULL once it is pruned. Empty groups stand for quarantined prompts.
CREATE TABLE groups (step INTEGER NOT NULL, slot INTEGER NOT NULL, prompt INTEGER NOT NULL, version INTEGER NOT NULL,
  samples INTEGER NOT NULL, vote TEXT NOT NULL, rewards TEXT NOT NULL, worker TEXT NOT NULL, body BLOB, PRIMARY KEY (step, slot)) STRICT, WITHOUT ROWID;
CREATE TABLE steps (step INTEGER PRIMARY KEY, version INTEGER NOT NULL, digest TEXT NOT NULL, metrics TEXT NOT NULL, timings TEXT NOT NULL,
  checkpoint TEXT NOT NULL, manifest TEXT NOT NULL) STRICT;
CREATE TABLE evals (version INTEGER NOT NULL, purpose TEXT NOT NULL, slot INTEGER NOT NULL, row INTEGER NOT NULL, outcome TEXT NOT NULL,
  PRIMARY KEY (version, purpose, slot)) STRICT, WITHOUT ROWID;
CREATE TABLE quarantine (purpose TEXT NOT NULL, step INTEGER NOT NULL, slot INTEGER NOT NULL, row INTEGER NOT NULL, reasons TEXT NOT NULL,
  PRIMARY KEY (purpose, step, slot)) STRICT, WITHOUT ROWID;
";

/// Opens the ledger at `path`, making it if it does not exist.
pub(super) fn open(path: &Path) -> Result<Connection, LedgerError> {
    let wrap = |e: rusqlite::Error| explain(path, &e);
    let fresh = !path.exists();
    let mut connection = Connection::open(path).map_err(wrap)?;
    if !fresh {
        check(&connection, path)?;
    }
    // Durable after every commit, readers beside the writer.
    connection.pragma_update(None, "journal_mode", "WAL").map_err(wrap)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(wrap)?;
    connection.pragma_update(None, "wal_autocheckpoint", 2000).map_err(wrap)?;
    if fresh {
        let tx = connection.transaction().map_err(wrap)?;
        tx.execute_batch(TABLES).map_err(wrap)?;
        tx.pragma_update(None, "application_id", APPLICATION_ID).map_err(wrap)?;
        tx.pragma_update(None, "user_version", SCHEMA).map_err(wrap)?;
        tx.commit().map_err(wrap)?;
    }
    Ok(connection)
}

/// Opens an existing ledger for reading only, beside a coordinator that may be writing.
pub(super) fn open_read_only(path: &Path) -> Result<Connection, LedgerError> {
    let connection = reader(path)?;
    check(&connection, path)?;
    Ok(connection)
}

/// A connection that only reads. Beside its write-ahead log SQLite wants a file of shared memory, which cannot be made in a directory that
/// cannot be written; where the log is empty, the ledger is whole without either and is taken as it is.
pub(super) fn reader(path: &Path) -> Result<Connection, LedgerError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = |target: &Path, flags| {
        let connection = Connection::open_with_flags(target, flags)?;
        connection.pragma_query_value(None, "schema_version", |r| r.get::<_, i64>(0))?;
        Ok(connection)
    };
    let shut = |e: &rusqlite::Error| {
        matches!(e.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly)) && path.is_file()
    };
    match open(path, flags) {
        Err(e) if shut(&e) => {
            let mut log = path.as_os_str().to_owned();
            log.push("-wal");
            if std::fs::metadata(&log).is_ok_and(|m| m.len() > 0) {
                let reason = "its newest commits are in the write-ahead log, which cannot be used in a directory that cannot be written; copy the run directory to one that can";
                return Err(LedgerError::Sql { path: path.into(), reason: reason.into() });
            }
            open(&immutable(path), flags | OpenFlags::SQLITE_OPEN_URI).map_err(|e| explain(path, &e))
        }
        opened => opened.map_err(|e| explain(path, &e)),
    }
}

/// `path` as a URI that says that nobody writes.
fn immutable(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let path = path.to_string_lossy().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    format!("file:{path}?immutable=1").into()
}

fn check(connection: &Connection, path: &Path) -> Result<(), LedgerError> {
    let number = |pragma: &str| {
        connection.pragma_query_value(None, pragma, |r| r.get::<_, i64>(0)).map_err(|e| explain(path, &e))
    };
    let (id, version) = (number("application_id")?, number("user_version")?);
    if id != APPLICATION_ID {
        return Err(LedgerError::Foreign {
            path: path.into(),
            reason: "another program's SQLite file, or an empty one".into(),
        });
    }
    if version != SCHEMA {
        return Err(LedgerError::Version { path: path.into(), found: version, expected: SCHEMA });
    }
    let verdict: String =
        connection.pragma_query_value(None, "quick_check", |r| r.get(0)).map_err(|e| explain(path, &e))?;
    if verdict != "ok" {
        return Err(LedgerError::Damaged { path: path.into(), reason: verdict });
    }
    Ok(())
}

/// The error of a SQLite call in the user's terms.
pub(super) fn explain(path: &Path, error: &rusqlite::Error) -> LedgerError {
    let (path, reason) = (path.to_path_buf(), error.to_string());
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => LedgerError::Foreign { path, reason },
        Some(ErrorCode::DatabaseCorrupt) => LedgerError::Damaged { path, reason },
        _ => LedgerError::Sql { path, reason },
    }
}
