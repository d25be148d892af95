//! The list of tokens with their types and ids.

use super::super::value::{Metadata, missing};
use serde_json::{Map, Value};
use std::collections::HashMap;

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";

/// What a token is for; ggml's numbers 1 to 6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    /// Stands for what the tokenizer cannot represent.
    Unknown,
    /// Never comes from text that a user wrote: `<|im_end|>`, `<s>`.
    Control,
    /// Literal text that is always one token.
    UserDefined,
    /// Fills the embedding up; no text has it.
    Unused,
    /// `<0x0A>`: a byte that no token holds.
    Byte,
}

impl Kind {
    fn from_number(n: i64) -> Option<Self> {
        Some(match n {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

/// Tokens by id and ids by text, without the unused ones.
pub(super) struct Vocabulary<'a> {
    tokens: Vec<(&'a str, Kind)>,
    ids: HashMap<&'a str, u32>,
}

impl<'a> Vocabulary<'a> {
    /// # Errors
    /// A list is missing or has another length than the embedding has rows, or a text appears twice.
    pub fn read(m: &Metadata<'a>, rows: usize) -> Result<Self, String> {
        let texts = m.texts(TOKENS)?.ok_or_else(|| missing(TOKENS))?;
        let types = match m.integers(TYPES)? {
            None => vec![1; texts.len()],
            Some(types) => types,
        };
        for (key, length) in [(TOKENS, texts.len()), (TYPES, types.len())] {
            if length != rows {
                return Err(format!(
                    "has {length} entries in `{key}`, but {rows} rows of token_embd.weight; download it again"
                ));
            }
        }
        let (mut tokens, mut ids) = (Vec::with_capacity(rows), HashMap::with_capacity(rows));
        for (id, (text, number)) in texts.into_iter().zip(types).enumerate() {
            let kind = Kind::from_number(number).ok_or_else(|| {
                format!("has the unknown token type {number} for token {id}; take another file of this model")
            })?;
            tokens.push((text, kind));
            // Ids fit: an embedding of more rows than 2^32 is not in memory.
            if kind != Kind::Unused
                && let Some(twice) = ids.insert(text, id as u32)
            {
                return Err(format!("has the token {text:?} at {twice} and {id}; take another file of this model"));
            }
        }
        Ok(Self { tokens, ids })
    }

    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Text of an id that is in use.
    pub fn token(&self, id: u32) -> Option<&'a str> {
        self.tokens.get(id as usize).filter(|(_, kind)| *kind != Kind::Unused).map(|(text, _)| *text)
    }

    pub fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    /// Id, text and kind of every token in use, in the order of the ids.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &'a str, Kind)> {
        (0u32..)
            .zip(&self.tokens)
            .map(|(id, (text, kind))| (id, *text, *kind))
            .filter(|(_, _, kind)| *kind != Kind::Unused)
    }

    /// Id and text of the tokens that are found in a text before anything else, and whether they are special (left out of answers).
    pub fn added(&self) -> impl Iterator<Item = (u32, &'a str, bool)> {
        self.iter().filter_map(|(id, text, kind)| match kind {
            Kind::Control | Kind::Unknown => Some((id, text, true)),
            Kind::UserDefined => Some((id, text, false)),
            Kind::Normal | Kind::Byte | Kind::Unused => None,
        })
    }

    /// `vocab` of tokenizer.json. Added tokens are in it too, so that each keeps its id wherever it lies.
    pub fn json(&self) -> Map<String, Value> {
        self.iter().map(|(id, text, _)| (text.to_owned(), Value::from(id))).collect()
    }
}
