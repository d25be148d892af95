//! What a checkpoint is, without arithmetic: shapes, parameter layout, tokenizer, chat template, image geometry, weights in and out.

pub mod checkpoint;
pub mod config;
mod durable;
pub mod error;
mod json;
pub mod layout;
pub mod pixels;
pub mod positions;
pub mod processor;
pub mod template;
pub mod tokens;
pub mod weights;

pub use checkpoint::Checkpoint;
pub use config::{Family, ModelConfig, TextConfig, VisionConfig};
pub use error::ModelError;
pub use layout::{Entry, Layout};
pub use pixels::{AlphaMode, EncodedImage, ImageProcessor, resize_bicubic, smart_resize, to_rgb};
pub use processor::{EncodedPrompt, Processor};
pub use template::ChatTemplate;
pub use tokens::TextTokenizer;
pub use weights::{SaveDtype, load_model, load_safetensors, load_slabs, random_weights, save_safetensors, save_slabs};
