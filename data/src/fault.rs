//! Why a record cannot be used, and the list of such records. Nothing here decides that.

use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

/// Records set aside that are remembered one by one; all are counted.
pub const SET_ASIDE_KEPT: usize = 10_000;

/// A reason against one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What sort of reason, as the label `reason` of `quorum_data_records_rejected_total`.
    pub kind: &'static str,
    pub reason: String,
}

impl Fault {
    /// The line is no JSON object, or the row of a table is cut off.
    pub const BAD_SYNTAX: &'static str = "bad_json";
    /// A cell holds the wrong sort of thing.
    pub const BAD_VALUE: &'static str = "bad_value";
    /// No question, no image.
    pub const MISSING_FIELD: &'static str = "missing_field";
    /// Placeholders and images do not match.
    pub const IMAGE_COUNT: &'static str = "image_count";
    /// An image file that cannot be read or may not be.
    pub const IMAGE_PATH: &'static str = "image_path";
    /// An image beyond a limit.
    pub const IMAGE_TOO_LARGE: &'static str = "image_too_large";
    /// An image that cannot be decoded.
    pub const IMAGE_DECODE: &'static str = "image_decode";
    /// Too much text.
    pub const TOO_LONG: &'static str = "too_long";
    /// Found unusable after reading, by [`crate::Dataset::set_aside_where`].
    pub const UNFIT: &'static str = "unfit";

    pub fn new(kind: &'static str, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into() }
    }

    /// More bytes of text than `data.max_record_bytes`.
    pub(crate) fn too_long(max: u64) -> Self {
        Self::new(Self::TOO_LONG, format!("more text than data.max_record_bytes = {max}"))
    }
}

/// A record that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SetAside {
    pub file: PathBuf,
    /// As [`crate::Record::row`].
    pub row: u64,
    /// Row (JSONL: line) of the file, counted from 0.
    pub row_in_file: u64,
    /// As [`Fault::kind`].
    pub kind: &'static str,
    pub reason: String,
}

impl fmt::Display for SetAside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, row {}: {}", self.file.display(), self.row_in_file, self.reason)
    }
}
