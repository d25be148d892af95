//! The bundled data set is what its README says: sizes, labels, no shared image, digests, and small enough.

use quorum_data::{Dataset, OpenOptions};
use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

fn assets() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../assets/data")
}

#[test]
fn parts_are_complete_disjoint_and_labelled_as_they_should_be() {
    let open = |name: &str| Dataset::open(&assets().join(name), &OpenOptions::default()).unwrap();
    let (warmup, validation, test) = (open("warmup.parquet"), open("validation.parquet"), open("test.parquet"));
    let mut unlabelled = open("unlabelled.parquet");
    assert!(warmup.is_labelled() && validation.is_labelled() && test.is_labelled());
    assert!(warmup.records().iter().all(|r| r.response.as_ref().is_some_and(|s| s.contains("\\boxed{"))));
    assert!(unlabelled.records().iter().all(|r| r.answer.is_none() && r.response.is_none()));
    assert!(test.len() >= 2048 && unlabelled.len() >= 6000 && validation.len() >= 512);
    let n = unlabelled.len();
    assert_eq!(unlabelled.attach_labels(&assets().join("unlabelled.labels.jsonl")).unwrap(), n);
    let mut seen = HashSet::new();
    for part in [&warmup, &unlabelled, &validation, &test] {
        assert!(part.set_aside().is_empty());
        let own: HashSet<String> = part.records().iter().map(|r| r.images[0].hash()).collect();
        assert!(own.is_disjoint(&seen), "{}", part.path().display());
        seen.extend(own);
    }
}

#[test]
fn files_are_small_and_have_the_digests_of_the_readme() {
    let readme = fs::read_to_string(assets().join("README.md")).unwrap();
    let mut total = 0;
    for entry in fs::read_dir(assets()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        total += bytes.len();
        assert!(bytes.len() < 4_000_000, "{}", path.display());
        let name = path.file_name().unwrap().to_str().unwrap();
        if name != "README.md" {
            let line = format!("| `{name}` | {} | `{}` |", bytes.len(), blake3::hash(&bytes).to_hex());
            assert!(
                readme.contains(&line),
                "{name} is not the file the README describes; run `xtask bundle-data` again"
            );
        }
    }
    assert!(total < 5_000_000, "{total}");
}
