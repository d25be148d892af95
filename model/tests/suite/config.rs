//! config.json in both forms, and the layout that follows from it.

use crate::fixture;
use quorum_model::{Family, Layout, ModelConfig, random_weights};
use serde_json::{Value, json};

fn read(name: &str) -> String {
    std::fs::read_to_string(fixture("qwen2_5_vl").join(name)).unwrap()
}

/// The fixture's config after one change.
fn changed(name: &str, change: impl FnOnce(&mut Value)) -> Result<ModelConfig, String> {
    let mut value: Value = serde_json::from_str(&read(name)).unwrap();
    change(&mut value);
    ModelConfig::from_json(value.to_string()).map_err(|e| e.to_string())
}

#[test]
fn flat_and_nested_forms_are_equal() {
    let flat = ModelConfig::from_json(read("config.json")).unwrap();
    assert_eq!(flat, ModelConfig::from_json(read("config_transformers5.json")).unwrap());
    assert_eq!((flat.family, flat.tie_word_embeddings, flat.image_token_id), (Family::Qwen2_5Vl, true, Some(510)));
    assert_eq!((flat.text.mrope_section.as_slice(), flat.text.rope_theta), ([4, 6, 6].as_slice(), 1e6));
    let vision = flat.vision.unwrap();
    assert_eq!(
        (vision.patch_dim(), vision.window_size, vision.full_attention_blocks.as_slice()),
        (1176, 56, [3].as_slice())
    );
}

#[test]
fn the_form_between_them_is_read_too() {
    // transformers 4.5x: nested text, but rope_theta and rope_scaling instead of rope_parameters.
    let older = changed("config_transformers5.json", |c| {
        let text = c["text_config"].as_object_mut().unwrap();
        text.remove("rope_parameters");
        text.insert("rope_theta".to_owned(), json!(1e6));
        text.insert(
            "rope_scaling".to_owned(),
            json!({"rope_type": "default", "type": "default", "mrope_section": [4, 6, 6]}),
        );
    });
    assert_eq!(older.unwrap(), ModelConfig::from_json(read("config.json")).unwrap());
}

#[test]
fn a_text_model_has_no_vision_and_plain_positions() {
    let text = changed("config.json", |c| {
        let map = c.as_object_mut().unwrap();
        map.insert("model_type".to_owned(), json!("qwen2"));
        map.remove("vision_config");
        map.remove("rope_scaling");
        map.insert("tie_word_embeddings".to_owned(), json!(false));
    })
    .unwrap();
    assert_eq!((text.family, text.vision.is_none(), text.text.mrope_section.len()), (Family::Qwen2, true, 0));
    let layout = Layout::of(&text);
    assert_eq!(layout.entries().first().unwrap().name, "model.embed_tokens.weight");
    assert_eq!(layout.entries().last().unwrap().name, "lm_head.weight");
}

#[test]
fn every_inconsistency_is_named() {
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 14] = [
        ("num_attention_heads", |c| c["num_attention_heads"] = json!(3)),
        ("num_key_value_heads", |c| c["num_key_value_heads"] = json!(3)),
        ("head_dim", |c| c["head_dim"] = json!(64)),
        ("rope_scaling.mrope_section", |c| c["rope_scaling"]["mrope_section"] = json!([4, 6, 5])),
        ("rope_scaling.type", |c| c["rope_scaling"]["type"] = json!("dynamic")),
        ("model_type", |c| c["model_type"] = json!("llava")),
        ("hidden_size", |c| c["hidden_size"] = json!(-1)),
        ("vocab_size", |c| c["vocab_size"] = Value::Null),
        ("image_token_id", |c| c["image_token_id"] = json!(512)),
        ("use_sliding_window", |c| c["use_sliding_window"] = json!(true)),
        ("vision_config.window_size", |c| c["vision_config"]["window_size"] = json!(57)),
        ("vision_config.fullatt_block_indexes", |c| c["vision_config"]["fullatt_block_indexes"] = json!([4])),
        ("vision_config.out_hidden_size", |c| c["vision_config"]["out_hidden_size"] = json!(64)),
        ("vision_config.num_heads", |c| c["vision_config"]["num_heads"] = json!(32)),
    ];
    for (key, change) in cases {
        let error = changed("config.json", change).unwrap_err();
        assert!(error.starts_with(&format!("config.json: `{key}` ")), "{key}: {error}");
    }
    let error = ModelConfig::from_json("{\"model_type\": ").unwrap_err().to_string();
    assert!(error.contains("config.json: not valid JSON"), "{error}");
}

#[test]
fn fused_views_are_contiguous() {
    let layout = Layout::of(&ModelConfig::from_json(read("config.json")).unwrap());
    let follow = |names: &[&str]| {
        for pair in names.windows(2) {
            assert_eq!(layout.get(pair[0]).unwrap().range.end, layout.get(pair[1]).unwrap().range.start, "{pair:?}");
        }
    };
    let attention = ["q_proj.weight", "k_proj.weight", "v_proj.weight", "q_proj.bias", "k_proj.bias", "v_proj.bias"];
    let attention: Vec<String> = attention.iter().map(|n| format!("model.layers.1.self_attn.{n}")).collect();
    follow(&attention.iter().map(String::as_str).collect::<Vec<_>>());
    follow(&["model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight"]);
    follow(&[
        "visual.blocks.2.mlp.gate_proj.weight",
        "visual.blocks.2.mlp.up_proj.weight",
        "visual.blocks.2.mlp.gate_proj.bias",
        "visual.blocks.2.mlp.up_proj.bias",
    ]);
    assert_eq!(layout.entries()[0].name, "visual.patch_embed.proj.weight");
    assert!(layout.get("lm_head.weight").is_none());
    assert_eq!(layout.entries().last().unwrap().range.end, layout.total());
}

#[test]
fn fresh_weights_follow_the_seed_and_the_stated_spread() {
    let config = ModelConfig::from_json(read("config.json")).unwrap();
    let layout = Layout::of(&config);
    let slab = random_weights(&config, 7);
    assert_eq!(slab, random_weights(&config, 7));
    assert_ne!(slab, random_weights(&config, 8));
    let spread = |name: &str| {
        let values = &slab[layout.get(name).unwrap().range.clone()];
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / values.len() as f64;
        (values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
    };
    assert!((spread("model.embed_tokens.weight") - 0.02).abs() < 5e-4);
    // Fan-in 384, 64 and 128; halved where a projection writes into the residual stream. Ratios to what is stated.
    let near = |name: &str, stated: f64| (spread(name) / stated - 1.0).abs() < 0.04;
    assert!(near("model.layers.0.mlp.down_proj.weight", 0.5 / 384f64.sqrt()));
    assert!(near("visual.blocks.0.attn.proj.weight", 0.5 / 64f64.sqrt()));
    assert!(near("model.layers.0.mlp.gate_proj.weight", 1.0 / 128f64.sqrt()));
    assert!(slab[layout.get("model.norm.weight").unwrap().range.clone()].iter().all(|&x| x == 1.0));
    assert!(slab[layout.get("visual.blocks.0.attn.qkv.bias").unwrap().range.clone()].iter().all(|&x| x == 0.0));
}
