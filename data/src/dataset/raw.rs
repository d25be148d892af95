//! What every reader has in common: choosing columns, and turning one row's cells into a record or a reason.

use super::OpenOptions;
use crate::error::{DataError, nearest};
use crate::prompt::place_images;
use crate::record::{Columns, ImageBytes, Record};
use std::fs;
use std::path::Path;

/// Every row of a file: its number, and its record or the reason against it.
pub(super) type Outcomes = Vec<(u64, Result<Record, String>)>;

/// An image cell.
pub(super) enum ImageCell {
    Bytes(Vec<u8>, Option<String>),
    /// Relative to the data set's file.
    Path(String),
}

/// The cells of one row.
#[derive(Default)]
pub(super) struct Raw {
    pub id: Option<String>,
    pub question: Option<String>,
    pub images: Vec<ImageCell>,
    pub answer: Option<String>,
    pub response: Option<String>,
}

/// Column names of one file after defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chosen {
    pub image: String,
    pub question: String,
    pub answer: Option<String>,
    pub response: Option<String>,
    pub id: Option<String>,
}

impl Chosen {
    /// The configured columns, or the usual ones the file has.
    pub fn from_file(path: &Path, columns: &Columns, available: &[String]) -> Result<Self, DataError> {
        let find = |role: &'static str, configured: &Option<String>, usual: &[&str], required: bool| {
            let found = match configured {
                Some(name) => available.iter().find(|a| *a == name),
                None => usual.iter().find_map(|u| available.iter().find(|a| a == u)),
            };
            if found.is_some() || (!required && configured.is_none()) {
                return Ok(found.cloned());
            }
            let first = configured.as_deref().or(usual.first().copied()).unwrap_or_default();
            let names = configured.as_deref().map_or(usual.to_vec(), |c| vec![c]);
            Err(DataError::MissingColumn {
                path: path.to_path_buf(),
                role,
                wanted: names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(" or "),
                nearest: nearest(first, available.iter().map(String::as_str)),
                available: available.join(", "),
            })
        };
        let must = |found: Option<String>| found.unwrap_or_default();
        Ok(Self {
            image: must(find("image", &columns.image, &["images", "image", "file_name"], true)?),
            question: must(find("question", &columns.question, &["problem", "question", "query"], true)?),
            answer: find("answer", &columns.answer, &["answer"], false)?,
            response: find("response", &columns.response, &["response", "solution"], false)?,
            id: find("id", &columns.id, &["id"], false)?,
        })
    }

    /// All columns that are read.
    pub fn names(&self) -> Vec<&str> {
        let optional = [&self.answer, &self.response, &self.id];
        [&self.image, &self.question].into_iter().chain(optional.into_iter().flatten()).map(String::as_str).collect()
    }
}

/// The record of a row (its number is filled in later), or why it cannot be used.
pub(super) fn finish(raw: Raw, base: &Path, chosen: &Chosen, options: &OpenOptions) -> Result<Record, String> {
    let question = raw.question.ok_or_else(|| format!("no question in column `{}`", chosen.question))?;
    if raw.images.is_empty() {
        return Err(format!("no image in column `{}`", chosen.image));
    }
    let question = place_images(&question, raw.images.len(), options.placement)?;
    let images = raw.images.into_iter().map(|cell| load(cell, base, options)).collect::<Result<Vec<_>, _>>()?;
    Ok(Record { row: 0, id: raw.id, question, images, answer: raw.answer, response: raw.response })
}

/// A directory's image, as a question without words.
pub(super) fn lone_image(path: &Path, options: &OpenOptions) -> Result<Record, String> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let image = load(ImageCell::Path(name.clone()), path.parent().unwrap_or(Path::new("")), options)?;
    let question = crate::prompt::IMAGE_PLACEHOLDER.to_string();
    Ok(Record { row: 0, id: Some(name), question, images: vec![image], answer: None, response: None })
}

fn load(cell: ImageCell, base: &Path, options: &OpenOptions) -> Result<ImageBytes, String> {
    let name = match cell {
        ImageCell::Bytes(bytes, path) => return Ok(ImageBytes::new(bytes, path)),
        ImageCell::Path(name) => name,
    };
    let path = base.join(&name);
    let size = fs::metadata(&path).map_err(|e| format!("image {}: {e}", path.display()))?.len();
    if size > options.limits.max_bytes {
        return Err(format!(
            "image {}: {size} bytes, more than data.max_image_bytes = {}",
            path.display(),
            options.limits.max_bytes
        ));
    }
    let bytes = fs::read(&path).map_err(|e| format!("image {}: {e}", path.display()))?;
    Ok(ImageBytes::new(bytes, Some(name)))
}
