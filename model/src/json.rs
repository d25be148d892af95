//! Typed look-ups in untrusted JSON objects, with errors that carry the full key. Not a schema language.

use crate::error::ModelError;
use serde_json::Map;
pub(crate) use serde_json::Value;

/// A JSON object together with where it came from.
#[derive(Clone, Copy)]
pub(crate) struct Object<'a> {
    file: &'a str,
    prefix: &'a str,
    map: &'a Map<String, Value>,
}

/// Parses `bytes` and requires a JSON object at the top.
pub(crate) fn parse_object(file: &str, bytes: &[u8]) -> Result<Map<String, Value>, ModelError> {
    let error = |problem: String| ModelError::Json { file: file.to_owned(), problem };
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(error("the top is not an object".to_owned())),
        Err(e) => Err(error(e.to_string())),
    }
}

impl<'a> Object<'a> {
    pub fn new(file: &'a str, prefix: &'a str, map: &'a Map<String, Value>) -> Self {
        Self { file, prefix, map }
    }

    /// Error about `key`, written with its prefix.
    pub fn error(&self, key: &str, problem: impl Into<String>) -> ModelError {
        ModelError::key(self.file, format!("{}{key}", self.prefix), problem)
    }

    /// The value of `key`; `null` counts as absent.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// A nested object; `prefix` is its full prefix, e.g. `text_config.`.
    pub fn object(&self, key: &str, prefix: &'a str) -> Result<Option<Object<'a>>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Object::new(self.file, prefix, map))),
            Some(_) => Err(self.error(key, "must be an object")),
        }
    }

    pub fn string(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(v) => v.as_str().map(Some).ok_or_else(|| self.error(key, "must be a string")),
        }
    }

    pub fn boolean(&self, key: &str) -> Result<Option<bool>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(v) => v.as_bool().map(Some).ok_or_else(|| self.error(key, "must be true or false")),
        }
    }

    pub fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(v) => {
                v.as_f64().filter(|x| x.is_finite()).map(Some).ok_or_else(|| self.error(key, "must be a finite number"))
            }
        }
    }

    /// A positive number, required.
    pub fn positive(&self, key: &str) -> Result<f64, ModelError> {
        match self.number(key)? {
            Some(x) if x > 0.0 => Ok(x),
            Some(x) => Err(self.error(key, format!("is {x}; it must be positive"))),
            None => Err(self.missing(key)),
        }
    }

    /// A size from 1 to `max`, if present.
    pub fn size_opt(&self, key: &str, max: usize) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64().and_then(|x| usize::try_from(x).ok()) {
            Some(x) if (1..=max).contains(&x) => Ok(Some(x)),
            _ => Err(self.error(key, format!("is {value}; it must be a whole number from 1 to {max}"))),
        }
    }

    /// A size from 1 to `max`, required.
    pub fn size(&self, key: &str, max: usize) -> Result<usize, ModelError> {
        self.size_opt(key, max)?.ok_or_else(|| self.missing(key))
    }

    /// A token id, if present.
    pub fn token(&self, key: &str) -> Result<Option<u32>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let id = value.as_u64().and_then(|x| u32::try_from(x).ok());
        id.map(Some).ok_or_else(|| self.error(key, format!("is {value}; it must be a token id")))
    }

    /// A list of whole numbers, if present.
    pub fn list(&self, key: &str) -> Result<Option<Vec<usize>>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let items = value.as_array().ok_or_else(|| self.error(key, "must be a list of whole numbers"))?;
        let number = |v: &Value| v.as_u64().and_then(|x| usize::try_from(x).ok()).filter(|&x| x <= 1 << 24);
        let list: Option<Vec<usize>> = items.iter().map(number).collect();
        list.map(Some).ok_or_else(|| self.error(key, "must be a list of whole numbers"))
    }

    pub fn missing(&self, key: &str) -> ModelError {
        self.error(key, "is missing; take config.json from the checkpoint's source")
    }
}
