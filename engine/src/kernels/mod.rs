//! Arithmetic on plain slices: no model knowledge. Each kernel computes a row from that row alone, in a fixed order (D1, D2).

pub mod act;
pub mod attention;
pub mod exp;
pub mod gemm;
pub mod head_norm;
pub mod isa;
pub mod layer_norm;
pub mod micro;
pub mod norm;
pub mod numbers;
pub mod packs;
pub mod rope;
pub mod softmax;
pub mod threads;
