//! What special tokens are for: which end an answer, which are never part of one. Read from the checkpoint's side files.

use crate::config::{Family, ModelConfig};
use crate::error::ModelError;
use crate::json::{Object, parse_object};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use tokenizers::Tokenizer;

/// Special tokens of the Qwen families that are never an answer, beside those config.json names.
const NEVER_SAMPLED: [&str; 6] =
    ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"];

/// The `*_token` entries of tokenizer_config.json, else of special_tokens_map.json, each a string or `{"content": …}`.
pub(super) fn named_tokens(files: &BTreeMap<String, Vec<u8>>) -> Result<Map<String, Value>, ModelError> {
    let mut named = Map::new();
    for file in ["special_tokens_map.json", "tokenizer_config.json"] {
        let Some(bytes) = files.get(file) else { continue };
        let content = |v: &Value| v.as_str().or_else(|| v.get("content")?.as_str()).map(Value::from);
        let map = parse_object(file, bytes)?;
        named.extend(
            map.iter().filter(|(k, _)| k.ends_with("_token")).filter_map(|(k, v)| Some((k.clone(), content(v)?))),
        );
    }
    Ok(named)
}

/// `eos_token_id` of generation_config.json (else of config.json), then the tokenizer's own eos.
pub(super) fn stop_tokens(
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

/// Ids that are never sampled, ascending: turn and image marks, bos, pad and unknown, in Llama-style models every special token, and ids
/// without a token; never one that stops.
pub(super) fn forbidden_tokens(
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    named: &Map<String, Value>,
    stop: &[u32],
) -> Vec<u32> {
    let mut never: BTreeSet<u32> = NEVER_SAMPLED.iter().filter_map(|t| tokenizer.token_to_id(t)).collect();
    let roles = ["bos_token", "pad_token", "unk_token"].iter().filter_map(|key| named.get(*key)?.as_str());
    never.extend(roles.filter_map(|t| tokenizer.token_to_id(t)));
    never.extend(
        [config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id]
            .into_iter()
            .flatten(),
    );
    if config.family == Family::Llama {
        never.extend(tokenizer.get_added_tokens_decoder().into_iter().filter(|(_, t)| t.special).map(|(id, _)| id));
    }
    never.extend((0..config.text.vocab_size as u32).filter(|&id| tokenizer.id_to_token(id).is_none()));
    never.into_iter().filter(|id| !stop.contains(id)).collect()
}
