//! Values of one primitive column, put back into rows by their levels.

use super::super::build::finite;
use super::shape::Leaf;
use crate::fault::Fault;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType};

/// One value.
#[derive(Debug, Clone)]
pub(super) enum Datum {
    /// Text or an image; shares its page's memory.
    Bytes(ByteArray),
    /// A whole number or truth value.
    Plain(String),
    Number(f64),
}

impl Datum {
    /// Size of a text or image; a number has none to speak of.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Plain(_) | Self::Number(_) => 0,
        }
    }

    pub fn text(&self, column: &str) -> Result<String, Fault> {
        match self {
            Self::Bytes(bytes) => String::from_utf8(bytes.data().to_vec())
                .map_err(|_| Fault::new(Fault::BAD_VALUE, format!("column `{column}` is not valid UTF-8"))),
            Self::Plain(text) => Ok(text.clone()),
            Self::Number(number) => finite(column, *number).map(|()| number.to_string()),
        }
    }
}

/// A column's part of one row.
#[derive(Debug, Clone)]
pub(super) enum LeafRow {
    Null,
    /// A list without elements.
    Empty,
    /// The value, or the elements of the list.
    Items(Vec<Option<Datum>>),
}

/// Reads one leaf of a row group.
pub(super) struct LeafReader {
    leaf: Leaf,
    reader: ColumnReader,
}

impl LeafReader {
    pub fn new(leaf: &Leaf, reader: ColumnReader) -> Self {
        Self { leaf: leaf.clone(), reader }
    }

    /// The next rows, at most `max`; none at the end.
    pub fn read(&mut self, max: usize) -> Result<Vec<LeafRow>, String> {
        let (leaf, unsigned) = (&self.leaf, self.leaf.unsigned);
        match &mut self.reader {
            ColumnReader::BoolColumnReader(r) => rows(r, leaf, max, |v| Datum::Plain(v.to_string())),
            ColumnReader::Int32ColumnReader(r) => rows(r, leaf, max, |v| {
                Datum::Plain(if unsigned { v.cast_unsigned().to_string() } else { v.to_string() })
            }),
            ColumnReader::Int64ColumnReader(r) => rows(r, leaf, max, |v| {
                Datum::Plain(if unsigned { v.cast_unsigned().to_string() } else { v.to_string() })
            }),
            // The shortest decimal that is this number, not its neighbour in double precision.
            ColumnReader::FloatColumnReader(r) => rows(r, leaf, max, |v| {
                if v.is_finite() { Datum::Plain(v.to_string()) } else { Datum::Number(f64::from(v)) }
            }),
            ColumnReader::DoubleColumnReader(r) => rows(r, leaf, max, Datum::Number),
            ColumnReader::ByteArrayColumnReader(r) => rows(r, leaf, max, Datum::Bytes),
            ColumnReader::FixedLenByteArrayColumnReader(r) => rows(r, leaf, max, |v| Datum::Bytes(v.into())),
            ColumnReader::Int96ColumnReader(_) => Err("a column of the INT96 type".to_string()),
        }
    }
}

fn rows<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    leaf: &Leaf,
    max: usize,
    datum: impl Fn(T::T) -> Datum,
) -> Result<Vec<LeafRow>, String> {
    let (mut definition, mut repetition, mut values) = (Vec::new(), Vec::new(), Vec::new());
    let (records, _, levels) = reader
        .read_records(max, Some(&mut definition), Some(&mut repetition), &mut values)
        .map_err(|e| e.to_string())?;
    let mut values = values.into_iter().map(datum);
    let mut rows: Vec<LeafRow> = Vec::new();
    for i in 0..levels.max(records) {
        // Levels that can only be 0 are not stored.
        let level = definition.get(i).copied().unwrap_or(0);
        let value = if level >= leaf.value_level { values.next() } else { None };
        if leaf.repetition == 0 {
            rows.push(value.map_or(LeafRow::Null, |v| LeafRow::Items(vec![Some(v)])));
        } else if level >= leaf.element_level {
            match rows.last_mut() {
                Some(LeafRow::Items(items)) if repetition.get(i) != Some(&0) => items.push(value),
                _ => rows.push(LeafRow::Items(vec![value])),
            }
        } else {
            rows.push(if level + 1 == leaf.element_level { LeafRow::Empty } else { LeafRow::Null });
        }
    }
    Ok(rows)
}
