//! Where everything of a Qwen2.5-VL (or text-only Qwen2) model lies in the slab, found once and checked against the shapes.

use crate::block::Block;
use crate::error::EngineError;
use crate::kernels::attention::Heads;
use crate::linear::Linear;
use quorum_model::{Layout, ModelConfig, TextConfig, VisionConfig};
use std::ops::Range;

/// A model as ranges and shapes; it owns no weights.
#[derive(Debug, Clone)]
pub struct Plan {
    pub config: ModelConfig,
    pub vision: Option<VisionPlan>,
    /// Token embedding \[vocab, hidden\].
    pub embed: Range<usize>,
    pub blocks: Vec<Block>,
    pub norm: Range<usize>,
    /// The embedding itself when it is tied.
    pub head: Linear,
    /// Elements of a slab.
    pub total: usize,
    pub forward_len: usize,
    pub backward_len: usize,
}

/// The vision tower.
#[derive(Debug, Clone)]
pub struct VisionPlan {
    pub config: VisionConfig,
    /// The patch convolution as a matrix on flattened patches.
    pub patch: Linear,
    pub blocks: Vec<Block>,
    pub ln_q: Range<usize>,
    pub fc1: Linear,
    pub fc2: Linear,
}

impl Plan {
    /// Finds every tensor of `config` in `layout`.
    pub fn new(config: &ModelConfig, layout: &Layout) -> Result<Self, EngineError> {
        let mut f = Finder { layout, forward: 0, backward: 0 };
        let t = &config.text;
        check_text(t)?;
        let vision = config.vision.as_ref().map(|v| f.vision(v, t.hidden_size)).transpose()?;
        let embed = f.tensor("model.embed_tokens.weight", &[t.vocab_size, t.hidden_size])?;
        let blocks = (0..t.num_layers).map(|i| f.text_block(i, t)).collect::<Result<_, _>>()?;
        let norm = f.tensor("model.norm.weight", &[t.hidden_size])?;
        let head = if config.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
        let head = f.linear(&[(head, t.vocab_size)], t.hidden_size, &[])?;
        Ok(Self {
            config: config.clone(),
            vision,
            embed,
            blocks,
            norm,
            head,
            total: layout.total(),
            forward_len: f.forward,
            backward_len: f.backward,
        })
    }

    /// Every linear layer.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        let vision =
            self.vision.iter().flat_map(|v| [&v.patch, &v.fc1, &v.fc2].into_iter().chain(of_blocks(&v.blocks)));
        vision.chain(of_blocks(&self.blocks)).chain([&self.head])
    }
}

fn of_blocks(blocks: &[Block]) -> impl Iterator<Item = &Linear> {
    blocks.iter().flat_map(|b| [&b.qkv, &b.out, &b.gate_up, &b.down])
}

fn check_text(t: &TextConfig) -> Result<(), EngineError> {
    if t.num_kv_heads == 0
        || !t.num_heads.is_multiple_of(t.num_kv_heads)
        || t.head_dim == 0
        || !t.head_dim.is_multiple_of(2)
    {
        let (h, kv, hd) = (t.num_heads, t.num_kv_heads, t.head_dim);
        return Err(EngineError::Shape(format!(
            "{h} heads, {kv} key-value heads, head_dim {hd}: heads must be a multiple of key-value heads and head_dim even"
        )));
    }
    let sections: usize = t.mrope_section.iter().sum();
    if !t.mrope_section.is_empty() && (t.mrope_section.len() != 3 || sections != t.head_dim / 2) {
        return Err(EngineError::Shape(format!(
            "mrope_section {:?} must have three parts that add up to head_dim / 2 = {}",
            t.mrope_section,
            t.head_dim / 2
        )));
    }
    if t.hidden_size == 0 || t.vocab_size == 0 || t.num_layers == 0 || t.intermediate_size == 0 {
        return Err(EngineError::Shape(
            "hidden_size, vocab_size, num_hidden_layers and intermediate_size must be positive".into(),
        ));
    }
    Ok(())
}

/// Looks tensors up and hands out panel space.
struct Finder<'a> {
    layout: &'a Layout,
    forward: usize,
    backward: usize,
}

