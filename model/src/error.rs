//! The one error type of this crate. Messages name the file or key and say what to do.

use std::path::{Path, PathBuf};

/// Why a checkpoint, prompt or image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file or directory could not be read or written.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io { path: PathBuf, action: &'static str, source: std::io::Error },
    /// A checkpoint lacks a file it needs.
    #[error("{place}: no {file}; {remedy}")]
    MissingFile { place: String, file: String, remedy: String },
    /// A file is not the JSON it should be.
    #[error("{file}: not valid JSON ({problem}); copy the file again from the checkpoint's source")]
    Json { file: String, problem: String },
    /// A key of a JSON file is absent, of the wrong type or inconsistent.
    #[error("{file}: `{key}` {problem}")]
    Key { file: String, key: String, problem: String },
    /// A safetensors file is damaged or does not fit the config.
    #[error("{file}: {problem}")]
    Weights { file: String, problem: String },
    /// The tokenizer refused its file or a text.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template does not parse, or raised an exception for these messages.
    #[error("chat template: {0}")]
    Template(String),
    /// An image has a shape the processor cannot handle.
    #[error("image: {0}")]
    Image(String),
    /// A prompt and its images do not fit together.
    #[error("prompt: {0}")]
    Prompt(String),
}

impl ModelError {
    pub(crate) fn io(path: &Path, action: &'static str, source: std::io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), action, source }
    }

    pub(crate) fn key(file: &str, key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Key { file: file.to_owned(), key: key.into(), problem: problem.into() }
    }

    /// The same error with the checkpoint's directory where only a file name, or nothing, was known.
    pub(crate) fn in_place(self, dir: &str) -> Self {
        match self {
            Self::MissingFile { file, remedy, .. } => Self::MissingFile { place: dir.to_owned(), file, remedy },
            Self::Json { file, problem } => Self::Json { file: format!("{dir}/{file}"), problem },
            Self::Key { file, key, problem } => Self::Key { file: format!("{dir}/{file}"), key, problem },
            Self::Tokenizer(problem) => Self::Tokenizer(format!("{dir}: {problem}")),
            Self::Template(problem) => Self::Template(format!("{dir}: {problem}")),
            other => other,
        }
    }

    pub(crate) fn weights(path: &Path, problem: impl Into<String>) -> Self {
        Self::Weights { file: path.display().to_string(), problem: problem.into() }
    }
}
