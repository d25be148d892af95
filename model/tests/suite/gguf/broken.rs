//! Broken and hostile files: one clear error each, no panic, and nothing left at the destination.

use super::builder::{Builder, Meta};
use super::{HIDDEN, bpe_tokens, model, texts};
use quorum_core::seed::Stream;
use quorum_model::{SaveDtype, gguf};
use std::path::Path;

/// What importing `bytes` says; the destination must not exist afterwards.
fn refusal(dir: &Path, bytes: &[u8]) -> Result<(), String> {
    let (file, target) = (dir.join("model.gguf"), dir.join("out"));
    std::fs::write(&file, bytes).unwrap();
    let result = gguf::import(&file, &target, SaveDtype::Bf16).map(|_| ()).map_err(|e| e.to_string());
    if let Err(error) = &result {
        assert!(error.contains("model.gguf"), "{error}");
        let left: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["model.gguf"], "{error}");
    } else {
        std::fs::remove_dir_all(target).unwrap();
    }
    result
}

type Break = fn(&mut Builder);

/// What is broken, how, and what the error has to say.
const CASES: [(&str, Break, &str); 45] = [
    ("magic", |b| b.magic = *b"GGML", "does not begin with \"GGUF\""),
    ("version 1", |b| b.version = 1, "GGUF version 1"),
    ("version 4", |b| b.version = 4, "GGUF version 4"),
    ("big endian", |b| b.version = 3 << 24, "big-endian"),
    ("count of tensors", |b| b.tensor_count = Some(u64::MAX), "tensors"),
    ("some more tensors", |b| b.tensor_count = Some(1 << 40), "1099511627776 tensors"),
    ("one more tensor", |b| b.tensor_count = Some(b.tensors.len() as u64 + 1), "download it again"),
    ("count of keys", |b| b.pair_count = Some(u64::MAX), "18446744073709551615 metadata entries"),
    ("one key more", |b| b.pair_count = Some(b.pairs.len() as u64 + 1), "download it again"),
    ("key twice", |b| b.pairs.push(b.pairs[0].clone()), "`general.architecture` appears twice"),
    ("value type", |b| _ = b.set("x", Meta::Raw(99, vec![])), "`x` has the unknown value type 99"),
    ("list type", |b| _ = b.set("x", Meta::Raw(9, list(99, 1))), "a list of the unknown type 99"),
    ("list in list", |b| _ = b.set("x", Meta::Raw(9, list(9, 1))), "a list of lists"),
    ("list length", |b| _ = b.set("x", Meta::Raw(9, list(8, u64::MAX))), "declares 18446744073709551615"),
    ("number list length", |b| _ = b.set("x", Meta::Raw(9, list(10, u64::MAX / 8 + 1))), "declares"),
    (
        "string length",
        |b| _ = b.set("x", Meta::Raw(8, u64::MAX.to_le_bytes().to_vec())),
        "needs 18446744073709551615 bytes",
    ),
    ("not UTF-8", |b| _ = b.set("general.name", Meta::Text(vec![0xff, 0xfe])), "is not UTF-8"),
    ("token not UTF-8", |b| _ = b.set("tokenizer.ggml.tokens", Meta::Texts(vec![vec![0xc3]])), "is not UTF-8"),
    ("architecture", |b| _ = b.set("general.architecture", "mamba"), "architecture \"mamba\""),
    ("no architecture", |b| _ = b.remove("general.architecture"), "has no `general.architecture`"),
    ("no layers", |b| _ = b.remove("llama.block_count"), "has no `llama.block_count`"),
    ("no heads", |b| _ = b.set("llama.attention.head_count", Meta::U32(0)), "`llama.attention.head_count` is 0"),
    ("odd heads", |b| _ = b.set("llama.attention.head_count", Meta::U32(3)), "3 heads"),
    ("too many layers", |b| _ = b.set("llama.block_count", Meta::U32(u32::MAX)), "a whole number up to 1024"),
    ("one layer more", |b| _ = b.set("llama.block_count", Meta::U32(3)), "has no tensor blk.2.attn_norm.weight"),
    ("one layer less", |b| _ = b.set("llama.block_count", Meta::U32(1)), "has tensor blk.1."),
    ("text for a number", |b| _ = b.set("llama.block_count", "two"), "`llama.block_count` is not a whole number"),
    ("epsilon", |b| _ = b.set("llama.attention.layer_norm_rms_epsilon", Meta::F32(f32::NAN)), "not a positive number"),
    ("alignment", |b| _ = b.set("general.alignment", Meta::U32(0)), "`general.alignment` is 0"),
    ("experts", |b| _ = b.set("llama.expert_count", Meta::U32(8)), "mixtures of experts"),
    ("rope scaling", |b| _ = b.set("llama.rope.scaling.type", "longrope"), "longrope"),
    ("partial rotary", |b| _ = b.set("llama.rope.dimension_count", Meta::U32(32)), "head size 64"),
    ("zero dimension", |b| b.find("token_embd.weight").dims[1] = 0, "impossible dimension"),
    ("overflowing size", |b| b.find("token_embd.weight").dims = vec![1 << 40, 1 << 40], "too large to exist"),
    ("five dimensions", |b| b.find("token_embd.weight").dims = vec![1; 5], "has 5 dimensions"),
    ("tensor type", |b| b.find("blk.0.attn_v.weight").kind = 99, "blk.0.attn_v.weight of type 99 (an unknown type)"),
    ("unread tensor type", |b| b.find("blk.0.attn_v.weight").kind = 23, "(IQ4_XS)"),
    ("outside", |b| b.find("output_norm.weight").offset = Some(u64::MAX - 31), "output_norm.weight needs bytes"),
    ("overlap", |b| b.find("output_norm.weight").offset = Some(32), "overlap"),
    ("tensor twice", |b| b.tensors.push(b.tensors[1].clone()), "appears twice"),
    (
        "rows",
        |b| b.find("blk.0.ffn_up.weight").dims = vec![HIDDEN as u64 / 2, HIDDEN as u64 * 2],
        "blk.0.ffn_up.weight of shape",
    ),
    ("no embedding", |b| b.tensors.retain(|t| t.name != "token_embd.weight"), "has no tensor token_embd.weight"),
    (
        "not finite",
        |b| b.find("output_norm.weight").data[..4].fill(0xff),
        "model.norm.weight holds values that are not finite",
    ),
    ("no tokens", |b| _ = b.remove("tokenizer.ggml.tokens"), "has no `tokenizer.ggml.tokens`"),
    ("tokenizer", |b| _ = b.set("tokenizer.ggml.model", "bert"), "kind \"bert\""),
];

