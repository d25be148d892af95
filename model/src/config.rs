//! What a checkpoint's `config.json` says about shapes, read from the flat hub form and from the nested form of transformers 5.

mod parse;

/// Family of a checkpoint; each has one folder under `engine/src/families/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Qwen2.5-VL (`model_type = "qwen2_5_vl"`).
    Qwen2_5Vl,
    /// Qwen2 / Qwen2.5 text (`model_type = "qwen2"`): the same decoder without a vision tower and with 1-D positions.
    Qwen2,
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

/// Decoder shapes.
#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub rms_norm_eps: f32,
    pub rope_theta: f64,
    /// Rotary pairs per axis (temporal, height, width); their sum is `head_dim / 2`. Empty for 1-D rope.
    pub mrope_section: Vec<usize>,
    pub max_positions: usize,
}

/// Vision tower shapes (Qwen2.5-VL).
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    pub depth: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_heads: usize,
    pub in_channels: usize,
    pub out_hidden_size: usize,
    pub patch_size: usize,
    pub temporal_patch_size: usize,
    pub spatial_merge_size: usize,
    /// Window edge in pixels.
    pub window_size: usize,
    /// Blocks with full attention; all others attend inside windows.
    pub full_attention_blocks: Vec<usize>,
    pub rms_norm_eps: f32,
    pub rope_theta: f64,
}

impl VisionConfig {
    /// Elements of one flattened patch: channels × temporal × patch × patch.
    pub fn patch_dim(&self) -> usize {
        self.in_channels * self.temporal_patch_size * self.patch_size * self.patch_size
    }
}
