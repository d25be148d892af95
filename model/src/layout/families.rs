//! Which tensors each family has, in slab order, and their hub names.

use super::Layout;
use crate::config::{ModelConfig, VisionArch, VisionConfig};

type Tensor = (String, Vec<usize>);

impl Layout {
    /// All tensors of a model: vision tower (if any), embedding, decoder layers, final norm, and `lm_head` if it is not tied.
    ///
    /// Neighbours are chosen so that fused GEMM views are contiguous: q, k, v weights (then their biases), gate and up.
    pub fn of(config: &ModelConfig) -> Self {
        Self::new(tensors(config))
    }
}

/// Elements of all tensors of a model, without overflow.
pub(crate) fn elements(config: &ModelConfig) -> u128 {
    let product = |shape: &[usize]| shape.iter().fold(1u128, |n, &side| n.saturating_mul(side as u128));
    tensors(config).iter().fold(0, |sum, (_, shape)| sum.saturating_add(product(shape)))
}

fn tensors(config: &ModelConfig) -> Vec<Tensor> {
    let mut tensors = Vec::new();
    if let (Some(v), Some(prefix)) = (&config.vision, config.family.vision_prefix()) {
        vision(&mut Tensors { out: &mut tensors, prefix: prefix.to_owned() }, v);
    }
    text(&mut Tensors { out: &mut tensors, prefix: config.family.text_prefix().to_owned() }, config);
    if !config.tie_word_embeddings {
        tensors.push((config.head_name(), vec![config.text.vocab_size, config.text.hidden_size]));
    }
    tensors
}

/// Appends tensors whose names share a prefix.
struct Tensors<'a> {
    out: &'a mut Vec<Tensor>,
    prefix: String,
}

impl Tensors<'_> {
    fn add(&mut self, name: &str, shape: &[usize]) {
        self.out.push((format!("{}{name}", self.prefix), shape.to_vec()));
    }

    fn inside(&mut self, name: &str) -> Tensors<'_> {
        Tensors { prefix: format!("{}{name}", self.prefix), out: self.out }
    }

    /// A weight `[rows, columns]` and its bias.
    fn linear(&mut self, name: &str, rows: usize, columns: usize) {
        self.add(&format!("{name}.weight"), &[rows, columns]);
        self.add(&format!("{name}.bias"), &[rows]);
    }

    /// A norm's weight, and its bias if it is a layer norm.
    fn norm(&mut self, name: &str, width: usize, bias: bool) {
        self.add(&format!("{name}.weight"), &[width]);
        if bias {
            self.add(&format!("{name}.bias"), &[width]);
        }
    }
}

fn vision(t: &mut Tensors, v: &VisionConfig) {
    let h = v.hidden_size;
    t.add("patch_embed.proj.weight", &[h, v.in_channels, v.temporal_patch_size, v.patch_size, v.patch_size]);
    if v.arch.patch_bias() {
        t.add("patch_embed.proj.bias", &[h]);
    }
    if v.num_position_embeddings > 0 {
        t.add("pos_embed.weight", &[v.num_position_embeddings, h]);
    }
    for i in 0..v.depth {
        vision_block(&mut t.inside(&format!("blocks.{i}.")), v);
    }
    let merged = v.merged_size();
    let (norm, first, second) = match v.arch {
        VisionArch::Qwen2 | VisionArch::Qwen2_5 => ("ln_q", "mlp.0", "mlp.2"),
        VisionArch::Qwen3 => ("norm", "linear_fc1", "linear_fc2"),
    };
    let mut merger = |place: String, norm_width: usize| {
        let mut t = t.inside(&place);
        t.norm(norm, norm_width, v.arch.layer_norm());
        t.linear(first, merged, merged);
        t.linear(second, v.out_hidden_size, merged);
    };
    merger("merger.".to_owned(), h);
    for i in 0..v.deepstack_blocks.len() {
        merger(format!("deepstack_merger_list.{i}."), merged);
    }
}

fn vision_block(t: &mut Tensors, v: &VisionConfig) {
    let (h, f) = (v.hidden_size, v.intermediate_size);
    t.norm("norm1", h, v.arch.layer_norm());
    t.linear("attn.qkv", 3 * h, h);
    t.linear("attn.proj", h, h);
    t.norm("norm2", h, v.arch.layer_norm());
    match v.arch {
        VisionArch::Qwen2_5 => {
            t.add("mlp.gate_proj.weight", &[f, h]);
            t.add("mlp.up_proj.weight", &[f, h]);
            t.add("mlp.gate_proj.bias", &[f]);
            t.add("mlp.up_proj.bias", &[f]);
            t.linear("mlp.down_proj", h, f);
        }
        VisionArch::Qwen2 => {
            t.linear("mlp.fc1", f, h);
            t.linear("mlp.fc2", h, f);
        }
        VisionArch::Qwen3 => {
            t.linear("mlp.linear_fc1", f, h);
            t.linear("mlp.linear_fc2", h, f);
        }
    }
}

fn text(t: &mut Tensors, config: &ModelConfig) {
    let c = &config.text;
    let (h, f) = (c.hidden_size, c.intermediate_size);
    let (q, kv) = (c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim);
    t.add("embed_tokens.weight", &[c.vocab_size, h]);
    for i in 0..c.num_layers {
        let mut t = t.inside(&format!("layers.{i}."));
        t.add("input_layernorm.weight", &[h]);
        t.add("self_attn.q_proj.weight", &[q, h]);
        t.add("self_attn.k_proj.weight", &[kv, h]);
        t.add("self_attn.v_proj.weight", &[kv, h]);
        if c.qkv_bias {
            t.add("self_attn.q_proj.bias", &[q]);
            t.add("self_attn.k_proj.bias", &[kv]);
            t.add("self_attn.v_proj.bias", &[kv]);
        }
        if c.qk_norm {
            t.add("self_attn.q_norm.weight", &[c.head_dim]);
            t.add("self_attn.k_norm.weight", &[c.head_dim]);
        }
        t.add("self_attn.o_proj.weight", &[h, q]);
        if c.o_bias {
            t.add("self_attn.o_proj.bias", &[h]);
        }
        t.add("post_attention_layernorm.weight", &[h]);
        t.add("mlp.gate_proj.weight", &[f, h]);
        t.add("mlp.up_proj.weight", &[f, h]);
        t.add("mlp.down_proj.weight", &[h, f]);
    }
    t.add("norm.weight", &[h]);
}
