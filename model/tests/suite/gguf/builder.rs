//! Makes small GGUF files, whole or broken on purpose.

use std::path::Path;

/// Metadata value types by ggml's numbers.
#[derive(Clone)]
pub enum Meta {
    U32(u32),
    I32s(Vec<i32>),
    F32(f32),
    F32s(Vec<f32>),
    Bool(bool),
    Text(Vec<u8>),
    Texts(Vec<Vec<u8>>),
    /// Type number and bytes as they are.
    Raw(u32, Vec<u8>),
}

impl From<&str> for Meta {
    fn from(s: &str) -> Self {
        Self::Text(s.as_bytes().to_vec())
    }
}

/// A tensor: dimensions in GGUF's order (innermost first), ggml's type number, data.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub dims: Vec<u64>,
    pub kind: u32,
    pub data: Vec<u8>,
    /// Written instead of the true offset.
    pub offset: Option<u64>,
}

/// A file to be. The declared counts can be made to lie.
#[derive(Clone)]
pub struct Builder {
    pub magic: [u8; 4],
    pub version: u32,
    pub tensor_count: Option<u64>,
    pub pair_count: Option<u64>,
    pub pairs: Vec<(String, Meta)>,
    pub tensors: Vec<Tensor>,
}

impl Builder {
    pub fn new() -> Self {
        Self { magic: *b"GGUF", version: 3, tensor_count: None, pair_count: None, pairs: vec![], tensors: vec![] }
    }

    /// Sets a key, in its old place if it was there.
    pub fn set(&mut self, key: &str, value: impl Into<Meta>) -> &mut Self {
        let value = value.into();
        match self.pairs.iter_mut().find(|(k, _)| k == key) {
            Some(pair) => pair.1 = value,
            None => self.pairs.push((key.to_owned(), value)),
        }
        self
    }

    pub fn remove(&mut self, key: &str) -> &mut Self {
        self.pairs.retain(|(k, _)| k != key);
        self
    }

    /// Adds a tensor; `shape` is outermost first, as in Hugging Face files.
    pub fn tensor(&mut self, name: &str, shape: &[usize], kind: u32, data: Vec<u8>) -> &mut Self {
        let dims = shape.iter().rev().map(|&n| n as u64).collect();
        self.tensors.push(Tensor { name: name.to_owned(), dims, kind, data, offset: None });
        self
    }

    pub fn f32(&mut self, name: &str, shape: &[usize], values: &[f32]) -> &mut Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{name}");
        self.tensor(name, shape, 0, values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    pub fn find(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|t| t.name == name).unwrap()
    }

    /// The file, and the ends of its sections: fixed part, metadata, tensor list.
    pub fn bytes(&self) -> (Vec<u8>, [usize; 3]) {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.pair_count.unwrap_or(self.pairs.len() as u64).to_le_bytes());
        let fixed = out.len();
        for (key, value) in &self.pairs {
            text(&mut out, key.as_bytes());
            put(&mut out, value);
        }
        let metadata = out.len();
        let mut offset = 0;
        for t in &self.tensors {
            text(&mut out, t.name.as_bytes());
            out.extend((t.dims.len() as u32).to_le_bytes());
            out.extend(t.dims.iter().flat_map(|n| n.to_le_bytes()));
            out.extend(t.kind.to_le_bytes());
            out.extend(t.offset.unwrap_or(offset as u64).to_le_bytes());
            offset = (offset + t.data.len()).next_multiple_of(32);
        }
        let list = out.len();
        for t in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(&t.data);
        }
        (out, [fixed, metadata, list])
    }

    pub fn write(&self, path: &Path) {
        std::fs::write(path, self.bytes().0).unwrap();
    }
}

fn text(out: &mut Vec<u8>, s: &[u8]) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s);
}

fn put(out: &mut Vec<u8>, value: &Meta) {
    let list = |out: &mut Vec<u8>, kind: u32, count: usize| {
        out.extend(9u32.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend((count as u64).to_le_bytes());
    };
    let mut scalar = |kind: u32, bytes: &[u8]| {
        out.extend(kind.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Meta::U32(n) => scalar(4, &n.to_le_bytes()),
        Meta::F32(x) => scalar(6, &x.to_le_bytes()),
        Meta::Bool(b) => scalar(7, &[u8::from(*b)]),
        Meta::Raw(kind, bytes) => scalar(*kind, bytes),
        Meta::Text(s) => {
            out.extend(8u32.to_le_bytes());
            text(out, s);
        }
        Meta::I32s(items) => {
            list(out, 5, items.len());
            out.extend(items.iter().flat_map(|n| n.to_le_bytes()));
        }
        Meta::F32s(items) => {
            list(out, 6, items.len());
            out.extend(items.iter().flat_map(|x| x.to_le_bytes()));
        }
        Meta::Texts(items) => {
            list(out, 8, items.len());
            items.iter().for_each(|s| text(out, s));
        }
    }
}
