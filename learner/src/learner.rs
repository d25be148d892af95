//! The learner's state and the verbs of the loop.

use crate::batch::{Batch, Packs, Part, gradient_batches, own_packs};
use crate::checkpoint::{self, Written, sharded};
use crate::connection::Connection;
use crate::encode::{encode, outline};
use crate::error::LearnerError;
use crate::group::Group;
use crate::losses::{self, BatchLosses, PackLosses};
use crate::metrics::{self, StepRecord, Timer};
use crate::objective::{GradientBatch, LogProbs, Rule, mismatch};
use crate::zero::{StepError, Zero};
use crate::{publish, reference};
use quorum_core::config::{ObjectiveKind, RunConfig};
use quorum_core::digest::{policy_digest, slab_digest};
use quorum_core::logging::about_step;
use quorum_engine::{EngineError, PolicyDist, StepStats, Trainer};
use quorum_model::Checkpoint;
use quorum_proto::v1;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Deadline of a commit.
const COMMIT: Duration = Duration::from_secs(60);

/// Everything a learner holds between steps.
pub struct Learner<'g> {
    pub config: Arc<RunConfig>,
    pub(crate) connection: Connection,
    pub(crate) model: Checkpoint,
    /// The other ranks.
    pub(crate) group: &'g mut Group,
    pub(crate) trainer: Trainer,
    /// This rank's part of the optimiser.
    pub(crate) zero: Zero,
    pub(crate) rule: Rule,
    pub(crate) policy: PolicyDist,
    /// Trainable weights of version `step`, f32 masters.
    pub(crate) weights: Arc<Vec<f32>>,
    /// Of the weights as published.
    pub(crate) digest: String,
    /// Those of version 0, held while β > 0. With adapters that is little: the base is the frozen part of both.
    pub(crate) start: Option<Vec<f32>>,
    pub(crate) step: u64,
    pub(crate) run_dir: PathBuf,
    pub(crate) threads: usize,
    /// Largest difference to the workers' log-probs seen by `old_logprobs` in this step.
    pub(crate) mismatch: f64,
    pub(crate) timer: Timer,
    /// To the workers of this learner's fabric.
    #[cfg(feature = "nccl")]
    pub(crate) broadcaster: Option<crate::broadcast::Broadcaster>,
}

