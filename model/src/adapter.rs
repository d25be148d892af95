//! What a run learned as a whole model, or as an adapter in the format of the PEFT package.

use crate::checkpoint::Checkpoint;
use crate::durable::{write_directory, write_file};
use crate::error::ModelError;
use crate::layout::Layout;
use crate::partition::{Lora, Partition};
use crate::weights::save_safetensors;
use serde_json::{Value, json};
use std::path::Path;

/// The whole model with the trainable slab in place: tensors that learned replace those of the model, adapters are added (W + scale · B·A).
///
/// # Errors
/// As for [`Checkpoint::load_weights`], or a slab of another length.
pub fn merged(model: &Checkpoint, parts: &Partition, trainable: &[f32]) -> Result<Vec<f32>, ModelError> {
    check_length(parts, trainable)?;
    if parts.frozen.total() == 0 {
        return Ok(trainable.to_vec());
    }
    let mut slab = model.load_weights()?;
    for entry in model.layout.entries() {
        let values = &mut slab[entry.range.clone()];
        if let (Some(lora), Some((a, b))) = (&parts.lora, parts.adapter(&entry.name)) {
            add(values, lora, &trainable[a.range.clone()], &trainable[b.range.clone()]);
        } else if let Some(learned) = parts.trainable.get(&entry.name) {
            values.copy_from_slice(&trainable[learned.range.clone()]);
        }
    }
    Ok(slab)
}

/// W += scale · B·A, each sum in f64.
fn add(w: &mut [f32], lora: &Lora, a: &[f32], b: &[f32]) {
    let n = a.len() / lora.rank;
    let mut sum = vec![0f64; n];
    for (w, b) in w.chunks_exact_mut(n).zip(b.chunks_exact(lora.rank)) {
        sum.fill(0.0);
        for (a, &b) in a.chunks_exact(n).zip(b) {
            sum.iter_mut().zip(a).for_each(|(s, &a)| *s += f64::from(b) * f64::from(a));
        }
        w.iter_mut().zip(&sum).for_each(|(w, s)| *w = (f64::from(*w) + f64::from(lora.scale()) * s) as f32);
    }
}

/// Writes `adapter_config.json`, `adapter_model.safetensors` (f32) and `extra` files; the directory appears whole or not at all.
/// `base` is where the adapter's user finds the model it belongs to.
///
/// # Errors
/// A run without adapters, a slab of another length, values that are not finite, or a directory that cannot be written.
pub fn save_adapter(
    dir: &Path,
    model: &Checkpoint,
    parts: &Partition,
    trainable: &[f32],
    base: &str,
    extra: &[(&str, String)],
) -> Result<(), ModelError> {
    check_length(parts, trainable)?;
    let Some(lora) = &parts.lora else {
        let problem = "is 0: this run trained no adapters; export the model instead (without --adapter)";
        return Err(ModelError::key("configuration", "train.lora.rank", problem));
    };
    let names = parts.trainable.entries().iter().map(|e| (format!("base_model.model.{}", module(model, &e.name)), e));
    let layout = Layout::new(names.map(|(name, e)| (name, e.shape.clone())));
    write_directory(dir, |temporary| {
        let config = format!("{:#}\n", config(model, lora, base));
        write_file(&temporary.join("adapter_config.json"), |out| Ok(out.write_all(config.as_bytes())?))?;
        for (name, text) in extra {
            write_file(&temporary.join(name), |out| Ok(out.write_all(text.as_bytes())?))?;
        }
        save_safetensors(&temporary.join("adapter_model.safetensors"), &layout, trainable)
    })
}

/// The name a module has inside the Python model: vision-language models keep their decoder under `model.language_model`, whatever their files say.
fn module(model: &Checkpoint, name: &str) -> String {
    match (&model.config.vision, name.strip_prefix(model.config.family.text_prefix())) {
        (Some(_), Some(rest)) => format!("model.language_model.{rest}"),
        _ => name.to_owned(),
    }
}

fn config(model: &Checkpoint, lora: &Lora, base: &str) -> Value {
    // The vision tower has layers of the same names, which carry no adapter.
    let targets = match model.config.vision {
        Some(_) => {
            Value::from(format!(r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.({})", lora.targets.join("|")))
        }
        None => Value::from(lora.targets.clone()),
    };
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "modules_to_save": null,
        "use_rslora": false,
        "use_dora": false,
    })
}

