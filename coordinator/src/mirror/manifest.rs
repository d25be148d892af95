//! What a complete copy consists of.

use serde::{Deserialize, Serialize};

/// Format of the manifest.
pub(super) const FORMAT: u32 = 1;

/// One file of a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Place in the run directory.
    pub(super) path: String,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

/// A complete copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) format: u32,
    pub(super) run_id: String,
    pub(super) epoch: u64,
    /// Steps contained in the checkpoint.
    pub(super) steps: u64,
    pub(super) checkpoint: String,
    pub(super) files: Vec<Entry>,
}

/// `snapshots/SSSSSSSSSS-EEEEEEEEEE`: sorts by steps, then epoch.
pub(super) fn name(steps: u64, epoch: u64) -> String {
    format!("snapshots/{steps:010}-{epoch:010}")
}

impl Manifest {
    /// Whether every path stays inside the run directory.
    pub(super) fn sound(&self) -> bool {
        let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\\');
        self.format == FORMAT && self.files.iter().all(|f| f.path.split('/').all(plain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_the_directory_are_refused() {
        let with = |path: &str| Manifest {
            format: FORMAT,
            run_id: "r".into(),
            epoch: 1,
            steps: 2,
            checkpoint: "step-000002".into(),
            files: vec![Entry { path: path.into(), bytes: 1, sha256: String::new() }],
        };
        assert!(with("checkpoints/step-000002/model.safetensors").sound());
        for wrong in ["../x", "/etc/x", "a/../../x", "", "a//b"] {
            assert!(!with(wrong).sound(), "{wrong}");
        }
        assert!(name(2, 10) < name(10, 2), "names sort by steps");
    }
}
