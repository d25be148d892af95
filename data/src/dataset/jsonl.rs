//! Reads JSON lines: one object a line; images are a path, `{"path": …}`, or a list of these.

use super::OpenOptions;
use super::build::{Cells, ImageCell, Outcomes, build, finite};
use super::columns::{Available, Chosen};
use super::images::Place;
use super::lines::{Line, Lines};
use crate::error::DataError;
use crate::fault::Fault;
use crate::template::Shown;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;
use std::path::Path;

/// Lines whose keys together are the columns of the file.
const SCHEMA_LINES: usize = 100;

/// Every line that is not blank, its number counted from 0, with its record or the reason against it.
pub(super) fn read(path: &Path, place: &Place, options: &OpenOptions) -> Result<Outcomes, DataError> {
    let available = columns(path, options)?;
    let chosen = match available.is_empty() {
        // Not one object: the lines themselves say why.
        true => None,
        false => Some(Chosen::of_file(path, options, &available)?),
    };
    let mut outcomes = Outcomes::new();
    for (row, line) in objects(path, options)? {
        let outcome = line?.and_then(|object| match &chosen {
            Some(chosen) => build(&object, chosen, place, options),
            None => Err(Fault::new(Fault::MISSING_FIELD, "an empty object")),
        });
        outcomes.push((row, outcome));
    }
    Ok(outcomes)
}

type Objects<'a> = Box<dyn Iterator<Item = (u64, Result<Result<Object, Fault>, DataError>)> + 'a>;

/// The lines that are not blank.
fn objects<'a>(path: &'a Path, options: &OpenOptions) -> Result<Objects<'a>, DataError> {
    let max = options.max_record_bytes;
    let lines = Lines::open(path, max).map_err(|e| DataError::io(path, e))?;
    let rows = (0u64..).zip(lines).filter(|(_, l)| !matches!(l, Ok(Some(l)) if l.trim_ascii().is_empty()));
    Ok(Box::new(rows.map(move |(row, line)| (row, line.map(|l| object(l, max)).map_err(|e| DataError::io(path, e))))))
}

fn object(line: Line, max: u64) -> Result<Object, Fault> {
    let line = line.ok_or_else(|| Fault::too_long(max))?;
    serde_json::from_slice(&line).map_err(|e| Fault::new(Fault::BAD_SYNTAX, format!("not a JSON object ({e})")))
}

/// Keys of the first objects.
fn columns(path: &Path, options: &OpenOptions) -> Result<Vec<Available>, DataError> {
    let mut available: Vec<Available> = Vec::new();
    let mut seen = 0;
    for (_, line) in objects(path, options)? {
        let Ok(object) = line? else { continue };
        for key in object.0.keys() {
            if !available.iter().any(|a| a.name == *key) {
                available.push(Available::named(key));
            }
        }
        seen += 1;
        if seen == SCHEMA_LINES {
            break;
        }
    }
    Ok(available)
}

/// A JSON object whose keys differ.
pub(super) struct Object(pub Map<String, Value>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Object, A::Error> {
                let mut map = Map::new();
                while let Some((key, value)) = access.next_entry::<String, Value>()? {
                    if map.contains_key(&key) {
                        return Err(A::Error::custom(format!("key `{key}` stands twice")));
                    }
                    map.insert(key, value);
                }
                Ok(Object(map))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

impl Cells for Object {
    fn text(&self, column: &str) -> Result<Option<String>, Fault> {
        self.0.get(column).map_or(Ok(None), |value| text(column, value))
    }

    fn shown(&self, column: &str) -> Result<Option<Shown>, Fault> {
        match self.0.get(column) {
            Some(Value::Array(list)) if list.is_empty() => Ok(None),
            Some(Value::Array(list)) => {
                let items = list.iter().map(|v| text(column, v).map(Option::unwrap_or_default));
                Ok(Some(Shown::List(items.collect::<Result<_, _>>()?)))
            }
            _ => Ok(self.text(column)?.filter(|t| !t.trim().is_empty()).map(Shown::Text)),
        }
    }

    fn images(&self, column: &str) -> Result<Option<Vec<ImageCell>>, Fault> {
        match self.0.get(column) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(list)) => list.iter().map(|v| image(column, v)).collect::<Result<_, _>>().map(Some),
            Some(one) => Ok(Some(vec![image(column, one)?])),
        }
    }
}

/// A text value; numbers and booleans are written out.
pub(super) fn text(column: &str, value: &Value) -> Result<Option<String>, Fault> {
    match value {
        Value::Null => Ok(None),
        Value::String(s) => Ok(Some(s.clone())),
        Value::Number(n) => finite(column, n.as_f64().unwrap_or_default()).map(|()| Some(n.to_string())),
        Value::Bool(b) => Ok(Some(b.to_string())),
        _ => {
            let reason = format!("column `{column}` holds a list or object where text is expected");
            Err(Fault::new(Fault::BAD_VALUE, reason))
        }
    }
}

fn image(column: &str, value: &Value) -> Result<ImageCell, Fault> {
    let path = match value {
        Value::String(path) => Some(path),
        Value::Object(parts) => match (parts.get("path"), parts.get("bytes")) {
            (Some(Value::String(path)), None | Some(Value::Null)) => Some(path),
            _ => None,
        },
        _ => None,
    };
    let wrong = || Fault::new(Fault::BAD_VALUE, format!("column `{column}` must hold a path or a list of paths"));
    path.filter(|p| !p.is_empty()).map(|p| ImageCell::Path(p.clone())).ok_or_else(wrong)
}
