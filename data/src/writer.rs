//! Writes records as parquet in the Hugging Face layout (`images: list<struct<bytes, path>>`, …), readable by `datasets` and pyarrow. Byte-deterministic.

use crate::error::DataError;
use crate::record::Record;
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// Rows of one row group: about what a reader holds at once.
const ROW_GROUP: usize = 4096;

/// Text columns in file order, with the value of each in a record. `id`, `answer` and `response` exist only if some record has one.
type TextColumn = (&'static str, fn(&Record) -> Option<&str>);

const TEXT_COLUMNS: [TextColumn; 4] = [
    ("id", |r| r.id.as_deref()),
    ("problem", |r| Some(r.question.as_str())),
    ("answer", |r| r.answer.as_deref()),
    ("response", |r| r.response.as_deref()),
];

/// Writes `records` to `path` (columns id, problem, answer, response as far as present, and images).
///
/// # Errors
/// `DataError::Write` names the file and the reason.
pub fn write_parquet(path: &Path, records: &[Record]) -> Result<(), DataError> {
    try_write(path, records).map_err(|reason| DataError::Write { path: path.to_path_buf(), reason })
}

fn try_write(path: &Path, records: &[Record]) -> Result<(), String> {
    let texts: Vec<TextColumn> = TEXT_COLUMNS
        .into_iter()
        .filter(|(name, get)| *name == "problem" || records.iter().any(|r| get(r).is_some()))
        .collect();
    let schema = Arc::new(parse_message_type(&schema_text(&texts)).map_err(|e| e.to_string())?);
    let file = File::create(path).map_err(|e| e.to_string())?;
    let mut writer =
        SerializedFileWriter::new(file, schema, Arc::new(properties(&texts)?)).map_err(|e| e.to_string())?;
    for rows in records.chunks(ROW_GROUP) {
        let mut group = writer.next_row_group().map_err(|e| e.to_string())?;
        for (_, get) in &texts {
            write_text(&mut group, rows, *get).map_err(|e| e.to_string())?;
        }
        write_images(&mut group, rows, |image| Some(image.bytes.to_vec())).map_err(|e| e.to_string())?;
        write_images(&mut group, rows, |image| image.path.as_ref().map(|p| p.clone().into_bytes()))
            .map_err(|e| e.to_string())?;
        group.close().map_err(|e| e.to_string())?;
    }
    writer.close().map_err(|e| e.to_string())?;
    Ok(())
}

fn schema_text(texts: &[TextColumn]) -> String {
    let texts: String = texts.iter().map(|(name, _)| format!("  optional binary {name} (STRING);\n")).collect();
    format!(
        "message schema {{\n{texts}  optional group images (LIST) {{\n    repeated group list {{\n      optional group element {{\n        \
         optional binary bytes;\n        optional binary path (STRING);\n      }}\n    }}\n  }}\n}}"
    )
}

/// zstd, because thousands of small PNG files share their headers; dictionaries only where values repeat.
fn properties(texts: &[TextColumn]) -> Result<WriterProperties, String> {
    let level = ZstdLevel::try_new(19).map_err(|e| e.to_string())?;
    let bytes = ColumnPath::from(vec!["images".to_string(), "list".into(), "element".into(), "bytes".into()]);
    Ok(WriterProperties::builder()
        .set_created_by("quorum".to_string())
        .set_compression(Compression::ZSTD(level))
        .set_statistics_enabled(EnabledStatistics::None)
        .set_column_dictionary_enabled(bytes, false)
        .set_key_value_metadata(Some(vec![KeyValue::new("huggingface".to_string(), features(texts))]))
        .build())
}

/// The footer entry by which `datasets` knows that `images` are images.
fn features(texts: &[TextColumn]) -> String {
    let mut features = serde_json::Map::new();
    for (name, _) in texts {
        features.insert((*name).to_string(), serde_json::json!({"dtype": "string", "_type": "Value"}));
    }
    features.insert("images".to_string(), serde_json::json!([{"_type": "Image"}]));
    serde_json::json!({"info": {"features": features}}).to_string()
}

type Group<'a> = SerializedRowGroupWriter<'a, File>;

fn write_text(group: &mut Group<'_>, rows: &[Record], get: fn(&Record) -> Option<&str>) -> parquet::errors::Result<()> {
    let values: Vec<ByteArray> = rows.iter().filter_map(get).map(ByteArray::from).collect();
    let levels: Vec<i16> = rows.iter().map(|r| i16::from(get(r).is_some())).collect();
    write_column(group, &values, &levels, None)
}

/// One leaf of the image list. Definition levels: 1 = empty list, 3 = element without this leaf, 4 = value. Repetition: 0 opens a row, 1 continues it.
fn write_images(
    group: &mut Group<'_>,
    rows: &[Record],
    get: impl Fn(&crate::record::ImageBytes) -> Option<Vec<u8>>,
) -> parquet::errors::Result<()> {
    let (mut values, mut definition, mut repetition) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        if row.images.is_empty() {
            definition.push(1);
            repetition.push(0);
        }
        for (i, image) in row.images.iter().enumerate() {
            repetition.push(i16::from(i > 0));
            let value = get(image);
            definition.push(3 + i16::from(value.is_some()));
            values.extend(value.map(ByteArray::from));
        }
    }
    write_column(group, &values, &definition, Some(&repetition))
}

fn write_column(
    group: &mut Group<'_>,
    values: &[ByteArray],
    definition: &[i16],
    repetition: Option<&[i16]>,
) -> parquet::errors::Result<()> {
    if let Some(mut column) = group.next_column()? {
        column.typed::<ByteArrayType>().write_batch(values, Some(definition), repetition)?;
        column.close()?;
    }
    Ok(())
}
