//! Qwen3-VL: a ViT with LayerNorm and the tanh GELU, learned positions (interpolated to the image's grid) besides 2-D rope, one merger,
//! and further mergers ("deepstack") whose outputs are added to the image tokens' states behind the decoder's first layers.
//! The decoder is Qwen3's with interleaved mrope.

use super::tower;
use crate::error::EngineError;
use crate::model::finder::Finder;
use crate::model::vision::VisionPlan;
use quorum_model::{ModelConfig, VisionConfig};

/// The vision tower.
pub fn vision(f: &mut Finder, c: &ModelConfig, v: &VisionConfig) -> Result<VisionPlan, EngineError> {
    let (h, eps, merged) = (v.hidden_size, v.norm_eps, v.merged_size());
    let (kernel, bias) = (c.vision_name("patch_embed.proj.weight"), c.vision_name("patch_embed.proj.bias"));
    let patch = f.linear(&[(&kernel, h)], v.patch_dim(), &[&bias])?;
    let positions = f.tensor(&c.vision_name("pos_embed.weight"), &[v.num_position_embeddings, h])?;
    let blocks = tower::layer_norm_blocks(f, c, v, ["mlp.linear_fc1", "mlp.linear_fc2"])?;
    let merger = |f: &mut Finder, place: &str, width: usize| {
        let norm = tower::layer_norm(f, c, &format!("{place}.norm"), width, eps)?;
        tower::merger(f, c, v, norm, [format!("{place}.linear_fc1"), format!("{place}.linear_fc2")])
    };
    let main = merger(f, "merger", h)?;
    let mut deepstack = Vec::new();
    for (j, &block) in v.deepstack_blocks.iter().enumerate() {
        deepstack.push((block, merger(f, &format!("deepstack_merger_list.{j}"), merged)?));
    }
    Ok(VisionPlan { config: v.clone(), patch, positions: Some(positions), blocks, merger: main, deepstack })
}

/// The four cells of a learned table of `side` × `side` around a patch's place when the table is stretched over `size` patches, corners
/// on corners, with their bilinear weights, in the reference's order of roundings.
pub fn taps(side: usize, place: [usize; 2], size: [usize; 2]) -> [(usize, f32); 4] {
    let [rows, columns] = [0, 1].map(|axis| axis_taps(side, place[axis], size[axis]));
    [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(i, j)| (rows[i].0 * side + columns[j].0, rows[i].1 * columns[j].1))
}

fn axis_taps(side: usize, place: usize, size: usize) -> [(usize, f32); 2] {
    let last = side.saturating_sub(1);
    let at = place as f32 * last as f32 / size.saturating_sub(1).max(1) as f32;
    let low = at.floor();
    let weight = |offset: f32| (1.0 - (at - low - offset).abs()).max(0.0);
    let cell = |c: f32| (c as usize).min(last);
    [(cell(low), weight(0.0)), (cell(low + 1.0), weight(1.0))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_hit_corners_and_sum_to_one() {
        assert_eq!(taps(8, [0, 0], [4, 6])[0], (0, 1.0));
        assert_eq!(taps(8, [3, 5], [4, 6])[0], (63, 1.0));
        for i in 0..4 {
            for j in 0..6 {
                let t = taps(8, [i, j], [4, 6]);
                assert!((t.iter().map(|x| x.1).sum::<f32>() - 1.0).abs() < 1e-6);
                let row: f32 = t.iter().map(|x| (x.0 / 8) as f32 * x.1).sum();
                assert!((row - i as f32 * 7.0 / 3.0).abs() < 1e-5);
            }
        }
        assert_eq!(taps(8, [0, 0], [1, 1])[0], (0, 1.0));
    }
}
