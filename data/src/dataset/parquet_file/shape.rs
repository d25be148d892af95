//! What a column looks like in the schema, and whether its role can use that. Lists may be written in any of the format's ways: only levels count.

use crate::error::DataError;
use parquet::basic::{ConvertedType, Repetition, Type as Physical};
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};
use std::path::Path;

/// A primitive column of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leaf {
    /// Its place among the file's primitive columns.
    pub index: usize,
    /// Definition level of a value.
    pub value_level: i16,
    /// Definition level from which a list has an element here; 0 if it is no list.
    pub element_level: i16,
    /// 1 in a list, else 0.
    pub repetition: i16,
    /// Numbers are unsigned.
    pub unsigned: bool,
}

/// How the leaves of a column belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shape {
    Scalar(Leaf),
    List(Leaf),
    Image { list: bool, bytes: Option<Leaf>, path: Option<Leaf> },
}

impl Shape {
    pub fn leaves(&self) -> Vec<&Leaf> {
        match self {
            Self::Scalar(leaf) | Self::List(leaf) => vec![leaf],
            Self::Image { bytes, path, .. } => bytes.iter().chain(path).collect(),
        }
    }
}

/// A column that is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub name: String,
    pub shape: Shape,
}

impl Column {
    /// The column `name` in its role.
    pub fn of(path: &Path, schema: &SchemaDescriptor, name: &str, role: &'static str) -> Result<Self, DataError> {
        let columns = schema.columns().iter().enumerate();
        let columns: Vec<(usize, &ColumnDescriptor)> = columns
            .filter(|(_, c)| c.path().parts().first().is_some_and(|p| p == name))
            .map(|(i, c)| (i, c.as_ref()))
            .collect();
        let shape = if role == "image" { image(schema, &columns) } else { texts(schema, &columns, role == "template") };
        let wanted = match role {
            "image" => "{bytes, path}, bytes, a path, or a list of one of these",
            "template" => "text, a number, or a list of these",
            _ => "text or a number",
        };
        let field = schema.root_schema().get_fields().iter().find(|f| f.name() == name);
        let found = || match (field, columns.as_slice()) {
            (_, [(_, one)]) if one.max_rep_level() > 0 => "a list".to_string(),
            (_, [(_, one)]) if one.path().parts().len() == 1 => kind(one),
            _ => format!("a struct or list of {} values", columns.len()),
        };
        let wrong = || DataError::ColumnType {
            path: path.to_path_buf(),
            column: name.to_string(),
            found: found(),
            wanted,
            role,
        };
        Ok(Self { name: name.to_string(), shape: shape.ok_or_else(wrong)? })
    }
}

fn kind(column: &ColumnDescriptor) -> String {
    match column.converted_type() {
        ConvertedType::NONE => format!("{:?}", column.physical_type()).to_lowercase(),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// Bytes and path by name; a lone leaf by its type: text is a path.
fn image(schema: &SchemaDescriptor, columns: &[(usize, &ColumnDescriptor)]) -> Option<Shape> {
    let is_bytes =
        |c: &ColumnDescriptor| matches!(c.physical_type(), Physical::BYTE_ARRAY | Physical::FIXED_LEN_BYTE_ARRAY);
    let named = |name: &str| {
        columns.iter().find(|(_, c)| {
            is_bytes(c) && c.path().parts().len() > 1 && c.path().parts().last().is_some_and(|p| p == name)
        })
    };
    let (mut bytes, mut path) = (named("bytes"), named("path"));
    if let ([one], None, None) = (columns, bytes, path) {
        let is_text = matches!(one.1.converted_type(), ConvertedType::UTF8 | ConvertedType::ENUM);
        match is_text {
            true => path = Some(one),
            false if is_bytes(one.1) => bytes = Some(one),
            false => return None,
        }
    }
    let leaf = |found: Option<&(usize, &ColumnDescriptor)>| found.map(|(i, c)| leaf(schema, *i, c));
    let (bytes, path) = (leaf(bytes), leaf(path));
    let levels: Vec<i16> = [&bytes, &path].into_iter().flatten().map(|l| l.repetition).collect();
    let repetition = *levels.first()?;
    (repetition <= 1 && levels.iter().all(|l| *l == repetition)).then_some(Shape::Image {
        list: repetition == 1,
        bytes,
        path,
    })
}

fn texts(schema: &SchemaDescriptor, columns: &[(usize, &ColumnDescriptor)], may_be_list: bool) -> Option<Shape> {
    let [(index, column)] = columns else { return None };
    let usable = match column.physical_type() {
        Physical::INT96 => false,
        Physical::INT32 | Physical::INT64 => !matches!(
            column.converted_type(),
            ConvertedType::DECIMAL
                | ConvertedType::DATE
                | ConvertedType::TIME_MILLIS
                | ConvertedType::TIME_MICROS
                | ConvertedType::TIMESTAMP_MILLIS
                | ConvertedType::TIMESTAMP_MICROS
        ),
        Physical::BYTE_ARRAY => !matches!(column.converted_type(), ConvertedType::DECIMAL | ConvertedType::BSON),
        Physical::FIXED_LEN_BYTE_ARRAY => false,
        _ => true,
    };
    let leaf = leaf(schema, *index, column);
    match leaf.repetition {
        0 if usable && column.path().parts().len() == 1 => Some(Shape::Scalar(leaf)),
        1 if usable && may_be_list => Some(Shape::List(leaf)),
        _ => None,
    }
}

fn leaf(schema: &SchemaDescriptor, index: usize, column: &ColumnDescriptor) -> Leaf {
    let mut node = schema.root_schema();
    let (mut level, mut element_level) = (0, 0);
    for part in column.path().parts() {
        let fields = if node.is_group() { node.get_fields() } else { &[] };
        let Some(child) = fields.iter().find(|f| f.name() == part) else { break };
        node = child;
        let repetition = node.get_basic_info().repetition();
        level += i16::from(repetition != Repetition::REQUIRED);
        if repetition == Repetition::REPEATED && element_level == 0 {
            element_level = level;
        }
    }
    let unsigned = matches!(
        column.converted_type(),
        ConvertedType::UINT_8 | ConvertedType::UINT_16 | ConvertedType::UINT_32 | ConvertedType::UINT_64
    );
    Leaf { index, value_level: column.max_def_level(), element_level, repetition: column.max_rep_level(), unsigned }
}
