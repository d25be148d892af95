//! Errors that concern a whole file. A single bad record is no error: it is set aside (`dataset::SetAside`).

use std::path::PathBuf;

/// Why a data set could not be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("data set {path}: not found; give a .parquet, .jsonl or .csv file, or a directory of them or of images")]
    Missing { path: PathBuf },
    #[error("data set {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error(
        "data set {path}: not a readable parquet file ({reason}); was it downloaded completely, or is it a Git LFS pointer?"
    )]
    NotParquet { path: PathBuf, reason: String },
    #[error(
        "data set {path}: column `{column}` is compressed with {codec}, which this build cannot read; write it again with zstd, snappy, gzip or none"
    )]
    Codec { path: PathBuf, column: String, codec: String },
    #[error("data set {path}: column `{column}` is {found}, but {wanted} is needed; set data.{role}_column")]
    ColumnType { path: PathBuf, column: String, found: String, wanted: &'static str, role: &'static str },
    #[error(
        "data set {path}: unknown kind of file; give .parquet, .jsonl or .csv, or a directory of them or of images (.png, .jpg, .webp, .gif, .bmp)"
    )]
    UnknownKind { path: PathBuf },
    #[error("data set {path}: there is no split `{split}`; there are: {available}")]
    NoSplit { path: PathBuf, split: String, available: String },
    #[error("data set {path}: holds several splits ({available}); name one behind a `#`, as in {path}#{example}{rest}")]
    SeveralSplits { path: PathBuf, available: String, example: String, rest: &'static str },
    #[error(
        "data set {path}: files {missing} of {total} of `{name}` are missing; download the data set again, or name the files one by one"
    )]
    MissingFiles { path: PathBuf, name: String, missing: String, total: usize },
    #[error("data set {path}: holds several subsets ({available}); give the directory of one")]
    SeveralSubsets { path: PathBuf, available: String },
    #[error("data set {path}: no column {wanted} for the {role}; the file has: {available}; {hint}")]
    MissingColumn { path: PathBuf, role: &'static str, wanted: String, available: String, hint: String },
    #[error("data.template: {reason}")]
    Template { reason: String },
    #[error("data.template shows column `{column}`, which is the {role}: the model would see it")]
    TemplateTells { column: String, role: &'static str },
    #[error("data set {path}: no usable record among {rows} rows; the first reason: {first}")]
    NoRecords { path: PathBuf, rows: u64, first: String },
    #[error("labels {path}, line {line}: {reason}")]
    Label { path: PathBuf, line: usize, reason: String },
    #[error("writing {path}: {reason}")]
    Write { path: PathBuf, reason: String },
}

impl DataError {
    pub(crate) fn io(path: &std::path::Path, source: std::io::Error) -> Self {
        if source.kind() == std::io::ErrorKind::NotFound {
            return Self::Missing { path: path.to_path_buf() };
        }
        Self::Io { path: path.to_path_buf(), source }
    }
}

/// The candidate with the smallest edit distance to `wanted`, if it is near enough to be a likely misspelling.
pub(crate) fn nearest<'a>(wanted: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let wanted = wanted.to_lowercase();
    candidates
        .into_iter()
        .map(|c| (distance(&wanted, &c.to_lowercase()), c))
        .min_by_key(|(d, _)| *d)
        .filter(|(d, c)| *d <= (wanted.len().max(c.len()) / 2).max(1))
        .map(|(_, c)| c.to_string())
}

/// Levenshtein distance in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, cb) in row.iter_mut().skip(1).zip(&b) {
            let here = (diagonal + usize::from(ca != *cb)).min(*cell + 1).min(left + 1);
            diagonal = *cell;
            *cell = here;
            left = here;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_levenshtein() {
        for (a, b, d) in
            [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("abc", "abc", 0), ("flaw", "lawn", 2)]
        {
            assert_eq!(distance(a, b), d, "{a} {b}");
        }
    }

    #[test]
    fn only_a_likely_misspelling_is_offered() {
        assert_eq!(nearest("probelm", ["id", "problem", "answer"]), Some("problem".into()));
        assert_eq!(nearest("images", ["id", "text", "label"]), None);
    }
}
