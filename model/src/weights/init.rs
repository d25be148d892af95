//! Fresh weights for a seed model: normals scaled by fan-in, a pure function of (config, seed).

use crate::config::ModelConfig;
use crate::layout::Layout;
use quorum_core::seed::Stream;

/// Standard deviation of the embedding.
const EMBEDDING_STD: f64 = 0.02;
/// Factor on projections that write into the residual stream.
const RESIDUAL_SCALE: f64 = 0.5;
/// Ends of the names of such projections. (A merger's `linear_fc2` is none.)
const RESIDUAL: [&str; 5] =
    ["self_attn.o_proj.weight", "attn.proj.weight", "down_proj.weight", "mlp.fc2.weight", "mlp.linear_fc2.weight"];

/// A slab of fresh weights: matrices N(0, 1/fan_in), half that deviation where they write into the residual stream,
/// the embeddings of tokens and positions N(0, 0.02²), norms 1, biases 0.
///
/// Small models leave the plateau before they read images several times sooner with this than with N(0, 0.02²) throughout.
/// The draw of a tensor depends on the seed, its name and its size alone, not on its place in the layout.
pub fn random_weights(config: &ModelConfig, seed: u64) -> Vec<f32> {
    let layout = Layout::of(config);
    let mut slab = vec![0.0; layout.total()];
    for entry in layout.entries() {
        let values = &mut slab[entry.range.clone()];
        let name = entry.name.as_str();
        if name.ends_with(".bias") {
            continue;
        }
        if entry.shape.len() == 1 {
            values.fill(1.0);
            continue;
        }
        let fan_in: usize = entry.shape.iter().skip(1).product();
        let residual = RESIDUAL.iter().any(|end| name.ends_with(end));
        let std = match (name.contains("embed_tokens") || name.contains("pos_embed"), residual) {
            (true, _) => EMBEDDING_STD,
            (false, true) => RESIDUAL_SCALE / (fan_in.max(1) as f64).sqrt(),
            (false, false) => 1.0 / (fan_in.max(1) as f64).sqrt(),
        };
        fill_normal(values, &mut Stream::named(&format!("initial weights of {name}"), &[seed]), std);
    }
    slab
}

/// Box–Muller: two normals from two uniforms.
fn fill_normal(values: &mut [f32], stream: &mut Stream, std: f64) {
    for (i, pair) in values.chunks_mut(2).enumerate() {
        let counter = 2 * i as u64;
        // 1 - u lies in (0, 1], so the logarithm is finite.
        let radius = (-2.0 * (1.0 - stream.uniform(counter)).ln()).sqrt() * std;
        let (sin, cos) = (std::f64::consts::TAU * stream.uniform(counter + 1)).sin_cos();
        for (value, part) in pair.iter_mut().zip([cos, sin]) {
            *value = (radius * part) as f32;
        }
    }
}
