//! Tokenizer and the roles of its special tokens. Not the chat template, and no image expansion.

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::json::{Object, parse_object};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use tokenizers::Tokenizer;

/// Special tokens of this family that are never an answer, beside those config.json names.
const NEVER_SAMPLED: [&str; 6] =
    ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"];

/// Text ↔ ids.
#[derive(Clone)]
pub struct TextTokenizer {
    inner: Tokenizer,
    stop: Vec<u32>,
    forbidden: Vec<u32>,
    /// `bos_token`, `eos_token`, … of tokenizer_config.json, as templates see them.
    named: serde_json::Map<String, Value>,
}

impl std::fmt::Debug for TextTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextTokenizer")
            .field("stop", &self.stop)
            .field("forbidden", &self.forbidden.len())
            .finish_non_exhaustive()
    }
}

impl TextTokenizer {
    /// Reads tokenizer.json and, where present, tokenizer_config.json and generation_config.json.
    ///
    /// # Errors
    /// A damaged file, a vocabulary larger than the model's, or no stop token.
    pub(crate) fn from_files(files: &BTreeMap<String, Vec<u8>>, config: &ModelConfig) -> Result<Self, ModelError> {
        let bytes = files.get("tokenizer.json").ok_or_else(|| ModelError::MissingFile {
            place: "checkpoint".to_owned(),
            file: "tokenizer.json".to_owned(),
            remedy: "write one with AutoTokenizer.from_pretrained(…).save_pretrained(…)".to_owned(),
        })?;
        let mut inner = Tokenizer::from_bytes(bytes)
            .map_err(|e| ModelError::Tokenizer(format!("tokenizer.json cannot be read: {e}; copy it again")))?;
        // Settings of some saved tokenizers that would cut or pad prompts in silence.
        inner.with_truncation(None).map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        inner.with_padding(None);
        let largest = inner.get_vocab(true).into_values().max().unwrap_or(0);
        if largest as usize >= config.text.vocab_size {
            let size = config.text.vocab_size;
            return Err(ModelError::Tokenizer(format!(
                "its id {largest} is outside vocab_size {size} of config.json; the files belong to different models"
            )));
        }
        let named = named_tokens(files)?;
        let id = |key: &str| named.get(key).and_then(Value::as_str).and_then(|t| inner.token_to_id(t));
        let stop = stop_tokens(files, id("eos_token"), &inner)?;
        let mut never: BTreeSet<u32> = NEVER_SAMPLED.iter().filter_map(|t| inner.token_to_id(t)).collect();
        never.extend(["bos_token", "pad_token"].iter().filter_map(|key| id(key)));
        never.extend(
            [config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id]
                .into_iter()
                .flatten(),
        );
        never.extend((0..config.text.vocab_size as u32).filter(|&id| inner.id_to_token(id).is_none()));
        let forbidden = never.into_iter().filter(|id| !stop.contains(id)).collect();
        Ok(Self { inner, stop, forbidden, named })
    }

    /// Ids of `text`. Special tokens written out in it become their ids, as in the reference; none are added.
    ///
    /// # Errors
    /// The tokenizer cannot represent the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let encoding = self.inner.encode(text, false).map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of `ids`; invalid UTF-8 becomes U+FFFD.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, ModelError> {
        self.inner.decode(ids, skip_special).map_err(|e| ModelError::Tokenizer(e.to_string()))
    }

    /// The id of a token written exactly so.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Ids that end a completion, the first being the one training data is ended with.
    pub fn stop(&self) -> &[u32] {
        &self.stop
    }

    /// Ids that are never sampled, ascending.
    pub fn forbidden(&self) -> &[u32] {
        &self.forbidden
    }

    pub(crate) fn named(&self) -> &serde_json::Map<String, Value> {
        &self.named
    }
}

/// The `*_token` entries of tokenizer_config.json, each a string or `{"content": …}`.
fn named_tokens(files: &BTreeMap<String, Vec<u8>>) -> Result<serde_json::Map<String, Value>, ModelError> {
    let Some(bytes) = files.get("tokenizer_config.json") else { return Ok(serde_json::Map::new()) };
    let map = parse_object("tokenizer_config.json", bytes)?;
    let content = |v: &Value| v.as_str().or_else(|| v.get("content")?.as_str()).map(Value::from);
    Ok(map
        .iter()
        .filter(|(key, _)| key.ends_with("_token"))
        .filter_map(|(key, v)| Some((key.clone(), content(v)?)))
        .collect())
}

/// `eos_token_id` of generation_config.json (else of config.json), then the tokenizer's own eos.
fn stop_tokens(
    files: &BTreeMap<String, Vec<u8>>,
    own: Option<u32>,
    tokenizer: &Tokenizer,
) -> Result<Vec<u32>, ModelError> {
    let mut stop = Vec::new();
    for file in ["generation_config.json", "config.json"] {
        let Some(bytes) = files.get(file).filter(|_| stop.is_empty()) else { continue };
        let map = parse_object(file, bytes)?;
        let root = Object::new(file, "", &map);
        let value = match root.get("eos_token_id") {
            Some(v) => Some(v),
            None => root.object("text_config", "text_config.")?.and_then(|t| t.get("eos_token_id")),
        };
        let items = match value {
            None => continue,
            Some(Value::Array(items)) => items.as_slice(),
            Some(one) => std::slice::from_ref(one),
        };
        for item in items {
            let id =
                item.as_u64().and_then(|x| u32::try_from(x).ok()).filter(|&id| tokenizer.id_to_token(id).is_some());
            stop.push(id.ok_or_else(|| {
                root.error("eos_token_id", format!("holds {item}, which is no token of tokenizer.json"))
            })?);
        }
    }
    stop.extend(own);
    let mut seen = BTreeSet::new();
    stop.retain(|&id| seen.insert(id));
    if stop.is_empty() {
        return Err(ModelError::key(
            "generation_config.json",
            "eos_token_id",
            "is missing and tokenizer_config.json names no eos_token; add the id that ends an answer",
        ));
    }
    Ok(stop)
}
