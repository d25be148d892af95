//! Model families. A family is one folder: what its tensors are called, how its vision tower is wired, how its rows are positioned.

pub mod qwen2_5_vl;
