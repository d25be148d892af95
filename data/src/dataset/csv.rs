//! Reads CSV (RFC 4180, the first row names the columns), such as the `metadata.csv` of an image folder. Cells are text; an empty one is absent.

use super::OpenOptions;
use super::build::{Outcomes, build};
use super::columns::{Available, Chosen};
use super::images::Place;
use super::jsonl::Object;
use crate::error::DataError;
use crate::fault::Fault;
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Every row below the names, counted from 0.
pub(super) fn read(path: &Path, place: &Place, options: &OpenOptions) -> Result<Outcomes, DataError> {
    let io = |e| DataError::io(path, e);
    let mut rows = Rows { reader: BufReader::new(File::open(path).map_err(io)?), max: options.max_record_bytes };
    let names = match rows.next().transpose().map_err(io)? {
        None => return Ok(Outcomes::new()),
        Some(Ok(cells)) => cells,
        Some(Err(fault)) => return Ok(vec![(0, Err(fault))]),
    };
    let names: Vec<String> = names.iter().map(|n| n.trim_start_matches('\u{feff}').trim().to_string()).collect();
    let available: Vec<Available> = names.iter().map(|n| Available::named(n)).collect();
    let chosen = Chosen::of_file(path, options, &available)?;
    let mut outcomes = Outcomes::new();
    for (row, cells) in (0u64..).zip(rows) {
        let outcome = cells.map_err(io)?.and_then(|cells| {
            let object = object(&names, cells)?;
            build(&object, &chosen, place, options)
        });
        outcomes.push((row, outcome));
    }
    Ok(outcomes)
}

fn object(names: &[String], cells: Vec<String>) -> Result<Object, Fault> {
    if cells.len() != names.len() {
        let reason = format!("the row has {} cells, the first row names {} columns", cells.len(), names.len());
        return Err(Fault::new(Fault::BAD_SYNTAX, reason));
    }
    let filled = names.iter().cloned().zip(cells).filter(|(_, cell)| !cell.is_empty());
    Ok(Object(filled.map(|(name, cell)| (name, Value::String(cell))).collect()))
}

/// Rows of cells. A row may span lines inside quotes.
struct Rows<R> {
    reader: R,
    max: u64,
}

/// Where a cell stands.
#[derive(PartialEq)]
enum At {
    Start,
    Plain,
    Quoted,
    /// Behind a quote inside quotes: its end, or half of a doubled one.
    Quote,
}

impl<R: BufRead> Rows<R> {
    /// The bytes of the next row, cells ended by a mark of their own; `None` at the end of the file.
    fn row(&mut self) -> std::io::Result<Option<Result<Vec<Vec<u8>>, Fault>>> {
        let (mut cells, mut at, mut read) = (vec![Vec::new()], At::Start, 0u64);
        loop {
            let buffer = self.reader.fill_buf()?;
            let Some(&byte) = buffer.first() else {
                if read == 0 {
                    return Ok(None);
                }
                let open = Fault::new(Fault::BAD_SYNTAX, "a quoted cell is never closed");
                return Ok(Some(if at == At::Quoted { Err(open) } else { Ok(cells) }));
            };
            self.reader.consume(1);
            read += 1;
            let ends = byte == b'\n' && at != At::Quoted;
            if ends && read <= self.max {
                return Ok(Some(Ok(cells)));
            }
            if ends {
                return Ok(Some(Err(Fault::too_long(self.max))));
            }
            at = step(at, byte, &mut cells, read <= self.max);
        }
    }
}

/// Takes one byte in; `keep` is false once the row is too long.
fn step(at: At, byte: u8, cells: &mut Vec<Vec<u8>>, keep: bool) -> At {
    let mut push = |byte| {
        if let Some(cell) = cells.last_mut().filter(|_| keep) {
            cell.push(byte);
        }
    };
    match (at, byte) {
        (At::Start, b'"') => At::Quoted,
        (At::Quoted, b'"') => At::Quote,
        (At::Quote, b'"') => {
            push(b'"');
            At::Quoted
        }
        (At::Quoted, byte) => {
            push(byte);
            At::Quoted
        }
        (_, b',') => {
            if keep {
                cells.push(Vec::new());
            }
            At::Start
        }
        (at, b'\r') => at,
        (_, byte) => {
            push(byte);
            At::Plain
        }
    }
}

impl<R: BufRead> Iterator for Rows<R> {
    type Item = std::io::Result<Result<Vec<String>, Fault>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let row = match self.row() {
                Ok(row) => row?,
                Err(e) => return Some(Err(e)),
            };
            let text = |cell| String::from_utf8(cell).map_err(|_| Fault::new(Fault::BAD_SYNTAX, "not valid UTF-8"));
            let row = row.and_then(|cells| cells.into_iter().map(text).collect::<Result<Vec<_>, _>>());
            if !matches!(&row, Ok(cells) if cells.iter().all(String::is_empty) && cells.len() == 1) {
                return Some(Ok(row));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_lines_and_faults() {
        let text =
            b"a,b\r\n\"x, \"\"y\"\"\n2\",\n\n3,\xff\n\"0123456789012345678901234567890123456789\",1\n4,5\n\"open";
        let rows: Vec<_> = Rows { reader: &text[..], max: 30 }.map(Result::unwrap).collect();
        assert_eq!(rows[0].as_ref().unwrap(), &["a", "b"]);
        assert_eq!(rows[1].as_ref().unwrap(), &["x, \"y\"\n2", ""]);
        assert!(rows[2].as_ref().unwrap_err().reason.contains("UTF-8"));
        assert_eq!(rows[3].as_ref().unwrap_err().kind, Fault::TOO_LONG);
        assert_eq!(rows[4].as_ref().unwrap(), &["4", "5"]);
        assert!(rows[5].as_ref().unwrap_err().reason.contains("never closed"));
        assert_eq!(rows.len(), 6);
    }
}