/// The same for the tokenizer's lists.
const TOKENIZER_CASES: [(&str, Break, &str); 10] = [
    ("fewer tokens", |b| _ = b.set("tokenizer.ggml.tokens", texts(&bpe_tokens().0[1..])), "rows of token_embd.weight"),
    (
        "fewer types",
        |b| _ = b.set("tokenizer.ggml.token_type", Meta::I32s(vec![1])),
        "1 entries in `tokenizer.ggml.token_type`",
    ),
    (
        "token type",
        |b| _ = b.set("tokenizer.ggml.token_type", Meta::I32s(vec![7; bpe_tokens().0.len()])),
        "unknown token type 7",
    ),
    ("merge", |b| _ = b.set("tokenizer.ggml.merges", texts(&["h zz".to_owned()])), "needs the token \"zz\""),
    ("made", |b| _ = b.set("tokenizer.ggml.merges", texts(&["h h".to_owned()])), "needs the token \"hh\""),
    ("half a merge", |b| _ = b.set("tokenizer.ggml.merges", texts(&["he".to_owned()])), "is not two tokens"),
    ("no merges", |b| _ = b.remove("tokenizer.ggml.merges"), "has no `tokenizer.ggml.merges`"),
    ("pre-tokenizer", |b| _ = b.set("tokenizer.ggml.pre", "tekken"), "pre-tokenizer \"tekken\""),
    ("eos", |b| _ = b.set("tokenizer.ggml.eos_token_id", Meta::U32(100_000)), "`tokenizer.ggml.eos_token_id` 100000"),
    ("template", |b| _ = b.set("tokenizer.chat_template", "{% if %}"), "chat template"),
];

