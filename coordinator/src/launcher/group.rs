//! How the ranks of a learner are started on this machine: one by itself, several under `mpirun`, or one process a GPU that meet over NCCL. What
//! cannot work is found before anything starts.

use super::plan::{Launch, LaunchError};
use super::probe::features;
use std::path::{Path, PathBuf};

/// What the learner must be built with, and how.
const BUILD_MPI: &str =
    "apt-get install openmpi-bin libopenmpi-dev libclang-dev && cargo build --release -p quorum-learner --features mpi";
const BUILD_NCCL: &str = "deploy/cuda/build.sh (features cuda and nccl)";

/// How ranks talk to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    One,
    Mpi,
    Nccl,
}

impl Transport {
    /// Of `ranks` ranks on `devices`.
    pub(super) fn of(ranks: u32, devices: &[String]) -> Self {
        match ranks {
            0 | 1 => Self::One,
            _ if !devices.is_empty() && devices.iter().all(|d| d.starts_with("cuda")) => Self::Nccl,
            _ => Self::Mpi,
        }
    }

    /// Devices of the learner's ranks among those of the run.
    pub(super) fn devices(self, ranks: u32, devices: &[String]) -> &[String] {
        let n = if self == Self::Nccl { ranks as usize } else { 1 };
        &devices[..n.min(devices.len())]
    }

    /// Whether this machine and this build can do it.
    ///
    /// # Errors
    /// What is missing, and how to get it.
    pub(super) fn check(self, learner: &Path, ranks: u32, devices: &[String]) -> Result<(), LaunchError> {
        let (feature, build) = match self {
            Self::One => return Ok(()),
            Self::Mpi => ("mpi", BUILD_MPI),
            Self::Nccl => ("nccl", BUILD_NCCL),
        };
        let built = features(learner)?;
        if !built.iter().any(|f| f == feature) {
            let built = if built.is_empty() { "none".to_owned() } else { built.join(", ") };
            return Err(LaunchError::Feature { ranks, feature, built, build });
        }
        if self == Self::Mpi {
            on_path("mpirun").ok_or(LaunchError::NoMpirun)?;
        }
        if self == Self::Nccl && devices.len() < ranks as usize {
            return Err(LaunchError::Devices { ranks, devices: devices.join(",") });
        }
        Ok(())
    }

    /// The processes of `ranks` ranks, from the arguments of one (without `--id` and `--threads`).
    pub(super) fn launches(
        self,
        learner: &Path,
        ranks: u32,
        threads: usize,
        devices: &[String],
        common: &[String],
    ) -> Vec<Launch> {
        let rank = |name: &str, device: Option<&String>, more: &[String]| {
            let mut args = common.to_vec();
            args.extend(["--id".to_owned(), name.to_owned(), "--threads".into(), threads.to_string()]);
            args.extend(device.iter().flat_map(|d| ["--device".to_owned(), (*d).clone()]));
            args.extend_from_slice(more);
            args
        };
        let plain = |name: String, args| Launch { name, program: learner.to_path_buf(), args, group: false };
        match self {
            Self::One => {
                // Inside a batch job the environment counts other tasks.
                let place = ["--rank", "0", "--world", "1"].map(str::to_owned);
                vec![plain("learner-0".into(), rank("learner-0", devices.first(), &place))]
            }
            Self::Nccl => (0..ranks)
                .map(|r| {
                    let name = format!("learner-{r}");
                    let place = ["--rank".to_owned(), r.to_string(), "--world".into(), ranks.to_string()];
                    let args = rank(&name, devices.get(r as usize), &place);
                    plain(name, args)
                })
                .collect(),
            Self::Mpi => {
                // Threads of a rank share the machine as the launcher says, not as mpirun would bind them.
                let mut args: Vec<String> =
                    ["-n", &ranks.to_string(), "--oversubscribe", "--bind-to", "none"].map(str::to_owned).into();
                args.push(learner.display().to_string());
                // Ranks add their number to the name.
                args.extend(rank("learner", devices.first(), &[]));
                vec![Launch { name: "learner".into(), program: "mpirun".into(), args, group: true }]
            }
        }
    }
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|p| p.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn devices(list: &str) -> Vec<String> {
        list.split(',').filter(|d| !d.is_empty()).map(str::to_owned).collect()
    }

    #[test]
    fn the_transport_follows_from_ranks_and_devices() {
        assert_eq!(Transport::of(1, &devices("cuda:0")), Transport::One);
        assert_eq!(Transport::of(2, &[]), Transport::Mpi);
        assert_eq!(Transport::of(2, &devices("cpu")), Transport::Mpi);
        assert_eq!(Transport::of(2, &devices("cuda:0,cuda:1")), Transport::Nccl);
        // Each rank on two devices.
        assert_eq!(Transport::of(2, &devices("cuda:0+cuda:1,cuda:2+cuda:3")), Transport::Nccl);
    }

    #[test]
    fn ranks_are_started_as_their_transport_wants() {
        let learner = Path::new("/x/learner");
        let common = ["--coordinator".to_owned(), "u".into()];
        let line = |l: &Launch| format!("{} {} {}", l.name, l.program.display(), l.args.join(" "));
        let lines = |t: Transport, d: &str| -> Vec<String> {
            t.launches(learner, 2, 3, &devices(d), &common).iter().map(line).collect()
        };
        assert_eq!(
            lines(Transport::One, ""),
            ["learner-0 /x/learner --coordinator u --id learner-0 --threads 3 --rank 0 --world 1"]
        );
        assert_eq!(
            lines(Transport::Mpi, ""),
            ["learner mpirun -n 2 --oversubscribe --bind-to none /x/learner --coordinator u --id learner --threads 3"]
        );
        assert_eq!(
            lines(Transport::Nccl, "cuda:0,cuda:1"),
            [0, 1].map(|r| format!(
                "learner-{r} /x/learner --coordinator u --id learner-{r} --threads 3 --device cuda:{r} --rank {r} --world 2"
            ))
        );
    }

    #[test]
    fn a_build_without_the_feature_says_how_to_get_it() {
        let tmp = tempfile::tempdir().unwrap();
        let learner = tmp.path().join("learner");
        std::fs::write(&learner, "#!/bin/sh\necho 'learner 0.1.0 (features: none)'\n").unwrap();
        std::fs::set_permissions(&learner, PermissionsExt::from_mode(0o755)).unwrap();
        let e = Transport::Mpi.check(&learner, 4, &[]).unwrap_err().to_string();
        assert!(e.contains("learner.ranks = 4") && e.contains("libopenmpi-dev") && e.contains("--features mpi"), "{e}");
        assert!(Transport::One.check(Path::new("/nonexistent"), 1, &[]).is_ok());
    }
}
