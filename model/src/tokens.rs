//! Tokenizer and the roles of its special tokens. Not the chat template, and no image expansion.

mod literal;
mod roles;

use crate::config::ModelConfig;
use crate::error::ModelError;
use literal::LiteralEncoder;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use tokenizers::{AddedToken, Tokenizer};

/// Text ↔ ids. Clones share the vocabulary.
#[derive(Clone)]
pub struct TextTokenizer {
    inner: Arc<Tokenizer>,
    stop: Vec<u32>,
    forbidden: Vec<u32>,
    /// `bos_token`, `eos_token`, … of tokenizer_config.json, as templates see them.
    named: serde_json::Map<String, Value>,
    /// Special tokens, by id.
    specials: Arc<Vec<(u32, AddedToken)>>,
    /// Made when the first text needs it.
    literal: Arc<OnceLock<LiteralEncoder>>,
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
    /// Reads tokenizer.json and, where present, tokenizer_config.json, special_tokens_map.json and generation_config.json.
    ///
    /// # Errors
    /// A damaged file, a vocabulary larger than the model's, or no stop token.
    pub(crate) fn from_files(files: &BTreeMap<String, Vec<u8>>, config: &ModelConfig) -> Result<Self, ModelError> {
        let bytes = files.get("tokenizer.json").ok_or_else(|| ModelError::MissingFile {
            place: "checkpoint".to_owned(),
            file: "tokenizer.json".to_owned(),
            remedy: "write one with AutoTokenizer.from_pretrained(…).save_pretrained(…)".to_owned(),
        })?;
        let inner = read(bytes)?;
        let largest = inner.get_vocab(true).into_values().max().unwrap_or(0);
        if largest as usize >= config.text.vocab_size {
            let size = config.text.vocab_size;
            return Err(ModelError::Tokenizer(format!(
                "its id {largest} is outside vocab_size {size} of config.json; the files belong to different models"
            )));
        }
        let named = roles::named_tokens(files)?;
        let eos = named.get("eos_token").and_then(Value::as_str).and_then(|t| inner.token_to_id(t));
        let stop = roles::stop_tokens(files, eos, &inner)?;
        let forbidden = roles::forbidden_tokens(config, &inner, &named, &stop);
        let mut specials: Vec<(u32, AddedToken)> =
            inner.get_added_tokens_decoder().into_iter().filter(|(_, t)| t.special).collect();
        specials.sort_by_key(|(id, _)| *id);
        let (inner, specials) = (Arc::new(inner), Arc::new(specials));
        Ok(Self { inner, stop, forbidden, named, specials, literal: Arc::default() })
    }

    /// Ids of `text`. Special tokens written out in it become their ids, as in the reference; none are added.
    ///
    /// # Errors
    /// The tokenizer cannot represent the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let encoding = self.inner.encode(text, false).map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Ids of a conversation that `render` turns into text. Special tokens spelled out in the messages stay ordinary text; those that
    /// `render` itself writes are special.
    ///
    /// # Errors
    /// `render` fails, or the tokenizer cannot represent the text.
    pub(crate) fn encode_conversation(
        &self,
        messages: &Value,
        render: impl Fn(&Value) -> Result<String, ModelError>,
    ) -> Result<Vec<u32>, ModelError> {
        let spellings: Vec<String> = self.specials.iter().map(|(_, t)| t.content.clone()).collect();
        let Some(shielded) = literal::shield(messages, &spellings)? else { return self.encode(&render(messages)?) };
        let encoder = match self.literal.get() {
            Some(encoder) => encoder,
            None => {
                let made = LiteralEncoder::new(&self.inner, &self.specials)?;
                self.literal.get_or_init(|| made)
            }
        };
        encoder.encode(&render(&shielded)?)
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

/// Parses tokenizer.json; some damaged files make the parser panic, which becomes an error too.
fn read(bytes: &[u8]) -> Result<Tokenizer, ModelError> {
    let broken = |e: String| ModelError::Tokenizer(format!("tokenizer.json cannot be read: {e}; copy it again"));
    let parsed = std::panic::catch_unwind(|| Tokenizer::from_bytes(bytes).map_err(|e| e.to_string()));
    let mut inner = parsed.map_err(|_| broken("it is inconsistent".to_owned()))?.map_err(broken)?;
    // Settings of some saved tokenizers that would cut or pad prompts in silence.
    inner.with_truncation(None).map_err(|e| broken(e.to_string()))?;
    inner.with_padding(None);
    Ok(inner)
}