/// Head of a list value: type and count, no items.
fn list(kind: u32, count: u64) -> Vec<u8> {
    [kind.to_le_bytes().as_slice(), &count.to_le_bytes()].concat()
}

#[test]
fn each_broken_file_has_its_own_error() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(refusal(dir.path(), &model("llama").bytes().0), Ok(()));
    for (what, break_it, expected) in CASES.iter().chain(&TOKENIZER_CASES) {
        let mut b = model("llama");
        break_it(&mut b);
        let error = refusal(dir.path(), &b.bytes().0).expect_err(what);
        assert!(error.contains(expected), "{what}: {error}");
    }
    // The lists of the whole tokenizer still name the same ids twice.
    let mut b = model("llama");
    let mut tokens = bpe_tokens().0;
    tokens[3] = tokens[4].clone();
    b.set("tokenizer.ggml.tokens", texts(&tokens));
    let error = refusal(dir.path(), &b.bytes().0).unwrap_err();
    assert!(error.contains("at 3 and 4"), "{error}");
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, sections) = model("llama").bytes();
    let starts = [0, 1, 3, 4, 7, 8, 15, 16, 23];
    let around = sections.iter().flat_map(|&end| [end - 1, end, end + 1]);
    let everywhere = (0..bytes.len()).step_by(bytes.len() / 100);
    for end in starts.into_iter().chain(around).chain(everywhere).chain([bytes.len() - 1]) {
        let error = refusal(dir.path(), &bytes[..end]).expect_err(&format!("{end} bytes"));
        assert!(error.contains("download it again") || end < 4 && error.contains("does not begin"), "{end}: {error}");
    }
}

#[test]
fn random_damage_to_the_header_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, [_, metadata, list]) = model("qwen2").bytes();
    let mut random = Stream::named("damage", &[3]);
    let (mut refused, mut draw) = (0, 0);
    let mut next = |below: usize| {
        draw += 1;
        (random.uniform(draw) * below as f64) as usize
    };
    for round in 0..160 {
        let mut damaged = bytes.clone();
        // Half the rounds hit the tensor list, which is short beside the vocabulary.
        let (from, to) = if round % 2 == 0 { (0, metadata) } else { (metadata, list) };
        for _ in 0..4 {
            damaged[from + next(to - from)] = next(256) as u8;
        }
        refused += usize::from(refusal(dir.path(), &damaged).is_err());
    }
    assert!(refused > 80, "{refused}");
}

#[test]
fn a_used_destination_and_a_missing_file_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (file, target) = (dir.path().join("model.gguf"), dir.path().join("out"));
    let error = gguf::import(&file, &target, SaveDtype::Bf16).unwrap_err().to_string();
    assert!(error.contains("model.gguf") && error.contains("cannot open"), "{error}");
    let error = gguf::import(dir.path(), &target, SaveDtype::Bf16).unwrap_err().to_string();
    assert!(error.contains("it is a directory"), "{error}");
    model("llama").write(&file);
    std::fs::create_dir(&target).unwrap();
    std::fs::write(target.join("mine"), "x").unwrap();
    let error = gguf::import(&file, &target, SaveDtype::Bf16).unwrap_err().to_string();
    assert!(error.contains("not empty"), "{error}");
    assert_eq!(std::fs::read_dir(&target).unwrap().count(), 1);
}
