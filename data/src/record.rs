//! One question with its images, and the names of the columns it is read from.

use quorum_core::config::DataSection;
use std::sync::Arc;

/// Encoded bytes of one image, shared without copying.
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
    /// Empty for a text question.
    pub images: Vec<ImageBytes>,
    /// Reference answer; unlabelled data has none.
    pub answer: Option<String>,
    /// Worked solution to imitate (SFT).
    pub response: Option<String>,
}

/// Column names: `a|b` is the first of these that the file has, `none` is no column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    pub image: String,
    pub question: String,
    pub answer: String,
    pub response: String,
    pub id: String,
}

impl Default for Columns {
    /// The usual names, of which all but the question's may be absent.
    fn default() -> Self {
        let usual = DataSection::default();
        Self {
            image: usual.image_column,
            question: usual.question_column,
            answer: usual.answer_column,
            response: usual.response_column,
            id: usual.id_column,
        }
    }
}
