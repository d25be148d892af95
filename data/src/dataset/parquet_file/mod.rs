//! Reads parquet by columns, the needed ones only: images as `{bytes, path}`, raw bytes or paths, single or in lists; texts, numbers, and lists of them for templates.

mod leaf;
mod shape;

use super::OpenOptions;
use super::build::{Cells, ImageCell, Outcomes, build};
use super::columns::{Available, Chosen};
use super::images::Place;
use crate::decode::DecodeError;
use crate::error::DataError;
use crate::fault::Fault;
use crate::template::Shown;
use leaf::{Datum, LeafReader, LeafRow};
use parquet::basic::Compression;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::schema::types::Type;
use shape::{Column, Shape};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Rows that are held as columns at once.
const BATCH: usize = 64;

/// Every row of the file with its record or the reason against it.
pub(super) fn read(path: &Path, place: &Place, options: &OpenOptions) -> Result<Outcomes, DataError> {
    let file = File::open(path).map_err(|e| DataError::io(path, e))?;
    // The parquet crate panics on some damaged files; that is a bad file like any other.
    catch_unwind(AssertUnwindSafe(|| read_rows(file, path, place, options)))
        .unwrap_or_else(|_| Err(broken(path, "its pages are damaged")))
}

fn broken(path: &Path, reason: impl ToString) -> DataError {
    DataError::NotParquet { path: path.to_path_buf(), reason: reason.to_string() }
}

fn read_rows(file: File, path: &Path, place: &Place, options: &OpenOptions) -> Result<Outcomes, DataError> {
    let reader = SerializedFileReader::new(file).map_err(|e| broken(path, e))?;
    let schema = reader.metadata().file_metadata().schema_descr_ptr();
    let available: Vec<Available> = schema.root_schema().get_fields().iter().map(|f| available(f)).collect();
    let chosen = Chosen::of_file(path, options, &available)?;
    let columns = chosen
        .names()
        .into_iter()
        .map(|(name, role)| Column::of(path, &schema, name, role))
        .collect::<Result<Vec<_>, _>>()?;
    let mut outcomes = Outcomes::new();
    for index in 0..reader.num_row_groups() {
        let group = reader.get_row_group(index).map_err(|e| broken(path, e))?;
        readable(path, &columns, group.as_ref())?;
        let rows = read_group(&columns, group.as_ref(), options, |row| {
            outcomes.push((outcomes.len() as u64, build(row, &chosen, place, options)));
        })
        .map_err(|reason| broken(path, reason))?;
        if i64::try_from(rows) != Ok(group.metadata().num_rows()) {
            let promised = group.metadata().num_rows();
            return Err(broken(path, format!("a row group promises {promised} rows and holds {rows}")));
        }
    }
    Ok(outcomes)
}

fn available(field: &Type) -> Available {
    let named = Available::named(field.name());
    let is_struct = |t: &Type| t.is_group() && t.get_fields().iter().any(|f| f.name() == "bytes");
    let mut inner = field;
    while let [only] = if inner.is_group() { inner.get_fields() } else { &[] } {
        inner = only;
    }
    Available { looks_like_images: named.looks_like_images || is_struct(inner), ..named }
}

/// Whether the crate was built with what the columns are compressed with.
fn readable(path: &Path, columns: &[Column], group: &dyn RowGroupReader) -> Result<(), DataError> {
    for column in columns {
        for leaf in column.shape.leaves() {
            match group.metadata().column(leaf.index).compression() {
                Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::GZIP(_) | Compression::ZSTD(_) => {}
                other => {
                    let codec = format!("{other:?}").split('(').next().unwrap_or_default().to_lowercase();
                    return Err(DataError::Codec { path: path.to_path_buf(), column: column.name.clone(), codec });
                }
            }
        }
    }
    Ok(())
}

/// The rows of a group one by one; returns their number.
fn read_group(
    columns: &[Column],
    group: &dyn RowGroupReader,
    options: &OpenOptions,
    mut row: impl FnMut(&Row),
) -> Result<usize, String> {
    let mut readers = Vec::new();
    for column in columns {
        for leaf in column.shape.leaves() {
            let reader = group.get_column_reader(leaf.index).map_err(|e| e.to_string())?;
            readers.push(LeafReader::new(leaf, reader));
        }
    }
    let mut total = 0;
    loop {
        let batch = readers.iter_mut().map(|r| r.read(BATCH)).collect::<Result<Vec<_>, _>>()?;
        let rows = batch.first().map_or(0, Vec::len);
        if batch.iter().any(|leaf| leaf.len() != rows) {
            return Err("its columns have different lengths".to_string());
        }
        if rows == 0 {
            return Ok(total);
        }
        for i in 0..rows {
            row(&Row { columns, options, leaves: batch.iter().filter_map(|leaf| leaf.get(i)).collect() });
        }
        total += rows;
    }
}

