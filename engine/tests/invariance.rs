//! D1 and D2: a sample does not depend on batch, order or threads, and its log-probs are the training forward's, bit for bit.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Model, bits, model, model_of};
use quorum_core::types::Finish;
use quorum_engine::{AdamW, EngineError, GenRequest, PackScores, Sample, Trainer};
use std::sync::atomic::{AtomicUsize, Ordering};

fn logprobs(samples: &[Vec<Sample>]) -> Vec<Vec<u32>> {
    bits(samples.iter().flatten().map(|s| &s.logprobs))
}

/// Every shape of block: biases, qk-norm, LayerNorm towers, windows, deepstack.
const SHAPES: [&str; 4] = ["qwen2_5_vl", "qwen3_text", "qwen2_vl", "qwen3_vl"];

#[test]
fn rollout_logprobs_are_the_training_forwards_bit_for_bit() {
    SHAPES.iter().for_each(|name| rollout_is_training(&model_of(name)));
}

fn rollout_is_training(m: &Model) {
    let groups = m.requests();
    let samples = m.generate(2, &groups);
    let tokens: usize = samples.iter().flatten().map(|s| s.tokens.len()).sum();
    assert!(tokens > 300, "only {tokens} tokens were sampled");
    let packs = m.packs(&groups, &samples);
    let scores = m.engine(1).score(&m.weights, &packs, &m.policy()).unwrap();
    assert_eq!(bits(scores.iter().flat_map(|s| &s.logprobs)), logprobs(&samples));

    let mut trainer = Trainer::new(m.engine(2), 3, AdamW::default());
    let ones = |_: usize, s: &PackScores| s.logprobs.iter().map(|l| vec![1.0; l.len()]).collect::<Vec<_>>();
    let trained = trainer.accumulate(&m.weights, &packs, &m.policy(), &ones).unwrap();
    assert_eq!(trained, scores, "the forward of training is the forward of scoring");
}

#[test]
fn samples_do_not_depend_on_threads_batch_or_order() {
    SHAPES.iter().for_each(|name| samples_depend_on_nothing_else(&model_of(name)));
}

fn samples_depend_on_nothing_else(m: &Model) {
    let groups = m.requests();
    let together = m.generate(1, &groups);
    for threads in [2, 3, 7] {
        assert_eq!(m.generate(threads, &groups), together, "{threads} threads");
    }
    let reversed: Vec<GenRequest> = groups.iter().rev().cloned().collect();
    let mut backwards = m.generate(2, &reversed);
    backwards.reverse();
    assert_eq!(backwards, together);
    for (g, want) in groups.iter().zip(&together) {
        assert_eq!(&m.generate(1, std::slice::from_ref(g))[0], want, "a group alone");
        for (key, want) in g.samples.iter().zip(want) {
            let alone = GenRequest { samples: vec![*key], ..g.clone() };
            assert_eq!(&m.generate(1, &[alone])[0][0], want, "a row alone");
        }
    }
    let distinct: std::collections::HashSet<_> = together[2].iter().map(|s| &s.tokens).collect();
    assert!(distinct.len() > 1, "samples of a group must differ");
}

#[test]
fn scores_do_not_depend_on_company() {
    SHAPES.iter().for_each(|name| scores_depend_on_nothing_else(&model_of(name)));
}

fn scores_depend_on_nothing_else(m: &Model) {
    let groups = m.requests();
    let samples = m.generate(2, &groups);
    let packs = m.packs(&groups, &samples);
    let together = m.engine(2).score(&m.weights, &packs, &m.policy()).unwrap();
    for (pack, want) in packs.iter().zip(&together) {
        let alone = m.engine(1).score(&m.weights, std::slice::from_ref(pack), &m.policy()).unwrap();
        assert_eq!(&alone[0], want);
        for (c, &tokens) in pack.completions.iter().enumerate() {
            let one = quorum_engine::Pack { prompt: pack.prompt, completions: vec![tokens] };
            let row = m.engine(1).score(&m.weights, &[one], &m.policy()).unwrap();
            assert_eq!(row[0].logprobs[0], want.logprobs[c]);
            assert_eq!(row[0].entropy[0], want.entropy[c]);
        }
    }
}

