//! Architecture and sizes from the metadata, and the config.json that says the same. Not the tensors.

use super::header::Gguf;
use super::rope;
use super::value::{Metadata, missing};
use crate::weights::SaveDtype;
use serde_json::{Value, json};

const MAX_WIDTH: usize = 1 << 22;
const MAX_LAYERS: usize = 1 << 10;

/// Architectures whose tensors map one to one onto a Hugging Face family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Architecture {
    Llama,
    Qwen2,
    Qwen3,
}

impl Architecture {
    fn parse(name: &str) -> Result<Self, String> {
        match name {
            "llama" => Ok(Self::Llama),
            "qwen2" => Ok(Self::Qwen2),
            "qwen3" => Ok(Self::Qwen3),
            other => Err(format!(
                "holds a model of architecture {other:?}, which is not supported; take one of llama, qwen2 or qwen3"
            )),
        }
    }

    /// Prefix of its metadata keys, and `model_type` of config.json.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    fn class(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }
}

/// Sizes of the model, in elements.
#[derive(Debug, Clone)]
pub(super) struct Shapes {
    pub architecture: Architecture,
    pub layers: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocabulary: usize,
    pub tied: bool,
    pub positions: usize,
    epsilon: f64,
    theta: f64,
    rope_scaling: Option<Value>,
}

impl Shapes {
    /// # Errors
    /// A key is missing or impossible, or asks for something the families here do not have.
    pub fn of(gguf: &Gguf) -> Result<Self, String> {
        let m = &gguf.metadata;
        let name = m.text("general.architecture")?.ok_or_else(|| missing("general.architecture"))?;
        let architecture = Architecture::parse(name)?;
        let key = |suffix: &str| format!("{name}.{suffix}");
        let embedding =
            gguf.tensors.get("token_embd.weight").ok_or("has no tensor token_embd.weight; download it again")?;
        let hidden = m.size(&key("embedding_length"), MAX_WIDTH)?;
        let heads = m.size(&key("attention.head_count"), MAX_WIDTH)?;
        let kv_heads = match m.has(&key("attention.head_count_kv")) {
            true => m.size(&key("attention.head_count_kv"), MAX_WIDTH)?,
            false => heads,
        };
        let head_dim = match m.has(&key("attention.key_length")) {
            true => m.size(&key("attention.key_length"), MAX_WIDTH)?,
            false if hidden.is_multiple_of(heads) => hidden / heads,
            false => return Err(format!("has {heads} heads, which do not divide {hidden}; download it again")),
        };
        if !heads.is_multiple_of(kv_heads) || !head_dim.is_multiple_of(2) {
            return Err(format!(
                "has {heads} heads, {kv_heads} key-value heads and head size {head_dim}; the second must divide the first and \
                 the third be even, so download it again"
            ));
        }
        refuse_unsupported(m, name, head_dim)?;
        // The value every one of these families has when the file is silent.
        let theta = m.positive(&key("rope.freq_base"))?.unwrap_or(10_000.0);
        Ok(Self {
            architecture,
            layers: m.size(&key("block_count"), MAX_LAYERS)?,
            hidden,
            intermediate: m.size(&key("feed_forward_length"), MAX_WIDTH)?,
            heads,
            kv_heads,
            head_dim,
            vocabulary: embedding.shape[0],
            tied: !gguf.tensors.contains_key("output.weight"),
            positions: m.size(&key("context_length"), 1 << 30)?,
            epsilon: m
                .positive(&key("attention.layer_norm_rms_epsilon"))?
                .ok_or_else(|| missing(&key("attention.layer_norm_rms_epsilon")))?,
            theta,
            rope_scaling: rope::scaling(gguf, name, head_dim, theta)?,
        })
    }

    /// config.json as transformers reads it.
    pub fn config(&self, dtype: SaveDtype, bos: Option<u32>, eos: u32, pad: Option<u32>) -> Value {
        let mut config = json!({
            "architectures": [self.architecture.class()],
            "model_type": self.architecture.name(),
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.positions,
            "rms_norm_eps": self.epsilon,
            "rope_theta": self.theta,
            "rope_scaling": self.rope_scaling,
            "hidden_act": "silu",
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "use_cache": true,
            "tie_word_embeddings": self.tied,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "pad_token_id": pad,
            "torch_dtype": dtype.torch_name(),
        });
        match self.architecture {
            Architecture::Llama => {
                config["attention_bias"] = json!(false);
                config["mlp_bias"] = json!(false);
                config["head_dim"] = json!(self.head_dim);
            }
            Architecture::Qwen2 => config["use_sliding_window"] = json!(false),
            Architecture::Qwen3 => {
                config["attention_bias"] = json!(false);
                config["head_dim"] = json!(self.head_dim);
                config["use_sliding_window"] = json!(false);
            }
        }
        config
    }
}

/// Things of newer models that would be dropped in silence otherwise.
fn refuse_unsupported(m: &Metadata, name: &str, head_dim: usize) -> Result<(), String> {
    let key = |suffix: &str| format!("{name}.{suffix}");
    if m.integer(&key("expert_count"), MAX_WIDTH)?.is_some_and(|n| n > 0) {
        return Err(format!("has `{name}.expert_count`: mixtures of experts are not supported; take a dense model"));
    }
    if m.has(&key("attention.sliding_window")) {
        return Err(format!("has `{name}.attention.sliding_window`, which is not supported; take another model"));
    }
    for suffix in ["rope.dimension_count", "attention.value_length"] {
        if let Some(n) = m.integer(&key(suffix), MAX_WIDTH)?.filter(|&n| n != head_dim) {
            return Err(format!("has `{name}.{suffix}` {n}, but head size {head_dim}; only equal ones are supported"));
        }
    }
    Ok(())
}
