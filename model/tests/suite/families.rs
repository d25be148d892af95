//! Every family: both forms of config.json, what follows from it, its tensors, and weights in and out.

use crate::weights::{tensors_as, write};
use crate::{FIXTURES, fixture, json};
use quorum_model::{Activation, Checkpoint, Family, Layout, ModelConfig, RopeScaling, SaveDtype, VisionArch};
use safetensors::SafeTensors;
use std::path::Path;

fn config(family: &str, file: &str) -> ModelConfig {
    ModelConfig::from_json(std::fs::read(fixture(family).join(file)).unwrap()).unwrap()
}

/// Name; type, shape, bytes.
type Stored = (String, (safetensors::Dtype, Vec<usize>, Vec<u8>));
/// A tool, and what it calls a tensor of ours.
type Renaming = (&'static str, fn(&str) -> String);

/// All tensors of a checkpoint's files, by name.
fn stored(dir: &Path) -> Vec<Stored> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            let bytes = std::fs::read(dir.join(&name)).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            all.extend(file.iter().map(|(n, v)| (n.to_owned(), (v.dtype(), v.shape().to_vec(), v.data().to_vec()))));
        }
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

#[test]
fn both_forms_of_config_are_equal() {
    for family in FIXTURES {
        assert_eq!(config(family, "config.json"), config(family, "config_transformers5.json"), "{family}");
    }
}

#[test]
fn what_sets_a_family_apart_is_read() {
    let (two, three) = (config("qwen2_vl", "config.json"), config("qwen3_vl", "config.json"));
    let (v2, v3) = (two.vision.clone().unwrap(), three.vision.clone().unwrap());
    assert_eq!((two.family, v2.arch, v2.activation), (Family::Qwen2Vl, VisionArch::Qwen2, Activation::QuickGelu));
    assert_eq!((v2.hidden_size, v2.intermediate_size, v2.out_hidden_size, v2.window_size), (24, 96, 64, 0));
    assert_eq!((v2.full_attention_blocks.len(), v2.patch_dim(), v2.num_position_embeddings), (2, 1176, 0));
    assert_eq!((three.family, v3.arch, v3.activation), (Family::Qwen3Vl, VisionArch::Qwen3, Activation::GeluTanh));
    assert_eq!((v3.deepstack_blocks.as_slice(), v3.position_grid(), v3.patch_dim()), ([0, 1].as_slice(), 8, 1536));
    let t = &three.text;
    assert_eq!((t.qk_norm, t.qkv_bias, t.mrope_interleaved, t.head_dim), (true, false, true, 16));
    // Interleaved: h and w take every third pair as long as their sections last.
    assert_eq!(t.rope_axes(), [0, 1, 2, 0, 1, 2, 0, 0]);
    assert_eq!(two.text.rope_axes(), [0, 0, 1, 1, 1, 2, 2, 2]);
    let text = config("qwen3_text", "config.json").text;
    assert_eq!((text.head_dim * text.num_heads, text.hidden_size, text.qk_norm), (64, 48, true));
    assert_eq!(text.rope_axes(), [0; 8]);
    let llama = config("llama_text", "config.json");
    assert_eq!(
        (llama.family, llama.text.qkv_bias, llama.text.o_bias, llama.text.qk_norm),
        (Family::Llama, false, false, false)
    );
    assert_eq!((llama.head_name().as_str(), llama.tie_word_embeddings), ("model.embed_tokens.weight", true));
    let rope = config("llama_rope", "config.json");
    assert_eq!((rope.text.qkv_bias, rope.text.o_bias, rope.head_name().as_str()), (true, true, "lm_head.weight"));
    assert!(matches!(rope.text.rope_scaling, RopeScaling::Llama3 { factor: 8.0, .. }));
    assert_eq!(three.text_name("norm.weight"), "model.language_model.norm.weight");
    assert_eq!((three.vision_name("x"), two.vision_name("x")), ("model.visual.x".to_owned(), "visual.x".to_owned()));
}

#[test]
fn rotary_frequencies_equal_the_reference() {
    let check = |c: &ModelConfig, wanted: &serde_json::Value, what: &str| {
        let wanted: Vec<f64> = serde_json::from_value(wanted.clone()).unwrap();
        let ours = c.text.rope_frequencies();
        assert_eq!(ours.len(), wanted.len());
        // The reference computes in f32.
        for (a, b) in ours.iter().zip(wanted) {
            assert!((a / b - 1.0).abs() < 2e-6, "{what}: {a} {b}");
        }
    };
    let cases = json("rope_expected.json");
    for case in cases.as_array().unwrap() {
        let config = ModelConfig::from_json(case["config"].to_string()).unwrap();
        check(&config, &case["inverse_frequencies"], &case["config"]["rope_scaling"].to_string());
        let amplitude = case["amplitude"].as_f64().unwrap();
        assert!((config.text.rope_scaling.amplitude() / amplitude - 1.0).abs() < 1e-6);
    }
    assert_eq!(cases.as_array().unwrap().len(), 10);
    for family in ["llama_text", "llama_rope"] {
        check(
            &config(family, "config.json"),
            &json(&format!("{family}/expected.json"))["rope_inverse_frequencies"],
            family,
        );
    }
}

