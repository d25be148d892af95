//! What all families share: the plan of a model in the slabs, ragged batches, the decoder's and the vision tower's forward and
//! backward, the head.

pub mod batch;
pub mod finder;
pub mod forward;
pub mod head;
pub mod merger;
pub mod plan;
pub mod vision;
pub mod vision_rows;