fn check_length(parts: &Partition, trainable: &[f32]) -> Result<(), ModelError> {
    let (found, wanted) = (trainable.len(), parts.trainable.total());
    if found == wanted {
        return Ok(());
    }
    let problem = format!("hold {found} values, this run trains {wanted}; they belong to another run");
    Err(ModelError::key("checkpoint", "weights", problem))
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorum_core::config::{LoraSection, TrainSection};

    fn model(name: &str) -> Checkpoint {
        Checkpoint::open(&Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures")).join(name)).unwrap()
    }

    fn parts(model: &Checkpoint, rank: u32, freeze: &[&str]) -> Partition {
        let targets = vec!["v_proj".to_owned(), "down_proj".to_owned()];
        let lora = LoraSection { rank, alpha: 5.0, targets };
        let freeze = freeze.iter().map(|s| s.to_string()).collect();
        Partition::of(&model.config, &model.layout, &TrainSection { freeze, lora, ..TrainSection::default() }).unwrap()
    }

    #[test]
    fn adapters_are_added_where_they_belong() {
        let model = model("qwen2_text");
        let (parts, base) = (parts(&model, 2, &[]), model.load_weights().unwrap());
        let mut slab = parts.fresh_adapters(9);
        assert_eq!(merged(&model, &parts, &slab).unwrap(), base, "B is zero");
        slab.iter_mut().enumerate().for_each(|(i, x)| *x += (i % 7) as f32 * 0.01);
        let whole = merged(&model, &parts, &slab).unwrap();
        for e in model.layout.entries() {
            let (old, new) = (&base[e.range.clone()], &whole[e.range.clone()]);
            let Some((a, b)) = parts.adapter(&e.name) else {
                assert!(old == new, "{} has no adapter", e.name);
                continue;
            };
            let (n, a, b) = (e.shape[1], &slab[a.range.clone()], &slab[b.range.clone()]);
            for i in [0, n + 3, old.len() - 1] {
                let sum = b[i / n * 2] * a[i % n] + b[i / n * 2 + 1] * a[n + i % n];
                assert!((new[i] - old[i] - 2.5 * sum).abs() < 1e-6, "{} at {i}", e.name);
            }
        }
        assert!(merged(&model, &parts, &slab[1..]).is_err());
    }

    #[test]
    fn what_learned_replaces_what_was() {
        let model = model("qwen2_5_vl");
        let parts = parts(&model, 0, &["vision"]);
        let (base, slab) = (model.load_weights().unwrap(), vec![0.25; parts.trainable.total()]);
        let whole = merged(&model, &parts, &slab).unwrap();
        for e in model.layout.entries() {
            let same = whole[e.range.clone()] == base[e.range.clone()];
            assert_eq!(same, e.name.starts_with("visual."), "{}", e.name);
        }
    }

    #[test]
    fn the_directory_is_what_peft_reads() {
        for (family, first, regex) in [
            ("qwen2_text", "base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight", false),
            ("qwen2_5_vl", "base_model.model.model.language_model.layers.0.self_attn.v_proj.lora_A.weight", true),
            ("qwen3_vl", "base_model.model.model.language_model.layers.0.self_attn.v_proj.lora_A.weight", true),
        ] {
            let (model, dir) = (model(family), tempfile::tempdir().unwrap());
            let (parts, to) = (parts(&model, 2, &[]), dir.path().join("adapter"));
            let slab = parts.fresh_adapters(1);
            save_adapter(&to, &model, &parts, &slab, "base", &[("README.md", "card".to_owned())]).unwrap();
            let file = std::fs::read(to.join("adapter_model.safetensors")).unwrap();
            let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
            assert_eq!(tensors.len(), parts.trainable.entries().len());
            assert_eq!(tensors.tensor(first).unwrap().shape()[0], 2);
            let config: Value =
                serde_json::from_slice(&std::fs::read(to.join("adapter_config.json")).unwrap()).unwrap();
            assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(2), &json!(5.0)));
            assert_eq!(config["target_modules"].is_string(), regex);
            assert!(to.join("README.md").is_file());
        }
        let (model, dir) = (model("qwen2_text"), tempfile::tempdir().unwrap());
        let full = Partition::full(model.layout.clone());
        let error = save_adapter(&dir.path().join("a"), &model, &full, &model.load_weights().unwrap(), "", &[]);
        assert!(error.unwrap_err().to_string().contains("train.lora.rank"));
    }
}
