//! Speed of the engine alone on random weights: one thread, process CPU time. The workloads are those of the PyTorch peers
//! (`bench/peers/`): training 32 sequences, decoding 64 prompts, of configurations T (text), V (vision-language) and L (larger text).

use anyhow::{Context, ensure};
use quorum_core::types::{Purpose, SampleKey, Sampling};
use quorum_engine::{
    AdamW, Engine, GenRequest, Pack, PackScores, PolicyDist, Trainer, instruction_set, tune_allocator,
};
use quorum_model::{EncodedImage, EncodedPrompt, Layout, ModelConfig, random_weights};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;

/// Arguments of `train` and `decode`.
#[derive(clap::Args)]
pub struct Args {
    /// T (text), V (vision-language) or L (larger text): a folder of bench/configs.
    #[arg(long)]
    config: String,
    /// Repeats after one warm-up; the median and the best are printed.
    #[arg(long, default_value_t = 9)]
    repeats: usize,
    /// Decode only: samples a prompt (64 rows in all). 1 = 64 different prompts, as the peers do.
    #[arg(long, default_value_t = 1)]
    group: usize,
}

/// One JSON line.
#[derive(Serialize)]
struct Line<'a> {
    bench: &'a str,
    config: &'a str,
    parameters: usize,
    instruction_set: &'a str,
    tokens: usize,
    cpu_ms_median: f64,
    cpu_ms_best: f64,
    tokens_per_cpu_second: f64,
    peak_rss_mb: f64,
}

/// Sequences, tokens a sequence of the training step; prompt and new tokens of decoding; rows of decoding.
struct Shape {
    sequences: usize,
    length: usize,
    prompt: usize,
    new: u32,
    rows: usize,
}

fn shape(name: &str) -> Shape {
    match name {
        "V" => Shape { sequences: 32, length: 64, prompt: 32, new: 48, rows: 64 },
        "L" => Shape { sequences: 8, length: 256, prompt: 32, new: 64, rows: 16 },
        _ => Shape { sequences: 32, length: 96, prompt: 32, new: 48, rows: 64 },
    }
}

/// A training step: forward, backward, clip, AdamW.
pub fn train(args: &Args) -> anyhow::Result<()> {
    let (config, engine, mut weights) = open(&args.config)?;
    let shape = shape(&args.config);
    // The peers' loss covers all but the first token; with an image the text follows it.
    let (first, rest) = if config.vision.is_some() { (0, shape.length) } else { (1, shape.length - 1) };
    let prompts: Vec<_> = (0..shape.sequences).map(|i| prompt(&config, first, i)).collect();
    let texts: Vec<_> = (0..shape.sequences).map(|i| ids(rest, i + 99)).collect();
    let packs: Vec<_> = prompts.iter().zip(&texts).map(|(prompt, c)| Pack { prompt, completions: vec![c] }).collect();
    let mut trainer = Trainer::new(engine, 1, AdamW::default());
    let weight = -1.0 / (shape.sequences * rest) as f32;
    let objective = |_: usize, s: &PackScores| s.logprobs.iter().map(|l| vec![weight; l.len()]).collect::<Vec<_>>();
    let policy = PolicyDist::unmasked();
    let times = measure(args.repeats, || {
        trainer.accumulate(&weights, &packs, &policy, &objective)?;
        trainer.step(&mut weights, 1e-6)?;
        Ok(())
    })?;
    let tokens = prompts.iter().map(|p| p.ids.len() + rest).sum();
    print("train", args, weights.len(), tokens, &times)
}

/// Batched sampling, prefill included.
pub fn decode(args: &Args) -> anyhow::Result<()> {
    let (config, engine, weights) = open(&args.config)?;
    let shape = shape(&args.config);
    ensure!(args.group > 0 && shape.rows.is_multiple_of(args.group), "--group must divide {}", shape.rows);
    let prompts: Vec<_> = (0..shape.rows / args.group).map(|i| prompt(&config, shape.prompt, i)).collect();
    let sampling = Sampling { temperature: 1.0, top_p: 1.0, top_k: 0, max_new_tokens: shape.new };
    let key = |prompt, sample| SampleKey { seed: 1, purpose: Purpose::Train, step: 0, prompt, sample, view: 0 };
    let requests: Vec<_> = (0u64..)
        .zip(&prompts)
        .map(|(row, prompt)| GenRequest {
            prompt,
            samples: (0..args.group as u32).map(|s| key(row, s)).collect(),
            sampling,
            policy: PolicyDist::unmasked(),
        })
        .collect();
    let times = measure(args.repeats, || Ok(engine.generate(&weights, &requests, &|| false).map(drop)?))?;
    print("decode", args, weights.len(), shape.rows * shape.new as usize, &times)
}

fn open(name: &str) -> anyhow::Result<(ModelConfig, Engine, Vec<f32>)> {
    tune_allocator();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs").join(name).join("config.json");
    let json =
        std::fs::read(&path).with_context(|| format!("no configuration {}; there are T, V and L", path.display()))?;
    let config = ModelConfig::from_json(json)?;
    let engine = Engine::new(&config, Arc::new(Layout::of(&config)), 1)?;
    let weights = random_weights(&config, 1);
    Ok((config, engine, weights))
}

fn ids(n: usize, salt: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 7919 + salt * 104_729 + 13) % 500) as u32).collect()
}

/// `text` tokens after, for a model that sees, one image of 4×4 patches.
fn prompt(config: &ModelConfig, text: usize, salt: usize) -> EncodedPrompt {
    let mut tokens = Vec::new();
    let mut images = Vec::new();
    if let (Some(v), Some(image)) = (&config.vision, config.image_token_id) {
        let patches = (0..16 * v.patch_dim()).map(|i| ((i * 31 + salt) % 200) as f32 * 0.01 - 1.0).collect();
        images.push(EncodedImage { grid: [1, 4, 4], patches });
        tokens.extend([507, image, image, image, image, 508]);
    }
    tokens.extend(ids(text, salt));
    let line: Vec<i32> = (0..tokens.len() as i32).collect();
    EncodedPrompt {
        next_position: line.len() as i32,
        ids: tokens,
        positions: [line.clone(), line.clone(), line],
        images,
    }
}

/// CPU milliseconds of each repeat, sorted.
fn measure(repeats: usize, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Vec<f64>> {
    work()?;
    let mut times = Vec::new();
    for _ in 0..repeats.max(1) {
        let start = cpu_seconds();
        work()?;
        times.push((cpu_seconds() - start) * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

fn cpu_seconds() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is valid for the call.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

fn peak_rss_mb() -> f64 {
    // SAFETY: an all-zero rusage is valid, and the pointer is valid for the call.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    usage.ru_maxrss as f64 / 1024.0
}

fn print(bench: &str, args: &Args, parameters: usize, tokens: usize, times: &[f64]) -> anyhow::Result<()> {
    let median = times[times.len() / 2];
    let line = Line {
        bench,
        config: &args.config,
        parameters,
        instruction_set: instruction_set(),
        tokens,
        cpu_ms_median: median,
        cpu_ms_best: times[0],
        tokens_per_cpu_second: tokens as f64 / median * 1e3,
        peak_rss_mb: peak_rss_mb(),
    };
    println!("{}", serde_json::to_string(&line)?);
    Ok(())
}