impl Finder<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Range<usize>, EngineError> {
        let wrong = |found: String| EngineError::Tensor { name: name.to_owned(), expected: shape.to_vec(), found };
        let entry = self.layout.get(name).ok_or_else(|| wrong("no such tensor".into()))?;
        let same = entry.shape.iter().product::<usize>() == shape.iter().product::<usize>()
            && entry.shape.first() == shape.first();
        if same { Ok(entry.range.clone()) } else { Err(wrong(format!("{:?}", entry.shape))) }
    }

    /// Side-by-side tensors as one range.
    fn joined(&self, parts: &[(&str, Vec<usize>)]) -> Result<Range<usize>, EngineError> {
        let mut all: Option<Range<usize>> = None;
        for (name, shape) in parts {
            let r = self.tensor(name, shape)?;
            all = Some(match all {
                None => r,
                Some(a) if a.end == r.start => a.start..r.end,
                Some(_) => return Err(EngineError::Shape(format!("{name} must follow {} in the layout", parts[0].0))),
            });
        }
        all.ok_or_else(|| EngineError::Shape("a layer without tensors".into()))
    }

    /// A layer whose rows are the named tensors one after another; `biases` likewise, or none.
    fn linear(&mut self, weights: &[(&str, usize)], n_in: usize, biases: &[&str]) -> Result<Linear, EngineError> {
        let n_out = weights.iter().map(|w| w.1).sum();
        let parts: Vec<_> = weights.iter().map(|&(n, rows)| (n, vec![rows, n_in])).collect();
        let weight = self.joined(&parts)?;
        let parts: Vec<_> = biases.iter().zip(weights).map(|(&n, w)| (n, vec![w.1])).collect();
        let bias = if biases.is_empty() { None } else { Some(self.joined(&parts)?) };
        let l = Linear { weight, bias, n_out, n_in, forward_at: self.forward, backward_at: self.backward };
        self.forward += l.forward_len();
        self.backward += l.backward_len();
        Ok(l)
    }

    fn text_block(&mut self, i: usize, t: &TextConfig) -> Result<Block, EngineError> {
        let n = |s: &str| format!("model.layers.{i}.{s}");
        let (h, f, q, kv) = (t.hidden_size, t.intermediate_size, t.num_heads * t.head_dim, t.num_kv_heads * t.head_dim);
        let names = ["q_proj", "k_proj", "v_proj"]
            .map(|p| (n(&format!("self_attn.{p}.weight")), n(&format!("self_attn.{p}.bias"))));
        let [(qw, qb), (kw, kb), (vw, vb)] = &names;
        Ok(Block {
            norm1: self.tensor(&n("input_layernorm.weight"), &[h])?,
            qkv: self.linear(&[(qw, q), (kw, kv), (vw, kv)], h, &[qb, kb, vb])?,
            out: self.linear(&[(&n("self_attn.o_proj.weight"), h)], q, &[])?,
            norm2: self.tensor(&n("post_attention_layernorm.weight"), &[h])?,
            gate_up: self.linear(&[(&n("mlp.gate_proj.weight"), f), (&n("mlp.up_proj.weight"), f)], h, &[])?,
            down: self.linear(&[(&n("mlp.down_proj.weight"), h)], f, &[])?,
            heads: Heads { heads: t.num_heads, kv_heads: t.num_kv_heads, hd: t.head_dim },
            causal: true,
            eps: t.rms_norm_eps,
        })
    }

    fn vision_block(&mut self, i: usize, v: &VisionConfig) -> Result<Block, EngineError> {
        let n = |s: &str| format!("visual.blocks.{i}.{s}");
        let (h, f) = (v.hidden_size, v.intermediate_size);
        let (gw, uw) = (n("mlp.gate_proj.weight"), n("mlp.up_proj.weight"));
        Ok(Block {
            norm1: self.tensor(&n("norm1.weight"), &[h])?,
            qkv: self.linear(&[(&n("attn.qkv.weight"), 3 * h)], h, &[&n("attn.qkv.bias")])?,
            out: self.linear(&[(&n("attn.proj.weight"), h)], h, &[&n("attn.proj.bias")])?,
            norm2: self.tensor(&n("norm2.weight"), &[h])?,
            gate_up: self.linear(&[(&gw, f), (&uw, f)], h, &[&n("mlp.gate_proj.bias"), &n("mlp.up_proj.bias")])?,
            down: self.linear(&[(&n("mlp.down_proj.weight"), h)], f, &[&n("mlp.down_proj.bias")])?,
            heads: Heads { heads: v.num_heads, kv_heads: v.num_heads, hd: h / v.num_heads },
            causal: false,
            eps: v.rms_norm_eps,
        })
    }

    fn vision(&mut self, v: &VisionConfig, hidden: usize) -> Result<VisionPlan, EngineError> {
        if v.num_heads == 0
            || !v.hidden_size.is_multiple_of(v.num_heads)
            || !(v.hidden_size / v.num_heads).is_multiple_of(4)
        {
            return Err(EngineError::Shape(format!(
                "vision hidden_size {} with {} heads: the head size must be a multiple of 4",
                v.hidden_size, v.num_heads
            )));
        }
        if v.spatial_merge_size == 0 || v.patch_size == 0 || v.window_size / v.spatial_merge_size / v.patch_size == 0 {
            return Err(EngineError::Shape(format!("vision window_size {} holds no merged patch", v.window_size)));
        }
        if v.out_hidden_size != hidden {
            return Err(EngineError::Shape(format!(
                "vision out_hidden_size {} is not the decoder's hidden_size {hidden}",
                v.out_hidden_size
            )));
        }
        let merged = v.hidden_size * v.spatial_merge_size * v.spatial_merge_size;
        Ok(VisionPlan {
            patch: self.linear(&[("visual.patch_embed.proj.weight", v.hidden_size)], v.patch_dim(), &[])?,
            blocks: (0..v.depth).map(|i| self.vision_block(i, v)).collect::<Result<_, _>>()?,
            ln_q: self.tensor("visual.merger.ln_q.weight", &[v.hidden_size])?,
            fc1: self.linear(&[("visual.merger.mlp.0.weight", merged)], merged, &["visual.merger.mlp.0.bias"])?,
            fc2: self.linear(
                &[("visual.merger.mlp.2.weight", v.out_hidden_size)],
                merged,
                &["visual.merger.mlp.2.bias"],
            )?,
            config: v.clone(),
        })
    }
}
