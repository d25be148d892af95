//! Images as the reference processor sees them: colour conversion, target size, PIL's bicubic resize, patches. Decoding files is the data crate's.

mod color;
mod geometry;
mod patches;
mod resize;

pub use color::{AlphaMode, to_rgb};
pub use geometry::smart_resize;
pub use patches::{EncodedImage, ImageProcessor};
pub use resize::resize_bicubic;
