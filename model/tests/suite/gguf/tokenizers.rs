//! Rebuilt tokenizers: where words are cut, special tokens, SentencePiece merges from scores.

use super::builder::{Builder, Meta};
use super::{HIDDEN, bpe_tokens, import, model, texts};
use quorum_model::Checkpoint;
use serde_json::Value;
use tokenizers::Tokenizer;

/// An imported model with these keys set, and its tokenizer.json.
fn imported(b: &Builder) -> (Checkpoint, Tokenizer) {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = import(b, dir.path()).unwrap();
    let tokenizer = Tokenizer::from_file(dir.path().join("out/tokenizer.json")).unwrap();
    (checkpoint, tokenizer)
}

fn pieces(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    tokenizer.encode(text, false).unwrap().get_tokens().to_vec()
}

fn file(checkpoint: &Checkpoint, name: &str) -> Value {
    serde_json::from_slice(&checkpoint.side_files()[name]).unwrap()
}

#[test]
fn each_pre_tokenizer_cuts_digits_and_accents_its_own_way() {
    let composed: &[&str] = &["é"];
    for (pre, digits, accent) in [
        (Some("smollm"), &["1", "2", "3", "4"][..], None),
        (Some("qwen2"), &["1", "2", "3", "4"], Some(composed)),
        (Some("llama-bpe"), &["123", "4"], None),
        (Some("gpt-2"), &["123", "4"], None),
        (Some("default"), &["123", "4"], None),
        (None, &["123", "4"], None),
    ] {
        let mut b = model("llama");
        match pre {
            Some(pre) => b.set("tokenizer.ggml.pre", pre),
            None => b.remove("tokenizer.ggml.pre"),
        };
        let (checkpoint, tokenizer) = imported(&b);
        assert_eq!(pieces(&tokenizer, "1234"), digits, "{pre:?}");
        assert_eq!(pieces(&tokenizer, "hello world"), ["hello", "Ġw", "o", "r", "l", "d"], "{pre:?}");
        // e and a combining acute: one token only where the text is composed first (é is Ã© in byte-level spelling).
        let marked = pieces(&tokenizer, "e\u{301}");
        match accent {
            Some(_) => assert_eq!(marked, ["Ã©"], "{pre:?}"),
            None => assert_eq!(marked.len(), 3, "{pre:?}"),
        }
        let text = "hello 42\n\t x=1; ñ <tool>";
        let ids = checkpoint.processor.encode_text(text).unwrap();
        assert_eq!(checkpoint.processor.decode(&ids, true).unwrap(), text, "{pre:?}");
    }
}

#[test]
fn special_tokens_keep_their_ids_roles_and_flags() {
    let mut b = model("llama");
    b.set("tokenizer.ggml.bos_token_id", Meta::U32(0)).set("tokenizer.ggml.unknown_token_id", Meta::U32(0));
    let (checkpoint, tokenizer) = imported(&b);
    let (tokens, ..) = bpe_tokens();
    let (tool, pad) = (tokens.len() - 2, tokens.len() - 1);
    assert_eq!(tokenizer.token_to_id("<tool>"), Some(tool as u32));
    assert_eq!(tokenizer.token_to_id("[PAD]"), None, "an unused token");
    assert!(checkpoint.processor.forbidden_tokens().contains(&(pad as u32)));
    assert_eq!(pieces(&tokenizer, "<|im_start|>hello<tool>"), ["<|im_start|>", "hello", "<tool>"]);
    let ids = checkpoint.processor.encode_text("hello<tool>").unwrap();
    assert_eq!(checkpoint.processor.decode(&[ids, vec![2]].concat(), true).unwrap(), "hello<tool>");
    // The end of a turn first, then the end of the text, which llama.cpp stops at too.
    assert_eq!(checkpoint.processor.stop_tokens(), [2, 0]);
    let config = file(&checkpoint, "tokenizer_config.json");
    for (key, token) in [
        ("eos_token", "<|im_end|>"),
        ("pad_token", "<|im_end|>"),
        ("bos_token", "<|endoftext|>"),
        ("unk_token", "<|endoftext|>"),
    ] {
        assert_eq!(config[key], token, "{key}");
    }
    assert_eq!(config["chat_template"], super::TEMPLATE);
    assert_eq!(config["added_tokens_decoder"][tool.to_string()]["special"], false);
    assert_eq!(config["added_tokens_decoder"]["1"]["special"], true);
    let prompt = checkpoint.processor.encode_prompt("hello", &[]).unwrap();
    let text = checkpoint.processor.decode(&prompt.ids, false).unwrap();
    assert_eq!(text, "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n");
}

