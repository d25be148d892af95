//! Which tensors each family has, in slab order, and their hub names.

use super::Layout;
use crate::config::{ModelConfig, TextConfig, VisionConfig};

type Tensor = (String, Vec<usize>);

impl Layout {
    /// All tensors of a model: vision tower (if any), embedding, decoder layers, final norm, and `lm_head` if it is not tied.
    ///
    /// Neighbours are chosen so that fused GEMM views are contiguous: q, k, v weights (then their biases), gate and up.
    pub fn of(config: &ModelConfig) -> Self {
        let mut tensors = Vec::new();
        if let Some(v) = &config.vision {
            vision(&mut tensors, v);
        }
        text(&mut tensors, &config.text);
        if !config.tie_word_embeddings {
            tensors.push(("lm_head.weight".to_owned(), vec![config.text.vocab_size, config.text.hidden_size]));
        }
        Self::new(tensors)
    }
}

fn vision(out: &mut Vec<Tensor>, v: &VisionConfig) {
    let (h, f) = (v.hidden_size, v.intermediate_size);
    let patch = vec![h, v.in_channels, v.temporal_patch_size, v.patch_size, v.patch_size];
    out.push(("visual.patch_embed.proj.weight".to_owned(), patch));
    for i in 0..v.depth {
        let mut add = |name: &str, shape: &[usize]| out.push((format!("visual.blocks.{i}.{name}"), shape.to_vec()));
        add("norm1.weight", &[h]);
        add("attn.qkv.weight", &[3 * h, h]);
        add("attn.qkv.bias", &[3 * h]);
        add("attn.proj.weight", &[h, h]);
        add("attn.proj.bias", &[h]);
        add("norm2.weight", &[h]);
        add("mlp.gate_proj.weight", &[f, h]);
        add("mlp.up_proj.weight", &[f, h]);
        add("mlp.gate_proj.bias", &[f]);
        add("mlp.up_proj.bias", &[f]);
        add("mlp.down_proj.weight", &[h, f]);
        add("mlp.down_proj.bias", &[h]);
    }
    let merged = h * v.spatial_merge_size * v.spatial_merge_size;
    let mut add = |name: &str, shape: &[usize]| out.push((format!("visual.merger.{name}"), shape.to_vec()));
    add("ln_q.weight", &[h]);
    add("mlp.0.weight", &[merged, merged]);
    add("mlp.0.bias", &[merged]);
    add("mlp.2.weight", &[v.out_hidden_size, merged]);
    add("mlp.2.bias", &[v.out_hidden_size]);
}

fn text(out: &mut Vec<Tensor>, t: &TextConfig) {
    let (h, f) = (t.hidden_size, t.intermediate_size);
    let (q, kv) = (t.num_heads * t.head_dim, t.num_kv_heads * t.head_dim);
    out.push(("model.embed_tokens.weight".to_owned(), vec![t.vocab_size, h]));
    for i in 0..t.num_layers {
        let mut add = |name: &str, shape: &[usize]| out.push((format!("model.layers.{i}.{name}"), shape.to_vec()));
        add("input_layernorm.weight", &[h]);
        add("self_attn.q_proj.weight", &[q, h]);
        add("self_attn.k_proj.weight", &[kv, h]);
        add("self_attn.v_proj.weight", &[kv, h]);
        add("self_attn.q_proj.bias", &[q]);
        add("self_attn.k_proj.bias", &[kv]);
        add("self_attn.v_proj.bias", &[kv]);
        add("self_attn.o_proj.weight", &[h, q]);
        add("post_attention_layernorm.weight", &[h]);
        add("mlp.gate_proj.weight", &[f, h]);
        add("mlp.up_proj.weight", &[f, h]);
        add("mlp.down_proj.weight", &[h, f]);
    }
    out.push(("model.norm.weight".to_owned(), vec![h]));
}
