//! Gradients of packs over a fixed number of lanes, then one fused AdamW step. Nothing here depends on threads or arrival (D3).

#[cfg(feature = "candle")]
use crate::candle::Call;
use crate::engine::{Engine, batches, parallel};
use crate::error::EngineError;
use crate::kernels::norm::add_assign;
use crate::kernels::threads::{share_slices, with_threads};
use crate::model::head::Policy;
use crate::optim::{SquareSum, StepFactors, adamw};
use crate::params::Grads;
use crate::types::{AdamW, OptimState, Pack, PackScores, PolicyDist, StepStats};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// dL/dlogp of pack i from its scores, in the shape of its log-probs.
pub type Objective<'a> = dyn Fn(usize, &PackScores) -> Vec<Vec<f32>> + Sync + 'a;

/// Accumulates gradients over packs in a fixed order over lanes, then steps.
pub struct Trainer {
    engine: Engine,
    optim: AdamW,
    checkpointing: bool,
    /// Gradient slab of each lane.
    lanes: Vec<Vec<f32>>,
    /// Lanes from the first on that may hold something.
    used: usize,
    /// The stretch of the slab that the moments are of.
    owned: Range<usize>,
    m: Vec<f32>,
    v: Vec<f32>,
    t: u64,
}

impl Trainer {
    /// `lanes` is part of the result (sums are taken lane by lane): choose it once for a run, not by the machine.
    pub fn new(engine: Engine, lanes: usize, optim: AdamW) -> Self {
        let n = engine.layout().total();
        Self::sharded(engine, lanes, optim, 0..n)
    }

    /// The trainer of one rank of a group: `lanes` counts those of this rank, and moments exist for the stretch `owned` alone (cut to the slab).
    /// Whoever adds the ranks' gradients steps with [`Trainer::update`].
    pub fn sharded(engine: Engine, lanes: usize, optim: AdamW, owned: Range<usize>) -> Self {
        let n = engine.layout().total();
        let owned = owned.start.min(n)..owned.end.clamp(owned.start.min(n), n);
        // Each allocated as zeros: memory that is never written is never resident.
        let lanes = (0..lanes.max(1)).map(|_| vec![0.0; n]).collect();
        let (m, v) = (vec![0.0; owned.len()], vec![0.0; owned.len()]);
        Self { engine, optim, checkpointing: false, lanes, used: 0, owned, m, v, t: 0 }
    }

    /// Keeps only each block's input for the backward pass and computes the rest again; no bit of the result changes.
    pub fn with_checkpointing(mut self, on: bool) -> Self {
        self.checkpointing = on;
        self
    }

    /// The engine whose kernels compute everything.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Scores every pack with the training forward, asks `objective` for dL/dlogp and adds the gradient to the lanes
    /// (pack i → lane i % lanes). Returns the scores in pack order.
    ///
    /// # Errors
    /// A pack that does not fit the model, an objective of the wrong shape, or numbers that are not finite. All accumulated
    /// gradients are dropped then, because a part of a batch is of no use.
    pub fn accumulate(
        &mut self,
        weights: &[f32],
        packs: &[Pack],
        policy: &PolicyDist,
        objective: &Objective,
    ) -> Result<Vec<PackScores>, EngineError> {
        let result = self.try_accumulate(weights, packs, policy, objective);
        if result.is_err() {
            self.clear();
        }
        result
    }

    fn try_accumulate(
        &mut self,
        weights: &[f32],
        packs: &[Pack],
        policy: &PolicyDist,
        objective: &Objective,
    ) -> Result<Vec<PackScores>, EngineError> {
        let count = self.lanes.len();
        self.used = self.used.max(count.min(packs.len()));
        let engine = &self.engine;
        let policy = Policy::new(policy, engine.plan.head.n_out)?;
        let last = engine.check_packs(packs, &policy)?;
        #[cfg(feature = "candle")]
        if let Some(backend) = &engine.elsewhere {
            let ask = |i: usize, s: &PackScores| checked(i, objective(i, s), s);
            let mut done = Vec::with_capacity(count);
            for (lane, slab) in self.lanes.iter_mut().enumerate().take(packs.len()) {
                let members: Vec<usize> = (lane..packs.len()).step_by(count).collect();
                let call = Call { engine, packs, members: &members, policy: &policy, last };
                let scores = backend.accumulate(weights, &call, self.checkpointing, &ask, slab)?;
                done.push(scores.into_iter());
            }
            return Ok((0..packs.len()).filter_map(|i| done[i % count].next()).collect());
        }
        let panels = engine.pool.panels(&engine.plan, weights, engine.threads)?;
        let w = panels.weights(weights);
        let rope = engine.pool.rope(&engine.plan, last);
        let lanes: Vec<Mutex<&mut Vec<f32>>> = self.lanes.iter_mut().map(Mutex::new).collect();
        let busy = count.min(packs.len());
        // With fewer lanes than threads, the others help inside the products.
        let inner = engine.threads / busy.clamp(1, engine.threads);
        let done = parallel(engine.threads, busy, |lane| {
            let mut slab = lanes[lane].lock().unwrap_or_else(PoisonError::into_inner);
            let mut grads = Grads::new(&mut slab);
            let order: Vec<usize> = (lane..packs.len()).step_by(count).collect();
            let mut all = Vec::with_capacity(order.len());
            for part in batches(packs, &order) {
                let members = &order[part];
                let (batch, mut scores) = engine.batch(packs, members, &rope);
                let ask = |k: usize, s: &PackScores| checked(members[k], objective(members[k], s), s);
                let train = |ws: &mut _| {
                    engine.plan.train(&w, &batch, &policy, &mut scores, &ask, &mut grads, self.checkpointing, ws)
                };
                with_threads(inner, || engine.pool.with_workspace(train))?;
                all.extend(scores);
            }
            Ok(all)
        })?;
        let mut done: Vec<_> = done.into_iter().map(Vec::into_iter).collect();
        Ok((0..packs.len()).filter_map(|i| done[i % count].next()).collect())
    }

