//! The decoder block that all families have in common: RMSNorm, grouped-query attention, SwiGLU; biases where the configuration has them.

use crate::block::Block;
use crate::error::EngineError;
use crate::kernels::attention::Heads;
use crate::mlp::{Act, Mlp};
use crate::model::finder::Finder;
use crate::norm::Norm;
use quorum_model::ModelConfig;

/// Decoder block `i`, without qk-norm.
pub fn block(f: &mut Finder, c: &ModelConfig, i: usize) -> Result<Block, EngineError> {
    let t = &c.text;
    let n = |s: &str| c.text_name(&format!("layers.{i}.{s}"));
    let (h, m, q, kv) = (t.hidden_size, t.intermediate_size, t.num_heads * t.head_dim, t.num_kv_heads * t.head_dim);
    let names = ["q_proj", "k_proj", "v_proj"]
        .map(|p| (n(&format!("self_attn.{p}.weight")), n(&format!("self_attn.{p}.bias"))));
    let [(qw, qb), (kw, kb), (vw, vb)] = &names;
    let biases: &[&str] = if t.qkv_bias { &[qb, kb, vb] } else { &[] };
    let (ow, ob) = (n("self_attn.o_proj.weight"), n("self_attn.o_proj.bias"));
    let out_bias: &[&str] = if t.o_bias { &[&ob] } else { &[] };
    let norm =
        |f: &Finder, s: &str| Ok::<_, EngineError>(Norm::Rms { weight: f.tensor(&n(s), &[h])?, eps: t.rms_norm_eps });
    Ok(Block {
        norm1: norm(f, "input_layernorm.weight")?,
        qkv: f.linear(&[(qw, q), (kw, kv), (vw, kv)], h, biases)?,
        qk_norm: None,
        out: f.linear(&[(&ow, h)], q, out_bias)?,
        norm2: norm(f, "post_attention_layernorm.weight")?,
        mlp: Mlp {
            up: f.linear(&[(&n("mlp.gate_proj.weight"), m), (&n("mlp.up_proj.weight"), m)], h, &[])?,
            act: Act::SwiGlu,
            down: f.linear(&[(&n("mlp.down_proj.weight"), h)], m, &[])?,
        },
        heads: Heads { heads: t.num_heads, kv_heads: t.num_kv_heads, hd: t.head_dim },
        causal: true,
    })
}
