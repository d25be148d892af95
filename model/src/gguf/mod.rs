//! Import of GGUF files: a quantised text model becomes a Hugging Face checkpoint. Only reading; nothing writes GGUF.

mod cursor;
mod header;
mod kquant;
mod legacy;
mod quant;
mod rope;
mod shapes;
mod tensors;
mod tokenizer;
mod value;

pub use quant::Quant;

use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::durable::{write_directory, write_file};
use crate::error::ModelError;
use crate::tokens::TextTokenizer;
use crate::weights::{SaveDtype, ShardLimit, Tensor, write_sharded};
use header::Gguf;
use memmap2::Mmap;
use shapes::Shapes;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use tensors::Planned;

/// What an import found and wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// `general.name`, where the file has one.
    pub name: Option<String>,
    /// `general.architecture`.
    pub architecture: String,
    /// `general.license`, where the file has one.
    pub license: Option<String>,
    /// Elements of all tensors.
    pub parameters: usize,
    /// Tensors of each element type in the file.
    pub types: BTreeMap<Quant, usize>,
    /// Whether the file has a chat template; prompts need one.
    pub chat_template: bool,
}

/// Writes the model of a GGUF file as a checkpoint directory: config.json, generation_config.json, tokenizer.json,
/// tokenizer_config.json and safetensors (sharded when large). Memory: the tokenizer and a few rows of one tensor.
///
/// # Errors
/// Names the file and what is damaged, missing or not supported in it. `dir` appears whole or not at all; it must not exist, or be empty.
pub fn import(file: &Path, dir: &Path, dtype: SaveDtype) -> Result<Imported, ModelError> {
    let handle = File::open(file).map_err(|e| ModelError::io(file, "open", e))?;
    if file.is_dir() {
        let source = std::io::Error::new(std::io::ErrorKind::IsADirectory, "it is a directory; give a .gguf file");
        return Err(ModelError::io(file, "import", source));
    }
    // SAFETY: the mapping is read-only and private to this call; as for safetensors, only a writer that truncates the file meanwhile
    // would end the process with SIGBUS.
    let bytes = unsafe { Mmap::map(&handle) }.map_err(|e| ModelError::io(file, "map", e))?;
    let blame = |problem: String| ModelError::weights(file, problem);
    let gguf = Gguf::parse(&bytes).map_err(blame)?;
    let shapes = Shapes::of(&gguf).map_err(blame)?;
    let planned = tensors::plan(&gguf, &shapes).map_err(blame)?;
    let side_files = side_files(&gguf, &shapes, dtype).map_err(blame)?;
    verify(&side_files).map_err(|e| e.in_place(&file.display().to_string()))?;
    write_directory(dir, |temporary| {
        for (name, bytes) in &side_files {
            write_file(&temporary.join(name), |out| Ok(out.write_all(bytes)?))?;
        }
        let tensors: Vec<Tensor> =
            planned.iter().map(|p| Tensor { name: p.name.clone(), shape: &p.shape, values: Box::new(p) }).collect();
        write_sharded(temporary, &tensors, dtype, ShardLimit::default()).map_err(|e| match e {
            // Values that cannot be written are the fault of the file they come from.
            ModelError::Weights { problem, .. } => blame(problem),
            other => other,
        })
    })?;
    summary(&gguf, &shapes, &planned).map_err(blame)
}

/// The JSON files beside the weights, by name.
fn side_files(gguf: &Gguf, shapes: &Shapes, dtype: SaveDtype) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let t = tokenizer::rebuild(&gguf.metadata, shapes.vocabulary, shapes.positions)?;
    let files = [
        ("config.json", shapes.config(dtype, t.bos, t.eos, t.pad)),
        ("generation_config.json", t.generation_config()),
        ("tokenizer.json", t.tokenizer),
        ("tokenizer_config.json", t.config),
    ];
    Ok(files.into_iter().map(|(name, json)| (name.to_owned(), format!("{json:#}\n").into_bytes())).collect())
}

/// What would keep the new checkpoint from being opened, found before anything is written.
fn verify(files: &BTreeMap<String, Vec<u8>>) -> Result<(), ModelError> {
    match Checkpoint::from_files(files) {
        // A base model has no chat template; all else can be checked without one.
        Err(ModelError::MissingFile { file, .. }) if file == "chat_template.json" => {
            let config = ModelConfig::from_json(files.get("config.json").map(Vec::as_slice).unwrap_or_default())?;
            TextTokenizer::from_files(files, &config).map(|_| ())
        }
        other => other.map(|_| ()),
    }
}

fn summary(gguf: &Gguf, shapes: &Shapes, planned: &[Planned]) -> Result<Imported, String> {
    let m = &gguf.metadata;
    let mut types = BTreeMap::new();
    for tensor in gguf.tensors.values() {
        *types.entry(tensor.quant).or_insert(0) += 1;
    }
    Ok(Imported {
        name: m.text("general.name")?.map(str::to_owned),
        architecture: shapes.architecture.name().to_owned(),
        license: m.text("general.license")?.map(str::to_owned),
        parameters: planned.iter().map(|p| p.shape.iter().product::<usize>()).sum(),
        types,
        chat_template: m.has("tokenizer.chat_template"),
    })
}
