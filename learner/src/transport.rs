//! Which way leads to the other ranks, and which rank this is: from the command line, else from what mpirun or srun put into the environment.

use crate::collective::{Collective, Patience};
use crate::error::LearnerError;
use clap::ValueEnum;
use std::fmt;

/// Number of this rank, and of ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub rank: u32,
    pub world: u32,
}

/// Variables that say rank and world: Open MPI, MPICH and others by PMI, Slurm.
const RANKS: [&str; 4] = ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"];
const WORLDS: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS"];

impl Place {
    /// What was asked for, else what the environment says, else alone.
    ///
    /// # Errors
    /// A rank that is not below the world.
    pub fn of(
        rank: Option<u32>,
        world: Option<u32>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, LearnerError> {
        let found = |names: &[&str]| names.iter().find_map(|name| environment(name)?.trim().parse().ok());
        let world = world.or_else(|| found(&WORLDS)).unwrap_or(1);
        let rank = rank.or_else(|| found(&RANKS)).unwrap_or(0);
        if rank < world { Ok(Self { rank, world }) } else { Err(LearnerError::Place { rank, world }) }
    }
}

/// `--transport`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Wanted {
    /// MPI under mpirun or srun, else NCCL.
    #[default]
    Auto,
    Mpi,
    Nccl,
}

/// A way between ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Mpi,
    Nccl,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Transport {
    fn name(self) -> &'static str {
        match self {
            Self::Mpi => "mpi",
            Self::Nccl => "nccl",
        }
    }

    /// What is wanted, if this build has it. Without a wish, ranks on GPUs speak NCCL and all others MPI, as far as the build goes.
    ///
    /// # Errors
    /// Names the build command.
    pub fn choose(wanted: Wanted, on_gpu: bool) -> Result<Self, LearnerError> {
        let built = |transport: &Self| match transport {
            Self::Mpi => cfg!(feature = "mpi"),
            Self::Nccl => cfg!(feature = "nccl"),
        };
        let order: &[Self] = match wanted {
            Wanted::Mpi => &[Self::Mpi],
            Wanted::Nccl => &[Self::Nccl],
            Wanted::Auto if on_gpu => &[Self::Nccl, Self::Mpi],
            Wanted::Auto => &[Self::Mpi, Self::Nccl],
        };
        let found = order.iter().copied().find(built);
        found.ok_or(LearnerError::NoTransport { feature: order.first().map_or("mpi", |t| t.name()) })
    }

    /// What the other ranks connect with; from rank 0, where the transport needs it.
    ///
    /// # Errors
    /// The library cannot be used.
    pub fn new_id(self) -> Result<Vec<u8>, LearnerError> {
        match self {
            #[cfg(feature = "nccl")]
            Self::Nccl => quorum_core::nccl::new_id().map_err(forming),
            _ => Ok(Vec::new()),
        }
    }

    /// Connects to the other ranks on device `device`. They have met over the coordinator: all of them are there.
    ///
    /// # Errors
    /// A rank is lost or late, or the library cannot be used.
    pub fn connect(
        self,
        id: &[u8],
        place: Place,
        device: usize,
        patience: Patience,
    ) -> Result<Box<dyn Collective>, LearnerError> {
        let (rank, world) = (place.rank as usize, place.world as usize);
        tracing::debug!(rank, world, device, id = id.len(), deadline = ?patience.deadline, "connecting to the other ranks");
        match self {
            #[cfg(feature = "mpi")]
            Self::Mpi => Ok(Box::new(crate::collective::Mpi::form(rank, world, patience).map_err(forming)?)),
            #[cfg(feature = "nccl")]
            Self::Nccl => {
                let group = quorum_core::nccl::Communicator::form(id, rank, world, device, patience);
                Ok(Box::new(crate::collective::Nccl(group.map_err(forming)?)))
            }
            #[allow(unreachable_patterns)]
            other => Err(LearnerError::NoTransport { feature: other.name() }),
        }
    }
}

#[cfg(any(feature = "mpi", feature = "nccl"))]
fn forming(source: crate::collective::CollectiveError) -> LearnerError {
    LearnerError::Group { what: "forming the group", source }
}

/// Ties this process to the mpirun that started it: ranks that outlive it would go on for a run that has given them up.
pub fn die_with_mpirun() {
    #[cfg(feature = "mpi")]
    if std::env::var_os("OMPI_COMM_WORLD_RANK").is_some() {
        // SAFETY: plain system calls without memory.
        let orphan = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0 && libc::getppid() == 1 };
        if orphan {
            eprintln!("error: the mpirun of this rank is gone");
            std::process::exit(1);
        }
    }
}

/// Version and transports of this build, as `learner --version` prints them; the launcher reads it.
pub fn version() -> &'static str {
    match (cfg!(feature = "mpi"), cfg!(feature = "nccl")) {
        (true, true) => concat!(env!("CARGO_PKG_VERSION"), " (features: mpi, nccl)"),
        (true, false) => concat!(env!("CARGO_PKG_VERSION"), " (features: mpi)"),
        (false, true) => concat!(env!("CARGO_PKG_VERSION"), " (features: nccl)"),
        (false, false) => concat!(env!("CARGO_PKG_VERSION"), " (features: none)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(rank: Option<u32>, world: Option<u32>, environment: &[(&str, &str)]) -> Result<(u32, u32), String> {
        let get = |name: &str| environment.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        Place::of(rank, world, get).map(|p| (p.rank, p.world)).map_err(|e| e.to_string())
    }

    #[test]
    fn the_place_comes_from_the_launcher_unless_it_is_given() {
        let mpirun = [("OMPI_COMM_WORLD_RANK", "2"), ("OMPI_COMM_WORLD_SIZE", "4"), ("SLURM_PROCID", "0")];
        assert_eq!(place(None, None, &[]), Ok((0, 1)));
        assert_eq!(place(None, None, &mpirun), Ok((2, 4)));
        assert_eq!(place(Some(1), Some(3), &mpirun), Ok((1, 3)));
        assert_eq!(place(None, None, &[("SLURM_PROCID", "5"), ("SLURM_NTASKS", "6")]), Ok((5, 6)));
        assert_eq!(place(None, None, &[("PMIX_RANK", "1"), ("SLURM_NTASKS", "2")]), Ok((1, 2)));
        let error = place(Some(4), Some(4), &[]).unwrap_err();
        assert!(error.contains("rank 4") && error.contains('4'), "{error}");
        assert!(place(Some(1), None, &[]).is_err(), "a rank without a world");
    }

    #[test]
    #[cfg(not(any(feature = "mpi", feature = "nccl")))]
    fn a_build_without_a_transport_names_the_build_command() {
        let error = Transport::choose(Wanted::Auto, false).unwrap_err().to_string();
        assert!(error.contains("--features mpi"), "{error}");
        assert!(Transport::choose(Wanted::Nccl, false).unwrap_err().to_string().contains("--features nccl"));
        assert!(version().ends_with("(features: none)"));
    }
}
