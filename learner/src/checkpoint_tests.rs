//! Damage of every kind is found, and the newest checkpoint that is whole is the one loaded.

use super::{load as load_part, load_newest as newest_of, *};
use quorum_core::digest::sha256_hex;
use quorum_engine::OptimState;

fn parts() -> Partition {
    let tensors = [("a.weight".to_owned(), vec![8, 16]), ("b.bias".to_owned(), vec![5])];
    Partition::full(std::sync::Arc::new(Layout::new(tensors)))
}

fn load(dir: &Path, name: &str, parts: &Partition) -> Result<Loaded, CheckpointError> {
    load_part(dir, name, parts, &(0..parts.trainable.total()))
}

fn slab(seed: f32) -> Vec<f32> {
    (0..parts().trainable.total()).map(|i| (i as f32 * 0.37 + seed).sin()).collect()
}

fn write_step(dir: &Path, step: u64) -> Written {
    let (w, m, v) = (slab(step as f32), slab(0.5), slab(0.25));
    let state = state(step, step * 2, &slab_digest(&w), "run", "config");
    write(dir, &parts(), &state, &w, OptimState { m: &m, v: &v, t: step * 2 }).unwrap()
}

#[test]
fn a_checkpoint_comes_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let written = write_step(dir.path(), 7);
    assert_eq!(written.name, "step-000007");
    let manifest = fs::read(dir.path().join("checkpoints/step-000007/MANIFEST.json")).unwrap();
    assert_eq!(written.manifest_sha256, sha256_hex(&manifest));
    let loaded = load(dir.path(), "step-000007", &parts()).unwrap();
    assert_eq!((loaded.weights, loaded.m, loaded.v), (slab(7.0), slab(0.5), slab(0.25)));
    assert_eq!((loaded.state.step, loaded.state.adam_steps), (7, 14));
    let names: Vec<_> = fs::read_dir(dir.path().join("checkpoints")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["step-000007"], "no temporary directory is left");
}

#[test]
fn writing_again_replaces() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("checkpoints/.tmp-step-000003/old")).unwrap();
    let first = write_step(dir.path(), 3);
    assert_eq!(first, write_step(dir.path(), 3), "the same state gives the same bytes");
    assert!(load(dir.path(), "step-000003", &parts()).is_ok());
}

#[test]
fn every_flipped_byte_and_every_truncation_is_found() {
    let dir = tempfile::tempdir().unwrap();
    write_step(dir.path(), 1);
    let at = dir.path().join("checkpoints/step-000001");
    for file in [MODEL, OPTIMIZER, STATE, MANIFEST] {
        let path = at.join(file);
        let good = fs::read(&path).unwrap();
        for i in (0..good.len()).step_by(if file == MANIFEST { 1 } else { 13 }) {
            let mut bad = good.clone();
            bad[i] ^= 0x10;
            fs::write(&path, &bad).unwrap();
            // White space of the manifest itself carries no meaning.
            let harmless = file == MANIFEST && equal_meaning(&good, &bad);
            assert_eq!(load(dir.path(), "step-000001", &parts()).is_ok(), harmless, "{file} byte {i}");
            fs::write(&path, &good[..i]).unwrap();
            assert!(load(dir.path(), "step-000001", &parts()).is_err(), "{file} cut at {i}");
        }
        fs::remove_file(&path).unwrap();
        assert!(load(dir.path(), "step-000001", &parts()).is_err(), "{file} missing");
        fs::write(&path, &good).unwrap();
        assert!(load(dir.path(), "step-000001", &parts()).is_ok());
    }
}

fn equal_meaning(a: &[u8], b: &[u8]) -> bool {
    let read = |bytes| serde_json::from_slice::<Manifest>(bytes).ok();
    read(a) == read(b)
}

#[test]
fn the_newest_whole_one_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    for step in [2, 4, 6] {
        write_step(dir.path(), step);
    }
    let names: Vec<String> = [6, 4, 2].map(name_of).to_vec();
    let of = |run_id, config_digest| {
        let origin = Origin { run_id, config_digest };
        let whole = 0..parts().trainable.total();
        let mut group = Group::alone(&Default::default());
        let loaded = newest_of(dir.path(), &names, &parts(), origin, &whole, &mut group).unwrap();
        loaded.map(|l| l.state.step)
    };
    assert_eq!((of("another", "config"), of("run", "another")), (None, None), "whole, but of another run");
    let newest = || of("run", "config");
    assert_eq!(newest(), Some(6));
    fs::remove_file(dir.path().join("checkpoints/step-000006/MANIFEST.json")).unwrap();
    assert_eq!(newest(), Some(4));
    fs::write(dir.path().join("checkpoints/step-000004/optimizer.safetensors"), b"").unwrap();
    assert_eq!(newest(), Some(2));
    fs::remove_dir_all(dir.path().join("checkpoints/step-000002")).unwrap();
    assert_eq!(newest(), None);
}

#[test]
fn another_model_or_a_strange_name_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    write_step(dir.path(), 1);
    let other = Layout::new([("a.weight".to_owned(), vec![16, 8]), ("b.bias".to_owned(), vec![5])]);
    assert!(load(dir.path(), "step-000001", &Partition::full(std::sync::Arc::new(other))).is_err());
    for name in ["../step-000001", "step-1", "step-000001/..", "", "step-00000x"] {
        assert!(matches!(load(dir.path(), name, &parts()), Err(CheckpointError::Name(_))), "{name}");
    }
    fs::rename(dir.path().join("checkpoints/step-000001"), dir.path().join("checkpoints/step-000009")).unwrap();
    assert!(load(dir.path(), "step-000009", &parts()).unwrap_err().to_string().contains("says step 1"));
}
