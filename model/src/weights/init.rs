//! Fresh weights for a seed model: GPT-2 style normals, a pure function of (config, seed).

use crate::config::ModelConfig;
use crate::layout::Layout;
use quorum_core::seed::Stream;

/// Standard deviation of matrices and of the embedding.
const STD: f64 = 0.02;

/// A slab of fresh weights: matrices N(0, 0.02²), norms 1, biases 0; projections that write into the residual stream are
/// scaled by 1/√(2·depth), so that its variance does not grow with depth.
///
/// The draw of a tensor depends on the seed, its name and its size alone, not on its place in the layout.
pub fn random_weights(config: &ModelConfig, seed: u64) -> Vec<f32> {
    let layout = Layout::of(config);
    let mut slab = vec![0.0; layout.total()];
    let text_scale = residual_scale(config.text.num_layers);
    let vision_scale = config.vision.as_ref().map_or(1.0, |v| residual_scale(v.depth));
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
        let residual = name.ends_with("self_attn.o_proj.weight")
            || name.ends_with("attn.proj.weight")
            || name.ends_with("down_proj.weight");
        let scale = match (residual, name.starts_with("visual.")) {
            (false, _) => 1.0,
            (true, true) => vision_scale,
            (true, false) => text_scale,
        };
        fill_normal(values, &mut Stream::named(&format!("initial weights of {name}"), &[seed]), STD * scale);
    }
    slab
}

fn residual_scale(depth: usize) -> f64 {
    1.0 / (2.0 * depth as f64).sqrt()
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
