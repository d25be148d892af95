//! What a checkpoint's `config.json` says about shapes, read from the flat hub form and from the nested form of transformers 5.

mod parse;
mod rope;

pub use rope::RopeScaling;

/// Family of a checkpoint; the engine has one folder a kind of arithmetic under `engine/src/families/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Qwen2.5-VL (`model_type = "qwen2_5_vl"`).
    Qwen2_5Vl,
    /// Qwen2-VL (`qwen2_vl`).
    Qwen2Vl,
    /// Qwen3-VL, dense (`qwen3_vl`).
    Qwen3Vl,
    /// Qwen2 and Qwen2.5 text (`qwen2`): biases on q, k, v.
    Qwen2,
    /// Qwen3 text, dense (`qwen3`): RMSNorm on every head's q and k.
    Qwen3,
    /// Llama-style text (`llama`), e.g. SmolLM2, TinyLlama, Llama 3.
    Llama,
}

impl Family {
    /// All families.
    pub const ALL: [Family; 6] = [Self::Qwen2_5Vl, Self::Qwen2Vl, Self::Qwen3Vl, Self::Qwen2, Self::Qwen3, Self::Llama];

    /// `model_type` of config.json.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Qwen2_5Vl => "qwen2_5_vl",
            Self::Qwen2Vl => "qwen2_vl",
            Self::Qwen3Vl => "qwen3_vl",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Llama => "llama",
        }
    }

    /// What the names of the decoder's tensors start with at the hub, e.g. `model.` before `layers.0.…`, `embed_tokens.weight`, `norm.weight`.
    /// `lm_head.weight` has no prefix in any family.
    pub fn text_prefix(self) -> &'static str {
        match self {
            Self::Qwen3Vl => "model.language_model.",
            _ => "model.",
        }
    }

    /// What the names of the vision tower's tensors start with at the hub; `None` for text families.
    pub fn vision_prefix(self) -> Option<&'static str> {
        match self {
            Self::Qwen2_5Vl | Self::Qwen2Vl => Some("visual."),
            Self::Qwen3Vl => Some("model.visual."),
            Self::Qwen2 | Self::Qwen3 | Self::Llama => None,
        }
    }

    /// The vision tower's architecture; `None` for text families.
    pub fn vision_arch(self) -> Option<VisionArch> {
        match self {
            Self::Qwen2_5Vl => Some(VisionArch::Qwen2_5),
            Self::Qwen2Vl => Some(VisionArch::Qwen2),
            Self::Qwen3Vl => Some(VisionArch::Qwen3),
            Self::Qwen2 | Self::Qwen3 | Self::Llama => None,
        }
    }
}

/// Shapes of one model. Units: elements.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub family: Family,
    pub text: TextConfig,
    pub vision: Option<VisionConfig>,
    pub image_token_id: Option<u32>,
    pub video_token_id: Option<u32>,
    pub vision_start_token_id: Option<u32>,
    pub vision_end_token_id: Option<u32>,
    pub tie_word_embeddings: bool,
}

impl ModelConfig {
    /// Hub name of a decoder tensor, e.g. `layers.0.mlp.up_proj.weight` → `model.layers.0.mlp.up_proj.weight`.
    pub fn text_name(&self, rest: &str) -> String {
        format!("{}{rest}", self.family.text_prefix())
    }

    /// Hub name of a vision tensor, e.g. `merger.mlp.0.bias` → `visual.merger.mlp.0.bias`. Text families have none.
    pub fn vision_name(&self, rest: &str) -> String {
        format!("{}{rest}", self.family.vision_prefix().unwrap_or_default())
    }

    /// Hub name of the token embedding.
    pub fn embedding_name(&self) -> String {
        self.text_name("embed_tokens.weight")
    }

    /// Hub name of the output matrix: the embedding's own when it is tied.
    pub fn head_name(&self) -> String {
        if self.tie_word_embeddings { self.embedding_name() } else { "lm_head.weight".to_owned() }
    }
}

