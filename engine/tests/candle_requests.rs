//! Scores of the candle reference at the borders: forbidden tokens, temperatures, entropies, independence of completions, refused requests.
#![cfg(test)]
#![cfg(feature = "candle")]

mod candle_support;

use candle_support::{
    Rng, device, max_abs_diff, pack, policy, random_completions, random_prompt, random_weights, small_vl,
};
use quorum_engine::candle::CandleModel;
use quorum_engine::{Pack, PolicyDist};
use quorum_model::{EncodedPrompt, Layout};
use std::sync::Arc;

fn setup() -> (CandleModel, EncodedPrompt) {
    let config = small_vl(false);
    let (layout, slab) = random_weights(&config, 11);
    let prompt = random_prompt(&config, &mut Rng(12), &[[1, 4, 6]]);
    (CandleModel::new(&config, layout, &slab, &device()).unwrap(), prompt)
}

/// The definition, in f64: softmax of logits / temperature over what is allowed.
#[test]
fn first_token_scores_follow_the_definition() {
    let (model, prompt) = setup();
    let logits = model.logits(&prompt).unwrap().to_vec2::<f32>().unwrap();
    let policy = policy();
    let allowed = |token: u32| !policy.forbidden.contains(&token);
    let scaled: Vec<f64> = logits.last().unwrap().iter().map(|&x| f64::from(x) / 0.7f64).collect();
    let total: f64 = scaled.iter().enumerate().filter(|(t, _)| allowed(*t as u32)).map(|(_, x)| x.exp()).sum();
    let log_prob = |token: usize| scaled[token] - total.ln();
    let entropy: f64 = (0..scaled.len()).filter(|&t| allowed(t as u32)).map(|t| -log_prob(t) * log_prob(t).exp()).sum();

    let scores = model.score(&Pack { prompt: &prompt, completions: vec![&[5], &[35]] }, &policy).unwrap();
    assert!((f64::from(scores.logprobs[0][0]) - log_prob(5)).abs() < 1e-5);
    assert!((f64::from(scores.logprobs[1][0]) - log_prob(35)).abs() < 1e-5);
    assert!((f64::from(scores.entropy[0][0]) - entropy).abs() < 1e-5);
}

#[test]
fn temperature_zero_means_one_and_completions_do_not_see_each_other() {
    let (model, prompt) = setup();
    let completions = random_completions(&mut Rng(13), &[3, 0, 5]);
    let at = |temperature: f32, completions: &[Vec<u32>]| {
        let policy = PolicyDist { temperature, ..PolicyDist::unmasked() };
        model.score(&pack(&prompt, completions), &policy).unwrap()
    };
    let scores = at(1.0, &completions);
    assert_eq!(scores, at(0.0, &completions));
    assert!(scores.logprobs[1].is_empty() && scores.entropy[1].is_empty());
    assert_eq!(scores.logprobs[2], at(1.0, &completions[2..]).logprobs[0]);
    // A prefix of a completion scores the same: nothing looks ahead.
    let prefix = at(1.0, &[completions[2][..2].to_vec()]);
    assert!(max_abs_diff(&prefix.logprobs[0], &scores.logprobs[2][..2]) < 1e-5);
}

#[test]
fn bad_requests_are_refused_by_name() {
    let (model, prompt) = setup();
    let refused = |prompt: &EncodedPrompt, completion: &[u32], word: &str| {
        let error = model.score(&Pack { prompt, completions: vec![completion] }, &policy()).unwrap_err().to_string();
        assert!(error.contains(word), "{error:?} does not say {word:?}");
    };
    refused(&prompt, &[38], "completion token 38");
    refused(&prompt, &[999], "token 999");
    refused(&EncodedPrompt { images: Vec::new(), ..prompt.clone() }, &[1], "6 image tokens");
    refused(&EncodedPrompt { ids: Vec::new(), ..prompt.clone() }, &[1], "empty");
    let mut odd = prompt.clone();
    odd.images[0].grid = [1, 3, 8];
    refused(&odd, &[1], "grid [1, 3, 8]");

    let completions = vec![vec![1, 2]];
    let error = model.gradient(&pack(&prompt, &completions), &policy(), &[vec![1.0]]).unwrap_err();
    assert!(error.to_string().contains("dlogp"));
}

#[test]
fn a_slab_or_layout_of_another_model_is_refused() {
    let config = small_vl(false);
    let (layout, slab) = random_weights(&config, 14);
    let error = |layout: Arc<Layout>, slab: &[f32]| {
        CandleModel::new(&config, layout, slab, &device()).err().unwrap().to_string()
    };
    assert!(error(layout, &slab[1..]).contains("weights slab"));
    let other = Arc::new(Layout::of(&small_vl(true)));
    assert!(error(other.clone(), &vec![0.0; other.total()]).contains("lm_head.weight"));
}
