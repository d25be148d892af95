//! `train-tokenizer`: a byte-level BPE of Qwen's structure, trained on the texts of data sets. The same texts give the same files.

use anyhow::{Context, Result, anyhow, ensure};
use quorum_data::dataset::{Dataset, ImageCheck, OpenOptions};
use quorum_data::prompt::IMAGE_PLACEHOLDER;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

/// Qwen's special tokens, at the end of the vocabulary.
const SPECIAL_TOKENS: [&str; 8] = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
];

/// Words of the chat template around a prompt; each is met once a text, so they become single tokens.
const TEMPLATE_WORDS: [&str; 2] = ["user\n", "assistant\n"];

/// Turns without a system prompt: the bundled model has no use for its 20 tokens.
const CHAT_TEMPLATE: &str = include_str!("chat_template.jinja");

/// Qwen2's pre-tokenizer: words, single digits, punctuation.
const SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

#[derive(clap::Args)]
pub struct Args {
    /// Data sets (.parquet, .jsonl: questions and responses) and plain text files.
    #[arg(long, required = true, num_args = 1..)]
    text: Vec<PathBuf>,
    /// Size of the vocabulary, special tokens included; fewer if the texts hold fewer pairs.
    #[arg(long, default_value_t = 512)]
    vocab: usize,
    /// Directory to write.
    #[arg(long)]
    out: PathBuf,
}

#[cfg(test)]
impl Args {
    pub fn new(text: Vec<PathBuf>, vocab: usize, out: PathBuf) -> Self {
        Self { text, vocab, out }
    }
}

/// Trains and writes tokenizer.json, vocab.json, merges.txt and tokenizer_config.json.
pub fn run(args: &Args) -> Result<()> {
    let mut texts = Vec::new();
    for path in &args.text {
        texts.extend(read_texts(path)?);
    }
    let tokenizer = train(&texts, args.vocab)?;
    write(&tokenizer, &args.out)?;
    let tokens: usize =
        texts.iter().take(1000).filter_map(|t| tokenizer.encode(t.as_str(), false).ok()).map(|e| e.len()).sum();
    let mean = tokens as f64 / texts.len().clamp(1, 1000) as f64;
    println!(
        "{}: {} tokens, trained on {} texts; the first ones have {mean:.1} tokens each",
        args.out.display(),
        tokenizer.get_vocab_size(true),
        texts.len()
    );
    Ok(())
}

fn read_texts(path: &Path) -> Result<Vec<String>> {
    if !matches!(path.extension().and_then(|e| e.to_str()), Some("parquet" | "jsonl")) {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        return Ok(vec![text]);
    }
    let data = Dataset::open(path, &OpenOptions { check: ImageCheck::Header, ..OpenOptions::default() })?;
    Ok(data
        .records()
        .iter()
        .flat_map(|r| [Some(r.question.replace(IMAGE_PLACEHOLDER, "")), r.response.clone()])
        .flatten()
        .collect())
}

/// A tokenizer of at most `vocab` tokens.
fn train(texts: &[String], vocab: usize) -> Result<Tokenizer> {
    let alphabet = ByteLevel::alphabet();
    let least = alphabet.len() + SPECIAL_TOKENS.len();
    ensure!(vocab >= least, "a byte-level vocabulary needs at least {least} tokens, not {vocab}");
    let empty = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}]},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": {}, "merges": []}
    });
    let failed = |e: tokenizers::Error| anyhow!("tokenizer: {e}");
    let mut tokenizer = Tokenizer::from_bytes(empty.to_string()).map_err(failed)?;
    let bpe = BpeTrainer::builder()
        .vocab_size(vocab - SPECIAL_TOKENS.len())
        .min_frequency(2)
        .initial_alphabet(alphabet.into_iter().collect())
        .show_progress(false)
        .build();
    let template = texts.iter().flat_map(|_| TEMPLATE_WORDS);
    tokenizer
        .train(&mut TrainerWrapper::from(bpe), texts.iter().map(String::as_str).chain(template))
        .map_err(failed)?;
    tokenizer.add_special_tokens(SPECIAL_TOKENS.map(|t| AddedToken::from(t, true))).map_err(failed)?;
    Ok(tokenizer)
}

