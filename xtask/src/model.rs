//! `new-model`: a complete Hugging Face checkpoint directory of a small Qwen2.5-VL with fresh weights, for 56 × 56 images (4 image tokens).

use crate::tokenizer::chat_template;
use anyhow::{Context, Result, ensure};
use quorum_model::{Checkpoint, SaveDtype, random_weights};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Pixels of an image as the model sees it: 56 × 56, so that the bundled images are not resized.
const PIXELS: u64 = 56 * 56;

#[derive(clap::Args)]
pub struct Args {
    /// Directory made by train-tokenizer.
    #[arg(long)]
    tokenizer: PathBuf,
    /// Directory to write; must not exist, or be empty.
    #[arg(long)]
    out: PathBuf,
    /// Seed of the weights.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    shape: Shape,
}

/// Shapes, in elements.
#[derive(Debug, Clone, clap::Args)]
pub struct Shape {
    #[arg(long, default_value_t = 128)]
    hidden: usize,
    #[arg(long, default_value_t = 4)]
    layers: usize,
    #[arg(long, default_value_t = 4)]
    heads: usize,
    #[arg(long, default_value_t = 2)]
    kv_heads: usize,
    #[arg(long, default_value_t = 384)]
    intermediate: usize,
    #[arg(long, default_value_t = 4)]
    vision_depth: usize,
    #[arg(long, default_value_t = 64)]
    vision_hidden: usize,
    #[arg(long, default_value_t = 4)]
    vision_heads: usize,
    #[arg(long, default_value_t = 128)]
    vision_intermediate: usize,
}

/// Writes the checkpoint and prints its size.
pub fn run(args: &Args) -> Result<()> {
    let files = side_files(&args.tokenizer, &args.shape)?;
    let checkpoint = Checkpoint::from_files(&files)?;
    let weights = random_weights(&checkpoint.config, args.seed);
    checkpoint.save(&args.out, &weights, SaveDtype::F32)?;
    println!("{}: {} parameters, vocabulary {}", args.out.display(), weights.len(), checkpoint.config.text.vocab_size);
    Ok(())
}

/// Everything of the directory but the weights.
fn side_files(tokenizer: &Path, shape: &Shape) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for name in ["tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"] {
        let path = tokenizer.join(name);
        let bytes = fs::read(&path)
            .with_context(|| format!("cannot read {}; make it with `xtask train-tokenizer`", path.display()))?;
        files.insert(name.to_string(), bytes);
    }
    let parsed: Value = serde_json::from_slice(&files["tokenizer.json"]).context("tokenizer.json")?;
    let ids = Ids::of(&parsed)?;
    let mut put = |name: &str, value: Value| files.insert(name.to_string(), format!("{value:#}\n").into_bytes());
    put("config.json", config(shape, &ids)?);
    put("generation_config.json", generation_config(&ids)?);
    put("preprocessor_config.json", preprocessor_config());
    put("chat_template.json", json!({"chat_template": chat_template()}));
    Ok(files)
}

/// Ids of the special tokens, and the size of the vocabulary.
struct Ids {
    special: BTreeMap<String, u64>,
    size: u64,
}

impl Ids {
    fn of(tokenizer: &Value) -> Result<Self> {
        let added =
            tokenizer.get("added_tokens").and_then(Value::as_array).context("tokenizer.json has no added_tokens")?;
        let special: BTreeMap<String, u64> = added
            .iter()
            .filter_map(|t| Some((t.get("content")?.as_str()?.to_string(), t.get("id")?.as_u64()?)))
            .collect();
        let size = special.values().max().context("tokenizer.json has no special tokens")? + 1;
        Ok(Self { special, size })
    }

    fn get(&self, token: &str) -> Result<u64> {
        self.special.get(token).copied().with_context(|| format!("the tokenizer has no {token}"))
    }
}

