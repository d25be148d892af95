//! A model directory in Hugging Face's layout: opened, loaded, saved. The arithmetic is the engine's.

use crate::config::ModelConfig;
use crate::durable::{write_directory, write_file};
use crate::error::ModelError;
use crate::json::parse_object;
use crate::layout::Layout;
use crate::processor::{Processor, TemplateOptions};
use crate::weights::{SaveDtype, ShardLimit, StoredWeights, write_model};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const CONFIG: &str = "config.json";
/// Files that travel with the weights. A fixed list, because directories also hold things that are no part of a model.
const SIDE_FILES: [&str; 15] = [
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "LICENSE",
    "NOTICE",
];
/// Bytes a side file may have; Qwen's largest, tokenizer.json, has 7 MB.
const MAX_SIDE_FILE: u64 = 64 << 20;

/// How a model directory is written.
#[derive(Debug, Clone)]
pub struct SaveOptions {
    pub dtype: SaveDtype,
    /// Bytes of tensor data after which another file is begun.
    pub shard_bytes: usize,
    /// Further text files by name, such as README.md.
    pub extra: Vec<(&'static str, String)>,
}

impl Default for SaveOptions {
    fn default() -> Self {
        Self { dtype: SaveDtype::Bf16, shard_bytes: ShardLimit::default().0, extra: Vec::new() }
    }
}

/// Everything about a model but its weights, which [`Checkpoint::load_weights`] reads.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    pub config: ModelConfig,
    pub layout: Arc<Layout>,
    pub processor: Processor,
    dir: Option<PathBuf>,
    side_files: BTreeMap<String, Vec<u8>>,
}

impl Checkpoint {
    /// Opens a directory and reads everything but the weights.
    ///
    /// # Errors
    /// Names the directory, file or key that is missing or broken, and what to do.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        if !dir.is_dir() {
            let found = if dir.exists() { "is not a directory" } else { "does not exist" };
            let source = std::io::Error::new(
                std::io::ErrorKind::NotFound,
                format!("it {found}; give a directory with config.json, tokenizer.json and *.safetensors"),
            );
            return Err(ModelError::io(dir, "open the model", source));
        }
        let mut files = BTreeMap::new();
        for name in SIDE_FILES {
            let path = dir.join(name);
            let Ok(meta) = std::fs::metadata(&path) else { continue };
            if meta.len() > MAX_SIDE_FILE {
                let source = std::io::Error::other(format!(
                    "it has {} bytes, more than any real one; copy it again",
                    meta.len()
                ));
                return Err(ModelError::io(&path, "read", source));
            }
            files.insert(name.to_owned(), std::fs::read(&path).map_err(|e| ModelError::io(&path, "read", e))?);
        }
        let place = dir.display().to_string();
        let mut this = Self::build(files).map_err(|e| e.in_place(&place))?;
        this.dir = Some(dir.to_path_buf());
        Ok(this)
    }

    /// The same from side files held in memory; such a checkpoint has no weights to load.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn from_files(files: &BTreeMap<String, Vec<u8>>) -> Result<Self, ModelError> {
        Self::build(files.clone())
    }

    fn build(side_files: BTreeMap<String, Vec<u8>>) -> Result<Self, ModelError> {
        let json = side_files.get(CONFIG).ok_or_else(|| ModelError::MissingFile {
            place: "checkpoint".to_owned(),
            file: CONFIG.to_owned(),
            remedy: "give a model directory in Hugging Face's layout".to_owned(),
        })?;
        let config = ModelConfig::from_json(json)?;
        let processor = Processor::from_files(&side_files, &config)?;
        let layout = Arc::new(Layout::of(&config));
        Ok(Self { config, layout, processor, dir: None, side_files })
    }

    /// The same checkpoint with these choices for the chat template.
    pub fn with_template_options(mut self, options: TemplateOptions) -> Self {
        self.processor = self.processor.with_template_options(options);
        self
    }

    /// Contents of config.json, tokenizer.json, chat_template.json, … by file name: everything but the weights.
    pub fn side_files(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.side_files
    }

    /// The directory it was opened from.
    pub fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// The weights as they lie in the directory's files, headers checked.
    ///
    /// # Errors
    /// As for [`Self::load_weights`], but for values that are not finite.
    pub fn stored(&self) -> Result<StoredWeights, ModelError> {
        let dir = self.dir.as_deref().ok_or_else(|| ModelError::MissingFile {
            place: "checkpoint held in memory".to_owned(),
            file: "model.safetensors".to_owned(),
            remedy: "open the model directory instead, or fetch the weights from the coordinator".to_owned(),
        })?;
        StoredWeights::open(dir, &self.layout, self.config.tie_word_embeddings)
    }

    /// Reads the weights into a slab of [`Self::layout`].
    ///
    /// # Errors
    /// Names the file and the tensors that are missing, unexpected, duplicate, misshapen or not finite; or the damage to the file.
    pub fn load_weights(&self) -> Result<Vec<f32>, ModelError> {
        self.stored()?.load(&self.layout)
    }

    /// Writes a model directory that the Python ecosystem loads unchanged: weights under hub names and the side files as they were,
    /// except that config.json names the saved type. The directory appears whole or not at all; it must not exist, or be empty.
    ///
    /// # Errors
    /// The slab does not fit the layout, a value is not finite or does not fit the type, or the directory cannot be written.
    pub fn save(&self, dir: &Path, weights: &[f32], dtype: SaveDtype) -> Result<(), ModelError> {
        self.save_with(dir, weights, &SaveOptions { dtype, ..SaveOptions::default() })
    }

    /// As [`Self::save`], with further choices.
    ///
    /// # Errors
    /// As for [`Self::save`].
    pub fn save_with(&self, dir: &Path, weights: &[f32], options: &SaveOptions) -> Result<(), ModelError> {
        let dtype = options.dtype;
        write_directory(dir, |temporary| {
            for (name, bytes) in &self.side_files {
                let renamed = if name == CONFIG { config_with_dtype(bytes, dtype)? } else { None };
                write_file(&temporary.join(name), |out| Ok(out.write_all(renamed.as_ref().unwrap_or(bytes))?))?;
            }
            for (name, text) in &options.extra {
                write_file(&temporary.join(name), |out| Ok(out.write_all(text.as_bytes())?))?;
            }
            write_model(temporary, &self.layout, weights, dtype, ShardLimit(options.shard_bytes))
        })
    }
}

/// config.json with its dtype keys set; `None` where they already say so.
fn config_with_dtype(bytes: &[u8], dtype: SaveDtype) -> Result<Option<Vec<u8>>, ModelError> {
    let mut map = parse_object(CONFIG, bytes)?;
    let mut changed = set_dtype(&mut map, dtype);
    for part in ["text_config", "vision_config"] {
        if let Some(Value::Object(inner)) = map.get_mut(part) {
            changed |= set_dtype(inner, dtype);
        }
    }
    Ok(changed.then(|| format!("{:#}\n", Value::Object(map)).into_bytes()))
}

fn set_dtype(map: &mut Map<String, Value>, dtype: SaveDtype) -> bool {
    let mut changed = false;
    for key in ["torch_dtype", "dtype"] {
        if let Some(value) = map.get_mut(key).filter(|v| v.as_str() != Some(dtype.torch_name())) {
            *value = Value::from(dtype.torch_name());
            changed = true;
        }
    }
    changed
}