    /// The gradient so far, lanes summed in order.
    pub fn gradient(&mut self) -> &[f32] {
        self.fold();
        &self.lanes[0]
    }

    /// One lane's own part of the gradient; empty if there is no such lane.
    pub fn lane(&self, lane: usize) -> &[f32] {
        self.lanes.get(lane).map_or(&[], Vec::as_slice)
    }

    fn fold(&mut self) {
        if self.used > 1 {
            fold(&mut self.lanes, self.used);
            self.used = 1;
        }
    }

    /// Drops accumulated gradients.
    pub fn clear(&mut self) {
        for lane in self.lanes.iter_mut().take(self.used) {
            lane.fill(0.0);
        }
        self.used = 0;
    }

    /// Sums the lanes in order, clips by the global norm, takes one AdamW step and zeroes the gradient.
    /// A gradient that is not finite changes neither weights nor moments (`finite: false`) and is dropped.
    ///
    /// # Errors
    /// A weights slab of another length, a learning rate that is negative or not finite; a trainer that owns a part only.
    pub fn step(&mut self, weights: &mut [f32], learning_rate: f32) -> Result<StepStats, EngineError> {
        self.fold();
        let mut gradient = self.lanes.first_mut().map(std::mem::take).unwrap_or_default();
        let mut squares = SquareSum::default();
        squares.add(&gradient);
        let result = self.update(weights, &mut gradient, squares.total().sqrt(), learning_rate);
        // Finite or not, the gradient is used up; after an error it stays.
        if result.as_ref().is_ok_and(|stats| !stats.finite) {
            gradient.fill(0.0);
        }
        if let Some(first) = self.lanes.first_mut() {
            *first = gradient;
        }
        result
    }

    /// The step on the stretch this trainer owns: clips `gradient` (of that stretch; zeroed) by the norm of the whole, and moves the same
    /// stretch of `weights`. A norm that is not finite changes nothing (`finite: false`).
    ///
    /// # Errors
    /// Slabs of another length, a learning rate that is negative or not finite.
    pub fn update(
        &mut self,
        weights: &mut [f32],
        gradient: &mut [f32],
        grad_norm: f64,
        learning_rate: f32,
    ) -> Result<StepStats, EngineError> {
        let whole = self.engine.layout().total();
        for (what, found, expected) in
            [("the weights slab", weights.len(), whole), ("the gradient", gradient.len(), self.owned.len())]
        {
            if found != expected {
                return Err(EngineError::SlabLength { what, found, expected });
            }
        }
        if !(learning_rate >= 0.0 && learning_rate.is_finite()) {
            return Err(EngineError::Request(format!("learning rate {learning_rate} must be a number ≥ 0")));
        }
        if !grad_norm.is_finite() {
            return Ok(StepStats { grad_norm, clipped: false, finite: false });
        }
        // torch.nn.utils.clip_grad_norm_
        let factor = f64::from(self.optim.max_grad_norm) / (grad_norm + 1e-6);
        let clipped = factor < 1.0;
        self.t += 1;
        let factors = StepFactors::new(&self.optim, learning_rate, self.t, if clipped { factor as f32 } else { 1.0 });
        let slabs = [&mut weights[self.owned.clone()], gradient, &mut self.m, &mut self.v];
        share_slices(self.engine.threads, slabs, |[w, g, m, v]| adamw(&self.optim, factors, w, g, m, v));
        Ok(StepStats { grad_norm, clipped, finite: true })
    }

    /// The stretch of the slab whose moments are held.
    pub fn owned(&self) -> Range<usize> {
        self.owned.clone()
    }

    /// Moments of the owned stretch and step count, for a checkpoint.
    pub fn state(&self) -> OptimState<'_> {
        OptimState { m: &self.m, v: &self.v, t: self.t }
    }

    /// Puts a checkpoint's moments back and drops accumulated gradients.
    ///
    /// # Errors
    /// Slabs of another length; nothing is changed then.
    pub fn restore(&mut self, m: Vec<f32>, v: Vec<f32>, t: u64) -> Result<(), EngineError> {
        let expected = self.owned.len();
        for (what, found) in [("the first-moment slab", m.len()), ("the second-moment slab", v.len())] {
            if found != expected {
                return Err(EngineError::SlabLength { what, found, expected });
            }
        }
        (self.m, self.v, self.t) = (m, v, t);
        self.clear();
        Ok(())
    }
}

/// Adds the first `used` lanes to the first, in order, and zeroes the others of them. Lanes that nobody touched would only add zeros: one does.
fn fold(lanes: &mut [Vec<f32>], used: usize) {
    let idle = used < lanes.len();
    let Some((first, rest)) = lanes.split_first_mut() else { return };
    for lane in rest.iter_mut().take(used.saturating_sub(1)) {
        add_assign(first, lane);
        lane.fill(0.0);
    }
    if idle {
        first.iter_mut().for_each(|x| *x += 0.0);
    }
}

/// An objective's answer, if it has the shape of the log-probs.
fn checked(pack: usize, g: Vec<Vec<f32>>, s: &PackScores) -> Result<Vec<Vec<f32>>, EngineError> {
    if g.len() == s.logprobs.len() && g.iter().zip(&s.logprobs).all(|(a, b)| a.len() == b.len()) {
        Ok(g)
    } else {
        Err(EngineError::Request(format!(
            "the objective of pack {pack} gave gradients of another shape than its log-probs"
        )))
    }
}
