//! Which files a path stands for: a file, a directory of data files or images, one split of a directory (`DIR#SPLIT`). Names alone decide; nothing is read.

use crate::error::DataError;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Component, Path, PathBuf};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Parquet,
    Jsonl,
    Csv,
    Image,
}

#[derive(Debug)]
pub(super) struct Input {
    pub path: PathBuf,
    pub kind: Kind,
}

/// Files in the order they are read, and the directory that image paths may not leave.
#[derive(Debug)]
pub(super) struct Source {
    pub root: PathBuf,
    pub files: Vec<Input>,
}

/// Missing files that are named.
const LISTED: usize = 5;
/// Directories below the given one that are searched.
const DEPTH: usize = 4;

/// Names by which files and directories tell their split, with the split's usual name.
const SPLIT_WORDS: [(&str, &str); 10] = [
    ("train", "train"),
    ("training", "train"),
    ("validation", "validation"),
    ("valid", "validation"),
    ("val", "validation"),
    ("dev", "validation"),
    ("test", "test"),
    ("testing", "test"),
    ("eval", "test"),
    ("evaluation", "test"),
];

/// The files of `path`.
pub(super) fn find(path: &Path) -> Result<Source, DataError> {
    let (place, wanted) = match path.to_str().and_then(|p| p.rsplit_once('#')) {
        Some((place, split)) if !path.exists() => (PathBuf::from(place), Some(split)),
        _ => (path.to_path_buf(), None),
    };
    let unknown = || DataError::UnknownKind { path: place.clone() };
    if !fs::metadata(&place).map_err(|e| DataError::io(&place, e))?.is_dir() {
        let kind = kind_of(&place).filter(|k| *k != Kind::Image && wanted.is_none()).ok_or_else(unknown)?;
        let root = place.parent().unwrap_or(Path::new("")).to_path_buf();
        return Ok(Source { root, files: vec![Input { path: place, kind }] });
    }
    let mut files = Vec::new();
    walk(&place, DEPTH, &mut files)?;
    // Images beside data files are what those point to.
    if files.iter().any(|f| f.kind != Kind::Image) {
        files.retain(|f| f.kind != Kind::Image);
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    if files.is_empty() {
        return Err(unknown());
    }
    let files = one_split(&place, files, wanted)?;
    whole(&place, &files)?;
    one_subset(&place, &files)?;
    Ok(Source { root: place, files })
}

fn walk(dir: &Path, depth: usize, found: &mut Vec<Input>) -> Result<(), DataError> {
    for entry in fs::read_dir(dir).map_err(|e| DataError::io(dir, e))? {
        let entry = entry.map_err(|e| DataError::io(dir, e))?;
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        // A link to a file is followed (the hub's cache is made of them), one to a directory is not: it could lead in a circle.
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            if depth > 0 {
                walk(&path, depth - 1, found)?;
            }
        } else if path.is_file() {
            found.extend(kind_of(&path).map(|kind| Input { path, kind }));
        }
    }
    Ok(())
}

fn kind_of(path: &Path) -> Option<Kind> {
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    match extension.as_str() {
        "parquet" => Some(Kind::Parquet),
        "jsonl" | "ndjson" => Some(Kind::Jsonl),
        "csv" => Some(Kind::Csv),
        "png" | "jpg" | "jpeg" | "webp" | "gif" | "bmp" => Some(Kind::Image),
        _ => None,
    }
}

/// The files of the wanted split; without a wanted one there must be only one.
fn one_split(dir: &Path, files: Vec<Input>, wanted: Option<&str>) -> Result<Vec<Input>, DataError> {
    let mut splits: BTreeMap<String, Vec<Input>> = BTreeMap::new();
    for file in files {
        splits.entry(split_of(dir, &file).unwrap_or_default()).or_default().push(file);
    }
    // Files of no split stand first, and cannot be named.
    let unsplit = splits.contains_key("");
    let named: Vec<String> = splits.keys().filter(|s| !s.is_empty()).cloned().collect();
    let (available, path) = (named.join(", "), dir.to_path_buf());
    match wanted {
        Some(split) => {
            splits.remove(usual(split)).ok_or(DataError::NoSplit { path, split: split.to_string(), available })
        }
        None if splits.len() == 1 => Ok(splits.into_values().flatten().collect()),
        None => Err(DataError::SeveralSplits {
            path,
            available,
            example: named.into_iter().next().unwrap_or_default(),
            rest: if unsplit { "; the files of no split need a directory of their own" } else { "" },
        }),
    }
}

