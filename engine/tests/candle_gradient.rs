//! The candle reference's own gradient: no tensor is cut off from the graph, and each gradient is what finite differences in f64 say.
#![cfg(test)]
#![cfg(feature = "candle")]

mod candle_support;

use candle_core::DType;
use candle_support::{
    Rng, device, norm, pack, policy, random_completions, random_factors, random_prompt, random_weights,
};
use candle_support::{small_text, small_vl, worst_tensor};
use quorum_engine::candle::CandleModel;
use quorum_model::{EncodedPrompt, Layout, ModelConfig};
use std::sync::Arc;

/// Σ dlogp · logp of a pack, and everything it depends on.
struct Problem {
    config: ModelConfig,
    layout: Arc<Layout>,
    slab: Vec<f32>,
    prompt: EncodedPrompt,
    completions: Vec<Vec<u32>>,
    factors: Vec<Vec<f32>>,
}

impl Problem {
    fn new(config: ModelConfig, grids: &[[usize; 3]], seed: u64) -> Self {
        let (layout, slab) = random_weights(&config, seed);
        let mut rng = Rng(seed + 1);
        let prompt = random_prompt(&config, &mut rng, grids);
        let completions = random_completions(&mut rng, &[4, 0, 2]);
        let factors = random_factors(&mut rng, &completions);
        Self { config, layout, slab, prompt, completions, factors }
    }

    fn model(&self, slab: &[f32], dtype: DType) -> CandleModel {
        CandleModel::with_dtype(&self.config, self.layout.clone(), slab, &device(), dtype).unwrap()
    }

    fn gradient(&self, dtype: DType) -> Vec<f32> {
        let model = self.model(&self.slab, dtype);
        model.gradient(&pack(&self.prompt, &self.completions), &policy(), &self.factors).unwrap()
    }

    /// The sum in f64 at other weights.
    fn value(&self, slab: &[f32]) -> f64 {
        let model = self.model(slab, DType::F64);
        let rows = self.completions.iter().zip(&self.factors).filter(|(completion, _)| !completion.is_empty());
        let sums = rows.map(|(completion, factors)| {
            let log_probs = model.log_probs(&self.prompt, completion, &policy()).unwrap().to_vec1::<f64>().unwrap();
            log_probs.iter().zip(factors).map(|(l, &f)| l * f64::from(f)).sum::<f64>()
        });
        sums.sum()
    }

    /// Moves one tensor at a time along its gradient plus a random direction and compares the change of the value.
    fn check_finite_differences(&self) {
        let gradient = self.gradient(DType::F64);
        let mut rng = Rng(7);
        for entry in self.layout.entries() {
            let own = &gradient[entry.range.clone()];
            let random = rng.vec(own.len());
            let (own_norm, random_norm) = (norm(own), norm(&random));
            assert!(own_norm > 0.0, "{} gets no gradient", entry.name);
            let step = |i: usize| (2e-4 * (f64::from(own[i]) / own_norm + f64::from(random[i]) / random_norm)) as f32;
            let (mut up, mut down) = (self.slab.clone(), self.slab.clone());
            for (i, at) in entry.range.clone().enumerate() {
                up[at] += step(i);
                down[at] -= step(i);
            }
            // What was really moved, after rounding to f32.
            let moved: Vec<f64> = entry.range.clone().map(|at| f64::from(up[at]) - f64::from(down[at])).collect();
            let length = moved.iter().map(|d| d * d).sum::<f64>().sqrt();
            let predicted: f64 = moved.iter().zip(own).map(|(d, &g)| d * f64::from(g)).sum();
            let found = self.value(&up) - self.value(&down);
            let error = (found - predicted).abs() / (own_norm * length);
            println!("{}: {error:.1e}", entry.name);
            assert!(error <= 1e-5, "{}: moved by {found}, the gradient says {predicted}", entry.name);
        }
    }
}

#[test]
fn finite_differences_agree_for_a_vision_language_model() {
    Problem::new(small_vl(false), &[[1, 4, 6], [2, 4, 4]], 1).check_finite_differences();
}

#[test]
fn finite_differences_agree_for_tied_embeddings() {
    Problem::new(small_vl(true), &[[1, 6, 4]], 2).check_finite_differences();
}

#[test]
fn finite_differences_agree_for_text() {
    Problem::new(small_text(), &[], 3).check_finite_differences();
}

#[test]
fn single_precision_gives_the_same_gradient() {
    let problem = Problem::new(small_vl(true), &[[1, 6, 4]], 4);
    let (distance, tensor) =
        worst_tensor(&problem.layout, &problem.gradient(DType::F32), &problem.gradient(DType::F64));
    println!("f32 against f64: {distance:.1e} at {tensor}");
    assert!(distance <= 2e-5, "{tensor}: {distance}");
}

/// Without images the tower gets exactly nothing, and an image token's embedding row never does.
#[test]
fn what_takes_no_part_gets_no_gradient() {
    let text_only = Problem::new(small_vl(false), &[], 5);
    let gradient = text_only.gradient(DType::F32);
    let tower = text_only.layout.entries().iter().filter(|entry| entry.name.starts_with("visual."));
    assert!(tower.clone().count() > 0 && tower.clone().all(|entry| norm(&gradient[entry.range.clone()]) == 0.0));

    let with_image = Problem::new(small_vl(false), &[[1, 4, 4]], 6);
    let gradient = with_image.gradient(DType::F32);
    let table = with_image.layout.get("model.embed_tokens.weight").unwrap();
    let width = table.shape[1];
    let row = |token: u32| &gradient[table.range.clone()][token as usize * width..(token as usize + 1) * width];
    assert!(norm(row(candle_support::IMAGE)) == 0.0 && norm(row(with_image.prompt.ids[0])) > 0.0);
}
