//! One question with its images, and the names of the columns it is read from.

use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Encoded bytes of one image (PNG, JPEG), shared without copying.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageBytes {
    /// The file as it is, not decoded.
    pub bytes: Arc<[u8]>,
    /// Name in its data set, for messages and for the HF `path` column.
    pub path: Option<String>,
}

impl ImageBytes {
    pub fn new(bytes: impl Into<Arc<[u8]>>, path: Option<String>) -> Self {
        Self { bytes: bytes.into(), path }
    }

    /// BLAKE3 of the encoded bytes, 64 hex digits: the image's name on the wire and in caches.
    pub fn hash(&self) -> String {
        blake3::hash(&self.bytes).to_hex().to_string()
    }
}

/// One prompt of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Row in the data set as read, counted from 0 over all its files; rows that were set aside keep their number.
    pub row: u64,
    pub id: Option<String>,
    /// Holds one `<image>` for each image.
    pub question: String,
    pub images: Vec<ImageBytes>,
    /// Reference answer; unlabelled data has none.
    pub answer: Option<String>,
    /// Worked solution to imitate (SFT).
    pub response: Option<String>,
}

/// Column names. An unset one takes the first of its usual names that the file has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Columns {
    /// Usual: `images`, `image`, `file_name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Usual: `problem`, `question`, `query`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub question: Option<String>,
    /// Usual: `answer`; may be absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// Usual: `response`, `solution`; may be absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<String>,
    /// Usual: `id`; may be absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}
