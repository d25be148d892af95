//! Peak memory of a training step and the time to load weights. Each figure of `memory` is of a process of its own that does two whole steps
//! (forward, backward, AdamW) of one batch; the weights are made up at the shapes of Qwen2.5-0.5B, or read from a model directory.

use anyhow::{Context, ensure};
use quorum_core::config::{LoraSection, Precision, TrainSection};
use quorum_engine::{AdamW, Engine, Pack, PackScores, PolicyDist, Trainer, tune_allocator};
use quorum_model::{
    Checkpoint, EncodedPrompt, FrozenSource, Layout, ModelConfig, Partition, RawTensor, SaveDtype, StoredWeights,
};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

/// What learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Everything, f32.
    Full,
    /// Everything, bf16 weights with f32 masters.
    FullBf16,
    /// Adapters on all linear layers.
    Lora,
}

/// Arguments of `memory`.
#[derive(clap::Args)]
pub struct Args {
    /// One mode in this process; without it, each in a process of its own, and the ratio.
    #[arg(long)]
    mode: Option<Mode>,
    /// A model directory; without it, made-up weights at the shapes of Qwen2.5-0.5B.
    #[arg(long)]
    model: Option<PathBuf>,
    #[arg(long, default_value_t = 8)]
    rank: u32,
    /// Prompts of the batch, samples a prompt, and tokens of both.
    #[arg(long, default_value_t = 2)]
    prompts: usize,
    #[arg(long, default_value_t = 4)]
    samples: usize,
    #[arg(long, default_value_t = 64)]
    prompt_tokens: usize,
    #[arg(long, default_value_t = 64)]
    new_tokens: usize,
    #[arg(long, default_value_t = 1)]
    lanes: usize,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[arg(long)]
    checkpointing: bool,
}

/// One JSON line.
#[derive(Serialize)]
struct Line {
    bench: &'static str,
    mode: Mode,
    parameters: usize,
    trainable: usize,
    tokens: usize,
    lanes: usize,
    checkpointing: bool,
    load_seconds: f64,
    step_seconds: f64,
    peak_rss_mb: f64,
}

/// Peak memory of one mode, or of full training and LoRA with their ratio.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(mode) = args.mode {
        let line = step(args, mode)?;
        println!("{}", serde_json::to_string(&line)?);
        return Ok(());
    }
    let mut peaks = Vec::new();
    for mode in ["full", "full-bf16", "lora"] {
        let given: Vec<String> = std::env::args().skip(1).collect();
        let out = Command::new(std::env::current_exe()?).args(given).args(["--mode", mode]).output()?;
        ensure!(out.status.success(), "{mode}: {}", String::from_utf8_lossy(&out.stderr));
        let text = String::from_utf8(out.stdout)?;
        print!("{text}");
        let line: serde_json::Value = serde_json::from_str(&text)?;
        peaks.push(line["peak_rss_mb"].as_f64().context("peak_rss_mb")?);
    }
    println!("{}", serde_json::json!({"bench": "memory", "lora_of_full": peaks[2] / peaks[0]}));
    Ok(())
}

fn step(args: &Args, mode: Mode) -> anyhow::Result<Line> {
    tune_allocator();
    let start = Instant::now();
    let (config, engine, mut weights) = open(args, mode)?;
    let load_seconds = start.elapsed().as_secs_f64();
    let (layout, parts) = (Layout::of(&config), engine.partition().clone());
    let mut trainer = Trainer::new(engine, args.lanes, AdamW::default()).with_checkpointing(args.checkpointing);
    let prompts: Vec<EncodedPrompt> = (0..args.prompts).map(|i| prompt(args.prompt_tokens, i)).collect();
    let completions: Vec<Vec<u32>> = (0..args.prompts * args.samples).map(|i| ids(args.new_tokens, 1000 + i)).collect();
    let packs: Vec<Pack> = prompts
        .iter()
        .zip(completions.chunks(args.samples.max(1)))
        .map(|(prompt, c)| Pack { prompt, completions: c.iter().map(Vec::as_slice).collect() })
        .collect();
    let objective = |_: usize, s: &PackScores| s.logprobs.iter().map(|l| vec![-1e-3; l.len()]).collect();
    let start = Instant::now();
    for _ in 0..2 {
        trainer.accumulate(&weights, &packs, &PolicyDist::unmasked(), &objective)?;
        ensure!(trainer.step(&mut weights, 1e-6)?.finite, "the gradient is not finite");
    }
    Ok(Line {
        bench: "memory",
        mode,
        parameters: layout.total(),
        trainable: parts.trainable.total(),
        tokens: args.prompts * (args.prompt_tokens + args.samples * args.new_tokens),
        lanes: args.lanes,
        checkpointing: args.checkpointing,
        load_seconds,
        step_seconds: start.elapsed().as_secs_f64() / 2.0,
        peak_rss_mb: peak_rss_mb()?,
    })
}

fn train(mode: Mode, rank: u32) -> TrainSection {
    match mode {
        Mode::Full => TrainSection::default(),
        Mode::FullBf16 => TrainSection { precision: Precision::Bf16, ..TrainSection::default() },
        Mode::Lora => TrainSection { lora: LoraSection { rank, ..LoraSection::default() }, ..TrainSection::default() },
    }
}

