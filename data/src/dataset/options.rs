//! How a data set is read: the settings of `[data]` as this crate needs them.

use crate::decode::Limits;
use crate::record::Columns;
use quorum_core::config::{AnswerForm, DataSection, ImagePlacement};
use std::path::PathBuf;

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenOptions {
    pub columns: Columns,
    pub placement: ImagePlacement,
    /// As `data.template`.
    pub template: String,
    pub answer_form: AnswerForm,
    /// Where image paths start, and what they may not leave; `None` = the directory of the data.
    pub image_root: Option<PathBuf>,
    pub limits: Limits,
    /// Largest text of a record, bytes.
    pub max_record_bytes: u64,
    /// Named in messages about columns.
    pub preset: String,
    pub check: ImageCheck,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self::from(&DataSection::default())
    }
}

impl From<&Columns> for OpenOptions {
    fn from(columns: &Columns) -> Self {
        Self { columns: columns.clone(), ..Self::default() }
    }
}

impl From<&DataSection> for OpenOptions {
    fn from(section: &DataSection) -> Self {
        Self {
            columns: Columns {
                image: section.image_column.clone(),
                question: section.question_column.clone(),
                answer: section.answer_column.clone(),
                response: section.response_column.clone(),
                id: section.id_column.clone(),
            },
            placement: section.image_placement,
            template: section.template.clone(),
            answer_form: section.answer_form,
            image_root: (!section.image_root.is_empty()).then(|| PathBuf::from(&section.image_root)),
            limits: Limits { max_pixels: section.max_image_pixels, max_bytes: section.max_image_bytes },
            max_record_bytes: section.max_record_bytes,
            preset: section.preset.clone(),
            check: ImageCheck::Full,
        }
    }
}
