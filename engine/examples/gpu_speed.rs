//! Tokens a second of decoding and training on random weights: `gpu_speed CONFIG_JSON DEVICE [seconds] [train|decode]`. Wall clock, one JSON line a workload.
//! The PyTorch side of the same workloads is `bench/peers/torch_gpu_speed.py`.

use quorum_core::config::Precision;
use quorum_core::types::{Purpose, SampleKey, Sampling};
use quorum_engine::{AdamW, Devices, Engine, GenRequest, Pack, PackScores, PolicyDist, Trainer};
use quorum_model::{EncodedPrompt, Layout, ModelConfig, Partition};
use std::sync::Arc;
use std::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Prompts, tokens of each, and new tokens of each response.
const DECODE: [usize; 3] = [64, 256, 128];
/// Sequences, prompt tokens, completion tokens of a training batch.
const TRAIN: [usize; 3] = [8, 256, 768];

fn prompt(vocab: usize, tokens: usize, salt: usize) -> EncodedPrompt {
    let ids: Vec<u32> = (0..tokens).map(|i| ((i * 7919 + salt * 104_729 + 13) % vocab) as u32).collect();
    let positions: Vec<i32> = (0..tokens as i32).collect();
    let positions = [positions.clone(), positions.clone(), positions];
    EncodedPrompt { next_position: tokens as i32, ids, positions, images: Vec::new() }
}

/// Weights of about the size of a trained model's, by eight threads: what `random_weights` does would take a minute for three billion.
fn weights(layout: &Layout) -> Vec<f32> {
    let mut slab = vec![0.0f32; layout.total()];
    let part = slab.len().div_ceil(8).max(1);
    std::thread::scope(|scope| {
        for (number, part) in slab.chunks_mut(part).enumerate() {
            scope.spawn(move || {
                let mut state = number as u64 + 1;
                for x in part {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    *x = ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 0.07;
                }
            });
        }
    });
    for entry in layout.entries().iter().filter(|e| e.shape.len() == 1) {
        slab[entry.range.clone()].fill(if entry.name.ends_with(".bias") { 0.0 } else { 1.0 });
    }
    slab
}

/// Seconds of the best run within the budget, after one warm-up.
fn best(budget: f64, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let begin = Instant::now();
    run()?;
    let mut best = f64::INFINITY;
    loop {
        let start = Instant::now();
        run()?;
        best = best.min(start.elapsed().as_secs_f64());
        if begin.elapsed().as_secs_f64() > budget {
            return Ok(best);
        }
    }
}

fn decode(config: &ModelConfig, engine: &Engine, weights: &[f32], budget: f64) -> Result<()> {
    let [rows, tokens, new] = DECODE;
    let prompts: Vec<EncodedPrompt> = (0..rows).map(|i| prompt(config.text.vocab_size, tokens, i)).collect();
    let sampling = Sampling { temperature: 1.0, top_p: 1.0, top_k: 0, max_new_tokens: new as u32 };
    let key = SampleKey { seed: 1, purpose: Purpose::Train, step: 0, prompt: 0, sample: 0, view: 0 };
    let request = |prompt| GenRequest { prompt, samples: vec![key], sampling, policy: PolicyDist::unmasked() };
    let groups: Vec<_> = prompts.iter().map(request).collect();
    let mut made = 0;
    let seconds = best(budget, || {
        made = engine.generate(weights, &groups, &|| false)?.iter().flatten().map(|s| s.tokens.len()).sum();
        Ok(())
    })?;
    let rate = made as f64 / seconds;
    println!(
        r#"{{"workload":"decode","rows":{rows},"prompt":{tokens},"new":{new},"seconds":{seconds:.4},"tokens_per_second":{rate:.1}}}"#
    );
    Ok(())
}

fn train(config: &ModelConfig, engine: &Engine, weights: &mut [f32], budget: f64) -> Result<()> {
    let [rows, first, rest] = TRAIN;
    let vocab = config.text.vocab_size;
    let prompts: Vec<EncodedPrompt> = (0..rows).map(|i| prompt(vocab, first, i)).collect();
    let completions: Vec<Vec<u32>> = (0..rows).map(|i| prompt(vocab, rest, i + 99).ids).collect();
    let pack = |(prompt, c): (_, &'static [u32])| Pack { prompt, completions: vec![c] };
    // Leaked so that a pack may hold them beside the prompts; the process ends soon.
    let completions = completions.into_iter().map(|c| &*Box::leak(c.into_boxed_slice()));
    let packs: Vec<Pack> = prompts.iter().zip(completions).map(pack).collect();
    let mut trainer = Trainer::new(engine.clone(), 1, AdamW::default()).with_checkpointing(true);
    let share = -1.0 / (rows * rest) as f32;
    let objective = |_: usize, s: &PackScores| s.logprobs.iter().map(|l| vec![share; l.len()]).collect::<Vec<_>>();
    let policy = PolicyDist::unmasked();
    let seconds = best(budget, || {
        trainer.accumulate(weights, &packs, &policy, &objective)?;
        trainer.clear();
        Ok(())
    })?;
    let tokens = rows * (first + rest);
    let rate = tokens as f64 / seconds;
    println!(
        r#"{{"workload":"forward and backward","rows":{rows},"tokens":{tokens},"seconds":{seconds:.4},"tokens_per_second":{rate:.1}}}"#
    );
    let start = Instant::now();
    trainer.accumulate(weights, &packs, &policy, &objective)?;
    let forward = start.elapsed().as_secs_f64();
    trainer.step(weights, 1e-6)?;
    let seconds = start.elapsed().as_secs_f64() - forward;
    println!(r#"{{"workload":"optimiser step on the host","seconds":{seconds:.4}}}"#);
    Ok(())
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: gpu_speed CONFIG_JSON DEVICE [seconds] [train|decode]";
    let (path, device) = (arguments.next().ok_or(usage)?, arguments.next().ok_or(usage)?);
    let budget = arguments.next().map_or(Ok(20.0), |s| s.parse())?;
    let only = arguments.next();
    let device: Devices = device.parse()?;
    device.check().map_err(|e| e.to_string())?;
    let config = ModelConfig::from_json(std::fs::read(&path)?)?;
    let layout = Arc::new(Layout::of(&config));
    let start = Instant::now();
    let mut weights = weights(&layout);
    let mut parts = Partition::full(layout);
    parts.precision = Precision::Bf16;
    let engine = Engine::loader_on(device, &config, parts, true, 8)?.finish()?;
    eprintln!("{} parameters on {}, made in {:.1} s", weights.len(), engine.devices(), start.elapsed().as_secs_f64());
    if only.as_deref() != Some("train") {
        decode(&config, &engine, &weights, budget)?;
    }
    if only.as_deref() != Some("decode") {
        train(&config, &engine, &mut weights, budget)?;
    }
    Ok(())
}