fn config(shape: &Shape, ids: &Ids) -> Result<Value> {
    ensure!(shape.heads > 0 && shape.hidden.is_multiple_of(shape.heads), "hidden must be a multiple of heads");
    ensure!(shape.kv_heads > 0 && shape.heads.is_multiple_of(shape.kv_heads), "heads must be a multiple of kv-heads");
    ensure!(
        shape.vision_heads > 0 && shape.vision_hidden.is_multiple_of(4 * shape.vision_heads),
        "vision-hidden must be a multiple of 4 × vision-heads"
    );
    ensure!(shape.layers > 0 && shape.vision_depth > 0, "layers and vision-depth must be at least 1");
    let head = shape.hidden / shape.heads;
    ensure!(head.is_multiple_of(16), "hidden / heads = {head} must be a multiple of 16 for three rotary axes");
    Ok(json!({
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "attention_dropout": 0.0,
        "bos_token_id": ids.get("<|endoftext|>")?, "eos_token_id": ids.get("<|im_end|>")?,
        "vision_start_token_id": ids.get("<|vision_start|>")?, "vision_end_token_id": ids.get("<|vision_end|>")?,
        "vision_token_id": ids.get("<|vision_pad|>")?, "image_token_id": ids.get("<|image_pad|>")?, "video_token_id": ids.get("<|video_pad|>")?,
        "hidden_act": "silu", "hidden_size": shape.hidden, "initializer_range": 0.02, "intermediate_size": shape.intermediate,
        "max_position_embeddings": 1024, "max_window_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers, "num_key_value_heads": shape.kv_heads, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0,
        "sliding_window": 1024, "use_sliding_window": false, "tie_word_embeddings": true, "torch_dtype": "float32", "use_cache": true,
        "rope_scaling": {"type": "mrope", "mrope_section": [head / 8, head * 3 / 16, head * 3 / 16]},
        "vocab_size": ids.size, "vision_config": vision_config(shape)
    }))
}

fn vision_config(shape: &Shape) -> Value {
    json!({
        "model_type": "qwen2_5_vl", "depth": shape.vision_depth, "hidden_act": "silu", "hidden_size": shape.vision_hidden,
        "intermediate_size": shape.vision_intermediate, "num_heads": shape.vision_heads, "in_chans": 3, "in_channels": 3,
        "out_hidden_size": shape.hidden, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "window_size": 56,
        "fullatt_block_indexes": [shape.vision_depth - 1], "tokens_per_second": 2, "temporal_patch_size": 2
    })
}

/// No repetition penalty: answers repeat digits.
fn generation_config(ids: &Ids) -> Result<Value> {
    let (end, pad) = (ids.get("<|im_end|>")?, ids.get("<|endoftext|>")?);
    Ok(
        json!({"bos_token_id": pad, "do_sample": true, "eos_token_id": [end, pad], "pad_token_id": pad, "temperature": 1.0}),
    )
}

fn preprocessor_config() -> Value {
    json!({
        "min_pixels": PIXELS, "max_pixels": PIXELS, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Defaults {
        #[command(flatten)]
        shape: Shape,
    }

    #[test]
    fn a_new_model_opens_and_sees_a_bundled_image_as_four_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("text.txt");
        fs::write(&text, "What is the sum of the two digits?\n".repeat(9)).unwrap();
        let tokenizer = dir.path().join("tokenizer");
        crate::tokenizer::run(&crate::tokenizer::Args::new(vec![text], 300, tokenizer.clone())).unwrap();
        let out = dir.path().join("model");
        let shape = Defaults::parse_from(["x", "--layers", "2", "--hidden", "64"]).shape;
        run(&Args { tokenizer, out: out.clone(), seed: 3, shape }).unwrap();
        let checkpoint = Checkpoint::open(&out).unwrap();
        assert_eq!(checkpoint.load_weights().unwrap(), random_weights(&checkpoint.config, 3));
        let prompt =
            checkpoint.processor.encode_prompt("<image>What is the sum?", &[image::RgbImage::new(56, 56)]).unwrap();
        assert_eq!(prompt.images[0].grid, [1, 4, 4]);
        let image_token = checkpoint.config.image_token_id.unwrap();
        assert_eq!(prompt.ids.iter().filter(|id| **id == image_token).count(), 4);
        let shown = checkpoint.processor.decode(&prompt.ids, true).unwrap();
        assert_eq!(shown, "user\nWhat is the sum?\nassistant\n");
    }

    #[test]
    fn impossible_shapes_are_refused() {
        let ids = Ids { special: BTreeMap::new(), size: 300 };
        for wrong in
            [["--heads", "3"], ["--kv-heads", "3"], ["--hidden", "32"], ["--vision-heads", "3"], ["--layers", "0"]]
        {
            let shape = Defaults::parse_from(["x"].into_iter().chain(wrong)).shape;
            assert!(config(&shape, &ids).unwrap_err().to_string().contains("must be"), "{wrong:?}");
        }
    }
}
