//! Text of users and data sets must not act as control tokens: a special token spelled out in it is tokenised as the characters it is made of.
//!
//! [`shield`] marks such spellings before a conversation is rendered; [`LiteralEncoder`] then tokenises the rendered text so that only what
//! the template itself wrote becomes special. Conversations without such spellings never come here and are tokenised as in the reference.

use crate::error::ModelError;
use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer};

/// Stands inside a shielded spelling; a noncharacter, which text for interchange does not hold.
const MARK: char = '\u{FDD0}';
/// Encloses the stand-in of a special token the template wrote.
const ALIAS: char = '\u{FDD1}';

/// The messages with [`MARK`] inside every special spelling, or `None` if there is none. Roles and part types are left alone.
///
/// # Errors
/// The text holds one of the two characters that this module uses.
pub(super) fn shield(messages: &Value, specials: &[String]) -> Result<Option<Value>, ModelError> {
    let mut found = false;
    let shielded = walk(messages, specials, &mut found);
    if !found {
        return Ok(None);
    }
    if holds_marks(messages) {
        return Err(ModelError::Prompt(format!(
            "it spells a special token and holds the noncharacter U+{:04X} or U+{:04X}; remove that character",
            u32::from(MARK),
            u32::from(ALIAS)
        )));
    }
    Ok(Some(shielded))
}

fn walk(value: &Value, specials: &[String], found: &mut bool) -> Value {
    match value {
        Value::String(text) => {
            let mut text = text.clone();
            for special in specials.iter().filter(|s| !s.is_empty()) {
                if text.contains(special.as_str()) {
                    *found = true;
                    let split = special.char_indices().nth(1).map_or(special.len(), |(i, _)| i);
                    text = text.replace(special.as_str(), &format!("{}{MARK}{}", &special[..split], &special[split..]));
                }
            }
            Value::from(text)
        }
        Value::Array(items) => items.iter().map(|v| walk(v, specials, found)).collect(),
        Value::Object(map) => {
            let field = |(k, v): (&String, &Value)| match k.as_str() {
                "role" | "type" => (k.clone(), v.clone()),
                _ => (k.clone(), walk(v, specials, found)),
            };
            Value::Object(map.iter().map(field).collect::<Map<_, _>>())
        }
        other => other.clone(),
    }
}

fn holds_marks(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains([MARK, ALIAS]),
        Value::Array(items) => items.iter().any(holds_marks),
        Value::Object(map) => map.values().any(holds_marks),
        _ => false,
    }
}

/// A tokenizer in which special spellings are ordinary text and stand-ins take their place.
pub(super) struct LiteralEncoder {
    tokenizer: Tokenizer,
    /// Special spelling, stand-in; longest spelling first.
    aliases: Vec<(String, String)>,
    /// Id of a stand-in → id of its special token.
    ids: Vec<(u32, u32)>,
}

impl LiteralEncoder {
    /// From the tokenizer and its special tokens with their ids.
    pub fn new(tokenizer: &Tokenizer, specials: &[(u32, AddedToken)]) -> Result<Self, ModelError> {
        let failed = |e: tokenizers::Error| ModelError::Tokenizer(e.to_string());
        let mut tokenizer = tokenizer.clone();
        tokenizer.set_encode_special_tokens(true);
        let mut aliases: Vec<(String, String)> = Vec::with_capacity(specials.len());
        for (id, token) in specials {
            let alias = AddedToken {
                content: format!("{ALIAS}{id}{ALIAS}"),
                special: false,
                normalized: false,
                ..token.clone()
            };
            aliases.push((token.content.clone(), alias.content.clone()));
            tokenizer.add_tokens([alias]).map_err(failed)?;
        }
        let id_of = |(alias, id): (&String, u32)| Some((tokenizer.token_to_id(alias)?, id));
        let ids = aliases.iter().zip(specials).filter_map(|((_, alias), (id, _))| id_of((alias, *id))).collect();
        aliases.sort_by_key(|(special, _)| std::cmp::Reverse(special.len()));
        Ok(Self { tokenizer, aliases, ids })
    }

    /// Ids of a rendered conversation whose texts went through [`shield`].
    pub fn encode(&self, rendered: &str) -> Result<Vec<u32>, ModelError> {
        let mut text = rendered.to_owned();
        for (special, alias) in &self.aliases {
            text = text.replace(special.as_str(), alias);
        }
        text.retain(|c| c != MARK);
        let encoding = self.tokenizer.encode(text, false).map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        let real = |id: &u32| self.ids.iter().find(|(alias, _)| alias == id).map_or(*id, |(_, id)| *id);
        Ok(encoding.get_ids().iter().map(real).collect())
    }
}