/// One row: its leaves in the order of the columns.
struct Row<'a> {
    columns: &'a [Column],
    options: &'a OpenOptions,
    leaves: Vec<&'a LeafRow>,
}

impl Row<'_> {
    /// The text of a value, if it is no larger than a record may be.
    fn plain(&self, column: &str, datum: &Datum) -> Result<String, Fault> {
        let max = self.options.max_record_bytes;
        if datum.bytes() as u64 > max { Err(Fault::too_long(max)) } else { datum.text(column) }
    }

    /// A column with its leaves of this row.
    fn find(&self, name: &str) -> Option<(&Column, &[&LeafRow])> {
        let mut at = 0;
        for column in self.columns {
            let n = column.shape.leaves().len();
            if column.name == name {
                return Some((column, self.leaves.get(at..at + n)?));
            }
            at += n;
        }
        None
    }

    /// Bytes win over a path, which then is only a name.
    fn image(&self, column: &str, bytes: Option<Datum>, path: Option<Datum>) -> Result<Option<ImageCell>, Fault> {
        let path = path.map(|p| self.plain(column, &p)).transpose();
        match bytes {
            Some(Datum::Bytes(bytes)) => {
                let (length, max) = (bytes.len() as u64, self.options.limits.max_bytes);
                if length > max {
                    let error = DecodeError::TooManyBytes { bytes: length, max };
                    return Err(Fault::new(Fault::IMAGE_TOO_LARGE, format!("column `{column}`: {error}")));
                }
                Ok(Some(ImageCell::Bytes(bytes.data().to_vec(), path.ok().flatten().filter(|p| !p.is_empty()))))
            }
            _ => Ok(path?.filter(|p| !p.is_empty()).map(ImageCell::Path)),
        }
    }
}

impl Cells for Row<'_> {
    fn text(&self, column: &str) -> Result<Option<String>, Fault> {
        match self.find(column) {
            Some((_, [LeafRow::Items(items)])) => {
                items.first().and_then(Option::as_ref).map(|d| self.plain(column, d)).transpose()
            }
            _ => Ok(None),
        }
    }

    fn shown(&self, column: &str) -> Result<Option<Shown>, Fault> {
        match self.find(column) {
            Some((Column { shape: Shape::List(_), .. }, [LeafRow::Items(items)])) => {
                let text = |d: &Option<Datum>| d.as_ref().map_or(Ok(String::new()), |d| self.plain(column, d));
                Ok(Some(Shown::List(items.iter().map(text).collect::<Result<_, _>>()?)))
            }
            _ => Ok(self.text(column)?.filter(|t| !t.trim().is_empty()).map(Shown::Text)),
        }
    }

    fn images(&self, column: &str) -> Result<Option<Vec<ImageCell>>, Fault> {
        let Some((Column { shape: Shape::Image { list, bytes, path }, .. }, leaves)) = self.find(column) else {
            return Ok(None);
        };
        let (of_bytes, of_path) = match (bytes, path) {
            (Some(_), Some(_)) => (leaves.first(), leaves.get(1)),
            (Some(_), None) => (leaves.first(), None),
            _ => (None, leaves.first()),
        };
        let count = |leaf: Option<&&LeafRow>| match leaf {
            Some(LeafRow::Items(items)) => items.len(),
            _ => 0,
        };
        let n = count(of_bytes).max(count(of_path));
        if n == 0 {
            let empty = leaves.iter().any(|l| matches!(l, LeafRow::Empty));
            return Ok(empty.then(Vec::new));
        }
        let at = |leaf: Option<&&LeafRow>, i: usize| match leaf {
            Some(LeafRow::Items(items)) => items.get(i).cloned().flatten(),
            _ => None,
        };
        let cells = (0..n).map(|i| self.image(column, at(of_bytes, i), at(of_path, i)));
        let cells = cells.collect::<Result<Vec<Option<ImageCell>>, Fault>>()?;
        if !list && cells.iter().all(Option::is_none) {
            return Ok(None);
        }
        let neither =
            || Fault::new(Fault::BAD_VALUE, format!("column `{column}`: an image has neither bytes nor path"));
        cells.into_iter().map(|c| c.ok_or_else(neither)).collect::<Result<_, _>>().map(Some)
    }
}
