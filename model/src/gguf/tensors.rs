//! Which GGUF tensor becomes which Hugging Face tensor, and its values row by row. Nothing is dequantised before it is written.

use super::header::{Gguf, Stored};
use super::rope;
use super::shapes::{Architecture, Shapes};
use crate::durable::WriteError;
use crate::weights::Values;
use std::collections::BTreeSet;

/// Values dequantised at a time, at least one row.
const PIECE: usize = 1 << 16;

/// A tensor of the new checkpoint.
#[derive(Debug)]
pub(super) struct Planned<'a> {
    pub name: String,
    pub shape: Vec<usize>,
    source: &'a Stored<'a>,
    /// Head size, where llama.cpp reordered the rows of each head for its rotary embedding.
    interleaved: Option<usize>,
}

/// A tensor the model needs: its name there, here, and its shape.
struct Wanted {
    gguf: String,
    hub: String,
    shape: Vec<usize>,
    interleaved: Option<usize>,
}

fn wanted(gguf: impl Into<String>, hub: impl Into<String>, shape: &[usize]) -> Wanted {
    Wanted { gguf: gguf.into(), hub: hub.into(), shape: shape.to_vec(), interleaved: None }
}

/// Every tensor of the model in hub order.
///
/// # Errors
/// Names the tensors that are missing, misshapen or unknown.
pub(super) fn plan<'a>(gguf: &'a Gguf<'a>, shapes: &Shapes) -> Result<Vec<Planned<'a>>, String> {
    let mut list = vec![wanted("token_embd.weight", "model.embed_tokens.weight", &[shapes.vocabulary, shapes.hidden])];
    for layer in 0..shapes.layers {
        list.extend(block(shapes, layer));
    }
    list.push(wanted("output_norm.weight", "model.norm.weight", &[shapes.hidden]));
    if !shapes.tied {
        list.push(wanted("output.weight", "lm_head.weight", &[shapes.vocabulary, shapes.hidden]));
    }
    let known: BTreeSet<&str> = list.iter().map(|w| w.gguf.as_str()).chain([rope::FACTORS]).collect();
    if let Some(other) = gguf.tensors.keys().find(|name| !known.contains(*name)) {
        return Err(format!(
            "has tensor {other}, which is no part of a {} model of {} layers; take another file of this model",
            shapes.architecture.name(),
            shapes.layers
        ));
    }
    let find = |w: Wanted| {
        let source =
            gguf.tensors.get(w.gguf.as_str()).ok_or_else(|| format!("has no tensor {}; download it again", w.gguf))?;
        if source.shape != w.shape {
            return Err(format!(
                "has tensor {} of shape {:?} where its metadata gives {:?}; download it again",
                w.gguf, source.shape, w.shape
            ));
        }
        Ok(Planned { name: w.hub, shape: w.shape, source, interleaved: w.interleaved })
    };
    list.into_iter().map(find).collect()
}

/// The tensors of one block.
fn block(s: &Shapes, layer: usize) -> Vec<Wanted> {
    let (q, kv) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
    let here = |gguf: &str, hub: &str, shape: &[usize]| {
        wanted(format!("blk.{layer}.{gguf}"), format!("model.layers.{layer}.{hub}"), shape)
    };
    let mut list = vec![
        here("attn_norm.weight", "input_layernorm.weight", &[s.hidden]),
        here("attn_q.weight", "self_attn.q_proj.weight", &[q, s.hidden]),
        here("attn_k.weight", "self_attn.k_proj.weight", &[kv, s.hidden]),
        here("attn_v.weight", "self_attn.v_proj.weight", &[kv, s.hidden]),
    ];
    match s.architecture {
        // Only this one's rows were reordered: the other architectures use the halves layout in llama.cpp too.
        Architecture::Llama => {
            for w in &mut list[1..3] {
                w.interleaved = Some(s.head_dim);
            }
        }
        Architecture::Qwen2 => list.extend([
            here("attn_q.bias", "self_attn.q_proj.bias", &[q]),
            here("attn_k.bias", "self_attn.k_proj.bias", &[kv]),
            here("attn_v.bias", "self_attn.v_proj.bias", &[kv]),
        ]),
        Architecture::Qwen3 => list.extend([
            here("attn_q_norm.weight", "self_attn.q_norm.weight", &[s.head_dim]),
            here("attn_k_norm.weight", "self_attn.k_norm.weight", &[s.head_dim]),
        ]),
    }
    list.extend([
        here("attn_output.weight", "self_attn.o_proj.weight", &[s.hidden, q]),
        here("ffn_norm.weight", "post_attention_layernorm.weight", &[s.hidden]),
        here("ffn_gate.weight", "mlp.gate_proj.weight", &[s.intermediate, s.hidden]),
        here("ffn_up.weight", "mlp.up_proj.weight", &[s.intermediate, s.hidden]),
        here("ffn_down.weight", "mlp.down_proj.weight", &[s.hidden, s.intermediate]),
    ]);
    list
}

impl Planned<'_> {
    /// The row of the file that is row `row` here. In a head of size d, the file has row `2j + half` where the hub has `half·d/2 + j`.
    fn source_row(&self, row: usize) -> usize {
        match self.interleaved {
            None => row,
            Some(d) => {
                let within = row % d;
                row - within + 2 * (within % (d / 2)) + within / (d / 2)
            }
        }
    }
}

impl Values for &Planned<'_> {
    fn visit(&self, sink: &mut dyn FnMut(&[f32]) -> Result<(), WriteError>) -> Result<(), WriteError> {
        let quant = self.source.quant;
        let width = self.shape.last().copied().unwrap_or(1);
        let rows: usize = self.shape.iter().rev().skip(1).product();
        let stored: Vec<&[u8]> = self.source.data.chunks(width / quant.block() * quant.bytes()).collect();
        let batch = (PIECE / width).max(1);
        let mut values = vec![0.0; batch * width];
        for start in (0..rows).step_by(batch) {
            let part = &mut values[..batch.min(rows - start) * width];
            for (i, out) in part.chunks_mut(width).enumerate() {
                // The header's check gave as many stored rows as the shape has.
                quant.dequantize(stored.get(self.source_row(start + i)).copied().unwrap_or_default(), out);
            }
            sink(part)?;
        }
        Ok(())
    }
}
