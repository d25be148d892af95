//! A table of broken inputs: each gives one clear error line that names the thing; none panics, hangs or allocates without bound.

use crate::fixture;
use quorum_model::{Checkpoint, ModelConfig};
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

/// A working copy of a fixture's directory.
fn copy(family: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(family)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

/// Opens, loads and encodes: the first error of the three.
fn use_all(dir: &Path) -> Result<(), String> {
    let checkpoint = Checkpoint::open(dir).map_err(|e| e.to_string())?;
    checkpoint.load_weights().map_err(|e| e.to_string())?;
    checkpoint.processor.encode_prompt("What is 1 + 1?", &[]).map(|_| ()).map_err(|e| e.to_string())
}

/// The one line of error a directory gives, which must say each of `wanted`.
fn expect(what: &str, result: Result<(), String>, wanted: &str) {
    let error = result.expect_err(what);
    assert!(!error.contains('\n') && error.len() < 1000, "{what}: {error}");
    for part in wanted.split('|') {
        assert!(error.contains(part), "{what}: {error:?} does not say {part:?}");
    }
}

fn raw(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// Weights files that are damaged or lie, with what the error must say.
fn weights() -> Vec<(String, Vec<u8>, &'static str)> {
    let good = std::fs::read(fixture("qwen2_text/model.safetensors")).unwrap();
    let header = u64::from_le_bytes(*good.first_chunk().unwrap()) as usize;
    let json: Value = serde_json::from_slice(&good[8..8 + header]).unwrap();
    let data = good.len() - 8 - header;
    let mut cases = Vec::new();
    for cut in
        [0, 1, 7, 8, 9, 8 + header / 2, 8 + header - 1, 8 + header, 8 + header + 1, good.len() / 2, good.len() - 1]
    {
        cases.push((format!("cut to {cut} bytes"), good[..cut].to_vec(), "model.safetensors"));
    }
    let mut longer = good.clone();
    longer.extend([0; 3]);
    cases.push(("three bytes more".to_owned(), longer, "truncated or too long"));
    for length in [0, 1, good.len() as u64 * 2, 1 << 40, u64::MAX - 7, u64::MAX] {
        let mut lying = good.clone();
        lying[..8].copy_from_slice(&length.to_le_bytes());
        cases.push((format!("header length {length}"), lying, "header"));
    }
    let norm = "model.norm.weight";
    let mut change = |what: &str, wanted: &'static str, edit: &dyn Fn(&mut Value)| {
        let mut map = json.clone();
        edit(&mut map);
        let mut bytes = raw(&map.to_string(), 0);
        bytes.extend(&good[8 + header..]);
        cases.push((what.to_owned(), bytes, wanted));
    };
    change("offsets past the end", "offsets|model.norm.weight", &|h| {
        h[norm]["data_offsets"] = json!([data + 96, data + 192])
    });
    change("offsets far past the end", "", &|h| h[norm]["data_offsets"] = json!([1u64 << 62, (1u64 << 62) + 96]));
    change("overlapping tensors", "offsets", &|h| h[norm]["data_offsets"] = json!([0, 96]));
    change("offsets the wrong way round", "offsets", &|h| {
        let [a, b] = [0, 1].map(|i| h[norm]["data_offsets"][i].clone());
        h[norm]["data_offsets"] = json!([b, a]);
    });
    change("negative offset", "not safetensors JSON", &|h| h[norm]["data_offsets"] = json!([-96, 0]));
    change("fractional shape", "not safetensors JSON", &|h| h[norm]["shape"] = json!([47.5]));
    change("negative shape", "not safetensors JSON", &|h| h[norm]["shape"] = json!([-48]));
    change("shape whose product overflows", "too large to exist", &|h| {
        h[norm]["shape"] = json!([1u64 << 63, 1u64 << 63])
    });
    change("shape that does not match its bytes", "differs from shape", &|h| h[norm]["shape"] = json!([49]));
    change("shape of another model", "model.norm.weight has shape [2, 24]", &|h| h[norm]["shape"] = json!([2, 24]));
    change("integers", "model.norm.weight has type I16", &|h| h[norm]["dtype"] = json!("I16"));
    change("unknown type", "not safetensors JSON", &|h| h[norm]["dtype"] = json!("Q4_K"));
    change("missing tensor", "1 missing (model.norm.weight)|1 unexpected (norm.other)", &|h| {
        let info = h[norm].take();
        let map = h.as_object_mut().unwrap();
        map.remove(norm);
        map.insert("norm.other".to_owned(), info);
    });
    change("one tensor under two names", "model.norm.weight appears twice", &|h| {
        let other = h["model.layers.0.input_layernorm.weight"].take();
        let map = h.as_object_mut().unwrap();
        map.remove("model.layers.0.input_layernorm.weight");
        map.insert("model.language_model.norm.weight".to_owned(), other);
    });
    let twice = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    cases.push(("one name twice".to_owned(), raw(twice, 4), "tensor a appears twice"));
    cases.push(("nothing but brackets".to_owned(), raw(&"[".repeat(100_000), 0), "not safetensors JSON"));
    cases.push(("not UTF-8".to_owned(), [8u64.to_le_bytes().as_slice(), &[0xff; 8]].concat(), "not safetensors JSON"));
    let mut nan = good.clone();
    let at = 8 + header + json[norm]["data_offsets"][0].as_u64().unwrap() as usize;
    nan[at..at + 2].copy_from_slice(&0x7fc0u16.to_le_bytes());
    cases.push(("NaN".to_owned(), nan, "model.norm.weight holds values that are not finite"));
    cases
}

/// A change to a config.json.
type Change = fn(&mut Value);

/// Family, what is done to its config.json, what the error must say.
fn configs() -> Vec<(&'static str, Change, &'static str)> {
    vec![
        ("qwen2_text", |c| c["hidden_size"] = json!(0), "`hidden_size` is 0"),
        ("qwen2_text", |c| c["hidden_size"] = json!(-48), "`hidden_size` is -48"),
        ("qwen2_text", |c| c["hidden_size"] = json!(1u64 << 60), "`hidden_size`"),
        ("qwen2_text", |c| c["hidden_size"] = json!("48"), "`hidden_size`"),
        ("qwen2_text", |c| c["vocab_size"] = json!(1e30), "`vocab_size`"),
        ("qwen2_text", |c| c["num_hidden_layers"] = json!(1_000_000), "`num_hidden_layers`"),
        ("qwen2_text", |c| c["num_attention_heads"] = json!(5), "`num_attention_heads` is 5"),
        ("qwen2_text", |c| c["rms_norm_eps"] = json!(-1e-6), "`rms_norm_eps`"),
        ("qwen2_text", |c| c["rms_norm_eps"] = json!("NaN"), "`rms_norm_eps`"),
        ("qwen2_text", |c| c["rope_theta"] = json!(0.0), "`rope_theta`"),
        ("qwen2_text", |c| c["max_position_embeddings"] = json!(null), "`max_position_embeddings` is missing"),
        ("qwen2_text", |c| c["quantization_config"] = json!({"quant_method": "awq"}), "`quantization_config`"),
        ("qwen2_text", |c| c["layer_types"] = json!(["sliding_attention", "full_attention"]), "`layer_types`"),
        ("qwen2_text", |c| c["rope_scaling"] = json!({"type": "longrope", "factor": 4}), "\"longrope\""),
        ("qwen2_text", |c| c["rope_scaling"] = json!({"type": "yarn"}), "`rope_scaling.factor` is missing"),
        (
            "qwen2_text",
            |c| c["rope_scaling"] = json!({"type": "linear", "factor": 0.5}),
            "`rope_scaling.factor` is 0.5",
        ),
        ("qwen2_text", |c| c["rope_scaling"] = json!("yarn"), "`rope_scaling` must be an object"),
        (
            "qwen2_text",
            |c| {
                for (key, value) in
                    [("hidden_size", 1 << 22), ("num_attention_heads", 1 << 15), ("vocab_size", 1 << 22)]
                {
                    c[key] = json!(value);
                }
            },
            "more than any real model",
        ),
        ("qwen3_text", |c| c["head_dim"] = json!(15), "`head_dim` gives the odd head size 15"),
        ("qwen3_text", |c| c["head_dim"] = json!(1 << 22), "`head_dim`"),
        ("llama_text", |c| c["mlp_bias"] = json!(true), "`mlp_bias` is true"),
        ("llama_rope", |c| c["rope_scaling"]["low_freq_factor"] = json!(4), "`rope_scaling.low_freq_factor` is 4"),
        ("llama_rope", |c| c["rope_scaling"]["factor"] = json!(null), "`rope_scaling.factor` is missing"),
        ("llama_rope", |c| c["model_type"] = json!("mixtral"), "\"mixtral\", which is not supported"),
        ("qwen2_vl", |c| c["vision_config"]["mlp_ratio"] = json!(1e300), "`vision_config.mlp_ratio`"),
        ("qwen2_vl", |c| c["vision_config"]["mlp_ratio"] = json!(0), "`vision_config.mlp_ratio`"),
        ("qwen2_vl", |c| c["vision_config"]["hidden_size"] = json!(32), "`vision_config.hidden_size` is 32"),
        ("qwen2_vl", |c| c["vision_config"]["hidden_act"] = json!("relu"), "`vision_config.hidden_act` is \"relu\""),
        ("qwen2_vl", |c| c["vision_config"]["spatial_merge_size"] = json!(1000), "`vision_config.spatial_merge_size`"),
        ("qwen2_vl", |c| c["rope_scaling"] = json!({"type": "yarn", "factor": 2}), "for text models only"),
        ("qwen3_vl", |c| c["vision_config"]["num_position_embeddings"] = json!(63), "must be a square number"),
        ("qwen3_vl", |c| c["vision_config"]["deepstack_visual_indexes"] = json!([0, 3]), "names block 3"),
        ("qwen3_vl", |c| c["vision_config"]["deepstack_visual_indexes"] = json!([1, 0]), "each block once"),
        ("qwen3_vl", |c| c["text_config"]["rope_scaling"]["mrope_section"] = json!([0, 4, 4]), "a third"),
        (
            "qwen3_vl",
            |c| c["text_config"]["rope_scaling"]["mrope_interleaved"] = json!(false),
            "`rope_scaling.mrope_interleaved`",
        ),
        ("qwen3_vl", |c| c["image_token_id"] = json!(9999), "`image_token_id` is 9999"),
        ("qwen3_vl", |c| c["vision_config"] = json!(null), "`vision_config` is missing"),
    ]
}

/// Family, file, its new content, what the error must say.
fn side_files() -> Vec<(&'static str, &'static str, Vec<u8>, &'static str)> {
    let tokenizer: Value =
        serde_json::from_slice(&std::fs::read(fixture("qwen2_text/tokenizer.json")).unwrap()).unwrap();
    let edited = |edit: &dyn Fn(&mut Value)| {
        let mut t = tokenizer.clone();
        edit(&mut t);
        t.to_string().into_bytes()
    };
    let jinja = |source: &str| source.as_bytes().to_vec();
    let loops = "{% for a in range(9999) %}{% for b in range(9999) %}{% set c = a %}{% endfor %}{% endfor %}";
    let output = "{% for a in range(9999) %}{% for b in range(99) %}{{ 'x' * 9999 }}{% endfor %}{% endfor %}";
    let doubling = "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}";
    vec![
        ("qwen2_text", "chat_template.jinja", jinja(doubling), "did not come to an end"),
        ("qwen2_text", "config.json", b"\xff\xfe".to_vec(), "config.json: not valid JSON"),
        ("qwen2_text", "config.json", b"{\"a\": ".repeat(100_000), "config.json: not valid JSON"),
        ("qwen2_text", "tokenizer.json", b"garbage".to_vec(), "tokenizer.json cannot be read"),
        (
            "qwen2_text",
            "tokenizer.json",
            std::fs::read(fixture("qwen2_text/tokenizer.json")).unwrap()[..5000].to_vec(),
            "cannot be read",
        ),
        (
            "qwen2_text",
            "tokenizer.json",
            edited(&|t| t["model"]["vocab"]["far"] = json!(512)),
            "id 512 is outside vocab_size 512",
        ),
        (
            "qwen2_text",
            "tokenizer.json",
            edited(&|t| t["model"]["vocab"]["far"] = json!(u32::MAX)),
            "id 4294967295 is outside",
        ),
        ("qwen2_text", "tokenizer.json", edited(&|t| t["model"]["merges"][0] = json!("no such")), "cannot be read"),
        ("qwen2_text", "tokenizer.json", edited(&|t| t["model"]["type"] = json!("Quantum")), "cannot be read"),
        (
            "qwen2_text",
            "tokenizer.json",
            edited(&|t| t["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("(")),
            "cannot be read",
        ),
        ("qwen2_text", "tokenizer_config.json", b"[]".to_vec(), "tokenizer_config.json: not valid JSON"),
        ("qwen2_text", "generation_config.json", b"{\"eos_token_id\": [-1]}".to_vec(), "`eos_token_id` holds -1"),
        ("qwen2_text", "generation_config.json", b"{\"eos_token_id\": \"</s>\"}".to_vec(), "`eos_token_id`"),
        (
            "qwen2_text",
            "chat_template.jinja",
            jinja("{{ raise_exception('only with tools') }}"),
            "chat template|only with tools",
        ),
        ("qwen2_text", "chat_template.jinja", jinja("{% for m in messages %}"), "chat template"),
        ("qwen2_text", "chat_template.jinja", jinja("{{ messages.no.such }}"), "chat template"),
        ("qwen2_text", "chat_template.jinja", jinja(loops), "did not come to an end"),
        (
            "qwen2_text",
            "chat_template.jinja",
            jinja("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
            "chat template",
        ),
        ("qwen2_text", "chat_template.jinja", jinja(output), "wrote more than"),
        ("qwen2_text", "chat_template.jinja", jinja("{{ 'x' * 99999999999999 }}"), "chat template"),
        ("qwen2_text", "chat_template.jinja", jinja("{% include '/etc/passwd' %}"), "chat template"),
        ("qwen2_text", "chat_template.jinja", vec![0xff; 10], "not UTF-8"),
        ("qwen2_text", "chat_template.jinja", vec![b' '; (1 << 20) + 1], "more than any real one"),
        ("qwen2_text", "chat_template.jinja", b"".to_vec(), "prompt: it has no tokens"),
        (
            "qwen3_vl",
            "preprocessor_config.json",
            b"{\"patch_size\": 14}".to_vec(),
            "`patch_size` is 14, but vision_config",
        ),
        (
            "qwen3_vl",
            "preprocessor_config.json",
            b"{\"patch_size\": 16, \"image_std\": [0, 1, 1]}".to_vec(),
            "`image_std`",
        ),
        (
            "qwen3_vl",
            "preprocessor_config.json",
            b"{\"patch_size\": 16, \"image_mean\": [1, 1]}".to_vec(),
            "`image_mean`",
        ),
        (
            "qwen3_vl",
            "preprocessor_config.json",
            b"{\"patch_size\": 16, \"min_pixels\": 1099511627776, \"max_pixels\": 1099511627776}".to_vec(),
            "`min_pixels`",
        ),
        (
            "qwen3_vl",
            "preprocessor_config.json",
            b"{\"patch_size\": 16, \"size\": {\"shortest_edge\": 9, \"longest_edge\": 3}}".to_vec(),
            "above max_pixels",
        ),
        (
            "qwen3_vl",
            "preprocessor_config.json",
            b"{\"patch_size\": 16, \"size\": 3}".to_vec(),
            "`size` must be an object",
        ),
    ]
}

/// Content of an index, what the error must say.
fn indexes() -> Vec<(&'static str, &'static str)> {
    vec![
        (r#"{"weight_map": {"a": "../x.safetensors"}}"#, "`weight_map.a` must be the name"),
        (r#"{"weight_map": {"a": "/etc/passwd"}}"#, "`weight_map.a` must be the name"),
        (r#"{"weight_map": {"a": "sub/x.safetensors"}}"#, "`weight_map.a` must be the name"),
        (r#"{"weight_map": {"a": 3}}"#, "`weight_map.a` must be the name"),
        (
            r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00009-of-00009.safetensors"}}"#,
            "no model-00009-of-00009.safetensors",
        ),
        (r#"{"weight_map": {"a": "model-00001-of-00002.safetensors"}}"#, "missing (model.layers.1."),
        (r#"{"weight_map": {}}"#, "names no tensor"),
        (r#"{"weight_map": []}"#, "`weight_map` is missing or not an object"),
        (r#"{"weight_map": {"a": "#, "not valid JSON"),
    ]
}

#[test]
fn every_broken_input_gives_one_clear_error() {
    let mut count = 0;
    for (what, bytes, wanted) in weights() {
        let dir = copy("qwen2_text");
        std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
        expect(&what, use_all(dir.path()), &format!("{}|{wanted}", dir.path().display()));
        count += 1;
    }
    for (family, change, wanted) in configs() {
        let dir = copy(family);
        let path = dir.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        std::fs::write(&path, config.to_string()).unwrap();
        expect(&format!("{family} config: {wanted}"), use_all(dir.path()), &format!("config.json|{wanted}"));
        count += 1;
    }
    for (family, file, content, wanted) in side_files() {
        let dir = copy(family);
        std::fs::write(dir.path().join(file), content).unwrap();
        expect(&format!("{family} {file}: {wanted}"), use_all(dir.path()), wanted);
        count += 1;
    }
    for (content, wanted) in indexes() {
        let dir = copy("qwen3_text");
        std::fs::write(dir.path().join("model.safetensors.index.json"), content).unwrap();
        expect(content, use_all(dir.path()), wanted);
        count += 1;
    }
    println!("{count} broken inputs, each refused with one clear error");
    assert!(count >= 50, "{count}");
}

#[test]
fn a_config_that_promises_terabytes_costs_nothing() {
    let dir = copy("qwen2_text");
    let path = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    (config["vocab_size"], config["hidden_size"]) = (json!(1 << 20), json!(1 << 18));
    // Checked to be within bounds that a slab of 1.4 TB would satisfy.
    assert!(ModelConfig::from_json(config.to_string()).is_ok());
    std::fs::write(&path, config.to_string()).unwrap();
    expect(
        "terabytes",
        use_all(dir.path()),
        "has shape [512, 48] but config.json gives [1048576, 262144]; weights and config.json",
    );
}

#[test]
fn arbitrary_damage_never_panics() {
    let good = std::fs::read(fixture("qwen2_text/model.safetensors")).unwrap();
    let header = u64::from_le_bytes(*good.first_chunk().unwrap()) as usize + 8;
    let checkpoint = Checkpoint::open(&fixture("qwen2_text")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let (mut refused, mut state) = (0, 1u64);
    for _ in 0..400 {
        // A fixed sequence of changed header bytes.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let mut bytes = good.clone();
        bytes[(state >> 33) as usize % header] = (state >> 25) as u8;
        std::fs::write(&path, bytes).unwrap();
        refused += usize::from(quorum_model::load_model(dir.path(), &checkpoint.layout, true).is_err());
    }
    // Some changes hit the metadata, a number's leading space or give the same byte.
    assert!(refused > 350, "{refused}");
}
