//! Reads and checks `config.json`: flat (hub), nested with `rope_scaling` (transformers 4.5x) and nested with `rope_parameters` (5.x).

mod text;
mod vision;

use super::{Family, ModelConfig};
use crate::error::ModelError;
use crate::json::{Object, parse_object};
use crate::layout::elements;

const FILE: &str = "config.json";
/// Bounds on untrusted sizes: generous for any real model, small enough that products of two cannot overflow.
const MAX_WIDTH: usize = 1 << 22;
const MAX_LAYERS: usize = 1 << 10;
/// Elements of all tensors together: far above any real model, far below what overflows.
const MAX_ELEMENTS: u128 = 1 << 42;

impl ModelConfig {
    /// Reads the text of a `config.json`, flat or nested.
    ///
    /// # Errors
    /// Names the key and what it should be: unsupported family, activation or rope, sizes that do not divide, ids outside the vocabulary.
    pub fn from_json(json: impl AsRef<[u8]>) -> Result<Self, ModelError> {
        let map = parse_object(FILE, json.as_ref())?;
        let root = Object::new(FILE, "", &map);
        let family = family(&root)?;
        if root.get("quantization_config").is_some() {
            return Err(root.error(
                "quantization_config",
                "says that the weights are quantised; use the checkpoint in bf16, f16 or f32 of the same model",
            ));
        }
        let nested = root.object("text_config", "text_config.")?;
        let body = nested.unwrap_or(root);
        let text = text::read(&body, family)?;
        let vision = match family.vision_arch() {
            None => None,
            Some(arch) => {
                let v = root.object("vision_config", "vision_config.")?.ok_or_else(|| root.missing("vision_config"))?;
                Some(vision::read(&v, arch, &text)?)
            }
        };
        let token = |key: &str| -> Result<Option<u32>, ModelError> {
            if vision.is_none() {
                return Ok(None);
            }
            let id = root.token(key)?.ok_or_else(|| root.missing(key))?;
            if id as usize >= text.vocab_size {
                return Err(root.error(key, format!("is {id}, outside the vocabulary of {} tokens", text.vocab_size)));
            }
            Ok(Some(id))
        };
        let tied = match root.boolean("tie_word_embeddings")? {
            Some(tied) => tied,
            None => body.boolean("tie_word_embeddings")?.unwrap_or(false),
        };
        let config = Self {
            family,
            image_token_id: token("image_token_id")?,
            video_token_id: token("video_token_id")?,
            vision_start_token_id: token("vision_start_token_id")?,
            vision_end_token_id: token("vision_end_token_id")?,
            tie_word_embeddings: tied,
            text,
            vision,
        };
        let total = elements(&config);
        if total > MAX_ELEMENTS {
            return Err(root.error(
                "hidden_size",
                format!("and the other sizes give {total} parameters, more than any real model; take config.json from the checkpoint's source"),
            ));
        }
        Ok(config)
    }
}

fn family(root: &Object) -> Result<Family, ModelError> {
    let given = root.string("model_type")?.ok_or_else(|| root.missing("model_type"))?;
    Family::ALL.into_iter().find(|f| f.model_type() == given).ok_or_else(|| {
        let known: Vec<&str> = Family::ALL.iter().map(|f| f.model_type()).collect();
        root.error(
            "model_type",
            format!("is {given:?}, which is not supported; use a checkpoint of one of {}", known.join(", ")),
        )
    })
}