#[test]
fn a_text_begins_with_bos_and_ends_with_eos_where_the_file_says_so() {
    for (pre, key, expected) in [
        ("smollm", None, &["hello"][..]),
        ("smollm", Some("tokenizer.ggml.add_bos_token"), &["<|endoftext|>", "hello"]),
        ("smollm", Some("tokenizer.ggml.add_eos_token"), &["hello", "<|im_end|>"]),
        ("llama-bpe", None, &["<|endoftext|>", "hello"]),
    ] {
        let mut b = model("llama");
        b.set("tokenizer.ggml.pre", pre).set("tokenizer.ggml.bos_token_id", Meta::U32(0));
        if let Some(key) = key {
            b.set(key, Meta::Bool(true));
        }
        let (_, tokenizer) = imported(&b);
        assert_eq!(tokenizer.encode("hello", true).unwrap().get_tokens(), expected, "{pre} {key:?}");
    }
}

/// A model of pieces with scores as SentencePiece trains them.
fn sentencepiece() -> Builder {
    let mut tokens: Vec<(String, f32, i32)> =
        vec![("<unk>".into(), 0.0, 2), ("<s>".into(), 0.0, 3), ("</s>".into(), 0.0, 3)];
    tokens.extend((0..=255u8).map(|byte| (format!("<0x{byte:02X}>"), 0.0, 6)));
    // Runs of spaces share one score.
    tokens.extend(["▁▁", "▁▁▁", "▁▁▁▁"].map(|run| (run.to_owned(), -1e9, 1)));
    for (rank, piece) in ["▁h", "lo", "el", "hel", "▁", "h", "e"].into_iter().enumerate() {
        tokens.push((piece.to_owned(), -(rank as f32), 1));
    }
    tokens.extend(["l", "o"].map(|c| (c.to_owned(), -100.0, 1)));
    let mut b = model("llama");
    let embedding = b.find("token_embd.weight");
    embedding.dims[1] = tokens.len() as u64;
    embedding.data = vec![0; tokens.len() * HIDDEN * 4];
    for key in ["tokenizer.ggml.pre", "tokenizer.ggml.merges"] {
        b.remove(key);
    }
    b.set("tokenizer.ggml.model", "llama");
    b.set("tokenizer.ggml.tokens", texts(&tokens.iter().map(|t| t.0.clone()).collect::<Vec<_>>()));
    b.set("tokenizer.ggml.scores", Meta::F32s(tokens.iter().map(|t| t.1).collect()));
    b.set("tokenizer.ggml.token_type", Meta::I32s(tokens.iter().map(|t| t.2).collect()));
    b.set("tokenizer.ggml.unknown_token_id", Meta::U32(0)).set("tokenizer.ggml.bos_token_id", Meta::U32(1));
    b
}

#[test]
fn sentencepiece_merges_follow_the_scores() {
    let (checkpoint, tokenizer) = imported(&sentencepiece());
    // ▁h, the best score, takes the h that hel would need.
    assert_eq!(pieces(&tokenizer, "hello"), ["▁h", "el", "lo"]);
    assert_eq!(pieces(&tokenizer, "   hé"), ["▁▁▁", "▁h", "<0xC3>", "<0xA9>"]);
    assert_eq!(tokenizer.encode("h", true).unwrap().get_tokens(), ["<s>", "▁h"]);
    for text in ["hello", "  hello  é\n", "日本"] {
        let ids = checkpoint.processor.encode_text(text).unwrap();
        assert_eq!(checkpoint.processor.decode(&ids, true).unwrap(), text);
    }
    let mut b = sentencepiece();
    b.set("tokenizer.ggml.add_space_prefix", Meta::Bool(false));
    assert_eq!(pieces(&imported(&b).1, "hello"), ["hel", "lo"]);
}

#[test]
fn scores_that_leave_the_order_open_are_refused() {
    let mut b = sentencepiece();
    let Some((_, Meta::F32s(scores))) = b.pairs.iter_mut().find(|(k, _)| k == "tokenizer.ggml.scores") else {
        panic!()
    };
    let first = 3 + 256 + 3;
    scores[first + 1] = scores[first];
    let dir = tempfile::tempdir().unwrap();
    let error = import(&b, dir.path()).unwrap_err().to_string();
    assert!(error.contains("the same score") && error.contains("\"▁h\""), "{error}");
    scores_shorter(&mut b);
    let error = import(&b, dir.path()).unwrap_err().to_string();
    assert!(error.contains("`tokenizer.ggml.scores` for"), "{error}");
}

fn scores_shorter(b: &mut Builder) {
    b.set("tokenizer.ggml.scores", Meta::F32s(vec![0.0; 3]));
}