/// Splits of one name in several directories are subsets with columns of their own.
fn one_subset(dir: &Path, files: &[Input]) -> Result<(), DataError> {
    let of = |file: &Input| {
        let parents = parents(dir, file).into_iter().filter(|p| *p != "data" && split_word(p).is_none());
        parents.collect::<Vec<_>>().join("/")
    };
    let subsets: BTreeSet<String> = files.iter().filter(|f| f.kind != Kind::Image).map(of).collect();
    if subsets.len() <= 1 {
        return Ok(());
    }
    let names = subsets.into_iter().map(|s| if s.is_empty() { ".".to_string() } else { s });
    Err(DataError::SeveralSubsets { path: dir.to_path_buf(), available: names.collect::<Vec<_>>().join(", ") })
}

/// Directories between `dir` and the file.
fn parents<'a>(dir: &Path, file: &'a Input) -> Vec<&'a str> {
    let within = file.path.strip_prefix(dir).ok().and_then(Path::parent).unwrap_or(Path::new(""));
    let name = |c: Component<'a>| match c {
        Component::Normal(name) => name.to_str(),
        _ => None,
    };
    within.components().filter_map(name).collect()
}

/// `NAME-00000-of-00002.parquet` says it outright; else a word in the file's name, else one of its directories.
fn split_of(dir: &Path, file: &Input) -> Option<String> {
    let stem = file.path.file_stem().and_then(OsStr::to_str).unwrap_or_default();
    if file.kind != Kind::Image {
        if let Some(name) = before_shard(stem) {
            return Some(split_word(name).map_or_else(|| usual(name).to_string(), str::to_string));
        }
        if let Some(split) = split_word(stem) {
            return Some(split.to_string());
        }
    }
    parents(dir, file).into_iter().rev().find_map(split_word).map(str::to_string)
}

/// `train` of `train-00000-of-00002`, with or without a hash behind it.
fn before_shard(stem: &str) -> Option<&str> {
    shard(stem).map(|(name, ..)| name)
}

/// `train`, 0 and 2 of `train-00000-of-00002`.
fn shard(stem: &str) -> Option<(&str, usize, usize)> {
    let number = |s: &str| s.parse::<usize>().ok().filter(|_| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit()));
    let (of, total) =
        stem.match_indices("-of-").find_map(|(at, _)| Some((at, stem.get(at + 4..at + 9).and_then(number)?)))?;
    let (name, shard) = stem.get(..of)?.rsplit_once('-')?;
    Some((name, number(shard)?, total)).filter(|_| !name.is_empty())
}

/// Of files that are numbered `-of-00003` there must be three.
fn whole(dir: &Path, files: &[Input]) -> Result<(), DataError> {
    let mut sets: BTreeMap<(&Path, &str, usize), BTreeSet<usize>> = BTreeMap::new();
    for file in files.iter().filter(|f| f.kind != Kind::Image) {
        let stem = file.path.file_stem().and_then(OsStr::to_str).unwrap_or_default();
        if let (Some((name, number, total)), Some(parent)) = (shard(stem), file.path.parent()) {
            sets.entry((parent, name, total)).or_default().insert(number);
        }
    }
    for ((_, name, total), there) in sets {
        let missing: Vec<String> = (0..total).filter(|n| !there.contains(n)).map(|n| format!("{n:05}")).collect();
        if let Some(shown) = missing.chunks(LISTED).next() {
            let more = if missing.len() > LISTED { ", …" } else { "" };
            let (path, name, missing) = (dir.to_path_buf(), name.to_owned(), shown.join(", ") + more);
            return Err(DataError::MissingFiles { path, name, missing, total });
        }
    }
    Ok(())
}

/// The split a name speaks of: one of its words is a split's.
fn split_word(name: &str) -> Option<&'static str> {
    let mut words = name.split(|c: char| !c.is_ascii_alphanumeric());
    words.find_map(|w| SPLIT_WORDS.iter().find(|(word, _)| w.eq_ignore_ascii_case(word)).map(|(_, split)| *split))
}

