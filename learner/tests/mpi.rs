//! Ranks over MPI, as `mpirun` starts them: this program runs itself under it. Sums equal those of one rank, and a rank that is late or killed ends the others.

#![allow(clippy::unwrap_used)]

mod ranks;

use quorum_core::config::Reduction;
use quorum_learner::collective::{Collective, Mpi, Patience};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const ROLE: &str = "QUORUM_MPI_TEST";

fn main() {
    match std::env::var(ROLE) {
        Ok(role) => rank(&role),
        Err(_) => all(),
    }
}

/// What `cargo test` runs.
fn all() {
    for world in [1, 2, 3, 4] {
        let output = mpirun(world, "sums");
        assert!(output.status.success(), "{world} ranks: {}", text(&output));
        assert_eq!(text(&output).matches("sums agree").count(), world, "{}", text(&output));
        println!("{world} ranks: sums, parts and messages agree with one rank");
    }
    let started = Instant::now();
    let output = mpirun(4, "late");
    assert!(!output.status.success(), "{}", text(&output));
    assert!(
        text(&output).contains("all_to_all: waited 2.") && text(&output).contains("rank 3 is late or lost"),
        "{}",
        text(&output)
    );
    assert!(started.elapsed() < Duration::from_secs(25), "rank 3 sleeps for 30 s, nobody waits for it");
    println!("a missing rank is named after its deadline");

    let output = mpirun(4, "confused");
    assert!(!output.status.success() && text(&output).contains("at another call"), "{}", text(&output));
    println!("ranks at different calls find out");

    let started = Instant::now();
    let output = mpirun(4, "killed");
    assert!(!output.status.success(), "{}", text(&output));
    assert!(started.elapsed() < Duration::from_secs(25), "nobody waits for a killed rank");
    println!("a killed rank ends the others");

    let output = mpirun(2, "stranger");
    assert!(!output.status.success() && text(&output).contains("of 2, not"), "{}", text(&output));
    println!("a rank that MPI counts otherwise is refused");
}

/// Runs this program as `world` ranks.
fn mpirun(world: usize, role: &str) -> Output {
    Command::new("mpirun")
        .args(["-n", &world.to_string(), "--oversubscribe", "--bind-to", "none"])
        .arg(std::env::current_exe().unwrap())
        .env(ROLE, role)
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .output()
        .expect("mpirun is installed (Debian: openmpi-bin)")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn number(name: &str) -> usize {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).expect("mpirun says so")
}

/// What one rank does.
fn rank(role: &str) {
    let (rank, world) = (number("OMPI_COMM_WORLD_RANK"), number("OMPI_COMM_WORLD_SIZE"));
    let deadline = Duration::from_secs(if role == "late" { 2 } else { 60 });
    let told = if role == "stranger" { world - 1 - rank } else { rank };
    let mut mpi = Mpi::form(told, world, Patience::new(deadline)).unwrap();
    let result = match role {
        "late" if rank == 3 => {
            std::thread::sleep(Duration::from_secs(30));
            Ok(())
        }
        "confused" if rank == 1 => mpi.barrier("elsewhere").map_err(|e| e.to_string()),
        "killed" if rank == 2 => {
            messages(&mut mpi, 1 << 20);
            let _ = Command::new("kill").args(["-9", &std::process::id().to_string()]).status();
            std::thread::sleep(Duration::from_secs(30));
            Ok(())
        }
        "killed" => {
            messages(&mut mpi, 1 << 20);
            mpi.barrier("after the kill").map_err(|e| e.to_string())
        }
        "late" | "confused" => ranks::train(&mut mpi, Reduction::Fixed).map(|_| ()).map_err(|e| e.to_string()),
        _ => {
            sums(&mut mpi);
            Ok(())
        }
    };
    if let Err(error) = result {
        mpi.abort(&format!("rank {rank}: {error}"));
    }
}

fn sums(mpi: &mut Mpi) {
    let (rank, world) = (mpi.rank(), mpi.world());
    let one = ranks::alone();
    for reduction in [Reduction::Fixed, Reduction::Fast] {
        if world > 1 {
            ranks::check(&ranks::train(mpi, reduction).unwrap(), &one, world, reduction);
            assert_eq!(ranks::poisoned(mpi, reduction).unwrap(), [false, true]);
        }
    }
    messages(mpi, 1000 + rank);
    // More than travels in one call of the library, in uneven stretches.
    let total = 9_000_001;
    let ranges = quorum_learner::collective::shares(total, world);
    let slab: Vec<f32> = (0..total).map(|i| (i % 1000 + rank) as f32).collect();
    let mut own = vec![0.0; ranges[rank].len()];
    mpi.reduce_scatter(&slab, &ranges, &mut own).unwrap();
    let sum = |i: usize| (world * (i % 1000) + world * (world - 1) / 2) as f32;
    assert!(own.iter().zip(ranges[rank].clone()).all(|(x, i)| *x == sum(i)), "reduce_scatter of {total}");
    let mut whole = vec![-1.0; total];
    whole[ranges[rank].clone()].copy_from_slice(&own);
    mpi.all_gather(&mut whole, &ranges).unwrap();
    assert!(whole.iter().enumerate().all(|(i, x)| *x == sum(i)), "all_gather of {total}");
    mpi.barrier("the end").unwrap();
    println!("rank {rank} of {world}: sums agree");
}

/// Messages of different lengths, empty ones too.
fn messages(mpi: &mut Mpi, length: usize) {
    let (rank, world) = (mpi.rank(), mpi.world());
    let mine = vec![rank as u8; if rank == 1 { 0 } else { length }];
    let all = mpi.all_gather_bytes(&mine).unwrap();
    assert_eq!(all.len(), world);
    assert!(all[rank] == mine && all.iter().enumerate().all(|(r, m)| m.iter().all(|b| *b == r as u8)));
    assert!(all.len() < 2 || all[1].is_empty());
}