impl Learner<'_> {
    /// Steps done; the version of the weights held.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Uploads the weights held as version `step`; rank 0 does it for all.
    ///
    /// # Errors
    /// The coordinator is gone or refuses them.
    pub fn publish(&mut self) -> Result<(), LearnerError> {
        let start = Instant::now();
        let c = &self.connection;
        c.holds(self.step);
        if !self.group.leads() {
            return Ok(());
        }
        c.wait(publish::publish(&c.session, &self.weights, self.step, &self.digest, c.patience))?;
        #[cfg(feature = "nccl")]
        if let Some(broadcaster) = &mut self.broadcaster {
            c.wait(async {
                broadcaster.begin(&c.session, &self.weights, self.step).await;
                Ok::<(), LearnerError>(())
            })?;
        }
        self.timer.add("publish", start);
        Ok(())
    }

    /// The groups of the present step; `None` at the end of the run.
    ///
    /// # Errors
    /// As `Connection::next_batch`, or messages that form no batch.
    pub fn receive_batch(&mut self) -> Result<Option<Batch>, LearnerError> {
        about_step(self.step);
        self.timer = Timer::default();
        self.mismatch = 0.0;
        let start = Instant::now();
        let Some((head, items)) = self.connection.next_batch(self.step)? else { return Ok(None) };
        self.timer.add("wait_batch", start);
        if head.step != self.step {
            return Err(LearnerError::Batch { step: self.step, reason: format!("step {} arrived instead", head.step) });
        }
        Batch::read(&head, items, &self.config).map(Some)
    }

    /// Fetches images and encodes prompts, those of this rank's packs.
    ///
    /// # Errors
    /// Names the image or slot.
    pub fn encode(&mut self, batch: &Batch) -> Result<Packs, LearnerError> {
        let start = Instant::now();
        let (outline, share) = (outline(batch, &self.config), self.group.share());
        let parts = gradient_batches(&outline, self.config.optim.gradient_batches, share);
        let own = own_packs(&outline, &parts, share);
        let items = own.iter().filter_map(|(slot, _)| batch.items.get(*slot));
        let blobs = self.connection.images(items.flat_map(|item| &item.prompt.images))?;
        let packs = encode(batch, &own, &blobs, &self.model.processor, &self.config, self.threads)?;
        self.timer.add("encode", start);
        Ok(Packs { packs, outline, parts })
    }

    /// Log-probs under the start weights; none unless β > 0.
    ///
    /// # Errors
    /// As the engine's.
    pub fn reference_logprobs(&mut self, packs: &Packs) -> Result<Option<LogProbs>, LearnerError> {
        let Some(start_weights) = &self.start else { return Ok(None) };
        let start = Instant::now();
        let scores = reference::logprobs(self.trainer.engine(), start_weights, &packs.packs, &self.policy)
            .map_err(|e| self.engine(e))?;
        self.timer.add("logprob", start);
        Ok(Some(scores))
    }

    /// π_old of all packs, before the first update moves the weights. None with one gradient batch: there π_old is the training forward's own.
    ///
    /// # Errors
    /// As the engine's.
    pub fn old_logprobs(&mut self, packs: &Packs) -> Result<Option<LogProbs>, LearnerError> {
        if self.config.optim.gradient_batches <= 1 || self.config.objective.kind != ObjectiveKind::Grpo {
            return Ok(None);
        }
        let start = Instant::now();
        let scores = reference::logprobs(self.trainer.engine(), &self.weights, &packs.packs, &self.policy)
            .map_err(|e| self.engine(e))?;
        self.mismatch = packs.packs.iter().zip(&scores).map(|(p, s)| mismatch(p, s)).fold(0.0, f64::max);
        self.timer.add("logprob", start);
        Ok(Some(scores))
    }

    /// Forward and backward of this rank's packs of one gradient batch, and the losses of all ranks. `None`: numbers of some rank were not finite
    /// and the gradient was dropped on all.
    ///
    /// # Errors
    /// Any other failure of the engine, here or on another rank; also a stop, which may come between gradient batches.
    pub fn accumulate(
        &mut self,
        packs: &Packs,
        part: &Part,
        old: Option<&[Vec<Vec<f32>>]>,
        reference: Option<&[Vec<Vec<f32>>]>,
    ) -> Result<Option<BatchLosses>, LearnerError> {
        self.connection.check()?;
        let start = Instant::now();
        let batch = GradientBatch {
            rule: &self.rule,
            packs: packs.packs.get(part.own.clone()).unwrap_or_default(),
            old: old.and_then(|o| o.get(part.own.clone())),
            reference: reference.and_then(|r| r.get(part.own.clone())),
            normaliser: self.rule.normaliser(&packs.outline, part, self.config.rollout.max_new_tokens as usize),
        };
        let inputs = reference::packs(batch.packs);
        let result =
            self.trainer.accumulate(&self.weights, &inputs, &self.policy, &|i, scores| batch.gradient(i, scores));
        let own = match result {
            Ok(scores) => batch
                .pack_losses(&scores)
                .map(Some)
                .map_err(|e| LearnerError::Batch { step: self.step, reason: e.to_string() }),
            Err(EngineError::NotFinite(place)) => {
                tracing::error!(step = self.step, place, "gradient batch skipped: not finite");
                Ok(None)
            }
            Err(error) => Err(self.engine(error)),
        };
        self.timer.add("forward_backward", start);
        if let Some(bytes) = self.trainer.engine().gpu_memory() {
            metrics::gpu_memory(self.group.share().rank, bytes);
        }
        let sums = self.exchange(part, own)?;
        if sums.is_none() {
            self.trainer.clear();
        }
        Ok(sums)
    }

    /// The losses of all ranks, added up in the order of one rank. `None` if those of some rank are.
    fn exchange(
        &mut self,
        part: &Part,
        own: Result<Option<Vec<PackLosses>>, LearnerError>,
    ) -> Result<Option<BatchLosses>, LearnerError> {
        let start = Instant::now();
        // One word more than the losses: the largest mismatch before the first update; none = not finite.
        let mismatch = self.mismatch.to_le_bytes().to_vec();
        let message = own.map(|own| own.map(|own| [mismatch, losses::to_bytes(&own)].concat()).unwrap_or_default());
        let told = self.group.agree("losses of a gradient batch", message)?;
        self.timer.add("all_reduce", start);
        if told.iter().any(Vec::is_empty) {
            return Ok(None);
        }
        let torn = || LearnerError::Batch { step: self.step, reason: "losses of a rank do not fit the batch".into() };
        let (mut largest, mut ranks) = (0.0f64, Vec::with_capacity(told.len()));
        for message in &told {
            let (word, rest) = message.split_first_chunk::<8>().ok_or_else(torn)?;
            largest = largest.max(f64::from_le_bytes(*word));
            ranks.push(losses::from_bytes(rest).ok_or_else(torn)?.into_iter());
        }
        let share = self.group.share();
        let mut next = |i: usize| ranks.get_mut(share.owner(i)).and_then(Iterator::next).ok_or_else(torn);
        let packs = (0..part.packs.len()).map(&mut next).collect::<Result<Vec<_>, _>>()?;
        let mut sums = BatchLosses::of(&packs);
        let compared = self.config.objective.kind == ObjectiveKind::Grpo;
        sums.mismatch = if compared { sums.mismatch.max(largest) } else { 0.0 };
        Ok(Some(sums))
    }

    /// Clips and takes one AdamW step, with the other ranks; a gradient that is not finite changes nothing.
    ///
    /// # Errors
    /// As the engine's; a rank that is lost or late.
    pub fn optimizer_step(&mut self, part: &Part, rate: f32) -> Result<StepStats, LearnerError> {
        let start = Instant::now();
        let weights: &mut Vec<f32> = Arc::make_mut(&mut self.weights);
        let stats = self.zero.step(self.group.ranks(), &mut self.trainer, weights, part.packs.len(), rate);
        let between = self.zero.take_spent();
        self.timer.add_time("optimizer", start.elapsed().saturating_sub(between));
        if !between.is_zero() {
            self.timer.add_time("all_reduce", between);
        }
        let stats = stats.map_err(|e| match e {
            StepError::Engine(e) => self.engine(e),
            StepError::Collective(source) => LearnerError::Group { what: "optimiser step", source },
        })?;
        if !stats.finite {
            tracing::error!(step = self.step, "optimiser step skipped: the gradient is not finite");
        }
        Ok(stats)
    }

    /// The step is learned: the weights held are now version `step + 1`.
    ///
    /// # Errors
    /// A replayed step that ends in other weights than the ledger says.
    pub fn advance(&mut self, batch: &Batch) -> Result<(), LearnerError> {
        if self.weights.iter().any(|w| !w.is_finite()) {
            return Err(LearnerError::NotFinite { step: batch.step });
        }
        self.digest = policy_digest(&self.weights, self.config.train.precision);
        self.group.same("weights after a step", &self.digest)?;
        if batch.is_replay() && batch.expected_digest != self.digest {
            return Err(LearnerError::Replay {
                step: batch.step,
                expected: batch.expected_digest.clone(),
                found: self.digest.clone(),
            });
        }
        self.step += 1;
        Ok(())
    }

    /// Writes a checkpoint if this step makes one.
    ///
    /// # Errors
    /// Names the file that could not be written.
    pub fn checkpoint(&mut self, batch: &Batch) -> Result<Option<Written>, LearnerError> {
        if !batch.checkpoint {
            return Ok(None);
        }
        let start = Instant::now();
        let (reply, optim) = (&self.connection.session.reply, self.trainer.state());
        let state =
            checkpoint::state(self.step, optim.t, &slab_digest(&self.weights), &reply.run_id, &reply.config_digest);
        let parts = self.trainer.engine().partition().clone();
        let written = if self.group.share().world == 1 {
            checkpoint::write(&self.run_dir, &parts, &state, &self.weights, optim).map_err(LearnerError::from)
        } else {
            sharded::write(self.group, &self.run_dir, &parts, &state, &self.weights, optim)
        };
        let written = written.inspect_err(metrics::checkpoint_failed)?;
        self.timer.add("checkpoint", start);
        metrics::checkpointed(start.elapsed(), written.bytes);
        Ok(Some(written))
    }

    /// Commits the step: from here on it is part of the run. Rank 0 does it for all.
    ///
    /// # Errors
    /// The coordinator is gone or refuses the step.
    pub fn commit(&mut self, record: StepRecord, checkpoint: Option<Written>) -> Result<(), LearnerError> {
        let step = self.step - 1;
        let figures = record.figures();
        if !self.group.leads() {
            metrics::durations(&self.timer);
            return Ok(());
        }
        let mut timings = self.timer.figures();
        let busy = self.timer.phase("forward_backward") + self.timer.phase("logprob");
        timings
            .insert("learner_tokens_per_second".into(), figures.get("tokens").copied().unwrap_or(0.0) / busy.max(1e-9));
        let c = &self.connection;
        let (name, manifest) = checkpoint.map(|w| (w.name, w.manifest_sha256)).unwrap_or_default();
        let request = v1::CommitRequest {
            caller: Some(c.session.caller(format!("step-{step}"))),
            step,
            version: self.step,
            weights_digest: self.digest.clone(),
            metrics: figures.clone(),
            timings,
            checkpoint: name,
            checkpoint_manifest: manifest,
        };
        let reply = c.wait(c.session.retry("Commit", c.patience, || {
            let (link, request) = (c.session.link.clone(), request.clone());
            async move { link.call("Commit", COMMIT, link.learner().commit(request)).await }
        }))?;
        if !reply.accepted {
            return Err(LearnerError::NotAccepted { what: format!("the commit of step {step}"), reason: reply.reason });
        }
        metrics::export(step, &figures, &self.timer);
        tracing::info!(step, digest = %self.digest, loss = figures.get("loss"), "step committed");
        Ok(())
    }

    /// What lies behind an error: a call between ranks that was given up says why in the words of the coordinator or the user.
    pub fn cause(&self, error: LearnerError) -> LearnerError {
        self.connection.cause(error)
    }

    fn engine(&self, source: EngineError) -> LearnerError {
        LearnerError::Engine { step: self.step, source }
    }
}
