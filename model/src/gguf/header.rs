//! Header of a GGUF file, version 2 or 3: metadata and where each tensor lies. Every count, length and offset is checked against the
//! file before it is used.

use super::cursor::Cursor;
use super::quant::Quant;
use super::value::Metadata;
use std::collections::BTreeMap;

const MAGIC: &[u8] = b"GGUF";
/// Smallest key-value pair: an empty key, a type and one byte.
const LEAST_PAIR: usize = 13;
/// Smallest tensor entry: an empty name, one dimension, type and offset.
const LEAST_TENSOR: usize = 32;

/// A parsed file, borrowing from its bytes.
#[derive(Debug)]
pub(super) struct Gguf<'a> {
    pub metadata: Metadata<'a>,
    pub tensors: BTreeMap<&'a str, Stored<'a>>,
}

/// A tensor as the file has it.
#[derive(Debug)]
pub(super) struct Stored<'a> {
    /// Outermost dimension first, as in Hugging Face files (GGUF writes it last).
    pub shape: Vec<usize>,
    pub quant: Quant,
    pub data: &'a [u8],
}

impl<'a> Gguf<'a> {
    /// # Errors
    /// Says what is wrong with the file; the caller adds its name.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let mut cursor = Cursor::new(bytes);
        if bytes.get(..4) != Some(MAGIC) {
            return Err("is not a GGUF file (it does not begin with \"GGUF\"); give a .gguf file".to_owned());
        }
        cursor.take(4, "the magic number")?;
        check_version(cursor.u32("the version")?)?;
        let tensors = cursor.count(0, "tensors")?;
        let pairs = cursor.count(LEAST_PAIR, "metadata entries")?;
        let mut metadata = Metadata::default();
        for _ in 0..pairs {
            let key = cursor.string("a metadata key")?;
            let kind = cursor.u32("a metadata type")?;
            metadata.insert(key, cursor.value(kind, key)?)?;
        }
        if tensors > cursor.remaining() / LEAST_TENSOR {
            return Err(format!(
                "is truncated or damaged: it declares {tensors} tensors, but {} bytes are left; download it again",
                cursor.remaining()
            ));
        }
        let mut entries = Vec::new();
        for _ in 0..tensors {
            entries.push(Entry::parse(&mut cursor)?);
        }
        let data = data_section(bytes, cursor.position(), alignment(&metadata)?);
        Ok(Self { metadata, tensors: locate(entries, data)? })
    }
}

fn check_version(version: u32) -> Result<(), String> {
    match version {
        2 | 3 => Ok(()),
        v if matches!(v.swap_bytes(), 2 | 3) => {
            Err("is a big-endian GGUF file; take the little-endian file of this model".to_owned())
        }
        other => Err(format!(
            "is GGUF version {other}; only versions 2 and 3 are read, so take a newer conversion of this model"
        )),
    }
}

fn alignment(metadata: &Metadata) -> Result<usize, String> {
    match metadata.integer("general.alignment", 1 << 20)? {
        None => Ok(32),
        Some(n) if n.is_power_of_two() && n >= 8 => Ok(n),
        Some(n) => {
            Err(format!("`general.alignment` is {n}; it must be a power of two from 8 on, so download it again"))
        }
    }
}

/// What follows the header, from the next multiple of the alignment on.
fn data_section(bytes: &[u8], header: usize, alignment: usize) -> &[u8] {
    bytes.get(header.next_multiple_of(alignment)..).unwrap_or_default()
}

/// A tensor's entry in the header.
struct Entry<'a> {
    name: &'a str,
    shape: Vec<usize>,
    quant: Quant,
    offset: u64,
    /// Bytes of its data.
    size: u64,
}

impl<'a> Entry<'a> {
    fn parse(cursor: &mut Cursor<'a>) -> Result<Self, String> {
        let name = cursor.string("a tensor name")?;
        let count = cursor.u32("a number of dimensions")?;
        if !(1..=4).contains(&count) {
            return Err(format!("is damaged: tensor {name} has {count} dimensions; download it again"));
        }
        let mut shape = Vec::new();
        for _ in 0..count {
            let n = cursor.u64("a dimension")?;
            let n = usize::try_from(n).ok().filter(|&n| n > 0);
            shape.push(
                n.ok_or_else(|| format!("is damaged: tensor {name} has an impossible dimension; download it again"))?,
            );
        }
        let quant = Quant::from_id(cursor.u32("a tensor type")?).map_err(|e| format!("has tensor {name} {e}"))?;
        let row = shape[0];
        if !row.is_multiple_of(quant.block()) {
            return Err(format!(
                "is damaged: tensor {name} has rows of {row} values, but {quant} comes in blocks of {}; download it again",
                quant.block()
            ));
        }
        let size = shape
            .iter()
            .try_fold(1u64, |product, &n| product.checked_mul(n as u64))
            .and_then(|n| (n / quant.block() as u64).checked_mul(quant.bytes() as u64))
            // Half of the range, so that no later product of a count and an element size overflows.
            .filter(|&n| n <= u64::MAX >> 8)
            .ok_or_else(|| format!("is damaged: tensor {name} has a size too large to exist; download it again"))?;
        shape.reverse();
        Ok(Self { name, shape, quant, offset: cursor.u64("a tensor offset")?, size })
    }
}

/// The bytes of each tensor. Tensors lie inside the data section and never overlap.
fn locate<'a>(mut entries: Vec<Entry<'a>>, data: &'a [u8]) -> Result<BTreeMap<&'a str, Stored<'a>>, String> {
    entries.sort_by_key(|e| e.offset);
    let (mut free, mut last) = (0, "");
    let mut tensors = BTreeMap::new();
    for e in entries {
        if e.offset < free {
            return Err(format!("is damaged: tensors {last} and {} overlap; download it again", e.name));
        }
        let end = e.offset.checked_add(e.size).filter(|&end| end <= data.len() as u64).ok_or_else(|| {
            format!(
                "is truncated or damaged: tensor {} needs bytes {} to {} of the data, which has {}; download it again",
                e.name,
                e.offset,
                e.offset.saturating_add(e.size),
                data.len()
            )
        })?;
        // Both fit usize, being at most the length of the data.
        let bytes = &data[e.offset as usize..end as usize];
        (free, last) = (end, e.name);
        let stored = Stored { shape: e.shape, quant: e.quant, data: bytes };
        if tensors.insert(e.name, stored).is_some() {
            return Err(format!("is damaged: tensor {} appears twice; download it again", e.name));
        }
    }
    Ok(tensors)
}
