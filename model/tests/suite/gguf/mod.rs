//! GGUF import: a small model is built as llama.cpp's converter would, imported, and opened as any checkpoint.

mod broken;
mod builder;
mod quants;
mod tensors;
mod tokenizers;

use builder::{Builder, Meta};
use quorum_core::seed::Stream;
use quorum_model::{Checkpoint, ModelError, SaveDtype, gguf};
use std::path::Path;

const HIDDEN: usize = 256;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Byte-level BPE: a token for every byte, a few words, three digits, special tokens. Text and type of each.
fn bpe_tokens() -> (Vec<String>, Vec<i32>, Vec<String>) {
    let merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "1 2", "12 3", "Ã ©"];
    let mut tokens: Vec<String> = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(str::to_owned).to_vec();
    let mut hidden = 256;
    for byte in 0..=255u8 {
        let visible = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let code = if visible { u32::from(byte) } else { hidden };
        hidden += u32::from(!visible);
        tokens.push(char::from_u32(code).unwrap().to_string());
    }
    tokens.extend(merges.iter().map(|m| m.replace(' ', "")));
    let mut kinds = vec![1; tokens.len()];
    kinds[..3].fill(3);
    tokens.extend(["<tool>".to_owned(), "[PAD]".to_owned()]);
    kinds.extend([4, 5]);
    (tokens, kinds, merges.map(str::to_owned).to_vec())
}

fn texts(items: &[String]) -> Meta {
    Meta::Texts(items.iter().map(|s| s.as_bytes().to_vec()).collect())
}

/// Metadata of a model of `architecture` with the tokenizer of [`bpe_tokens`].
fn metadata(architecture: &str) -> Builder {
    let mut b = Builder::new();
    let (tokens, kinds, merges) = bpe_tokens();
    b.set("general.architecture", architecture);
    for (key, value) in [
        ("block_count", LAYERS),
        ("context_length", 128),
        ("embedding_length", HIDDEN),
        ("feed_forward_length", HIDDEN),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", KV_HEADS),
    ] {
        b.set(&format!("{architecture}.{key}"), Meta::U32(value as u32));
    }
    b.set(&format!("{architecture}.attention.layer_norm_rms_epsilon"), Meta::F32(1e-5));
    b.set(&format!("{architecture}.rope.freq_base"), Meta::F32(100_000.0));
    b.set("tokenizer.ggml.model", "gpt2").set("tokenizer.ggml.pre", "smollm");
    b.set("tokenizer.ggml.tokens", texts(&tokens)).set("tokenizer.ggml.merges", texts(&merges));
    b.set("tokenizer.ggml.token_type", Meta::I32s(kinds));
    b.set("tokenizer.ggml.eos_token_id", Meta::U32(2)).set("tokenizer.ggml.padding_token_id", Meta::U32(2));
    b.set("tokenizer.chat_template", TEMPLATE);
    b
}

/// Names (GGUF's and the hub's) and shapes of a model's tensors without biases and head norms; tied.
fn shapes(vocabulary: usize) -> Vec<(String, String, Vec<usize>)> {
    let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    let mut list =
        vec![("token_embd.weight".to_owned(), "model.embed_tokens.weight".to_owned(), vec![vocabulary, HIDDEN])];
    for layer in 0..LAYERS {
        for (theirs, hub, shape) in [
            ("attn_norm", "input_layernorm", vec![HIDDEN]),
            ("attn_q", "self_attn.q_proj", vec![q, HIDDEN]),
            ("attn_k", "self_attn.k_proj", vec![kv, HIDDEN]),
            ("attn_v", "self_attn.v_proj", vec![kv, HIDDEN]),
            ("attn_output", "self_attn.o_proj", vec![HIDDEN, q]),
            ("ffn_norm", "post_attention_layernorm", vec![HIDDEN]),
            ("ffn_gate", "mlp.gate_proj", vec![HIDDEN, HIDDEN]),
            ("ffn_up", "mlp.up_proj", vec![HIDDEN, HIDDEN]),
            ("ffn_down", "mlp.down_proj", vec![HIDDEN, HIDDEN]),
        ] {
            list.push((format!("blk.{layer}.{theirs}.weight"), format!("model.layers.{layer}.{hub}.weight"), shape));
        }
    }
    list.push(("output_norm.weight".to_owned(), "model.norm.weight".to_owned(), vec![HIDDEN]));
    list
}

/// Values that differ from tensor to tensor and are exact in bfloat16.
fn values(name: &str, n: usize) -> Vec<f32> {
    let mut random = Stream::named(name, &[1]);
    (0..n as u64).map(|i| ((random.uniform(i) * 256.0).floor() - 128.0) as f32 / 64.0).collect()
}

/// A whole model in F32 with the architecture's extra tensors.
fn model(architecture: &str) -> Builder {
    let mut b = metadata(architecture);
    for (name, _, shape) in shapes(bpe_tokens().0.len()) {
        b.f32(&name, &shape, &values(&name, shape.iter().product()));
    }
    for (name, _, shape) in extras(architecture) {
        b.f32(&name, &shape, &values(&name, shape[0]));
    }
    b
}

/// Biases of qwen2 and head norms of qwen3.
fn extras(architecture: &str) -> Vec<(String, String, Vec<usize>)> {
    let list: &[(&str, &str, usize)] = match architecture {
        "qwen2" => &[
            ("attn_q.bias", "q_proj.bias", HEADS * HEAD_DIM),
            ("attn_k.bias", "k_proj.bias", KV_HEADS * HEAD_DIM),
            ("attn_v.bias", "v_proj.bias", KV_HEADS * HEAD_DIM),
        ],
        "qwen3" => {
            &[("attn_q_norm.weight", "q_norm.weight", HEAD_DIM), ("attn_k_norm.weight", "k_norm.weight", HEAD_DIM)]
        }
        _ => &[],
    };
    let of_layer = |layer: usize| {
        list.iter().map(move |(theirs, hub, n)| {
            (format!("blk.{layer}.{theirs}"), format!("model.layers.{layer}.self_attn.{hub}"), vec![*n])
        })
    };
    (0..LAYERS).flat_map(of_layer).collect()
}

/// Imports a file into a new directory beside it and opens that.
fn import(b: &Builder, dir: &Path) -> Result<Checkpoint, ModelError> {
    let (file, target) = (dir.join("model.gguf"), dir.join("out"));
    b.write(&file);
    gguf::import(&file, &target, SaveDtype::F32)?;
    Checkpoint::open(&target)
}
