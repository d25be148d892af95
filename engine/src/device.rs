//! Where an engine computes: our own kernels on the CPU, or candle on the CPU or on a CUDA device. Names, and what this executable can do.

use crate::error::EngineError;
use crate::kernels::isa::instruction_set;
use std::fmt;
use std::str::FromStr;

/// A place to compute, as `--device` names it: `cpu`, `candle-cpu`, `cuda:N`; `cuda` is the device of this rank on its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Device {
    /// Our own kernels: exact, whatever the batch and the threads.
    #[default]
    Cpu,
    /// The code of the CUDA path on the CPU; for tests.
    CandleCpu,
    /// The CUDA device of that number.
    Cuda(usize),
}

impl Device {
    /// Its number, of a CUDA device.
    pub fn ordinal(self) -> Option<usize> {
        match self {
            Self::Cuda(n) => Some(n),
            Self::Cpu | Self::CandleCpu => None,
        }
    }

    /// Refuses what this executable or this machine cannot do.
    ///
    /// # Errors
    /// Says which build has the backend, or what is missing on the machine.
    pub fn check(self) -> Result<(), EngineError> {
        let missing = |reason: String| Err(EngineError::Unavailable { device: self.to_string(), reason });
        match self {
            Self::Cpu => Ok(()),
            Self::CandleCpu if cfg!(feature = "candle") => Ok(()),
            Self::CandleCpu => missing(format!("this executable was built without it; {}", build("candle"))),
            Self::Cuda(_) if !cfg!(feature = "cuda") => {
                missing(format!("this executable was built without CUDA; {}", build("cuda")))
            }
            Self::Cuda(_) => self.open_check(),
        }
    }

    #[cfg(feature = "candle")]
    fn open_check(self) -> Result<(), EngineError> {
        self.open().map(|_| ())
    }

    #[cfg(not(feature = "candle"))]
    fn open_check(self) -> Result<(), EngineError> {
        Ok(())
    }

    /// The candle device.
    ///
    /// # Errors
    /// There is no driver or no such device.
    #[cfg(feature = "candle")]
    pub(crate) fn open(self) -> Result<candle_core::Device, EngineError> {
        let Self::Cuda(n) = self else { return Ok(candle_core::Device::Cpu) };
        // The driver's library panics where it is absent.
        let opened = std::panic::catch_unwind(|| on_one_stream(n));
        let reason = match opened {
            Ok(Ok(device)) => return Ok(device),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the CUDA driver's library cannot be loaded".into(),
        };
        let reason = reason.lines().next().unwrap_or_default().to_owned();
        let reason =
            format!("no usable CUDA device {n} on this machine ({reason}); check nvidia-smi, or use --device cpu");
        Err(EngineError::Unavailable { device: self.to_string(), reason })
    }

    /// Holds candle's thread pools to `threads`. Their workers spin: several processes on few cores would starve one another.
    ///
    /// # Safety
    /// Changes the environment: call it before the process starts its second thread.
    pub unsafe fn hold_threads(threads: usize) {
        for name in ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"] {
            if std::env::var_os(name).is_none() {
                // SAFETY: the caller has no other thread.
                unsafe { std::env::set_var(name, threads.max(1).to_string()) };
            }
        }
    }
}

/// A CUDA device whose work all goes to one stream, whichever thread queues it: candle's own choice is a stream for each thread, and
/// threads of one engine come and go.
#[cfg(feature = "candle")]
fn on_one_stream(ordinal: usize) -> candle_core::Result<candle_core::Device> {
    let device = candle_core::Device::new_cuda_with_stream(ordinal)?;
    #[cfg(feature = "cuda")]
    if let candle_core::Device::Cuda(device) = &device {
        // SAFETY: nothing is used on a second stream, so no tensor has to wait for another's.
        unsafe { device.disable_event_tracking() };
    }
    Ok(device)
}

/// The devices of one engine: one, or several of a kind that hold a part of the model each (`cuda:0+cuda:1`). Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices(Vec<Device>);

impl Devices {
    /// Refuses what this executable or this machine cannot do.
    ///
    /// # Errors
    /// Says which build has the backend, or what is missing on the machine.
    pub fn check(&self) -> Result<(), EngineError> {
        if self.count() > 1 && self.is_cuda() {
            self.check_nccl().map_err(|reason| EngineError::Unavailable { device: self.to_string(), reason })?;
        }
        self.0.iter().try_for_each(|d| d.check())
    }