/// Decoder shapes.
#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    /// Need not be `hidden_size / num_heads`.
    pub head_dim: usize,
    pub vocab_size: usize,
    pub rms_norm_eps: f32,
    pub rope_theta: f64,
    /// Rotary pairs per axis (temporal, height, width); their sum is `head_dim / 2`. Empty for 1-D rope.
    pub mrope_section: Vec<usize>,
    /// Whether the axes take turns (Qwen3-VL) instead of lying one section after another.
    pub mrope_interleaved: bool,
    pub rope_scaling: RopeScaling,
    pub max_positions: usize,
    /// `q_proj.bias`, `k_proj.bias`, `v_proj.bias` exist.
    pub qkv_bias: bool,
    /// `o_proj.bias` exists.
    pub o_bias: bool,
    /// `q_norm.weight` and `k_norm.weight` `[head_dim]` exist: RMSNorm over each head (eps `rms_norm_eps`) before rope.
    pub qk_norm: bool,
}

impl TextConfig {
    /// Axis (0 temporal, 1 height, 2 width) whose position turns each rotary pair: `head_dim / 2` entries.
    pub fn rope_axes(&self) -> Vec<u8> {
        rope::axes(self.head_dim / 2, &self.mrope_section, self.mrope_interleaved)
    }

    /// Radians per position of each rotary pair, scaling included: `head_dim / 2` entries.
    /// cos and sin are multiplied by [`RopeScaling::amplitude`].
    pub fn rope_frequencies(&self) -> Vec<f64> {
        (0..self.head_dim / 2).map(|pair| self.rope_scaling.frequency(pair, self.head_dim, self.rope_theta)).collect()
    }
}

/// Kind of vision tower. It fixes the norms, the MLP's form, the names and how the merger is wired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VisionArch {
    /// LayerNorm; `mlp.fc1`, `mlp.fc2`; merger `ln_q`, `mlp.0`, `mlp.2`; full attention.
    Qwen2,
    /// RMSNorm; gated MLP with biases; merger `ln_q`, `mlp.0`, `mlp.2`; window attention in most blocks.
    Qwen2_5,
    /// LayerNorm; `mlp.linear_fc1`, `mlp.linear_fc2`; learned positions (interpolated) besides rope; patch bias;
    /// mergers `norm`, `linear_fc1`, `linear_fc2`, further ones (norm after the merge) feed early decoder layers; full attention.
    Qwen3,
}

impl VisionArch {
    /// LayerNorm with weight and bias; otherwise RMSNorm with a weight.
    pub fn layer_norm(self) -> bool {
        self != Self::Qwen2_5
    }

    /// gate, up and down projections; otherwise two layers with the activation between.
    pub fn gated_mlp(self) -> bool {
        self == Self::Qwen2_5
    }

    /// `patch_embed.proj.bias` exists.
    pub fn patch_bias(self) -> bool {
        self == Self::Qwen3
    }
}

/// Activation inside the vision blocks' MLP. (The mergers' is the exact GELU, the decoder's SiLU, in every family.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    Silu,
    /// x · σ(1.702 x).
    QuickGelu,
    /// GELU by erf.
    Gelu,
    /// GELU by its tanh approximation.
    GeluTanh,
}

/// Vision tower shapes.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    pub arch: VisionArch,
    pub activation: Activation,
    pub depth: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_heads: usize,
    pub in_channels: usize,
    pub out_hidden_size: usize,
    pub patch_size: usize,
    pub temporal_patch_size: usize,
    pub spatial_merge_size: usize,
    /// Window edge in pixels; 0 where every block attends in full.
    pub window_size: usize,
    /// Blocks with full attention (all of them unless the tower has windows); the others attend inside windows.
    pub full_attention_blocks: Vec<usize>,
    /// Blocks after which a merger's output is added to decoder layers 0, 1, …, in this order. Qwen3-VL; otherwise empty.
    pub deepstack_blocks: Vec<usize>,
    /// Rows of the learned position table, a square number; 0 without one.
    pub num_position_embeddings: usize,
    /// Of all norms of the tower, RMS or layer.
    pub norm_eps: f32,
    pub rope_theta: f64,
}

impl VisionConfig {
    /// Elements of one flattened patch: channels × temporal × patch × patch.
    pub fn patch_dim(&self) -> usize {
        self.in_channels * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    /// Width after the merge: hidden × merge².
    pub fn merged_size(&self) -> usize {
        self.hidden_size * self.spatial_merge_size * self.spatial_merge_size
    }

    /// Edge of the learned position grid; 0 without one.
    pub fn position_grid(&self) -> usize {
        self.num_position_embeddings.isqrt()
    }
}