/// The usual name of a split, which may be any.
fn usual(split: &str) -> &str {
    SPLIT_WORDS.iter().find(|(word, _)| split.eq_ignore_ascii_case(word)).map_or(split, |(_, usual)| usual)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        dir
    }

    fn found(dir: &tempfile::TempDir, split: &str) -> Result<Vec<String>, String> {
        let path = if split.is_empty() {
            dir.path().to_path_buf()
        } else {
            PathBuf::from(format!("{}#{split}", dir.path().display()))
        };
        let source = find(&path).map_err(|e| e.to_string())?;
        let name = |f: Input| f.path.strip_prefix(dir.path()).unwrap().display().to_string();
        Ok(source.files.into_iter().map(name).collect())
    }

    #[test]
    fn published_directories_fall_into_splits() {
        let hub = tree(&[
            "README.md",
            ".cache/train-00000-of-00001.parquet",
            "data/train-00001-of-00002.parquet",
            "data/train-00000-of-00002-a09b74b3ef9c3b56.parquet",
            "data/testmini-00000-of-00001.parquet",
            "data/validation-00000-of-00001.parquet",
            "images/a.png",
        ]);
        let train = ["data/train-00000-of-00002-a09b74b3ef9c3b56.parquet", "data/train-00001-of-00002.parquet"];
        assert_eq!(found(&hub, "train").unwrap(), train);
        assert_eq!(found(&hub, "testmini").unwrap(), ["data/testmini-00000-of-00001.parquet"]);
        assert_eq!(found(&hub, "val").unwrap(), ["data/validation-00000-of-00001.parquet"]);
        let several = found(&hub, "").unwrap_err();
        assert!(several.contains("testmini, train, validation") && several.contains("#testmini"), "{several}");
        let none = found(&hub, "dev2").unwrap_err();
        assert!(none.contains("dev2") && none.contains("testmini, train, validation"), "{none}");
    }

    #[test]
    fn words_and_directories_name_splits_too() {
        let dir = tree(&["my_train.jsonl", "test/0000.parquet", "test/0001.parquet"]);
        assert_eq!(found(&dir, "train").unwrap(), ["my_train.jsonl"]);
        assert_eq!(found(&dir, "test").unwrap(), ["test/0000.parquet", "test/0001.parquet"]);
        let images = tree(&["train/cat/1.png", "train/dog/1.JPG", "test/cat/2.webp", "notes.txt"]);
        assert_eq!(found(&images, "train").unwrap(), ["train/cat/1.png", "train/dog/1.JPG"]);
        let plain = tree(&["b.parquet", "a.parquet"]);
        assert_eq!(found(&plain, "").unwrap(), ["a.parquet", "b.parquet"]);
        assert_eq!(found(&tree(&["only/train.csv"]), "").unwrap(), ["only/train.csv"]);
    }

    #[test]
    fn a_missing_file_of_a_numbered_set_is_named() {
        let names =
            ["train-00000-of-00003-ab.parquet", "train-00002-of-00003-cd.parquet", "test-00000-of-00001.parquet"];
        let dir = tree(&names);
        let message = found(&dir, "train").unwrap_err();
        assert!(message.contains("files 00001 of 3 of `train`"), "{message}");
        assert!(found(&dir, "test").is_ok(), "the other split is whole");
        let one = find(&dir.path().join(names[0])).unwrap();
        assert_eq!(one.files.len(), 1, "a file that is named is wanted alone");
    }

    #[test]
    fn the_hint_of_a_directory_with_split_and_unsplit_files_works() {
        let dir = tree(&["questions.parquet", "test.parquet"]);
        let message = found(&dir, "").unwrap_err();
        assert!(message.contains("(test)") && message.contains("#test; the files of no split need"), "{message}");
        assert_eq!(found(&dir, "test").unwrap(), ["test.parquet"]);
    }

    #[test]
    fn subsets_are_never_mixed() {
        let dir = tree(&["algebra/train-00000-of-00001.parquet", "geometry/train-00000-of-00001.parquet"]);
        let message = found(&dir, "train").unwrap_err();
        assert!(message.contains("algebra, geometry"), "{message}");
    }

    #[test]
    fn a_directory_with_the_sign_in_its_name_is_itself() {
        let dir = tree(&["a#train/x.jsonl"]);
        assert_eq!(find(&dir.path().join("a#train")).unwrap().files.len(), 1);
        assert!(matches!(find(&dir.path().join("b#train")), Err(DataError::Missing { .. })));
    }
}
