//! A long row of bytes from rank 0 to all others, in parts through two halves of one device buffer: while one part travels, the other half is
//! filled or emptied. Nothing here says that the bytes are right.

use super::{BYTE, Communicator, at};
use crate::collective::CollectiveError;
use std::time::Instant;

/// Bytes of a part.
const PART: usize = 32 << 20;
const NAME: &str = "broadcast";

/// What a rank does with the parts.
pub enum Way<'a> {
    /// Rank 0: gives the bytes from an offset on, as many as are asked for.
    Send(&'a mut dyn FnMut(u64, usize) -> Vec<u8>),
    /// All others: takes the next bytes, in order.
    Take(&'a mut dyn FnMut(&[u8])),
}

/// Sends or takes `total` bytes; all ranks say the same number. `start` and the group's deadline bound all of it.
///
/// # Errors
/// A rank is late or lost, or the device fails; the group has ended.
pub fn broadcast(group: &mut Communicator, start: Instant, total: u64, mut way: Way) -> Result<(), CollectiveError> {
    if matches!(way, Way::Send(_)) != (group.rank() == 0) {
        return Err(CollectiveError::Arguments { operation: NAME, reason: "rank 0 sends, all others take".into() });
    }
    let fail = |reason: String| CollectiveError::failed(NAME, start, reason);
    let part = usize::try_from(total).map_or(PART, |total| total.clamp(1, PART));
    let buffer = group.prepare(NAME, start, 2 * part)?;
    let count = usize::try_from(total.div_ceil(part as u64)).map_err(|e| fail(e.to_string()))?;
    // Bytes and place of part number i.
    let len = |i: usize| usize::try_from(total - i as u64 * part as u64).map_or(part, |rest| rest.min(part));
    let half = |i: usize| (i % 2) * part;
    let mut taken = Vec::new();
    for i in 0..=count {
        if let (true, Way::Send(give)) = (i < count, &mut way) {
            let bytes = give(i as u64 * part as u64, len(i));
            if bytes.len() != len(i) {
                return Err(fail(format!("{} bytes instead of {} at part {i}", bytes.len(), len(i))));
            }
            group.device().upload_aside(half(i), &bytes).map_err(fail)?;
        }
        if i > 0 {
            group.finish(NAME, start)?;
        }
        if i < count {
            let (place, bytes) = (at(buffer, half(i)), len(i));
            group.begin(NAME, start, |nccl, communicator, stream| {
                // SAFETY: the half holds the part, and is not touched until the stream is idle.
                unsafe { (nccl.broadcast)(place, place, bytes, BYTE, 0, communicator, stream) }
            })?;
        }
        if let (Some(before), Way::Take(take)) = (i.checked_sub(1), &mut way) {
            taken.resize(len(before), 0u8);
            group.device().download_aside(half(before), &mut taken).map_err(fail)?;
            take(&taken);
        }
    }
    Ok(())
}
