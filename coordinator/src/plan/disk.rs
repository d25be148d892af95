//! Disk a run needs: checkpoints, ledger, export. Pure, but for the free space of a file system.

use super::batch::Batch;
use serde::Serialize;
use std::path::Path;

/// Bytes of a group's row beside its tokens: vote, rewards, indices.
const GROUP: u64 = 700;
/// Bytes of one sample's share of that row.
const SAMPLE: u64 = 60;
/// Bytes of a token in a group's body: id, log-prob, its share of the text.
const TOKEN: u64 = 12;
/// Bytes of an answered evaluation question.
const ANSWER: u64 = 300;

/// Bytes by purpose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// One checkpoint: trained weights and Adam's moments, f32.
    pub checkpoint: u64,
    /// Checkpoints at once: those kept, and the one being written.
    pub checkpoints: u64,
    /// Published versions that are too large for the coordinator's memory, while it runs.
    pub published: u64,
    /// Votes of all steps, tokens of those since the second newest checkpoint; at most.
    pub ledger: u64,
    /// A model directory of `coordinator export` in bf16 (f32 takes twice as much); not part of the run directory.
    pub export: u64,
}

impl Disk {
    /// Bytes of the run directory, at most.
    pub fn run_directory(&self) -> u64 {
        self.checkpoints + self.published + self.ledger
    }
}

/// Computes them. `tokens` are those of a response at most.
pub fn disk(elements: u64, trainable: u64, published: u64, keep: u64, every: u64, batch: &Batch, tokens: u64) -> Disk {
    let checkpoint = 3 * trainable * 4;
    let groups = batch.training_leases;
    let unpruned = (2 * every).min(batch.steps) * batch.samples_per_step;
    let whole = if batch.training_leases > 0 { unpruned * tokens * TOKEN } else { 0 };
    Disk {
        checkpoint,
        checkpoints: checkpoint * (keep + 1),
        published,
        ledger: groups * (GROUP + batch.group_size * SAMPLE) + whole + batch.evaluation_leases * ANSWER,
        export: elements * 2,
    }
}

/// Free bytes for this user where `path` will be; none if that cannot be told.
pub fn free(path: &Path) -> Option<u64> {
    let path = std::path::absolute(path).ok()?;
    let there = path.ancestors().find(|p| p.exists())?;
    let name = std::ffi::CString::new(there.as_os_str().as_encoded_bytes()).ok()?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: a valid C string and a buffer of the right type, read only when the call says it was filled.
    let stat = unsafe {
        if libc::statvfs(name.as_ptr(), stat.as_mut_ptr()) != 0 {
            return None;
        }
        stat.assume_init()
    };
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}
