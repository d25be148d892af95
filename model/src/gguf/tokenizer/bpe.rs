//! Byte-level BPE (`tokenizer.ggml.model` = gpt2): merges, and the way each family cuts text into words first.

use super::super::value::{Metadata, missing};
use super::Parts;
use super::vocabulary::Vocabulary;
use serde_json::{Value, json};

const MERGES: &str = "tokenizer.ggml.merges";
/// GPT-2's words, as llama.cpp's fallback has them.
const GPT2_WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
/// Qwen2's words: digits one by one.
const QWEN2_WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Llama 3's words: digits in threes.
const LLAMA3_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How text is cut into words before merging; `tokenizer.ggml.pre` names it.
#[derive(Clone, Copy)]
enum Words {
    Gpt2,
    SmolLm,
    Qwen2,
    Llama3,
    /// What llama.cpp does when the file names none.
    Default,
}

impl Words {
    fn parse(name: Option<&str>) -> Result<Self, String> {
        Ok(match name {
            None | Some("default") => Self::Default,
            Some("gpt-2") => Self::Gpt2,
            Some("smollm") => Self::SmolLm,
            Some("qwen2" | "deepseek-r1-qwen") => Self::Qwen2,
            Some("llama-bpe" | "llama3" | "llama-v3") => Self::Llama3,
            Some(other) => {
                return Err(format!(
                    "has the pre-tokenizer {other:?} (`tokenizer.ggml.pre`), which is not supported; take a model with one of qwen2, \
                     smollm, llama-bpe, gpt-2 or default, or its safetensors checkpoint"
                ));
            }
        })
    }

    fn pre_tokenizer(self) -> Value {
        let bytes = |words: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": words});
        let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let sequence = |steps: &[Value]| json!({"type": "Sequence", "pretokenizers": steps});
        match self {
            Self::Gpt2 => bytes(true),
            Self::SmolLm => sequence(&[json!({"type": "Digits", "individual_digits": true}), bytes(true)]),
            Self::Qwen2 => sequence(&[split(QWEN2_WORDS), bytes(false)]),
            Self::Llama3 => sequence(&[split(LLAMA3_WORDS), bytes(false)]),
            Self::Default => sequence(&[
                split(r"[\p{P}\$\+<=>\^~\|]+"),
                split(GPT2_WORDS),
                split(r"\p{N}+"),
                split("[0-9][0-9][0-9]"),
                bytes(false),
            ]),
        }
    }
}

/// # Errors
/// The pre-tokenizer is not known, or a merge is not of two tokens that make a third.
pub(super) fn parts(m: &Metadata, vocabulary: &Vocabulary) -> Result<Parts, String> {
    let words = Words::parse(m.text("tokenizer.ggml.pre")?)?;
    let merges = m.texts(MERGES)?.ok_or_else(|| missing(MERGES))?;
    for (rank, merge) in merges.iter().enumerate() {
        check_merge(merge, vocabulary)
            .map_err(|problem| format!("has a damaged merge {rank} in `{MERGES}`: {problem}; download it again"))?;
    }
    let llama3 = matches!(words, Words::Llama3);
    Ok(Parts {
        // As the families' own tokenizers; llama.cpp leaves this step out.
        normalizer: if matches!(words, Words::Qwen2) { json!({"type": "NFC"}) } else { Value::Null },
        pre_tokenizer: words.pre_tokenizer(),
        decoder: json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        model: json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": llama3,
            "vocab": vocabulary.json(),
            "merges": merges,
        }),
        adds_bos: llama3,
    })
}

fn check_merge(merge: &str, vocabulary: &Vocabulary) -> Result<(), String> {
    let (left, right) = merge.split_once(' ').ok_or_else(|| format!("{merge:?} is not two tokens"))?;
    match [left, right, &format!("{left}{right}")].into_iter().find(|t| vocabulary.id(t).is_none()) {
        None => Ok(()),
        Some(token) => Err(format!("{merge:?} needs the token {token:?}, which does not exist")),
    }
}