#[test]
fn the_layout_holds_exactly_the_published_tensors() {
    for family in FIXTURES {
        let checkpoint = Checkpoint::open(&fixture(family)).unwrap();
        let mut ours: Vec<(String, Vec<usize>)> =
            checkpoint.layout.entries().iter().map(|e| (e.name.clone(), e.shape.clone())).collect();
        ours.sort();
        let theirs: Vec<_> = stored(&fixture(family)).into_iter().map(|(n, (_, shape, _))| (n, shape)).collect();
        assert_eq!(ours, theirs, "{family}");
    }
}

#[test]
fn fused_views_of_every_family_are_contiguous() {
    for family in FIXTURES {
        let c = Checkpoint::open(&fixture(family)).unwrap();
        let follow = |names: &[String]| {
            for pair in names.windows(2) {
                let [a, b] = [&pair[0], &pair[1]].map(|n| c.layout.get(n).unwrap_or_else(|| panic!("{family}: {n}")));
                assert_eq!(a.range.end, b.range.start, "{family} {pair:?}");
            }
        };
        let layer =
            |names: &[&str]| names.iter().map(|n| c.config.text_name(&format!("layers.1.{n}"))).collect::<Vec<_>>();
        let [w, b] = ["weight", "bias"].map(|end| ["q", "k", "v"].map(|p| format!("self_attn.{p}_proj.{end}")));
        let attention: Vec<&str> =
            w.iter().chain(b.iter().filter(|_| c.config.text.qkv_bias)).map(String::as_str).collect();
        follow(&layer(&attention));
        follow(&layer(&["mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"]));
        assert_eq!(c.layout.entries().last().unwrap().range.end, c.layout.total());
    }
}

#[test]
fn weights_of_every_family_survive_a_save_bit_for_bit() {
    for family in FIXTURES {
        let checkpoint = Checkpoint::open(&fixture(family)).unwrap();
        let slab = checkpoint.load_weights().unwrap();
        let dir = tempfile::tempdir().unwrap();
        // qwen3_text mixes f16 matrices with f32 norms; only f32 holds both exactly.
        let dtype = if family == "qwen3_text" { SaveDtype::F32 } else { SaveDtype::Bf16 };
        let target = dir.path().join("out");
        checkpoint.save(&target, &slab, dtype).unwrap();
        let again = Checkpoint::open(&target).unwrap();
        assert_eq!((&again.config, &again.layout), (&checkpoint.config, &checkpoint.layout), "{family}");
        assert!(again.load_weights().unwrap() == slab, "{family}");
        if dtype == SaveDtype::Bf16 {
            assert!(stored(&target) == stored(&fixture(family)), "{family}");
        }
    }
}

#[test]
fn every_tools_names_are_read() {
    for family in FIXTURES {
        let checkpoint = Checkpoint::open(&fixture(family)).unwrap();
        let slab = checkpoint.load_weights().unwrap();
        let renamings: [Renaming; 4] = [
            ("transformers 5", |n| match n.strip_prefix("model.language_model.").or(n.strip_prefix("model.")) {
                Some(rest) if !rest.starts_with("visual.") => format!("model.language_model.{rest}"),
                Some(_) => n.to_owned(),
                None if n.starts_with("visual.") => format!("model.{n}"),
                None => n.to_owned(),
            }),
            ("flat", |n| n.replacen("model.language_model.", "model.", 1).replacen("model.visual.", "visual.", 1)),
            ("4.4x", |n| match n.strip_prefix("model.language_model.").or(n.strip_prefix("model.")) {
                Some(rest) if !rest.starts_with("visual.") => format!("language_model.model.{rest}"),
                _ if n.starts_with("lm_head") => format!("language_model.{n}"),
                _ => n.to_owned(),
            }),
            ("the base model alone", |n| {
                let rest = n.strip_prefix("model.language_model.").or(n.strip_prefix("model."));
                rest.unwrap_or(n).to_owned()
            }),
        ];
        for (who, rename) in renamings {
            let dir = tempfile::tempdir().unwrap();
            for (name, bytes) in checkpoint.side_files() {
                std::fs::write(dir.path().join(name), bytes).unwrap();
            }
            let mut renamed = tensors_as(&checkpoint, rename);
            renamed.insert("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), (vec![4], vec![0.0; 4]));
            write(&dir.path().join("model.safetensors"), &renamed);
            let read = Checkpoint::open(dir.path()).unwrap().load_weights();
            assert!(read.unwrap_or_else(|e| panic!("{family}, {who}: {e}")) == slab, "{family}, {who}");
        }
    }
}

#[test]
fn published_configurations_have_their_published_number_of_parameters() {
    let cases = json("published_configs.json");
    let cases = cases.as_array().unwrap();
    for case in cases {
        let (name, config) = (case["name"].as_str().unwrap(), case["config"].to_string());
        let config = ModelConfig::from_json(&config).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(Layout::of(&config).total() as u64, case["parameters"].as_u64().unwrap(), "{name}");
        assert_eq!(config.text.rope_axes().len(), config.text.head_dim / 2, "{name}");
    }
    assert_eq!(cases.len(), 16);
}
