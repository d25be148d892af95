//! One rank: every call is a copy or nothing.

use super::{Collective, CollectiveError, check_ranges};
use std::ops::Range;

/// The group of a learner that is alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct OneRank;

impl Collective for OneRank {
    fn transport(&self) -> &'static str {
        "one"
    }

    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn reduce_scatter(
        &mut self,
        input: &[f32],
        ranges: &[Range<usize>],
        out: &mut [f32],
    ) -> Result<(), CollectiveError> {
        check_ranges("reduce_scatter", ranges, 1, input.len())?;
        copy("reduce_scatter", ranges.first().and_then(|r| input.get(r.clone())), Some(out))
    }

    fn all_gather(&mut self, slab: &mut [f32], ranges: &[Range<usize>]) -> Result<(), CollectiveError> {
        check_ranges("all_gather", ranges, 1, slab.len())
    }

    fn all_to_all(&mut self, send: &[&[f32]], receive: &mut [&mut [f32]]) -> Result<(), CollectiveError> {
        copy("all_to_all", send.first().copied(), receive.first_mut().map(|r| &mut **r))
    }

    fn all_gather_bytes(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        Ok(vec![mine.to_vec()])
    }

    fn barrier(&mut self, _name: &str) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn abort(&mut self, _why: &str) {}

    fn can_form_again(&self) -> bool {
        true
    }
}

fn copy(operation: &'static str, from: Option<&[f32]>, to: Option<&mut [f32]>) -> Result<(), CollectiveError> {
    match (from, to) {
        (Some(from), Some(to)) if from.len() == to.len() => {
            to.copy_from_slice(from);
            Ok(())
        }
        _ => Err(CollectiveError::Arguments { operation, reason: "the two sides differ in length".into() }),
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // one rank has one stretch
mod tests {
    use super::*;

    #[test]
    fn alone_everything_is_ones_own() {
        let mut one = OneRank;
        let mut out = [0.0; 3];
        one.reduce_scatter(&[1.0, 2.0, 3.0, 4.0], &[1..4], &mut out).unwrap();
        assert_eq!(out, [2.0, 3.0, 4.0]);
        one.all_to_all(&[&[5.0; 3]], &mut [&mut out]).unwrap();
        assert_eq!(out, [5.0; 3]);
        assert_eq!(one.all_gather_bytes(b"me").unwrap(), [b"me"]);
        assert!(one.all_gather(&mut out, &[0..4]).is_err());
        assert!(one.reduce_scatter(&[1.0], &[0..1], &mut out).is_err());
    }
}
