//! SentencePiece BPE (`tokenizer.ggml.model` = llama): merges rebuilt from the pieces' scores. Not the unigram model of T5.

use super::super::value::{Metadata, missing};
use super::Parts;
use super::vocabulary::{Kind, Vocabulary};
use serde_json::{Value, json};

const SCORES: &str = "tokenizer.ggml.scores";
/// Bytes a piece may have. Trainers stop at 16 characters; ways to split grow with the square.
const LONGEST: usize = 1024;
/// SentencePiece's visible space.
const SPACE: &str = "▁";

/// # Errors
/// Scores are missing, or two pieces that merges make have the same one: then the order of merging is not in the file.
pub(super) fn parts(m: &Metadata, vocabulary: &Vocabulary, unknown: Option<u32>) -> Result<Parts, String> {
    let scores = m.floats(SCORES)?.ok_or_else(|| missing(SCORES))?;
    if scores.len() != vocabulary.len() {
        return Err(format!("has {} `{SCORES}` for {} tokens; download it again", scores.len(), vocabulary.len()));
    }
    let prefix = m.boolean("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let bytes = vocabulary.iter().any(|(_, _, kind)| kind == Kind::Byte);
    let visible = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let normalizer = match prefix {
        true => json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, visible]}),
        false => visible,
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(Parts {
        normalizer,
        pre_tokenizer: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model: json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown.and_then(|id| vocabulary.token(id)),
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": bytes,
            "ignore_merges": false,
            "vocab": vocabulary.json(),
            "merges": merges(vocabulary, &scores)?,
        }),
        adds_bos: true,
    })
}

/// Every way to make a piece of two others, in the order in which they are tried: the best score of the piece first, then the longest
/// left part, which grows a run of spaces (whose pieces share one score) from the left as SentencePiece does.
fn merges(vocabulary: &Vocabulary, scores: &[f64]) -> Result<Vec<[String; 2]>, String> {
    let mut made: Vec<(f64, &str, &str)> = Vec::new();
    for (id, piece, kind) in vocabulary.iter() {
        if piece.len() > LONGEST {
            return Err(format!(
                "has a piece of {} bytes at {id}, more than any real one; download it again",
                piece.len()
            ));
        }
        let score = scores.get(id as usize).copied().unwrap_or_default();
        let splits = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
        let both = |part: &(&str, &str)| vocabulary.id(part.0).is_some() && vocabulary.id(part.1).is_some();
        if kind == Kind::Normal {
            made.extend(splits.filter(both).map(|(left, right)| (score, left, right)));
        }
    }
    made.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.len().cmp(&a.1.len())).then(b.2.len().cmp(&a.2.len())));
    for pair in made.windows(2) {
        let [a, b] = [&pair[0], &pair[1]];
        let (first, second) = (format!("{}{}", a.1, a.2), format!("{}{}", b.1, b.2));
        if a.0 == b.0 && first != second && !(is_run(&first) && is_run(&second)) {
            return Err(format!(
                "gives the pieces {first:?} and {second:?} the same score, so the order of merging is not known; \
                 take its safetensors checkpoint"
            ));
        }
    }
    Ok(made.into_iter().map(|(_, left, right)| [left.to_owned(), right.to_owned()]).collect())
}

/// One character again and again.
fn is_run(piece: &str) -> bool {
    let mut chars = piece.chars();
    let first = chars.next();
    chars.all(|c| Some(c) == first)
}
