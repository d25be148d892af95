//! Rebuilds tokenizer.json and tokenizer_config.json from metadata. The parts that depend on the kind of tokenizer are in [`bpe`] and
//! [`sentencepiece`]; here are the special tokens, which all kinds have in common.

mod bpe;
mod sentencepiece;
mod vocabulary;

use super::value::{Metadata, missing};
use serde_json::{Map, Value, json};
use vocabulary::Vocabulary;

/// Tokens that end an answer wherever they are control tokens; llama.cpp stops at them too.
const ENDS: [&str; 8] =
    ["<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<EOT>"];

/// What the checkpoint's files say about text.
pub(super) struct Rebuilt {
    /// tokenizer.json.
    pub tokenizer: Value,
    /// tokenizer_config.json.
    pub config: Value,
    pub bos: Option<u32>,
    pub eos: u32,
    pub pad: Option<u32>,
    /// Every id that ends an answer, `eos` first.
    ends: Vec<u32>,
}

impl Rebuilt {
    /// generation_config.json.
    pub fn generation_config(&self) -> Value {
        let ends = match self.ends.as_slice() {
            [one] => json!(one),
            several => json!(several),
        };
        let mut config = json!({"eos_token_id": ends});
        for (key, id) in [("bos_token_id", self.bos), ("pad_token_id", self.pad)] {
            if let Some(id) = id {
                config[key] = json!(id);
            }
        }
        config
    }
}

/// What a kind of tokenizer contributes to tokenizer.json.
struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Value,
    /// Whether a beginning-of-sequence token is put before every text if the file does not say.
    adds_bos: bool,
}

/// The tokenizer of a model with `rows` embeddings and a context of `positions`.
///
/// # Errors
/// A key is missing, a list has another length than the embedding, an id is no token, or the kind of tokenizer is not supported.
pub(super) fn rebuild(m: &Metadata, rows: usize, positions: usize) -> Result<Rebuilt, String> {
    let vocabulary = Vocabulary::read(m, rows)?;
    let kind = m.text("tokenizer.ggml.model")?.ok_or_else(|| missing("tokenizer.ggml.model"))?;
    let id = |name: &str| special_id(m, &vocabulary, name);
    let (bos, eos, unknown, pad) = (id("bos")?, id("eos")?, id("unknown")?, id("padding")?);
    let eos = eos.ok_or_else(|| missing("tokenizer.ggml.eos_token_id"))?;
    let parts = match kind {
        "gpt2" => bpe::parts(m, &vocabulary)?,
        "llama" => sentencepiece::parts(m, &vocabulary, unknown)?,
        other => {
            return Err(format!(
                "has a tokenizer of kind {other:?} (`tokenizer.ggml.model`), which is not supported; take a model with gpt2 \
                 (byte-level BPE) or llama (SentencePiece BPE), or its safetensors checkpoint"
            ));
        }
    };
    let adds_bos = m.boolean("tokenizer.ggml.add_bos_token")?.unwrap_or(parts.adds_bos);
    let adds_eos = m.boolean("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let token = |id: u32| vocabulary.token(id).map(|text| (id, text));
    let around = [bos.filter(|_| adds_bos).and_then(token), Some(eos).filter(|_| adds_eos).and_then(token)];
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocabulary.added().map(|(id, text, special)| added(Some(id), text, special)).collect::<Vec<_>>(),
        "normalizer": parts.normalizer,
        "pre_tokenizer": parts.pre_tokenizer,
        "post_processor": template(around),
        "decoder": parts.decoder,
        "model": parts.model,
    });
    let mut config = json!({
        "add_bos_token": adds_bos,
        "add_eos_token": adds_eos,
        "added_tokens_decoder": vocabulary
            .added()
            .map(|(id, text, special)| (id.to_string(), added(None, text, special)))
            .collect::<Map<_, _>>(),
        "clean_up_tokenization_spaces": false,
        "model_max_length": positions,
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    for (key, id) in [("bos_token", bos), ("eos_token", Some(eos)), ("unk_token", unknown), ("pad_token", pad)] {
        if let Some(text) = id.and_then(|id| vocabulary.token(id)) {
            config[key] = json!(text);
        }
    }
    if let Some(source) = m.text("tokenizer.chat_template")? {
        config["chat_template"] = json!(source);
    }
    let ends = ends(eos, [id("eot")?, id("eom")?], &vocabulary);
    Ok(Rebuilt { tokenizer, config, bos, eos, pad, ends })
}

/// `tokenizer.ggml.NAME_token_id`.
fn special_id(m: &Metadata, vocabulary: &Vocabulary, name: &str) -> Result<Option<u32>, String> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    // Some converters write all ones for "none".
    let Some(id) = m.integer(&key, u32::MAX as usize)?.filter(|&id| id != u32::MAX as usize) else { return Ok(None) };
    let id = id as u32;
    match vocabulary.token(id) {
        Some(_) => Ok(Some(id)),
        None => Err(format!("has `{key}` {id}, which is none of its {} tokens; download it again", vocabulary.len())),
    }
}

fn ends(eos: u32, named: [Option<u32>; 2], vocabulary: &Vocabulary) -> Vec<u32> {
    let known = vocabulary.added().filter(|(_, text, special)| *special && ENDS.contains(text)).map(|(id, _, _)| id);
    let mut ends = vec![eos];
    for id in named.into_iter().flatten().chain(known) {
        if !ends.contains(&id) {
            ends.push(id);
        }
    }
    ends
}

/// An entry of `added_tokens`, or without the id of `added_tokens_decoder`.
fn added(id: Option<u32>, text: &str, special: bool) -> Value {
    let mut entry = Map::new();
    entry.extend(id.map(|id| ("id".to_owned(), json!(id))));
    entry.insert("content".to_owned(), json!(text));
    for flag in ["single_word", "lstrip", "rstrip", "normalized"] {
        entry.insert(flag.to_owned(), json!(false));
    }
    entry.insert("special".to_owned(), json!(special));
    Value::Object(entry)
}

/// The post-processor that puts tokens before and after every text; null without any.
fn template([before, after]: [Option<(u32, &str)>; 2]) -> Value {
    if before.is_none() && after.is_none() {
        return Value::Null;
    }
    let part =
        |token: Option<(u32, &str)>, kind: u32| token.map(|(_, t)| json!({"SpecialToken": {"id": t, "type_id": kind}}));
    let sequence = |name: &str, kind: u32| {
        let text = json!({"Sequence": {"id": name, "type_id": kind}});
        part(before, kind).into_iter().chain([text]).chain(part(after, kind)).collect::<Vec<_>>()
    };
    let pair: Vec<Value> = sequence("A", 0).into_iter().chain(sequence("B", 1)).collect();
    let special: Map<String, Value> = [before, after]
        .into_iter()
        .flatten()
        .map(|(id, t)| (t.to_owned(), json!({"id": t, "ids": [id], "tokens": [t]})))
        .collect();
    json!({"type": "TemplateProcessing", "single": sequence("A", 0), "pair": pair, "special_tokens": special})
}
