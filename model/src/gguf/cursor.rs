//! Reads little-endian values from bytes that are not trusted: nothing is allocated and nothing panics, whatever they claim.

use super::value::{Array, Value};

/// A position in the mapped file.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Bytes left.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `n` bytes; `what` names them in the error.
    pub fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8], String> {
        let left = self.bytes.get(self.at..).unwrap_or_default();
        let part = usize::try_from(n).ok().and_then(|n| left.get(..n)).ok_or_else(|| {
            format!(
                "is truncated or damaged: {what} at byte {} needs {n} bytes, but {} are left; download it again",
                self.at,
                left.len()
            )
        })?;
        self.at += part.len();
        Ok(part)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        let part = self.take(N as u64, what)?;
        // `take` gave N bytes.
        Ok(part.first_chunk::<N>().copied().unwrap_or([0; N]))
    }

    pub fn u32(&mut self, what: &str) -> Result<u32, String> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub fn u64(&mut self, what: &str) -> Result<u64, String> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count of things of at least `least` bytes each; more than the rest of the file can hold is refused.
    pub fn count(&mut self, least: usize, what: &str) -> Result<usize, String> {
        let count = self.u64(what)?;
        let room = self.remaining() / least.max(1);
        usize::try_from(count).ok().filter(|&n| n <= room).ok_or_else(|| {
            format!(
                "is truncated or damaged: it declares {count} {what}, but has room for at most {room}; download it again"
            )
        })
    }

    /// Length and bytes of a string.
    pub fn string(&mut self, what: &str) -> Result<&'a str, String> {
        let length = self.u64(what)?;
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map_err(|_| {
            format!("is damaged: {what} at byte {} is not UTF-8; download it again", self.at - bytes.len())
        })
    }

    /// A value of the type with this number.
    pub fn value(&mut self, kind: u32, key: &str) -> Result<Value<'a>, String> {
        let what = format!("the value of `{key}`");
        let what = what.as_str();
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.array(what)?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.array(what)?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.array(what)?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.array(what)?).into()),
            4 => Value::Integer(self.u32(what)?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.array(what)?).into()),
            6 => Value::Float(widen(f32::from_le_bytes(self.array(what)?))),
            7 => Value::Bool(self.array::<1>(what)?[0] != 0),
            8 => Value::Text(self.string(what)?),
            9 => Value::Array(self.list(what)?),
            10 => Value::Integer(self.u64(what)?.into()),
            11 => Value::Integer(i64::from_le_bytes(self.array(what)?).into()),
            12 => Value::Float(f64::from_le_bytes(self.array(what)?)),
            other => return Err(format!("is damaged: `{key}` has the unknown value type {other}; download it again")),
        })
    }

    fn list(&mut self, what: &str) -> Result<Array<'a>, String> {
        let kind = self.u32(what)?;
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => return Err(format!("holds a list of lists in {what}; no known model has one, so it is not read")),
            other => {
                return Err(format!("is damaged: {what} is a list of the unknown type {other}; download it again"));
            }
        };
        let count = self.count(size, what)?;
        let start = self.at;
        match kind {
            8 => (0..count).try_for_each(|_| self.string(what).map(|_| ()))?,
            _ => self.take((count * size) as u64, what).map(|_| ())?,
        }
        Ok(Array { kind, count, bytes: &self.bytes[start..self.at] })
    }
}

/// The shortest decimal of a float32 as float64, so that 1e-5 is written as 1e-5 and not as 9.999999747378752e-6.
fn widen(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}
