//! Reads JSON lines: one object a line; images are a path or a list of paths, relative to the file.

use super::OpenOptions;
use super::raw::{Chosen, ImageCell, Outcomes, Raw, finish};
use crate::error::DataError;
use serde_json::{Map, Value};
use std::fs;
use std::path::Path;

/// Lines whose keys together are the columns of the file.
const SCHEMA_LINES: usize = 100;

/// One line, or why it is no object.
type Line = Result<Map<String, Value>, String>;

/// Every line that is not blank, its number counted from 0, with its record or the reason against it.
pub(super) fn read(path: &Path, options: &OpenOptions) -> Result<Outcomes, DataError> {
    let bytes = fs::read(path).map_err(|e| DataError::io(path, e))?;
    let lines: Vec<(u64, Line)> = bytes
        .split(|b| *b == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.trim_ascii().is_empty())
        .map(|(row, line)| (row as u64, serde_json::from_slice(line).map_err(|e| format!("not a JSON object ({e})"))))
        .collect();
    let mut available: Vec<String> = Vec::new();
    for object in lines.iter().filter_map(|(_, l)| l.as_ref().ok()).take(SCHEMA_LINES) {
        for key in object.keys() {
            if !available.contains(key) {
                available.push(key.clone());
            }
        }
    }
    if available.is_empty() {
        // Not one object: the lines themselves say why.
        return Ok(lines
            .into_iter()
            .map(|(row, line)| (row, Err(line.err().unwrap_or_else(|| "an empty object".into()))))
            .collect());
    }
    let chosen = Chosen::from_file(path, &options.columns, &available)?;
    let base = path.parent().unwrap_or(Path::new(""));
    let outcome = |line: Line| finish(raw_of(&line?, &chosen)?, base, &chosen, options);
    Ok(lines.into_iter().map(|(row, line)| (row, outcome(line))).collect())
}

fn raw_of(object: &Map<String, Value>, chosen: &Chosen) -> Result<Raw, String> {
    let cell = |name: &Option<String>| name.as_ref().map_or(Ok(None), |n| text(object, n));
    Ok(Raw {
        id: cell(&chosen.id)?,
        question: text(object, &chosen.question)?,
        images: images(object.get(&chosen.image))
            .ok_or_else(|| format!("`{}` must be a path or a list of paths", chosen.image))?,
        answer: cell(&chosen.answer)?,
        response: cell(&chosen.response)?,
    })
}

/// A text value; numbers and booleans are written out.
pub(super) fn text(object: &Map<String, Value>, name: &str) -> Result<Option<String>, String> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) => Ok(Some(s.clone())),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(Some(value.to_string())),
        Some(_) => Err(format!("`{name}` is a list or object where text is expected")),
    }
}

fn images(value: Option<&Value>) -> Option<Vec<ImageCell>> {
    match value {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::String(path)) => Some(vec![ImageCell::Path(path.clone())]),
        Some(Value::Array(list)) => list.iter().map(|v| v.as_str().map(|p| ImageCell::Path(p.to_string()))).collect(),
        Some(_) => None,
    }
}
