//! The calls of the trait in NCCL's terms: stretches of equal length in one device buffer, host slices in and out.

use super::Nccl;
use crate::collective::{Collective, CollectiveError, check_ranges};
use quorum_core::nccl::{Code, FLOAT, IN_PROGRESS, SUM, at};
use std::ffi::c_int;
use std::ops::Range;
use std::time::Instant;

const F32: usize = size_of::<f32>();

fn longest(ranges: &[Range<usize>]) -> usize {
    ranges.iter().map(Range::len).max().unwrap_or(0)
}

impl Collective for Nccl {
    fn transport(&self) -> &'static str {
        "nccl"
    }

    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn world(&self) -> usize {
        self.0.world()
    }

    fn reduce_scatter(
        &mut self,
        input: &[f32],
        ranges: &[Range<usize>],
        out: &mut [f32],
    ) -> Result<(), CollectiveError> {
        const NAME: &str = "reduce_scatter";
        check_ranges(NAME, ranges, self.0.world(), input.len())?;
        if out.len() != ranges[self.0.rank()].len() {
            let reason = format!("{} elements for a stretch of {}", out.len(), ranges[self.0.rank()].len());
            return Err(CollectiveError::Arguments { operation: NAME, reason });
        }
        // NCCL wants stretches of one length: shorter ones are filled up with zeros.
        let (start, count) = (Instant::now(), longest(ranges));
        let buffer = self.0.prepare(NAME, start, self.0.world() * count * F32)?;
        for (rank, range) in ranges.iter().enumerate() {
            let (from, filled) = (rank * count * F32, range.len() * F32);
            let copied = self.0.device().upload(from, &input[range.clone()]);
            let copied = copied.and_then(|()| self.0.device().zero(from + filled, count * F32 - filled));
            copied.map_err(|e| CollectiveError::failed(NAME, start, e))?;
        }
        let own = self.0.rank() * count * F32;
        self.0.call(NAME, start, |nccl, communicator, stream| {
            // SAFETY: the buffer holds `world` stretches and stays until the stream is idle; in place as NCCL allows it.
            unsafe { (nccl.reduce_scatter)(at(buffer, 0), at(buffer, own), count, FLOAT, SUM, communicator, stream) }
        })?;
        self.0.device().download(own, out).map_err(|e| CollectiveError::failed(NAME, start, e))
    }

    fn all_gather(&mut self, slab: &mut [f32], ranges: &[Range<usize>]) -> Result<(), CollectiveError> {
        const NAME: &str = "all_gather";
        check_ranges(NAME, ranges, self.0.world(), slab.len())?;
        let (start, bytes) = (Instant::now(), longest(ranges) * F32);
        let buffer = self.0.prepare(NAME, start, self.0.world() * bytes)?;
        let own = &ranges[self.0.rank()];
        let copied = self.0.device().upload(self.0.rank() * bytes, &slab[own.clone()]);
        let copied = copied
            .and_then(|()| self.0.device().zero(self.0.rank() * bytes + own.len() * F32, bytes - own.len() * F32));
        copied.map_err(|e| CollectiveError::failed(NAME, start, e))?;
        self.gather(NAME, start, buffer, bytes)?;
        for (rank, range) in ranges.iter().enumerate().filter(|(rank, _)| *rank != self.0.rank()) {
            self.0
                .device()
                .download(rank * bytes, &mut slab[range.clone()])
                .map_err(|e| CollectiveError::failed(NAME, start, e))?;
        }
        Ok(())
    }

    fn all_to_all(&mut self, send: &[&[f32]], receive: &mut [&mut [f32]]) -> Result<(), CollectiveError> {
        const NAME: &str = "all_to_all";
        let fits = send.len() == self.0.world() && receive.len() == self.0.world();
        if !fits || send[self.0.rank()].len() != receive[self.0.rank()].len() {
            let reason = format!("{} and {} slices for {} ranks", send.len(), receive.len(), self.0.world());
            return Err(CollectiveError::Arguments { operation: NAME, reason });
        }
        receive[self.0.rank()].copy_from_slice(send[self.0.rank()]);
        let (start, rank) = (Instant::now(), self.0.rank());
        let mut offset = 0;
        let mut place = |len: usize| {
            offset += len * F32;
            offset - len * F32
        };
        let out: Vec<_> = send.iter().map(|x| (place(x.len()), x.len())).collect();
        let back: Vec<_> = receive.iter().map(|x| (place(x.len()), x.len())).collect();
        let buffer = self.0.prepare(NAME, start, offset)?;
        for (x, &(from, _)) in send.iter().zip(&out) {
            self.0.device().upload(from, x).map_err(|e| CollectiveError::failed(NAME, start, e))?;
        }
        self.0.call(NAME, start, |nccl, communicator, stream| {
            // SAFETY: all stretches lie in the buffer, which stays until the stream is idle.
            unsafe {
                let mut code = (nccl.group_start)();
                let mut also = |next: Code| code = if code == 0 || code == IN_PROGRESS { next } else { code };
                for peer in (0..out.len()).filter(|&peer| peer != rank) {
                    let ((from, sent), (to, received)) = (out[peer], back[peer]);
                    if sent > 0 {
                        also((nccl.send)(at(buffer, from), sent, FLOAT, peer as c_int, communicator, stream));
                    }
                    if received > 0 {
                        also((nccl.receive)(at(buffer, to), received, FLOAT, peer as c_int, communicator, stream));
                    }
                }
                also((nccl.group_end)());
                code
            }
        })?;
        for (peer, (x, &(from, _))) in receive.iter_mut().zip(&back).enumerate() {
            if peer != rank {
                self.0.device().download(from, x).map_err(|e| CollectiveError::failed(NAME, start, e))?;
            }
        }
        Ok(())
    }

    fn all_gather_bytes(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        const NAME: &str = "all_gather_bytes";
        let start = Instant::now();
        let lengths = self.gather_equal(NAME, start, &(mine.len() as u64).to_le_bytes())?;
        let lengths =
            lengths.chunks_exact(8).map(|x| x.iter().rev().fold(0usize, |sum, &byte| (sum << 8) | usize::from(byte)));
        let lengths: Vec<usize> = lengths.collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        if longest == 0 {
            return Ok(vec![Vec::new(); self.0.world()]);
        }
        let mut padded = mine.to_vec();
        padded.resize(longest, 0);
        let all = self.gather_equal(NAME, start, &padded)?;
        Ok(all.chunks_exact(longest).zip(lengths).map(|(message, len)| message[..len].to_vec()).collect())
    }

    fn barrier(&mut self, name: &str) -> Result<(), CollectiveError> {
        self.gather_equal(&format!("barrier {name}"), Instant::now(), &[0]).map(|_| ())
    }

    fn abort(&mut self, why: &str) {
        tracing::warn!(why, rank = self.0.rank(), "ending the NCCL group");
        self.0.abort();
    }

    fn can_form_again(&self) -> bool {
        true
    }
}
