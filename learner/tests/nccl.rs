//! The NCCL group's own code (deadlines, aborts, padding, errors) against libraries of the same names that are built here from C and
//! whose ranks are threads: what NCCL and the driver really do, only a GPU shows (`deploy/cuda/measure.sh`).
#![cfg(feature = "nccl")]
#![allow(clippy::unwrap_used)]

#[path = "nccl_fake/mod.rs"]
mod nccl_fake;

use nccl_fake::{aborts, frees, hang, inside};
use quorum_core::nccl::{Communicator, new_id};
use quorum_learner::collective::{BLOCK, Collective, CollectiveError, Nccl, Patience, shares};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn patience(milliseconds: u64) -> Patience {
    Patience::new(Duration::from_millis(milliseconds))
}

/// Runs `body` as every rank of a group of `world`.
fn ranks<T: Send>(world: usize, milliseconds: u64, body: impl Fn(Nccl) -> T + Sync) -> Vec<T> {
    let id = new_id().unwrap();
    let (id, body) = (&id, &body);
    std::thread::scope(|scope| {
        let rank = |rank| {
            scope.spawn(move || {
                body(Nccl(Communicator::form(id, rank, world, rank % 2, patience(milliseconds)).unwrap()))
            })
        };
        let threads: Vec<_> = (0..world).map(rank).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

fn value(rank: usize, i: usize) -> f32 {
    (rank * 31 + i % 1009) as f32
}

#[test]
fn sums_stretches_and_messages_arrive() {
    if !inside("sums_stretches_and_messages_arrive") {
        return;
    }
    for world in [1, 2, 3] {
        // The last stretch is shorter, or empty.
        let total = 2 * BLOCK + 17;
        let ranges = &shares(total, world);
        ranks(world, 5000, |mut group| {
            let me = group.rank();
            let mine: Vec<f32> = (0..total).map(|i| value(me, i)).collect();
            let mut out = vec![f32::NAN; ranges[me].len()];
            group.reduce_scatter(&mine, ranges, &mut out).unwrap();
            for (i, &sum) in ranges[me].clone().zip(&out) {
                assert_eq!(sum, (0..world).map(|rank| value(rank, i)).sum::<f32>());
            }
            let mut slab = vec![f32::NAN; total];
            slab[ranges[me].clone()].copy_from_slice(&mine[ranges[me].clone()]);
            group.all_gather(&mut slab, ranges).unwrap();
            for (rank, range) in ranges.iter().enumerate() {
                assert!(range.clone().all(|i| slab[i] == value(rank, i)));
            }
            // Rank a sends a + 2b elements to b, nothing from 0 to 0.
            let sent: Vec<Vec<f32>> = (0..world).map(|to| vec![(me * 10 + to) as f32; me + 2 * to]).collect();
            let mut back: Vec<Vec<f32>> = (0..world).map(|from| vec![f32::NAN; from + 2 * me]).collect();
            let send: Vec<&[f32]> = sent.iter().map(Vec::as_slice).collect();
            let mut receive: Vec<&mut [f32]> = back.iter_mut().map(Vec::as_mut_slice).collect();
            group.all_to_all(&send, &mut receive).unwrap();
            for (from, values) in back.iter().enumerate() {
                assert!(values.iter().all(|&x| x == (from * 10 + me) as f32), "{from} to {me}: {values:?}");
            }
            let messages = group.all_gather_bytes(&vec![me as u8; me * 5]).unwrap();
            assert_eq!(messages, (0..world).map(|rank| vec![rank as u8; rank * 5]).collect::<Vec<_>>());
            group.barrier("end of test").unwrap();
        });
    }
}

#[test]
fn a_rank_that_never_comes_is_an_error_in_time() {
    if !inside("a_rank_that_never_comes_is_an_error_in_time") {
        return;
    }
    let (start, id) = (Instant::now(), new_id().unwrap());
    let error = Communicator::form(&id, 0, 2, 0, patience(300)).err().unwrap();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(matches!(error, CollectiveError::Late { .. }));
    let words = error.to_string();
    assert!(words.contains("forming the group: waited 0.3 s") && words.contains("rank 1 is late"), "{words}");
    assert_eq!(aborts(), 1);
}

#[test]
fn a_rank_that_stops_calling_is_an_error_in_time() {
    if !inside("a_rank_that_stops_calling_is_an_error_in_time") {
        return;
    }
    let words = ranks(2, 400, |mut group| {
        if group.rank() == 1 {
            std::thread::sleep(Duration::from_millis(1200));
            return String::new();
        }
        let start = Instant::now();
        let words = group.barrier("weights").unwrap_err().to_string();
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        let next = group.barrier("next").unwrap_err().to_string();
        assert!(next.contains("the group has ended"), "{next}");
        words
    });
    assert!(words[0].contains("barrier weights: waited 0.4 s") && words[0].contains("rank 1 is late"), "{}", words[0]);
    // One at the deadline, one when the other rank drops its group.
    assert_eq!(aborts(), 2);
}

#[test]
fn the_end_of_one_rank_reaches_the_others_before_their_deadline() {
    if !inside("the_end_of_one_rank_reaches_the_others_before_their_deadline") {
        return;
    }
    let words = ranks(3, 20_000, |mut group| {
        if group.rank() == 2 {
            std::thread::sleep(Duration::from_millis(200));
            group.abort("test");
            return String::new();
        }
        let start = Instant::now();
        let error = group.all_gather_bytes(b"x").unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        error.to_string()
    });
    assert!(words[0].contains("all_gather_bytes: NCCL: remote process exited"), "{}", words[0]);
    assert_eq!(words[0].split('(').next(), words[1].split('(').next());
}

/// Freeing device memory waits for what runs on the device, and a communicator that does not end may still run there.
#[test]
fn memory_of_a_group_that_does_not_end_is_left_behind() {
    if !inside("memory_of_a_group_that_does_not_end_is_left_behind") {
        return;
    }
    let used = || ranks(1, 5000, |mut group| group.all_gather_bytes(b"x").map(drop).unwrap());
    used();
    let before = frees();
    assert!(before > 0, "of a group that ends it is given back");
    hang();
    let start = Instant::now();
    used();
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert_eq!(frees() - before, 0);
}

#[test]
fn an_interrupt_ends_a_wait() {
    if !inside("an_interrupt_ends_a_wait") {
        return;
    }
    let interrupt = Arc::new(|| Some("the coordinator has fenced this learner".to_owned()));
    let id = new_id().unwrap();
    let error =
        Communicator::form(&id, 1, 2, 0, Patience { deadline: Duration::from_secs(60), interrupt }).err().unwrap();
    assert!(error.to_string().contains("fenced this learner"), "{error}");
}

#[test]
fn what_is_wrong_with_the_machine_is_said() {
    if !inside("what_is_wrong_with_the_machine_is_said") {
        // Here, without the fakes: no NCCL on a machine of CI.
        if let Err(error) = new_id() {
            assert!(error.to_string().contains("libnccl.so.2 cannot be loaded"), "{error}");
        }
        return;
    }
    let id = new_id().unwrap();
    let words =
        |id: &[u8], rank, device| Communicator::form(id, rank, 2, device, patience(100)).err().unwrap().to_string();
    assert!(words(&id, 0, 7).contains("CUDA device 7: cuDeviceGet: CUDA_ERROR_INVALID_DEVICE"));
    assert!(words(&id[1..], 0, 0).contains("an id of 127 bytes"));
    assert!(words(&id, 2, 0).contains("rank 2 of 2"));
}
