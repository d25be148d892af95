//! A data set in memory: records with encoded images. A bad record is set aside with its reason and changes nothing for the rest; a bad file is one error.

mod build;
mod columns;
mod csv;
mod images;
mod jsonl;
mod labels;
mod lines;
mod options;
mod parquet_file;
mod source;

pub use options::{ImageCheck, OpenOptions};

use crate::error::DataError;
use crate::fault::{Fault, SET_ASIDE_KEPT, SetAside};
use crate::record::Record;
use crate::template::Template;
use images::Place;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// All usable records, in the order of the files.
#[derive(Debug, Clone)]
pub struct Dataset {
    path: PathBuf,
    records: Vec<Record>,
    /// Files in order, each with the number of its first row.
    files: Vec<(u64, PathBuf)>,
    set_aside: Vec<SetAside>,
    by_kind: BTreeMap<&'static str, u64>,
}

impl Dataset {
    /// Reads a `.parquet`, `.jsonl` or `.csv` file; a directory of such files (by name; rows count on), else of images; or one split of a directory, `DIR#SPLIT`.
    ///
    /// # Errors
    /// A missing or unreadable file, a missing column, a directory of several splits, or not one usable record.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self, DataError> {
        Template::check(&options.template).map_err(|reason| DataError::Template { reason })?;
        let source = source::find(path)?;
        let mut data = Self::absent(path);
        let mut rows = 0;
        for file in source.files {
            let place = Place { base: file.path.parent().unwrap_or(Path::new("")), root: &source.root };
            let outcomes = match file.kind {
                source::Kind::Parquet => parquet_file::read(&file.path, &place, options)?,
                source::Kind::Jsonl => jsonl::read(&file.path, &place, options)?,
                source::Kind::Csv => csv::read(&file.path, &place, options)?,
                source::Kind::Image => vec![(0, build::lone_image(&file.path, &place, options))],
            };
            let next = outcomes.last().map_or(0, |(row, _)| row + 1);
            data.files.push((rows, file.path));
            data.absorb(rows, outcomes, options);
            rows += next;
        }
        if data.records.is_empty() {
            let first = data.set_aside.first().map_or_else(|| "it is empty".to_string(), SetAside::to_string);
            return Err(DataError::NoRecords { path: path.to_path_buf(), rows, first });
        }
        if let Some(first) = data.set_aside.first() {
            tracing::warn!(count = data.set_aside_count(), first = %first, "records set aside");
        }
        Ok(data)
    }

    /// A data set that cannot be opened, for looking at what was made from it.
    pub fn absent(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            records: Vec::new(),
            files: Vec::new(),
            set_aside: Vec::new(),
            by_kind: BTreeMap::new(),
        }
    }

    /// Takes over the rows of the newest file, whose first row is number `offset` of the data set.
    fn absorb(&mut self, offset: u64, outcomes: build::Outcomes, options: &OpenOptions) {
        let faults = images::faults(&outcomes, options);
        for ((row, outcome), fault) in outcomes.into_iter().zip(faults) {
            let row = row + offset;
            match outcome.and_then(|record| fault.map_or(Ok(record), Err)) {
                Ok(record) => self.records.push(Record { row, ..record }),
                Err(fault) => self.put_aside(row, fault),
            }
        }
    }

    fn put_aside(&mut self, row: u64, fault: Fault) {
        *self.by_kind.entry(fault.kind).or_default() += 1;
        if self.set_aside.len() >= SET_ASIDE_KEPT {
            return;
        }
        let at = self.files.partition_point(|(first, _)| *first <= row);
        let (first, file) = at.checked_sub(1).and_then(|i| self.files.get(i)).cloned().unwrap_or_default();
        let Fault { kind, reason } = fault;
        self.set_aside.push(SetAside { file, row, row_in_file: row - first, kind, reason });
    }

    /// Sets aside the records that `unfit` has a reason against (a prompt that is too long, say), as if they had been bad from the start. Returns how many.
    /// None may be left: the caller decides what that means.
    pub fn set_aside_where(&mut self, mut unfit: impl FnMut(&Record) -> Option<String>) -> usize {
        let before = self.records.len();
        let mut found = Vec::new();
        self.records.retain(|record| {
            let reason = unfit(record);
            found.extend(reason.iter().map(|r| (record.row, r.clone())));
            reason.is_none()
        });
        for (row, reason) in found {
            self.put_aside(row, Fault::new(Fault::UNFIT, reason));
        }
        self.set_aside.sort_by_key(|s| s.row);
        before - self.records.len()
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Number of usable records.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Never true of a data set just opened.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The record at a place of the training order (an index into the usable records).
    pub fn get(&self, index: usize) -> Option<&Record> {
        self.records.get(index)
    }

    /// The record of a row number.
    pub fn by_row(&self, row: u64) -> Option<&Record> {
        let at = self.records.binary_search_by_key(&row, |r| r.row).ok()?;
        self.records.get(at)
    }

    /// Records that cannot be used, in the order of the files: the first [`SET_ASIDE_KEPT`].
    pub fn set_aside(&self) -> &[SetAside] {
        &self.set_aside
    }

    /// How many records cannot be used.
    pub fn set_aside_count(&self) -> u64 {
        self.by_kind.values().sum()
    }

    /// The same by [`Fault::kind`].
    pub fn set_aside_by_kind(&self) -> &BTreeMap<&'static str, u64> {
        &self.by_kind
    }

    /// Whether every record has a reference answer.
    pub fn is_labelled(&self) -> bool {
        self.records.iter().all(|r| r.answer.is_some())
    }

    /// BLAKE3 (hex) of all usable records: rows, texts and images. Two data sets with the same digest give the same run.
    pub fn digest(&self) -> String {
        self.hash(|r| vec![r.id.as_ref(), Some(&r.question), r.answer.as_ref(), r.response.as_ref()])
    }

    /// BLAKE3 (hex) of what is shown of all usable records: rows, questions and images.
    pub fn shown_digest(&self) -> String {
        self.hash(|r| vec![Some(&r.question)])
    }

    fn hash<'a>(&'a self, texts: impl Fn(&'a Record) -> Vec<Option<&'a String>>) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut field = |bytes: Option<&[u8]>| {
            hasher.update(&bytes.map_or(u64::MAX, |b| b.len() as u64).to_le_bytes());
            hasher.update(bytes.unwrap_or_default());
        };
        for record in &self.records {
            field(Some(&record.row.to_le_bytes()));
            for text in texts(record) {
                field(text.map(String::as_bytes));
            }
            field(Some(&(record.images.len() as u64).to_le_bytes()));
            for image in &record.images {
                field(Some(&image.bytes));
            }
        }
        hasher.finalize().to_hex().to_string()
    }
}

#[cfg(test)]
mod tests;
