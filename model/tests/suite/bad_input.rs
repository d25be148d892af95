//! Broken model directories: each gives one line that names the file and says what to do.

use crate::fixture;
use crate::weights::{Tensors, copy_side_files, tensors, write};
use quorum_model::Checkpoint;
use std::path::Path;
use tempfile::TempDir;

/// A working copy of the fixture.
fn copy() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy_side_files(dir.path());
    std::fs::copy(fixture("qwen2_5_vl/model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    dir
}

fn open_error(dir: &Path) -> String {
    let error = Checkpoint::open(dir).unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

/// Error of loading weights whose file is `bytes`.
fn load_error(bytes: &[u8]) -> String {
    let dir = copy();
    std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    let error = Checkpoint::open(dir.path()).unwrap().load_weights().unwrap_err().to_string();
    assert!(error.contains("model.safetensors") && !error.contains('\n'), "{error}");
    error
}

fn raw(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn a_missing_directory_or_file_is_named() {
    let error = open_error(Path::new("/no/such/model"));
    assert!(error.starts_with("/no/such/model: cannot open the model: it does not exist; give a directory"), "{error}");
    for (file, remedy) in [
        ("config.json", "Hugging Face"),
        ("tokenizer.json", "save_pretrained"),
        ("preprocessor_config.json", "copy it"),
    ] {
        let dir = copy();
        std::fs::remove_file(dir.path().join(file)).unwrap();
        let error = open_error(dir.path());
        assert!(
            error.starts_with(&format!("{}: no {file}; ", dir.path().display())) && error.contains(remedy),
            "{error}"
        );
    }
    let dir = copy();
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let opened = Checkpoint::open(dir.path()).unwrap();
    assert!(opened.load_weights().unwrap_err().to_string().contains("no model.safetensors; give a directory"));
    std::fs::write(dir.path().join("pytorch_model.bin"), b"").unwrap();
    assert!(opened.load_weights().unwrap_err().to_string().contains("convert pytorch_model.bin"));
}

#[test]
fn broken_side_files_are_named() {
    for (file, content, wanted) in [
        ("config.json", "{", "config.json: not valid JSON"),
        ("config.json", "[]", "the top is not an object"),
        ("tokenizer.json", "{\"model\": 3}", "tokenizer.json cannot be read"),
        ("preprocessor_config.json", "{\"patch_size\": 16}", "`patch_size` is 16, but vision_config"),
        ("preprocessor_config.json", "{\"do_resize\": false}", "`do_resize` is false"),
        ("generation_config.json", "{\"eos_token_id\": [506, 900]}", "`eos_token_id` holds 900"),
        ("chat_template.jinja", "{% for %}", "chat template: "),
    ] {
        let dir = copy();
        std::fs::write(dir.path().join(file), content).unwrap();
        let error = open_error(dir.path());
        assert!(error.contains(wanted), "{error}");
        assert!(error.contains(&dir.path().display().to_string()), "{error}");
    }
    let dir = copy();
    for file in ["chat_template.json", "tokenizer_config.json"] {
        std::fs::remove_file(dir.path().join(file)).unwrap();
    }
    assert!(open_error(dir.path()).contains("no chat_template.json; "));
}

#[test]
fn a_damaged_weights_file_is_refused() {
    let whole = std::fs::read(fixture("qwen2_5_vl/model.safetensors")).unwrap();
    assert!(load_error(&whole[..whole.len() - 10]).contains("truncated"));
    assert!(load_error(&whole[..1000]).contains("declares a header longer than its 1000 bytes"));
    assert!(load_error(&whole[..5]).contains("is truncated: 5 bytes"));
    assert!(load_error(&[]).contains("truncated"));
    assert!(load_error(&u64::MAX.to_le_bytes()).contains("declares a header longer"));
    assert!(load_error(&raw("not json", 0)).contains("not safetensors JSON"));
    assert!(
        load_error(&raw(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 4)).contains("differs from shape")
    );
    assert!(load_error(&raw(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}}"#, 4)).contains("offsets"));
    assert!(
        load_error(&raw(r#"{"a":{"dtype":"F32","shape":[18446744073709551615,9],"data_offsets":[0,4]}}"#, 4))
            .contains("too large to exist")
    );
    let twice = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    assert!(load_error(&raw(twice, 4)).contains("tensor a appears twice"));
}

#[test]
fn weights_of_another_model_are_refused() {
    let checkpoint = Checkpoint::open(&fixture("qwen2_5_vl")).unwrap();
    let good = tensors(&checkpoint);
    let error = |change: &dyn Fn(&mut Tensors)| {
        let dir = copy();
        let mut tensors = good.clone();
        change(&mut tensors);
        write(&dir.path().join("model.safetensors"), &tensors);
        Checkpoint::open(dir.path()).unwrap().load_weights().unwrap_err().to_string()
    };
    let missing = error(&|t| {
        t.remove("model.norm.weight");
        t.insert("model.extra.weight".to_owned(), (vec![1], vec![0.0]));
    });
    assert!(missing.contains("1 missing (model.norm.weight) and 1 unexpected (model.extra.weight)"), "{missing}");
    let shape = error(&|t| t.get_mut("model.norm.weight").unwrap().0 = vec![2, 64]);
    assert!(shape.contains("tensor model.norm.weight has shape [2, 64] but config.json gives [128]"), "{shape}");
    let nan = error(&|t| t.get_mut("model.norm.weight").unwrap().1[3] = f32::NAN);
    assert!(nan.contains("tensor model.norm.weight holds values that are not finite"), "{nan}");
    let twice = error(&|t| {
        let norm = t["model.norm.weight"].clone();
        t.insert("model.language_model.norm.weight".to_owned(), norm);
    });
    assert!(twice.contains("tensor model.norm.weight appears twice"), "{twice}");
}

#[test]
fn an_index_may_only_name_files_beside_it() {
    let dir = copy();
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    std::fs::write(
        dir.path().join("model.safetensors.index.json"),
        r#"{"weight_map": {"a": "../secret.safetensors"}}"#,
    )
    .unwrap();
    let error = Checkpoint::open(dir.path()).unwrap().load_weights().unwrap_err().to_string();
    assert!(error.contains("`weight_map.a` must be the name of a .safetensors file in the same directory"), "{error}");
}
