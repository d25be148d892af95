//! Tensors of an imported model: all types, the undone reordering of q and k, tied and untied, every architecture, settings.

use super::builder::Meta;
use super::quants::{TYPES, blocks, dequantize};
use super::{HEAD_DIM, HEADS, HIDDEN, bpe_tokens, extras, import, metadata, model, shapes, values};
use quorum_model::{Checkpoint, Family, RopeScaling, SaveDtype, gguf};
use std::collections::BTreeMap;

/// What llama.cpp's converter does to the rows of q and k: within a head, row `half·d/2 + j` goes to `2j + half`.
fn interleave(rows: &[f32], width: usize) -> Vec<f32> {
    let mut out = vec![0.0; rows.len()];
    for (r, row) in rows.chunks(width).enumerate() {
        let (head, within) = (r / HEAD_DIM, r % HEAD_DIM);
        let to = head * HEAD_DIM + 2 * (within % (HEAD_DIM / 2)) + within / (HEAD_DIM / 2);
        out[to * width..(to + 1) * width].copy_from_slice(row);
    }
    out
}

fn weights(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<f32>> {
    let slab = checkpoint.load_weights().unwrap();
    checkpoint.layout.entries().iter().map(|e| (e.name.clone(), slab[e.range.clone()].to_vec())).collect()
}

#[test]
fn every_architecture_comes_out_as_it_was_before_the_conversion() {
    for (architecture, family) in [("llama", Family::Llama), ("qwen2", Family::Qwen2), ("qwen3", Family::Qwen3)] {
        let mut b = model(architecture);
        let all: Vec<_> = shapes(bpe_tokens().0.len()).into_iter().chain(extras(architecture)).collect();
        if architecture == "llama" {
            for (name, _, shape) in all.iter().filter(|(n, ..)| n.contains("attn_q") || n.contains("attn_k")) {
                let original = values(name, shape.iter().product());
                b.find(name).data = interleave(&original, HIDDEN).iter().flat_map(|x| x.to_le_bytes()).collect();
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = import(&b, dir.path()).unwrap();
        assert_eq!((checkpoint.config.family, checkpoint.config.tie_word_embeddings), (family, true));
        let text = &checkpoint.config.text;
        assert_eq!((text.num_heads, text.head_dim, text.max_positions), (HEADS, HEAD_DIM, 128));
        assert_eq!((text.rms_norm_eps, text.rope_theta), (1e-5, 100_000.0));
        let found = weights(&checkpoint);
        assert_eq!(found.len(), all.len());
        for (name, hub, shape) in all {
            assert!(found[&hub] == values(&name, shape.iter().product()), "{architecture}: {hub}");
        }
    }
}

#[test]
fn a_model_of_all_types_has_their_values() {
    let mut b = metadata("qwen2");
    let (mut expected, mut next) = (BTreeMap::new(), 0);
    for (name, hub, shape) in shapes(bpe_tokens().0.len()).into_iter().chain(extras("qwen2")) {
        let n: usize = shape.iter().product();
        // Norms and biases are F32 in real files; the matrices go round all types.
        let (id, quant, _, halves) = if shape.len() == 1 { TYPES[0] } else { TYPES[next % TYPES.len()] };
        next += usize::from(shape.len() > 1);
        let bytes = blocks(quant, halves, n / quant.block());
        expected.insert(hub, dequantize(quant, &bytes));
        b.tensor(&name, &shape, id, bytes);
    }
    assert!(next >= TYPES.len());
    let dir = tempfile::tempdir().unwrap();
    assert!(weights(&import(&b, dir.path()).unwrap()) == expected);
    let found = gguf::import(&dir.path().join("model.gguf"), &dir.path().join("bf16"), SaveDtype::Bf16).unwrap();
    assert_eq!(found.types.len(), TYPES.len());
    assert_eq!(found.parameters, expected.values().map(Vec::len).sum::<usize>());
    for (name, values) in weights(&Checkpoint::open(&dir.path().join("bf16")).unwrap()) {
        let same = values.iter().zip(&expected[&name]).all(|(a, b)| *a == half::bf16::from_f32(*b).to_f32());
        assert!(same, "{name}");
    }
}

#[test]
fn an_output_matrix_of_its_own_unties_the_embedding() {
    let mut b = model("qwen2");
    let shape = [bpe_tokens().0.len(), HIDDEN];
    b.f32("output.weight", &shape, &values("output", shape[0] * shape[1]));
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = import(&b, dir.path()).unwrap();
    assert!(!checkpoint.config.tie_word_embeddings);
    assert!(weights(&checkpoint)["lm_head.weight"] == values("output", shape[0] * shape[1]));
}

#[test]
fn scaled_rope_is_kept_in_the_config() {
    let dir = tempfile::tempdir().unwrap();
    let mut b = model("qwen2");
    b.set("qwen2.rope.scaling.type", "yarn").set("qwen2.rope.scaling.factor", Meta::F32(4.0));
    b.set("qwen2.rope.scaling.original_context_length", Meta::U32(32));
    let found = import(&b, &dir.path().join("")).unwrap().config.text.rope_scaling;
    assert!(matches!(found, RopeScaling::Yarn { factor: 4.0, original_max_positions: 32.0, .. }), "{found:?}");
    let dir = tempfile::tempdir().unwrap();
    let llama3 = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 8192.0,
    };
    let divisor = |pair| 1e5f64.powf(-2.0 * pair as f64 / HEAD_DIM as f64) / llama3.frequency(pair, HEAD_DIM, 1e5);
    let divisors: Vec<f32> = (0..HEAD_DIM / 2).map(|pair| divisor(pair) as f32).collect();
    let mut b = model("llama");
    b.f32("rope_freqs.weight", &[HEAD_DIM / 2], &divisors);
    assert_eq!(import(&b, dir.path()).unwrap().config.text.rope_scaling, llama3);
}

#[test]
fn a_model_without_a_chat_template_is_imported_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (file, target) = (dir.path().join("model.gguf"), dir.path().join("out"));
    let mut b = model("llama");
    b.remove("tokenizer.chat_template").set("general.name", "tiny").set("general.license", "mit").write(&file);
    let found = gguf::import(&file, &target, SaveDtype::Bf16).unwrap();
    assert_eq!(
        (found.chat_template, found.name.as_deref(), found.license.as_deref()),
        (false, Some("tiny"), Some("mit"))
    );
    std::fs::write(target.join("chat_template.jinja"), super::TEMPLATE).unwrap();
    Checkpoint::open(&target).unwrap();
}
