//! Metadata of a GGUF file: values borrowed from the mapped bytes, and look-ups whose errors name the key.

use super::cursor::Cursor;
use std::collections::BTreeMap;

/// One value. All integer types fit the 128 bits.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    Integer(i128),
    Float(f64),
    Bool(bool),
    Text(&'a str),
    Array(Array<'a>),
}

/// A list whose bytes were checked when the header was read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Array<'a> {
    pub kind: u32,
    pub count: usize,
    pub bytes: &'a [u8],
}

impl<'a> Array<'a> {
    fn values(&self) -> impl Iterator<Item = Option<Value<'a>>> {
        let mut cursor = Cursor::new(self.bytes);
        let kind = self.kind;
        (0..self.count).map(move |_| cursor.value(kind, "list").ok())
    }
}

/// Keys and values in the order of the keys.
#[derive(Debug, Default)]
pub(super) struct Metadata<'a> {
    map: BTreeMap<&'a str, Value<'a>>,
}

impl<'a> Metadata<'a> {
    /// # Errors
    /// The key is there already.
    pub fn insert(&mut self, key: &'a str, value: Value<'a>) -> Result<(), String> {
        match self.map.insert(key, value) {
            None => Ok(()),
            Some(_) => Err(format!("is damaged: the key `{key}` appears twice; download it again")),
        }
    }

    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    pub fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.map.keys().copied()
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>, String> {
        self.find(key, "a string", |v| match v {
            Value::Text(s) => Some(s),
            _ => None,
        })
    }

    pub fn boolean(&self, key: &str) -> Result<Option<bool>, String> {
        self.find(key, "true or false", |v| match v {
            Value::Bool(b) => Some(b),
            _ => None,
        })
    }

    /// A whole number from 0 to `max`.
    pub fn integer(&self, key: &str, max: usize) -> Result<Option<usize>, String> {
        self.find(key, &format!("a whole number up to {max}"), |v| match v {
            Value::Integer(n) => usize::try_from(n).ok().filter(|&n| n <= max),
            _ => None,
        })
    }

    /// A whole number from 1 to `max`, required.
    pub fn size(&self, key: &str, max: usize) -> Result<usize, String> {
        match self.integer(key, max)? {
            Some(0) => Err(format!("`{key}` is 0; it must be positive, so download the file again")),
            Some(n) => Ok(n),
            None => Err(missing(key)),
        }
    }

    /// A positive finite number.
    pub fn positive(&self, key: &str) -> Result<Option<f64>, String> {
        self.find(key, "a positive number", |v| match v {
            Value::Float(x) => Some(x).filter(|x| x.is_finite() && *x > 0.0),
            Value::Integer(n) => Some(n as f64).filter(|x| *x > 0.0),
            _ => None,
        })
    }

    pub fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, String> {
        self.list(key, "a list of strings", |v| match v {
            Value::Text(s) => Some(s),
            _ => None,
        })
    }

    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>, String> {
        self.list(key, "a list of whole numbers", |v| match v {
            Value::Integer(n) => i64::try_from(n).ok(),
            _ => None,
        })
    }

    pub fn floats(&self, key: &str) -> Result<Option<Vec<f64>>, String> {
        self.list(key, "a list of finite numbers", |v| match v {
            Value::Float(x) => Some(x).filter(|x| x.is_finite()),
            _ => None,
        })
    }

    fn list<T>(&self, key: &str, what: &str, get: impl Fn(Value<'a>) -> Option<T>) -> Result<Option<Vec<T>>, String> {
        self.find(key, what, |v| match v {
            Value::Array(items) => items.values().map(|v| v.and_then(&get)).collect(),
            _ => None,
        })
    }

    fn find<T>(&self, key: &str, what: &str, get: impl FnOnce(Value<'a>) -> Option<T>) -> Result<Option<T>, String> {
        match self.map.get(key) {
            None => Ok(None),
            Some(&value) => {
                get(value).map(Some).ok_or_else(|| format!("`{key}` is not {what}; download the file again"))
            }
        }
    }
}

/// The error for a key that has to be there.
pub(super) fn missing(key: &str) -> String {
    format!("has no `{key}`; it was made by an old or unfinished conversion, so take another file of this model")
}