fn open(args: &Args, mode: Mode) -> anyhow::Result<(ModelConfig, Engine, Vec<f32>)> {
    let train = train(mode, args.rank);
    let Some(dir) = &args.model else { return made_up(&train, args.threads) };
    let model = Checkpoint::open(dir)?;
    let parts = Partition::of(&model.config, &model.layout, &train)?;
    let source = FrozenSource::new(model.stored()?, &parts);
    let mut loader = Engine::loader(&model.config, parts.clone(), source.bf16(), args.threads)?;
    source.visit(|e, tensor| loader.put(&e.name, &tensor).map_err(anyhow::Error::from))?;
    let weights = match parts.lora {
        Some(_) => parts.fresh_adapters(1),
        None => source.stored().load(&parts.trainable)?,
    };
    Ok((model.config, loader.finish()?, weights))
}

fn made_up(train: &TrainSection, threads: usize) -> anyhow::Result<(ModelConfig, Engine, Vec<f32>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/Q05/config.json");
    let config = ModelConfig::from_json(&std::fs::read(&path).with_context(|| path.display().to_string())?)?;
    let layout = Arc::new(Layout::of(&config));
    let parts = Partition::of(&config, &layout, train)?;
    let mut loader = Engine::loader(&config, parts.clone(), true, threads)?;
    let mut bytes = Vec::new();
    for e in parts.frozen.entries() {
        bytes.clear();
        bytes.extend(e.range.clone().flat_map(|i| ((value(i, &e.shape).to_bits() >> 16) as u16).to_le_bytes()));
        loader.put(&e.name, &RawTensor::new(SaveDtype::Bf16, &bytes))?;
    }
    let mut weights = parts.fresh_adapters(1);
    if parts.lora.is_none() {
        for e in parts.trainable.entries() {
            weights[e.range.clone()].iter_mut().enumerate().for_each(|(i, x)| *x = value(i, &e.shape));
        }
    }
    Ok((config, loader.finish()?, weights))
}

/// Norms near 1, matrices uniform with deviation 1 / √in.
fn value(i: usize, shape: &[usize]) -> f32 {
    let uniform =
        (i as u32).wrapping_mul(0x9E37_79B1).rotate_left(15).wrapping_mul(0x85EB_CA6B) as f32 / u32::MAX as f32;
    match shape {
        [_, n] => (uniform - 0.5) * 3.4 / (*n as f32).sqrt(),
        _ => 1.0,
    }
}

fn ids(n: usize, salt: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 7919 + salt * 104_729 + 13) % 100_000) as u32).collect()
}

fn prompt(n: usize, salt: usize) -> EncodedPrompt {
    let positions: Vec<i32> = (0..n as i32).collect();
    EncodedPrompt {
        ids: ids(n, salt),
        next_position: n as i32,
        positions: [positions.clone(), positions.clone(), positions],
        images: Vec::new(),
    }
}

/// Arguments of `load`.
#[derive(clap::Args)]
pub struct LoadArgs {
    /// A model directory.
    #[arg(long)]
    model: PathBuf,
    /// Repeats; the median is printed.
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

/// Times of reading the weights' files (warm), of loading them as an f32 slab for full training, and as frozen weights for LoRA.
pub fn load(args: &LoadArgs) -> anyhow::Result<()> {
    tune_allocator();
    let model = Checkpoint::open(&args.model)?;
    let files: Vec<PathBuf> = std::fs::read_dir(&args.model)?
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    let train = train(Mode::Lora, 8);
    let parts = Partition::of(&model.config, &model.layout, &train)?;
    let read = median(args.repeats, || {
        let mut n = 0;
        for f in &files {
            n += std::fs::read(f)?.len();
        }
        ensure!(n > 0, "no *.safetensors in {}", args.model.display());
        Ok(())
    })?;
    let slab = median(args.repeats, || {
        ensure!(!model.load_weights()?.is_empty(), "no weights");
        Ok(())
    })?;
    let frozen = median(args.repeats, || {
        let stored = StoredWeights::open(&args.model, &model.layout, model.config.tie_word_embeddings)?;
        let source = FrozenSource::new(stored, &parts);
        let mut loader = Engine::loader(&model.config, parts.clone(), source.bf16(), args.threads)?;
        source.visit(|e, tensor| loader.put(&e.name, &tensor).map_err(anyhow::Error::from))?;
        loader.finish()?;
        Ok(())
    })?;
    let figures = serde_json::json!({
        "bench": "load", "parameters": model.layout.total(), "read_seconds": read, "slab_seconds": slab,
        "frozen_seconds": frozen, "slab_of_read": slab / read, "frozen_of_read": frozen / read,
    });
    println!("{figures}");
    Ok(())
}

fn median(n: usize, mut f: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    f()?;
    let mut all = Vec::new();
    for _ in 0..n.max(1) {
        let start = Instant::now();
        f()?;
        all.push(start.elapsed().as_secs_f64());
    }
    all.sort_by(f64::total_cmp);
    Ok(all[all.len() / 2])
}

fn peak_rss_mb() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).context("VmHWM in /proc/self/status")?;
    let kb: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kb / 1024.0)
}
