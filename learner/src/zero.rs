//! The optimiser step of a group: each rank owns a stretch of the slab, adds the gradient there, holds the moments of it, moves the weights of it, and gets
//! the other stretches from their owners (ZeRO, stages 1 and 2).

use crate::collective::{Collective, CollectiveError, shares};
use crate::share::Share;
use quorum_core::config::Reduction;
use quorum_engine::{EngineError, SquareSum, StepStats, Trainer};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Elements of one lane and owner that travel at a time in fixed order: bounds what a rank holds of the others.
const PIECE: usize = 1 << 18;

/// Why a step of the group failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// One rank's part of the step.
#[derive(Debug)]
pub struct Zero {
    share: Share,
    reduction: Reduction,
    /// The stretch of each rank.
    ranges: Vec<Range<usize>>,
    /// Sum over all lanes of the own stretch; empty on one rank, where the trainer's own slab serves.
    gradient: Vec<f32>,
    /// Time spent with the other ranks since it was last taken.
    spent: Duration,
}

impl Zero {
    /// For a slab of `total` elements.
    pub fn new(total: usize, share: Share, reduction: Reduction) -> Self {
        let ranges = shares(total, share.world);
        let own = ranges.get(share.rank).filter(|_| share.world > 1).map_or(0, Range::len);
        Self { share, reduction, ranges, gradient: vec![0.0; own], spent: Duration::ZERO }
    }

    /// The stretch whose moments this rank holds.
    pub fn owned(&self) -> Range<usize> {
        self.ranges.get(self.share.rank).cloned().unwrap_or(0..0)
    }

    /// The summed gradient of the own stretch after [`Zero::reduce`].
    pub fn gradient(&self) -> &[f32] {
        &self.gradient
    }

    /// Time spent in collectives since this was last asked.
    pub fn take_spent(&mut self) -> Duration {
        std::mem::take(&mut self.spent)
    }

    /// One step on the gradient batch of `packs` packs (of all ranks) that the trainers hold. The result is the same on every rank.
    ///
    /// # Errors
    /// A rank is lost or late, or the engine's.
    pub fn step(
        &mut self,
        ranks: &mut dyn Collective,
        trainer: &mut Trainer,
        weights: &mut [f32],
        packs: usize,
        learning_rate: f32,
    ) -> Result<StepStats, StepError> {
        if self.share.world == 1 {
            return Ok(trainer.step(weights, learning_rate)?);
        }
        let start = Instant::now();
        self.reduce(ranks, trainer, packs)?;
        let norm = self.norm(ranks)?;
        self.spent += start.elapsed();
        let stats = trainer.update(weights, &mut self.gradient, norm, learning_rate)?;
        if stats.finite {
            let start = Instant::now();
            ranks.all_gather(weights, &self.ranges)?;
            self.spent += start.elapsed();
        }
        Ok(stats)
    }

    /// Sums the gradient over ranks, each its own stretch, and empties the trainer's lanes.
    ///
    /// # Errors
    /// A rank is lost or late.
    pub fn reduce(
        &mut self,
        ranks: &mut dyn Collective,
        trainer: &mut Trainer,
        packs: usize,
    ) -> Result<(), CollectiveError> {
        match self.reduction {
            Reduction::Fast => ranks.reduce_scatter(trainer.gradient(), &self.ranges, &mut self.gradient)?,
            Reduction::Fixed => self.gather_lanes(ranks, trainer, packs.min(self.share.lanes))?,
        }
        trainer.clear();
        Ok(())
    }

    /// Every lane's piece of a stretch goes to the owner, who adds the pieces in lane order: the order of one rank.
    fn gather_lanes(
        &mut self,
        ranks: &mut dyn Collective,
        trainer: &Trainer,
        busy: usize,
    ) -> Result<(), CollectiveError> {
        let Share { rank, world, lanes } = self.share;
        let longest = self.ranges.iter().map(Range::len).max().unwrap_or(0);
        let mut pieces = vec![vec![0.0; PIECE.min(self.gradient.len())]; world];
        for at in (0..longest).step_by(PIECE) {
            let cut = |r: &Range<usize>| (r.start + at).min(r.end)..(r.start + at + PIECE).min(r.end);
            let own = at.min(self.gradient.len())..(at + PIECE).min(self.gradient.len());
            // In each round every rank sends one lane, its rank-th.
            for round in 0..busy.div_ceil(world) {
                let lane = |r: usize| round * world + r;
                let mine = if lane(rank) < busy { trainer.lane(round) } else { &[] };
                let send: Vec<&[f32]> = self.ranges.iter().map(|r| mine.get(cut(r)).unwrap_or_default()).collect();
                let mut receive: Vec<&mut [f32]> = Vec::with_capacity(world);
                for (r, piece) in pieces.iter_mut().enumerate() {
                    let length = if lane(r) < busy { own.len() } else { 0 };
                    receive.push(piece.get_mut(..length).unwrap_or_default());
                }
                ranks.all_to_all(&send, &mut receive)?;
                let sum = self.gradient.get_mut(own.clone()).unwrap_or_default();
                for (r, piece) in receive.iter().enumerate() {
                    match lane(r) {
                        0 => sum.copy_from_slice(piece),
                        _ => sum.iter_mut().zip(piece.iter()).for_each(|(a, b)| *a += b),
                    }
                }
            }
        }
        if busy > 1 && busy < lanes {
            // One rank adds its idle lanes too, which are zeros.
            self.gradient.iter_mut().for_each(|x| *x += 0.0);
        }
        Ok(())
    }

    /// Norm of the whole gradient. In fixed order the owners go on with each other's sum, one after another, which has the bits of one pass.
    fn norm(&self, ranks: &mut dyn Collective) -> Result<f64, CollectiveError> {
        let torn =
            || CollectiveError::Arguments { operation: "gradient norm", reason: "a sum has another size".into() };
        if self.reduction == Reduction::Fast {
            let mut own = SquareSum::default();
            own.add(&self.gradient);
            let parts = ranks.all_gather_bytes(&own.to_bytes())?;
            let parts = parts.iter().map(|p| SquareSum::from_bytes(p).map(|s| s.total()));
            return Ok(parts.collect::<Option<Vec<f64>>>().ok_or_else(torn)?.iter().sum::<f64>().sqrt());
        }
        let mut sum = SquareSum::default();
        for owner in 0..self.share.world {
            let mut mine = Vec::new();
            if owner == self.share.rank {
                sum.add(&self.gradient);
                mine = sum.to_bytes();
            }
            let said = ranks.all_gather_bytes(&mine)?;
            sum = said.get(owner).and_then(|bytes| SquareSum::from_bytes(bytes)).ok_or_else(torn)?;
        }
        Ok(sum.total().sqrt())
    }
}
