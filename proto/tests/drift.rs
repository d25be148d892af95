//! The checked-in code is what the `.proto` files say. Needs no protoc.

use std::path::Path;

#[test]
fn generated_code_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = protox::compile(["quorum/v1/quorum.proto"], [root.join("proto")]).unwrap();
    let out = tempfile::tempdir().unwrap();
    tonic_prost_build::configure().out_dir(out.path()).bytes(".quorum.v1").compile_fds(files).unwrap();
    let fresh = std::fs::read_to_string(out.path().join("quorum.v1.rs")).unwrap();
    let kept = root.join("src/generated/quorum.v1.rs");
    if std::env::var_os("QUORUM_REGENERATE").is_some() {
        std::fs::write(&kept, &fresh).unwrap();
    }
    let kept = std::fs::read_to_string(kept).unwrap();
    assert!(kept == fresh, "proto/src/generated is stale: run QUORUM_REGENERATE=1 cargo test -p quorum-proto");
}