fn write(tokenizer: &Tokenizer, out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let json = tokenizer.to_string(false).map_err(|e| anyhow!("tokenizer: {e}"))?;
    let parsed: Value = serde_json::from_str(&json)?;
    let put = |name: &str, text: String| {
        fs::write(out.join(name), text).with_context(|| format!("cannot write {name} in {}", out.display()))
    };
    let mut vocab: Vec<(String, u32)> = tokenizer.get_vocab(false).into_iter().collect();
    vocab.sort_by_key(|(_, id)| *id);
    let vocab: serde_json::Map<String, Value> = vocab.into_iter().map(|(token, id)| (token, Value::from(id))).collect();
    put("vocab.json", serde_json::to_string(&vocab)?)?;
    let merges = parsed.pointer("/model/merges").and_then(Value::as_array).context("the tokenizer has no merges")?;
    put("merges.txt", merges.iter().map(merge_line).collect::<Result<String>>()?)?;
    put("tokenizer_config.json", format!("{:#}\n", tokenizer_config(tokenizer)?))?;
    put("tokenizer.json", json)
}

fn merge_line(merge: &Value) -> Result<String> {
    match merge {
        Value::String(pair) => Ok(format!("{pair}\n")),
        Value::Array(pair) => Ok(format!("{}\n", pair.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "))),
        _ => Err(anyhow!("a merge is neither a string nor a pair")),
    }
}

fn tokenizer_config(tokenizer: &Tokenizer) -> Result<Value> {
    let mut added = serde_json::Map::new();
    for token in SPECIAL_TOKENS {
        let id = tokenizer.token_to_id(token).with_context(|| format!("no id for {token}"))?;
        added.insert(
            id.to_string(),
            json!({"content": token, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": true}),
        );
    }
    Ok(json!({
        "add_bos_token": false, "add_prefix_space": false, "added_tokens_decoder": added,
        "additional_special_tokens": &SPECIAL_TOKENS[1..], "bos_token": null, "chat_template": chat_template(),
        "clean_up_tokenization_spaces": false, "eos_token": "<|im_end|>", "errors": "replace", "model_max_length": 1024,
        "pad_token": "<|endoftext|>", "split_special_tokens": false, "tokenizer_class": "Qwen2Tokenizer", "unk_token": null
    }))
}

/// The template without the newline that ends its file.
pub fn chat_template() -> &'static str {
    CHAT_TEMPLATE.strip_suffix('\n').unwrap_or(CHAT_TEMPLATE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts() -> Vec<String> {
        (0..50)
            .flat_map(|i| ["Add the two digits.".to_string(), format!("The digits are {} and 4. \\boxed{{7}}", i % 10)])
            .collect()
    }

    #[test]
    fn training_is_deterministic_and_round_trips_any_text() {
        let (a, b) = (train(&texts(), 320).unwrap(), train(&texts(), 320).unwrap());
        assert_eq!(a.to_string(false).unwrap(), b.to_string(false).unwrap());
        for text in ["The digits are 3 and 4.", "naïve 数 12\n\t\\frac{1}{2}"] {
            let ids = a.encode(text, false).unwrap();
            assert_eq!(a.decode(ids.get_ids(), true).unwrap(), text);
        }
    }

    #[test]
    fn special_tokens_end_the_vocabulary_and_frequent_words_are_one_token() {
        let t = train(&texts(), 512).unwrap();
        let size = t.get_vocab_size(true) as u32;
        assert_eq!(t.token_to_id("<|endoftext|>"), Some(size - 8));
        assert_eq!(t.token_to_id("<|video_pad|>"), Some(size - 1));
        let tokens = t.encode("<|im_start|>user\nThe digits are 34", false).unwrap();
        assert_eq!(tokens.get_tokens(), ["<|im_start|>", "user", "Ċ", "The", "Ġdigits", "Ġare", "Ġ", "3", "4"]);
        assert!(train(&texts(), 200).is_err());
    }
}
