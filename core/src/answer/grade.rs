//! Grading of answer pairs, one JSON object a line: the arithmetic behind `coordinator grade`.

use super::{Notation, canonical_in};
use serde_json::Value;

/// A line that cannot be graded.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GradeError {
    #[error("the line is not a JSON object; write one object with \"a\" and \"b\" a line")]
    NotAnObject,
    #[error("key \"{0}\" is missing; write null for a missing answer")]
    Missing(&'static str),
    #[error("key \"{0}\" is {1}; an answer is a string, a number or null")]
    NotAnAnswer(&'static str, &'static str),
}

/// Adds `"equivalent"` to an object with answers `a` and `b` (strings, numbers or null). A missing or empty answer equals nothing.
///
/// # Errors
/// Not an object, a key missing, or an answer of another type.
pub fn grade(line: &Value, notation: Notation) -> Result<Value, GradeError> {
    let mut graded = line.as_object().ok_or(GradeError::NotAnObject)?.clone();
    let (a, b) = (answer(&graded, "a")?, answer(&graded, "b")?);
    let key = |x: Option<String>| x.and_then(|x| canonical_in(&x, notation));
    let equivalent = key(a).is_some_and(|a| Some(a) == key(b));
    graded.insert("equivalent".into(), Value::Bool(equivalent));
    Ok(Value::Object(graded))
}

fn answer(line: &serde_json::Map<String, Value>, key: &'static str) -> Result<Option<String>, GradeError> {
    match line.get(key) {
        None => Err(GradeError::Missing(key)),
        Some(Value::Null) => Ok(None),
        Some(Value::String(s)) => Ok(Some(s.clone())),
        Some(Value::Number(n)) => Ok(Some(n.to_string())),
        Some(Value::Bool(_)) => Err(GradeError::NotAnAnswer(key, "a boolean")),
        Some(Value::Array(_)) => Err(GradeError::NotAnAnswer(key, "a list")),
        Some(Value::Object(_)) => Err(GradeError::NotAnAnswer(key, "an object")),
    }
}
