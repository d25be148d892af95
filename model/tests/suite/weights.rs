//! Weights in and out: every dtype, other writers' names, and the exact round trip.

use crate::fixture;
use quorum_model::{Checkpoint, SaveDtype, load_safetensors, load_slabs, save_safetensors, save_slabs};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};
use std::collections::BTreeMap;
use std::path::Path;

/// Name → (shape, values).
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn open() -> Checkpoint {
    Checkpoint::open(&fixture("qwen2_5_vl")).unwrap()
}

/// Writes f32 tensors as another tool would.
pub fn write(path: &Path, tensors: &Tensors) {
    let bytes: BTreeMap<&String, Vec<u8>> =
        tensors.iter().map(|(n, (_, v))| (n, v.iter().flat_map(|x| x.to_le_bytes()).collect())).collect();
    let views: Vec<_> = tensors
        .iter()
        .map(|(n, (shape, _))| (n.as_str(), TensorView::new(Dtype::F32, shape.clone(), &bytes[n]).unwrap()))
        .collect();
    serialize_to_file(views, None, path).unwrap();
}

/// The checkpoint's tensors as f32, by hub name.
pub fn tensors(checkpoint: &Checkpoint) -> Tensors {
    let slab = checkpoint.load_weights().unwrap();
    checkpoint
        .layout
        .entries()
        .iter()
        .map(|e| (e.name.clone(), (e.shape.clone(), slab[e.range.clone()].to_vec())))
        .collect()
}

/// The same under other names.
pub fn tensors_as(checkpoint: &Checkpoint, rename: impl Fn(&str) -> String) -> Tensors {
    tensors(checkpoint).into_iter().map(|(name, t)| (rename(&name), t)).collect()
}

/// A copy of the fixture without its weights.
pub fn copy_side_files(dir: &Path) {
    for (name, bytes) in open().side_files() {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
}

#[test]
fn saved_as_bf16_every_tensor_is_bit_identical() {
    let checkpoint = open();
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    checkpoint.save(&target, &checkpoint.load_weights().unwrap(), SaveDtype::Bf16).unwrap();
    let (before, after) = (
        std::fs::read(fixture("qwen2_5_vl/model.safetensors")).unwrap(),
        std::fs::read(target.join("model.safetensors")).unwrap(),
    );
    let (before, after) = (SafeTensors::deserialize(&before).unwrap(), SafeTensors::deserialize(&after).unwrap());
    assert_eq!(before.len(), after.len());
    for (name, view) in before.iter() {
        let other = after.tensor(name).unwrap();
        assert_eq!((view.dtype(), view.shape()), (other.dtype(), other.shape()), "{name}");
        assert!(view.data() == other.data(), "{name} differs");
    }
    for (name, bytes) in checkpoint.side_files() {
        assert!(&std::fs::read(target.join(name)).unwrap() == bytes, "{name} is not verbatim");
    }
    let leftovers: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(leftovers, ["out"]);
    let error = checkpoint.save(&target, &checkpoint.load_weights().unwrap(), SaveDtype::Bf16).unwrap_err().to_string();
    assert!(error.contains("not empty"), "{error}");
}

#[test]
fn saved_as_f32_or_f16_the_config_says_so() {
    let checkpoint = open();
    let slab = checkpoint.load_weights().unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (dtype, name, tolerance) in [(SaveDtype::F32, "float32", 0.0), (SaveDtype::F16, "float16", 1e-3)] {
        let target = dir.path().join(name);
        checkpoint.save(&target, &slab, dtype).unwrap();
        let again = Checkpoint::open(&target).unwrap();
        assert_eq!(again.config, checkpoint.config);
        let config: serde_json::Value = serde_json::from_slice(&again.side_files()["config.json"]).unwrap();
        assert_eq!(config["torch_dtype"], name);
        let worst = again.load_weights().unwrap().iter().zip(&slab).fold(0f32, |w, (a, b)| w.max((a - b).abs()));
        assert!(worst <= tolerance, "{name}: {worst}");
    }
}

#[test]
fn names_of_newer_writers_and_their_buffers_are_read() {
    let checkpoint = open();
    let dir = tempfile::tempdir().unwrap();
    copy_side_files(dir.path());
    let mut renamed: BTreeMap<_, _> = tensors(&checkpoint)
        .into_iter()
        .map(|(name, t)| match name.strip_prefix("model.") {
            Some(rest) => (format!("model.language_model.{rest}"), t),
            None => (format!("model.{name}"), t),
        })
        .collect();
    renamed.insert("model.visual.rotary_pos_emb.inv_freq".to_owned(), (vec![4], vec![0.0; 4]));
    // Some writers store the tied head again.
    renamed.insert("lm_head.weight".to_owned(), renamed["model.language_model.embed_tokens.weight"].clone());
    write(&dir.path().join("model.safetensors"), &renamed);
    assert_eq!(Checkpoint::open(dir.path()).unwrap().load_weights().unwrap(), checkpoint.load_weights().unwrap());
}

#[test]
fn slabs_come_back_bit_for_bit() {
    let layout = open().layout;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("slab.safetensors");
    let m: Vec<f32> = (0..layout.total()).map(|i| f32::from_bits(0x3000_0000 + i as u32 * 37)).collect();
    let v: Vec<f32> = m.iter().map(|x| -x * 0.3).collect();
    save_safetensors(&path, &layout, &m).unwrap();
    assert_eq!(load_safetensors(&path, &layout).unwrap(), m);
    save_slabs(&path, &layout, &[("m.", &m), ("v.", &v)]).unwrap();
    assert_eq!(load_slabs(&path, &layout, &["m.", "v."]).unwrap(), [m.clone(), v]);
    // A save that fails leaves the earlier file whole.
    assert!(save_safetensors(&path, &layout, &vec![f32::NAN; layout.total()]).is_err());
    assert_eq!(load_slabs(&path, &layout, &["m.", "v."]).unwrap()[0], m);
    assert!(save_safetensors(&path, &layout, &m[1..]).unwrap_err().to_string().contains("belongs to another model"));
}

#[test]
fn side_files_in_memory_give_the_same_model_without_weights() {
    let checkpoint = open();
    let remote = Checkpoint::from_files(checkpoint.side_files()).unwrap();
    assert_eq!((&remote.config, &remote.layout), (&checkpoint.config, &checkpoint.layout));
    assert_eq!(
        remote.processor.encode_prompt("Hi", &[]).unwrap(),
        checkpoint.processor.encode_prompt("Hi", &[]).unwrap()
    );
    assert!(remote.load_weights().unwrap_err().to_string().contains("fetch the weights"));
}
