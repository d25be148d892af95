//! CPU time of a training step and of decoding on random weights: `speed CONFIG_JSON [repeats] [train|decode]`. One thread. The published figures
//! come from the bench crate; this is for working on the kernels.

use quorum_core::types::{Purpose, SampleKey, Sampling};
use quorum_engine::{
    AdamW, Engine, GenRequest, Pack, PackScores, PolicyDist, Trainer, instruction_set, tune_allocator,
};
use quorum_model::{EncodedImage, EncodedPrompt, Layout, ModelConfig, random_weights};
use std::sync::Arc;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// CPU seconds of this process.
fn cpu() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is valid for the call.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

/// Best and median of `n` runs, in milliseconds, after one warm-up.
fn time(n: usize, mut f: impl FnMut() -> Result<()>) -> Result<(f64, f64)> {
    f()?;
    let mut all = Vec::new();
    for _ in 0..n {
        let start = cpu();
        f()?;
        all.push((cpu() - start) * 1e3);
    }
    all.sort_by(f64::total_cmp);
    Ok((all[0], all[all.len() / 2]))
}

fn ids(n: usize, salt: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 7919 + salt * 104_729 + 13) % 500) as u32).collect()
}

/// `text` tokens, with one image of 4×4 patches in the middle if the model sees.
fn prompt(config: &ModelConfig, text: usize, salt: usize) -> EncodedPrompt {
    let mut tokens = ids(text, salt);
    let mut images = Vec::new();
    if let (Some(v), Some(image)) = (&config.vision, config.image_token_id) {
        let patches = (0..16 * v.patch_dim()).map(|i| ((i * 31 + salt) % 200) as f32 * 0.01 - 1.0).collect();
        images.push(EncodedImage { grid: [1, 4, 4], patches });
        let at = text / 2;
        tokens.splice(at..at, [507, image, image, image, image, 508]);
    }
    let positions: Vec<i32> = (0..tokens.len() as i32).collect();
    EncodedPrompt {
        next_position: tokens.len() as i32,
        ids: tokens,
        positions: [positions.clone(), positions.clone(), positions],
        images,
    }
}

fn train(config: &ModelConfig, engine: &Engine, weights: &mut [f32], n: usize) -> Result<()> {
    let (first, rest) = if config.vision.is_some() { (32, 32) } else { (1, 95) };
    let prompts: Vec<EncodedPrompt> = (0..32).map(|i| prompt(config, first, i)).collect();
    let completions: Vec<Vec<u32>> = (0..32).map(|i| ids(rest, i + 99)).collect();
    let packs: Vec<Pack> =
        prompts.iter().zip(&completions).map(|(prompt, c)| Pack { prompt, completions: vec![c] }).collect();
    let mut trainer = Trainer::new(engine.clone(), 1, AdamW::default());
    let tokens = 32 * rest;
    let objective =
        |_: usize, s: &PackScores| s.logprobs.iter().map(|l| vec![-1.0 / tokens as f32; l.len()]).collect::<Vec<_>>();
    let policy = PolicyDist::unmasked();
    let (best, median) = time(n, || {
        trainer.accumulate(weights, &packs, &policy, &objective)?;
        trainer.step(weights, 1e-6)?;
        Ok(())
    })?;
    let (score, _) = time(n, || engine.score(weights, &packs, &policy).map(drop).map_err(Into::into))?;
    println!("train step: best {best:.1} ms, median {median:.1} ms; forward only {score:.1} ms");
    Ok(())
}

fn decode(config: &ModelConfig, engine: &Engine, weights: &[f32], n: usize) -> Result<()> {
    let sampling = Sampling { temperature: 1.0, top_p: 1.0, top_k: 0, max_new_tokens: 48 };
    let key = |sample| SampleKey { seed: 1, purpose: Purpose::Train, step: 0, prompt: 0, sample, view: 0 };
    let prompts: Vec<EncodedPrompt> = (0..64).map(|i| prompt(config, 32, i)).collect();
    let request =
        |prompt, samples: Vec<SampleKey>| GenRequest { prompt, samples, sampling, policy: PolicyDist::unmasked() };
    for (what, groups) in [
        ("64 prompts × 1", prompts.iter().map(|p| request(p, vec![key(0)])).collect::<Vec<_>>()),
        ("8 prompts × 8", prompts.iter().take(8).map(|p| request(p, (0..8).map(key).collect())).collect()),
        ("1 prompt × 8", prompts.iter().take(1).map(|p| request(p, (0..8).map(key).collect())).collect()),
    ] {
        let rows: usize = groups.iter().map(|g| g.samples.len()).sum();
        let (best, median) = time(n, || engine.generate(weights, &groups, &|| false).map(drop).map_err(Into::into))?;
        println!(
            "decode {what} × 48: best {best:.1} ms, median {median:.1} ms, {:.0} tokens/CPU-s",
            (rows * 48) as f64 / best * 1e3
        );
    }
    Ok(())
}

fn main() -> Result<()> {
    tune_allocator();
    let path = std::env::args().nth(1).ok_or("usage: speed CONFIG_JSON [repeats] [train|decode]")?;
    let n = std::env::args().nth(2).map_or(Ok(7), |s| s.parse())?;
    let config = ModelConfig::from_json(std::fs::read(&path)?)?;
    let engine = Engine::new(&config, Arc::new(Layout::of(&config)), 1)?;
    let mut weights = random_weights(&config, 1);
    println!("{path}: {} parameters, {}", weights.len(), instruction_set());
    let only = std::env::args().nth(3);
    if only.as_deref() != Some("decode") {
        train(&config, &engine, &mut weights, n)?;
    }
    if only.as_deref() != Some("train") {
        decode(&config, &engine, &weights, n)?;
    }
    Ok(())
}
