//! Data sets: reading records, decoding images under limits, prompts, augmented views, and the order of training. No model knowledge: nothing here resizes or tokenises.

pub mod dataset;
pub mod decode;
pub mod error;
pub mod fault;
pub mod order;
pub mod prompt;
pub mod record;
pub mod template;
pub mod view;
pub mod writer;

pub use dataset::{Dataset, ImageCheck, OpenOptions};
pub use decode::{DecodeError, Limits, decode};
pub use error::DataError;
pub use fault::{Fault, SET_ASIDE_KEPT, SetAside};
pub use order::{order, prompts_of_step};
pub use prompt::{IMAGE_PLACEHOLDER, ImagePlacement, METHOD_SUFFIX, prompt};
pub use record::{Columns, ImageBytes, Record};
pub use view::ViewConfig;
