//! The NCCL group on a machine with a GPU: `nccl_check DEVICE`. A group of one rank, with results and times, then a group of two whose other
//! rank never comes, which must be an error at the deadline. Exit status 1 if either is not as it should be.

use quorum_core::nccl::{Communicator, Way, broadcast, new_id};
use quorum_learner::collective::{Collective, CollectiveError, Nccl, Patience, shares};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Elements of the slab: 256 MiB.
const TOTAL: usize = 64 << 20;
const DEADLINE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let device = std::env::args().nth(1).map_or(Ok(0), |s| s.parse());
    let Ok(device) = device else {
        eprintln!("usage: nccl_check DEVICE (a number)");
        return ExitCode::from(2);
    };
    println!("| NCCL | seconds | |");
    println!("| --- | --- | --- |");
    let mut good = match one(device) {
        Ok(()) => true,
        Err(error) => {
            println!("| one rank | | FAILED: {error} |");
            false
        }
    };
    good &= missing(device);
    ExitCode::from(u8::from(!good))
}

fn row(name: &str, start: Instant, good: bool) -> Result<(), CollectiveError> {
    println!("| {name} | {:.3} | {} |", start.elapsed().as_secs_f64(), if good { "ok" } else { "WRONG" });
    if good {
        return Ok(());
    }
    Err(CollectiveError::Failed { operation: name.to_owned(), seconds: 0.0, reason: "a wrong result".to_owned() })
}

/// Every call in a group of one: the library, the device and the stream do what the code expects.
fn one(device: usize) -> Result<(), CollectiveError> {
    let start = Instant::now();
    let patience = || Patience::new(Duration::from_secs(60));
    let mut group = Nccl(Communicator::form(&new_id()?, 0, 1, device, patience())?);
    row("form a group of one", start, true)?;
    let ranges = shares(TOTAL, 1);
    let slab: Vec<f32> = (0..TOTAL).map(|i| (i % 8191) as f32).collect();
    let mut out = vec![0.0; TOTAL];
    for name in ["reduce_scatter, 256 MiB, first", "reduce_scatter, 256 MiB"] {
        let start = Instant::now();
        group.reduce_scatter(&slab, &ranges, &mut out)?;
        row(name, start, out == slab)?;
    }
    let start = Instant::now();
    group.all_gather(&mut out, &ranges)?;
    row("all_gather, 256 MiB", start, out == slab)?;
    let start = Instant::now();
    group.all_to_all(&[&slab[..1000]], &mut [&mut out[1000..2000]])?;
    row("all_to_all with itself", start, out[1000..2000] == slab[..1000])?;
    let start = Instant::now();
    let messages = group.all_gather_bytes(b"quorum")?;
    row("all_gather_bytes", start, messages == [b"quorum"])?;
    let start = Instant::now();
    group.barrier("end")?;
    row("barrier", start, true)?;
    let (start, mut sent) = (Instant::now(), 0);
    let mut group = Communicator::form(&new_id()?, 0, 1, device, patience())?;
    let mut give = |_: u64, len: usize| {
        sent += len;
        vec![7; len]
    };
    broadcast(&mut group, start, 4 * TOTAL as u64, Way::Send(&mut give))?;
    group.close(Instant::now())?;
    row("form, broadcast of 256 MiB in parts, leave", start, sent == 4 * TOTAL)
}

fn missing(device: usize) -> bool {
    let start = Instant::now();
    let formed = new_id().and_then(|id| Communicator::form(&id, 0, 2, device, Patience::new(DEADLINE)));
    let seconds = start.elapsed().as_secs_f64();
    let (words, named) = match formed {
        Ok(_) => ("it formed".to_owned(), false),
        Err(error) => (error.to_string(), matches!(&error, CollectiveError::Late { late, .. } if late.0 == [1])),
    };
    let good = named && seconds < DEADLINE.as_secs_f64() + 10.0;
    println!(
        "| two ranks, one missing, deadline 10 s | {seconds:.3} | {}: {words} |",
        if good { "ok" } else { "WRONG" }
    );
    good
}