    #[cfg(all(feature = "cuda", feature = "nccl"))]
    fn check_nccl(&self) -> Result<(), String> {
        quorum_core::nccl::Functions::get().map(|_| ())
    }

    #[cfg(not(all(feature = "cuda", feature = "nccl")))]
    fn check_nccl(&self) -> Result<(), String> {
        Err(format!("several GPUs as one need NCCL, which this executable was built without; {}", build("cuda,nccl")))
    }

    /// How many hold a part of the model.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// All of them, in the order of their parts.
    pub fn all(&self) -> &[Device] {
        &self.0
    }

    /// The one that answers for all.
    pub fn first(&self) -> Device {
        self.0.first().copied().unwrap_or_default()
    }

    /// Whether they are CUDA devices.
    pub fn is_cuda(&self) -> bool {
        self.first().ordinal().is_some()
    }

    /// Backend, devices and instruction set, for the record of a run.
    pub fn describe(&self) -> String {
        match self.first() {
            Device::CandleCpu => format!("{self} {}", instruction_set()),
            Device::Cuda(_) => format!("candle {self}"),
            Device::Cpu => instruction_set().to_owned(),
        }
    }
}

impl From<Device> for Devices {
    fn from(device: Device) -> Self {
        Self(vec![device])
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(Device::to_string).collect();
        f.write_str(&names.join("+"))
    }
}

impl FromStr for Devices {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all: Vec<Device> = text.split('+').map(str::parse).collect::<Result<_, _>>()?;
        let twice = |(i, d): (usize, &Device)| matches!(d, Device::Cuda(_)) && all[..i].contains(d);
        match all.first() {
            Some(Device::Cpu) if all.len() > 1 => Err(format!("{text}: cpu has threads, not parts; use cpu")),
            Some(first) if all.iter().any(|d| std::mem::discriminant(d) != std::mem::discriminant(first)) => {
                Err(format!("{text}: devices joined with + must be of one kind"))
            }
            _ if all.iter().enumerate().any(twice) => Err(format!("{text}: a device is named twice")),
            _ => Ok(Self(all)),
        }
    }
}

/// How to build the executables that have `feature`.
fn build(feature: &str) -> String {
    let (toolkit, dir) = if feature.starts_with("cuda") {
        ("deploy/cuda/build.sh, or with the CUDA toolkit installed: ", " --target-dir target/cuda")
    } else {
        ("", "")
    };
    let packages = "-p quorum-rollout-worker -p quorum-learner";
    format!("build with: {toolkit}cargo build --release {packages} --features {feature}{dir}")
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::CandleCpu => f.write_str("candle-cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

/// This process's number on its machine, as mpirun or srun says; 0 without them.
fn local_rank() -> usize {
    let names = ["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"];
    names.into_iter().find_map(|n| std::env::var(n).ok()?.parse().ok()).unwrap_or(0)
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || format!("no device is called {text:?}; use cpu, candle-cpu or cuda:N");
        match text {
            "cpu" => Ok(Self::Cpu),
            "candle-cpu" => Ok(Self::CandleCpu),
            "cuda" => Ok(Self::Cuda(local_rank())),
            _ => text.strip_prefix("cuda:").and_then(|n| n.parse().ok()).map(Self::Cuda).ok_or_else(unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for name in ["cpu", "candle-cpu", "cuda:0", "cuda:7"] {
            assert_eq!(name.parse::<Device>().unwrap().to_string(), name);
        }
        for name in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU"] {
            assert!(name.parse::<Device>().unwrap_err().contains("cuda:N"), "{name}");
        }
        for name in ["cpu", "cuda:3", "candle-cpu+candle-cpu", "cuda:2+cuda:0"] {
            assert_eq!(name.parse::<Devices>().unwrap().to_string(), name);
        }
        let refused = |name: &str, why: &str| assert!(name.parse::<Devices>().unwrap_err().contains(why), "{name}");
        refused("cuda:0+", "cuda:N");
        refused("cpu+cpu", "use cpu");
        refused("candle-cpu+cuda:0", "one kind");
        refused("cuda:0+cuda:1+cuda:0", "twice");
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_names_the_build_command() {
        let error = Device::Cuda(0).check().unwrap_err().to_string();
        assert!(error.contains("cuda:0") && error.contains("--features cuda"), "{error}");
        let error = "cuda:0+cuda:1".parse::<Devices>().unwrap().check().unwrap_err().to_string();
        assert!(error.contains("cuda:0+cuda:1") && error.contains("--features cuda,nccl"), "{error}");
        assert!(Device::Cpu.check().is_ok());
    }
}
