//! What a checkpoint is, without arithmetic: shapes, parameter layout, tokenizer, chat template, image geometry, weights in and out.

pub mod adapter;
pub mod checkpoint;
pub mod config;
mod durable;
pub mod error;
pub mod frozen;
pub mod gguf;
mod json;
pub mod layout;
pub mod partition;
pub mod pixels;
pub mod positions;
pub mod processor;
pub mod template;
pub mod tokens;
pub mod weights;

pub use adapter::{merged, save_adapter};
pub use checkpoint::{Checkpoint, SaveOptions};
pub use config::{Activation, Family, ModelConfig, RopeScaling, TextConfig, VisionArch, VisionConfig};
pub use error::ModelError;
pub use frozen::{FrozenSink, FrozenSource};
pub use layout::{Entry, Layout};
pub use partition::{Lora, Part, Partition};
pub use pixels::{AlphaMode, EncodedImage, ImageProcessor, resize_bicubic, smart_resize, to_rgb};
pub use processor::{EncodedPrompt, Processor, PromptLength, TemplateOptions};
pub use template::ChatTemplate;
pub use tokens::TextTokenizer;
pub use weights::{
    RawTensor, SaveDtype, StoredWeights, load_model, load_safetensors, load_slabs, random_weights, save_safetensors,
    save_slabs,
};
