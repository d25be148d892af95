//! Where a checkpoint keeps its chat template.

use crate::error::ModelError;
use crate::json::parse_object;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Bytes a template may have; the largest published ones have about 10 kB.
const MAX_SOURCE: usize = 1 << 20;

/// The chat template, from the first file that has one: chat_template.jinja, chat_template.json, tokenizer_config.json.
///
/// # Errors
/// Names the file that is damaged, or says that there is none.
pub(crate) fn template_source(files: &BTreeMap<String, Vec<u8>>) -> Result<String, ModelError> {
    let source = find(files)?;
    if source.len() > MAX_SOURCE {
        return Err(ModelError::Template(format!(
            "it has {} bytes, more than any real one; copy it again",
            source.len()
        )));
    }
    Ok(source)
}

fn find(files: &BTreeMap<String, Vec<u8>>) -> Result<String, ModelError> {
    if let Some(bytes) = files.get("chat_template.jinja") {
        return String::from_utf8(bytes.clone())
            .map_err(|_| ModelError::Template("chat_template.jinja is not UTF-8; copy it again".to_owned()));
    }
    for file in ["chat_template.json", "tokenizer_config.json"] {
        let Some(bytes) = files.get(file) else { continue };
        let map: Map<String, Value> = parse_object(file, bytes)?;
        match map.get("chat_template") {
            None | Some(Value::Null) => {}
            Some(Value::String(source)) => return Ok(source.clone()),
            // Several named templates; the reference takes the one called "default".
            Some(Value::Array(named)) => {
                let default = named.iter().find(|t| t.get("name").and_then(Value::as_str) == Some("default"));
                let source = default.and_then(|t| t.get("template")).and_then(Value::as_str);
                return source
                    .map(str::to_owned)
                    .ok_or_else(|| ModelError::key(file, "chat_template", "has no template named \"default\""));
            }
            Some(_) => return Err(ModelError::key(file, "chat_template", "must be a string")),
        }
    }
    Err(ModelError::MissingFile {
        place: "checkpoint".to_owned(),
        file: "chat_template.json".to_owned(),
        remedy: "copy it, or a tokenizer_config.json with a chat_template, from the checkpoint's source".to_owned(),
    })
}
