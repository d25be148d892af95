//! A data set in memory: records with encoded images. A bad record is set aside with its reason and changes nothing for the rest; a bad file is one error.

mod folder;
mod jsonl;
mod labels;
mod parquet_file;
mod raw;

use crate::decode::{Limits, check_header, decode};
use crate::error::DataError;
use crate::record::{Columns, Record};
use quorum_core::config::{DataSection, ImagePlacement};
use std::fmt;
use std::path::{Path, PathBuf};

/// How thoroughly images are looked at on opening.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ImageCheck {
    /// Decode each once, so that no damaged image is met in the middle of a run.
    #[default]
    Full,
    /// Size and header only.
    Header,
}

/// How a data set is read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenOptions {
    pub columns: Columns,
    pub placement: ImagePlacement,
    pub limits: Limits,
    pub check: ImageCheck,
}

impl From<&Columns> for OpenOptions {
    fn from(columns: &Columns) -> Self {
        Self { columns: columns.clone(), ..Self::default() }
    }
}

impl From<&DataSection> for OpenOptions {
    /// A column that is left at its default takes any of its usual names.
    fn from(section: &DataSection) -> Self {
        let default = DataSection::default();
        let chosen = |name: &String, usual: &String| (!name.is_empty() && name != usual).then(|| name.clone());
        Self {
            columns: Columns {
                image: chosen(&section.image_column, &default.image_column),
                question: chosen(&section.question_column, &default.question_column),
                answer: chosen(&section.answer_column, &default.answer_column),
                response: chosen(&section.response_column, &default.response_column),
                id: None,
            },
            placement: section.image_placement,
            limits: Limits { max_pixels: section.max_image_pixels, max_bytes: section.max_image_bytes },
            check: ImageCheck::Full,
        }
    }
}

/// A record that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    pub file: PathBuf,
    /// As [`Record::row`].
    pub row: u64,
    pub reason: String,
}

impl fmt::Display for SetAside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, row {}: {}", self.file.display(), self.row, self.reason)
    }
}

/// All usable records, in the order of the file.
#[derive(Debug, Clone)]
pub struct Dataset {
    path: PathBuf,
    records: Vec<Record>,
    set_aside: Vec<SetAside>,
}

impl Dataset {
    /// Reads a `.parquet` or `.jsonl` file, or a directory: of such files (all of them, by name; rows count on), else of `.png` / `.jpg` images, which become questions without words.
    ///
    /// # Errors
    /// A missing or unreadable file, a missing column, or not one usable record.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self, DataError> {
        let mut data = Self { path: path.to_path_buf(), records: Vec::new(), set_aside: Vec::new() };
        let mut rows = 0;
        for file in folder::files(path)? {
            let outcomes = match file.kind {
                folder::Kind::Parquet => parquet_file::read(&file.path, options)?,
                folder::Kind::Jsonl => jsonl::read(&file.path, options)?,
                folder::Kind::Image => vec![(0, raw::lone_image(&file.path, options))],
            };
            let next = outcomes.last().map_or(0, |(row, _)| row + 1);
            data.absorb(&file.path, rows, outcomes, options);
            rows += next;
        }
        if data.records.is_empty() {
            let first = data.set_aside.first().map_or_else(|| "it is empty".to_string(), SetAside::to_string);
            return Err(DataError::NoRecords { path: path.to_path_buf(), rows, first });
        }
        if let Some(first) = data.set_aside.first() {
            tracing::warn!(count = data.set_aside.len(), first = %first, "records set aside");
        }
        Ok(data)
    }

    /// Takes over the rows of one file, whose first row is number `offset` of the data set.
    fn absorb(&mut self, file: &Path, offset: u64, outcomes: raw::Outcomes, options: &OpenOptions) {
        let faults = image_faults(&outcomes, options);
        for ((row, outcome), fault) in outcomes.into_iter().zip(faults) {
            let row = row + offset;
            match outcome.and_then(|record| fault.map_or(Ok(record), Err)) {
                Ok(record) => self.records.push(Record { row, ..record }),
                Err(reason) => self.set_aside.push(SetAside { file: file.to_path_buf(), row, reason }),
            }
        }
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

    /// Never true of an opened data set.
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

    /// Records that cannot be used, in the order of the file.
    pub fn set_aside(&self) -> &[SetAside] {
        &self.set_aside
    }

    /// Whether every record has a reference answer.
    pub fn is_labelled(&self) -> bool {
        self.records.iter().all(|r| r.answer.is_some())
    }

    /// BLAKE3 (hex) of all usable records: rows, texts and images. Two data sets with the same digest give the same run.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut field = |bytes: Option<&[u8]>| {
            hasher.update(&bytes.map_or(u64::MAX, |b| b.len() as u64).to_le_bytes());
            hasher.update(bytes.unwrap_or_default());
        };
        for record in &self.records {
            field(Some(&record.row.to_le_bytes()));
            for text in [record.id.as_ref(), Some(&record.question), record.answer.as_ref(), record.response.as_ref()] {
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

/// What is wrong with the images of each record, decoded by all cores; the result does not depend on how many.
fn image_faults(outcomes: &[(u64, Result<Record, String>)], options: &OpenOptions) -> Vec<Option<String>> {
    let fault = |outcome: &(u64, Result<Record, String>)| {
        let record = outcome.1.as_ref().ok()?;
        record.images.iter().enumerate().find_map(|(i, image)| {
            let found = match options.check {
                ImageCheck::Full => decode(&image.bytes, &options.limits).map(|_| ()),
                ImageCheck::Header => check_header(&image.bytes, &options.limits),
            };
            let name = image.path.clone().unwrap_or_else(|| format!("image {i}"));
            found.err().map(|e| format!("{name}: {e}"))
        })
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = outcomes.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let parts: Vec<_> = outcomes
            .chunks(share)
            .map(|part| (part, scope.spawn(move || part.iter().map(fault).collect::<Vec<_>>())))
            .collect();
        parts
            .into_iter()
            .flat_map(|(part, thread)| {
                thread.join().unwrap_or_else(|_| {
                    vec![Some("the image decoder failed on this part of the file".to_string()); part.len()]
                })
            })
            .collect()
    })
}

#[cfg(test)]
mod tests;
