//! The C libraries beside this file in place of the driver's and NCCL's, whose ranks are threads of one process.
#![allow(clippy::unwrap_used, dead_code)]

use std::path::Path;
use std::process::Command;

/// Set in the process that finds the fakes: a library path counts from the start of a process only.
const INSIDE: &str = "QUORUM_TEST_FAKE_NCCL";

fn compile(source: &str, library: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../learner/tests/nccl_fake").join(source);
    let status = Command::new("cc")
        .args(["-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-pthread", "-o"])
        .arg(library)
        .arg(source)
        .status();
    assert!(status.unwrap().success());
}

/// Runs this test once more in a process of its own with the fakes; true in that process.
pub fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let folder = tempfile::tempdir().unwrap();
    compile("cuda.c", &folder.path().join("libcuda.so.1"));
    compile("nccl.c", &folder.path().join("libnccl.so.2"));
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(INSIDE, "1").env("LD_LIBRARY_PATH", folder.path());
    assert!(command.status().unwrap().success(), "{test} failed in the process with the fakes");
    false
}

/// Calls of `ncclCommAbort` in this process so far.
pub fn aborts() -> i32 {
    // SAFETY: the fake's function takes nothing and returns an int.
    unsafe {
        let library = libloading::Library::new("libnccl.so.2").unwrap();
        library.get::<extern "C" fn() -> i32>("fake_aborts").unwrap()()
    }
}

/// From now on `ncclCommAbort` does not return.
pub fn hang() {
    // SAFETY: the fake's function takes and returns nothing.
    unsafe {
        let library = libloading::Library::new("libnccl.so.2").unwrap();
        library.get::<extern "C" fn()>("fake_hang").unwrap()();
    }
}

/// Stretches of device memory that were given back in this process so far.
pub fn frees() -> i32 {
    // SAFETY: the fake's function takes nothing and returns an int.
    unsafe {
        let library = libloading::Library::new("libcuda.so.1").unwrap();
        library.get::<extern "C" fn() -> i32>("fake_frees").unwrap()()
    }
}

/// The next broadcast brings `rank` (not 0) one wrong bit.
pub fn damage(rank: i32) {
    // SAFETY: the fake's function takes an int and returns nothing.
    unsafe {
        let library = libloading::Library::new("libnccl.so.2").unwrap();
        library.get::<extern "C" fn(i32)>("fake_damage").unwrap()(rank);
        // Closed before NCCL is used it would forget.
        std::mem::forget(library);
    }
}
