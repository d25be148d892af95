//! Reads parquet by the crate's record interface, the needed columns only: images as `{bytes, path}`, a list of those, raw bytes, or paths.

use super::OpenOptions;
use super::raw::{Chosen, ImageCell, Outcomes, Raw, finish};
use crate::error::DataError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Every row of the file with its record or the reason against it.
pub(super) fn read(path: &Path, options: &OpenOptions) -> Result<Outcomes, DataError> {
    let file = File::open(path).map_err(|e| DataError::io(path, e))?;
    let broken = |reason: String| DataError::NotParquet { path: path.to_path_buf(), reason };
    // The parquet crate panics on some damaged files; that is a bad file like any other.
    catch_unwind(AssertUnwindSafe(|| read_rows(file, path, options)))
        .unwrap_or_else(|_| Err(broken("its pages are damaged".to_string())))
}

fn read_rows(file: File, path: &Path, options: &OpenOptions) -> Result<Outcomes, DataError> {
    let broken =
        |e: parquet::errors::ParquetError| DataError::NotParquet { path: path.to_path_buf(), reason: e.to_string() };
    let reader = SerializedFileReader::new(file).map_err(broken)?;
    let schema = reader.metadata().file_metadata().schema();
    let available: Vec<String> = schema.get_fields().iter().map(|f| f.name().to_string()).collect();
    let chosen = Chosen::from_file(path, &options.columns, &available)?;
    let names = chosen.names();
    let fields = schema.get_fields().iter().filter(|f| names.contains(&f.name())).cloned().collect();
    let projection = Type::group_type_builder(schema.name()).with_fields(fields).build().map_err(broken)?;
    let base = path.parent().unwrap_or(Path::new(""));
    let mut outcomes = Outcomes::new();
    for (row, cells) in reader.get_row_iter(Some(projection)).map_err(broken)?.enumerate() {
        let cells = cells.map_err(broken)?;
        outcomes.push((row as u64, raw_of(&cells, &chosen).and_then(|raw| finish(raw, base, &chosen, options))));
    }
    Ok(outcomes)
}

fn raw_of(cells: &Row, chosen: &Chosen) -> Result<Raw, String> {
    let mut raw = Raw::default();
    for (name, field) in cells.get_column_iter() {
        let is = |column: &Option<String>| column.as_ref() == Some(name);
        if *name == chosen.image {
            raw.images = images(field).map_err(|e| format!("column `{name}`: {e}"))?;
            continue;
        }
        let value = text(field).map_err(|e| format!("column `{name}`: {e}"))?;
        if *name == chosen.question {
            raw.question = value;
        } else if is(&chosen.answer) {
            raw.answer = value;
        } else if is(&chosen.response) {
            raw.response = value;
        } else if is(&chosen.id) {
            raw.id = value;
        }
    }
    Ok(raw)
}

/// A text cell; numbers are written out.
fn text(field: &Field) -> Result<Option<String>, String> {
    match field {
        Field::Null => Ok(None),
        Field::Str(s) => Ok(Some(s.clone())),
        Field::Bytes(b) => String::from_utf8(b.data().to_vec()).map(Some).map_err(|_| "not text".to_string()),
        Field::Group(_) | Field::ListInternal(_) | Field::MapInternal(_) => {
            Err("a list or struct where text is expected".to_string())
        }
        other => Ok(Some(other.to_string())),
    }
}

fn images(field: &Field) -> Result<Vec<ImageCell>, String> {
    match field {
        Field::Null => Ok(Vec::new()),
        Field::ListInternal(list) => list.elements().iter().map(image).collect(),
        one => Ok(vec![image(one)?]),
    }
}

fn image(field: &Field) -> Result<ImageCell, String> {
    match field {
        Field::Bytes(b) => Ok(ImageCell::Bytes(b.data().to_vec(), None)),
        Field::Str(path) => Ok(ImageCell::Path(path.clone())),
        Field::Group(parts) => {
            let part = |wanted: &str| parts.get_column_iter().find(|(name, _)| *name == wanted).map(|(_, f)| f);
            let path = match part("path") {
                Some(Field::Str(path)) => Some(path.clone()),
                _ => None,
            };
            match (part("bytes"), path) {
                (Some(Field::Bytes(b)), path) => Ok(ImageCell::Bytes(b.data().to_vec(), path)),
                (_, Some(path)) => Ok(ImageCell::Path(path)),
                _ => Err("an image has neither bytes nor path".to_string()),
            }
        }
        _ => Err("an image must be {bytes, path}, bytes, or a path".to_string()),
    }
}
