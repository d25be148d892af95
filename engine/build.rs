//! With the feature `cuda`: compiles `cuda/*.cu` to PTX, which the driver turns into machine code when a process first uses it. Otherwise nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCES: [&str; 4] = ["attention", "elementwise", "policy", "rms_norm"];

fn main() {
    println!("cargo::rerun-if-changed=cuda");
    for variable in ["CUDA_HOME", "CUDA_COMPUTE_CAP"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let nvcc = std::env::var_os("CUDA_HOME").map_or_else(|| "nvcc".into(), |home| Path::new(&home).join("bin/nvcc"));
    let capability = std::env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| "80".to_owned());
    let Some(out) = std::env::var_os("OUT_DIR").map(PathBuf::from) else { panic!("cargo did not set OUT_DIR") };
    for source in SOURCES {
        let mut command = Command::new(&nvcc);
        command.arg(format!("-arch=compute_{capability}")).args([
            "-ptx",
            "-std=c++17",
            "-O3",
            "-Werror",
            "all-warnings",
        ]);
        command.arg("-o").arg(out.join(format!("{source}.ptx"))).arg(format!("cuda/{source}.cu"));
        match command.status() {
            Ok(status) if status.success() => {}
            Ok(status) => panic!("{} of cuda/{source}.cu: {status}", nvcc.display()),
            Err(error) => panic!(
                "{}: {error}; the feature cuda needs the CUDA compiler: deploy/cuda/install-toolchain.sh installs it",
                nvcc.display()
            ),
        }
    }
}
