//! Asks the executables beside the coordinator what they can do, before a run begins: what they were built with, and whether they can compute on a
//! device. The coordinator itself knows no engine.

use super::plan::LaunchError;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Time for an answer; opening a GPU takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);

/// Cargo features of `program`: `learner 0.1.0 (features: mpi, nccl)`.
///
/// # Errors
/// It cannot be asked.
pub(super) fn features(program: &Path) -> Result<Vec<String>, LaunchError> {
    let version =
        ask(program, &["--version"]).map_err(|reason| LaunchError::Probe { program: program.to_path_buf(), reason })?;
    Ok(named(&version))
}

/// Whether `program` can compute on `devices`, as its `--device` takes them.
///
/// # Errors
/// What it says against it.
pub(super) fn computes_on(program: &Path, devices: &str) -> Result<(), LaunchError> {
    // It is never dialled.
    let flags = ["--check-device", "--coordinator", "http://127.0.0.1:1", "--device", devices];
    ask(program, &flags).map(drop).map_err(|reason| LaunchError::Device {
        devices: devices.to_owned(),
        program: program.file_name().unwrap_or_default().display().to_string(),
        reason,
    })
}

/// What it prints, or its error.
fn ask(program: &Path, flags: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(flags).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().map_err(|e| e.to_string())?;
    let start = Instant::now();
    while process.try_wait().map_err(|e| e.to_string())?.is_none() {
        if start.elapsed() > PATIENCE {
            // An error means that it has ended after all.
            let _ = process.kill();
            let _ = process.wait();
            return Err(format!("it does not answer {} within {} s", flags.join(" "), PATIENCE.as_secs()));
        }
        std::thread::sleep(POLL);
    }
    let output = process.wait_with_output().map_err(|e| e.to_string())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let told = text.lines().find_map(|l| l.strip_prefix("error: ")).unwrap_or_else(|| text.trim());
    Err(if told.is_empty() { output.status.to_string() } else { told.to_owned() })
}

fn named(version: &str) -> Vec<String> {
    let list = version.split_once("(features:").and_then(|(_, rest)| rest.split_once(')')).map_or("", |(list, _)| list);
    list.split(',').map(str::trim).filter(|f| !f.is_empty() && *f != "none").map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_read_from_the_version() {
        assert_eq!(named("learner 0.1.0 (features: mpi, nccl)\n"), ["mpi", "nccl"]);
        assert!(named("learner 0.1.0 (features: none)").is_empty() && named("learner 0.1.0").is_empty());
        let e = features(Path::new("/nonexistent/learner")).unwrap_err().to_string();
        assert!(e.contains("/nonexistent/learner"), "{e}");
    }

    #[test]
    fn an_executable_that_cannot_use_a_device_is_quoted() {
        assert!(computes_on(Path::new("/bin/true"), "cuda:0").is_ok());
        let e = computes_on(Path::new("/bin/false"), "cuda:9").unwrap_err().to_string();
        assert!(e.contains("cuda:9") && e.contains("false") && e.contains("exit status: 1"), "{e}");
    }
}