#[test]
fn forbidden_tokens_never_come_and_stop_tokens_end() {
    let m = model();
    let mut g = m.request(2, 32, 30);
    // Stop at tokens the model likes, forbid what it likes most.
    let free = m.generate(2, std::slice::from_ref(&g));
    let mut count = vec![0; m.checkpoint.config.text.vocab_size];
    for s in free.iter().flatten() {
        for &t in &s.tokens {
            count[t as usize] += 1;
        }
    }
    let mut order: Vec<u32> = (0..count.len() as u32).collect();
    order.sort_by_key(|&t| std::cmp::Reverse(count[t as usize]));
    g.policy.forbidden.extend(&order[..10]);
    g.policy.stop = order[10..30].to_vec();
    let samples = m.generate(2, &[g.clone()]);
    let mut stopped = 0;
    for s in samples.iter().flatten() {
        assert!(s.tokens.iter().all(|t| !g.policy.forbidden.contains(t)));
        let ends: Vec<usize> = (0..s.tokens.len()).filter(|&i| g.policy.stop.contains(&s.tokens[i])).collect();
        match s.finish {
            Finish::Stop => assert_eq!(ends, [s.tokens.len() - 1], "nothing follows a stop token"),
            Finish::Length => assert!(ends.is_empty() && s.tokens.len() == 30),
        }
        stopped += usize::from(s.finish == Finish::Stop);
    }
    assert!(stopped > 0, "no row met a stop token");
    let probabilities: f32 = samples.iter().flatten().flat_map(|s| &s.logprobs).copied().fold(0.0, f32::max);
    assert!(probabilities <= 0.0);
}

#[test]
fn top_k_of_one_is_greedy() {
    let m = model();
    let mut g = m.request(0, 3, 20);
    g.sampling.top_k = 1;
    let sampled = m.generate(1, &[g.clone()]);
    g.sampling.temperature = 0.0;
    let greedy = m.generate(1, &[g]);
    assert_eq!(sampled, greedy);
}

#[test]
fn cancelling_and_bad_input_are_errors() {
    let m = model();
    let engine = m.engine(2);
    let asked = AtomicUsize::new(0);
    let cancel = || asked.fetch_add(1, Ordering::Relaxed) >= 5;
    assert_eq!(engine.generate(&m.weights, &m.requests(), &cancel), Err(EngineError::Cancelled));
    let mut damaged = m.weights.clone();
    damaged[m.checkpoint.layout.get("model.norm.weight").unwrap().range.start] = f32::NAN;
    assert!(matches!(engine.generate(&damaged, &m.requests(), &|| false), Err(EngineError::NotFinite(_))));
    assert!(matches!(engine.generate(&m.weights[1..], &m.requests(), &|| false), Err(EngineError::SlabLength { .. })));
    let mut g = m.request(0, 1, 5);
    g.sampling.temperature = f32::NAN;
    assert!(matches!(engine.generate(&m.weights, &[g], &|| false), Err(EngineError::Request(_))));
    let mut prompt = m.prompts[0].clone();
    prompt.images.clear();
    let g = GenRequest { prompt: &prompt, ..m.request(0, 1, 5) };
    assert!(matches!(engine.generate(&m.weights, &[g], &|| false), Err(EngineError::Request(_))));
    assert_eq!(engine.generate(&m.weights, &[], &|| false), Ok(vec![]));
}

#[test]
fn changed_weights_are_noticed() {
    let m = model();
    let engine = m.engine(1);
    let g = m.request(0, 2, 10);
    let before = engine.generate(&m.weights, std::slice::from_ref(&g), &|| false).unwrap();
    let mut weights = m.weights.clone();
    let r = m.checkpoint.layout.get("model.layers.1.mlp.up_proj.weight").unwrap().range.clone();
    weights[r.start + 77] += 0.5;
    let after = engine.generate(&weights, std::slice::from_ref(&g), &|| false).unwrap();
    assert_ne!(before, after, "one changed weight changes the log-probs");
    assert_eq!(m.generate(1, std::slice::from_ref(&g)), before);
    assert_eq!(engine.generate(&m.weights, &[g], &|| false).unwrap(), before);
}
