//! The learner's side: where to start, batches, published versions, commits, and what follows a commit on disk.

use super::actor::Actor;
use super::command::{Batch, Committing, Head};
use super::event::Event;
use crate::checkpoints;
use crate::ledger::{CheckpointRow, Write};
use crate::state::{CommitVerdict, Formation, Meeting, Phase, PublishVerdict, Refusal, Work};
use crate::step_metrics;
use crate::tensorboard;
use crate::weights::Published;
use prost::Message;
use quorum_core::metric;
use quorum_core::types::{Group, Purpose};
use quorum_proto::v1;
use std::time::{SystemTime, UNIX_EPOCH};

impl Actor {
    /// Where a learner begins: the newest checkpoint the ledger names and that is there.
    pub(super) fn learner_start(&self) -> v1::LearnerStart {
        let mut there = self.checkpoints.iter().filter(|c| self.dir.checkpoint(&c.name).is_dir());
        let newest = there.next();
        v1::LearnerStart {
            model_dir: absolute(&self.material.config.model.path),
            run_dir: absolute(self.dir.path()),
            checkpoint: newest.map(|c| c.name.clone()).unwrap_or_default(),
            checkpoint_step: newest.map_or(0, |c| c.steps),
            older: there.map(|c| v1::CheckpointRef { name: c.name.clone(), step: c.steps }).collect(),
            committed_steps: self.state.committed(),
        }
    }

    /// A verified upload arrives.
    pub(super) async fn publish(
        &mut self,
        caller: &v1::Caller,
        published: Published,
    ) -> Result<PublishVerdict, Refusal> {
        self.first_speaks(caller)?;
        let verdict = self.state.judge_publish(published.version, &published.digest);
        match &verdict {
            PublishVerdict::Keep => {
                let (version, digest) = (published.version, published.digest.clone());
                if version == 0 && self.state.digest(0).is_none() {
                    let write = Write::Meta { key: "start_weights", value: digest.clone() };
                    if let Err(e) = self.ledger.commit(vec![write]).await {
                        self.fail(e.to_string()).await;
                        return Ok(PublishVerdict::Refused(e.to_string()));
                    }
                }
                metric::WEIGHT_SYNC_BYTES.with(["publish"]).increment(published.body.size() as u64);
                self.weights.insert(published);
                self.state.published(self.now(), version, &digest);
                self.observer.event(&Event::Published { version });
                self.wake();
            }
            PublishVerdict::Known => self.state.learner_lives(self.now()),
            PublishVerdict::Refused(_) => {}
            PublishVerdict::Diverged(reason) => self.fail(reason.clone()).await,
        }
        Ok(verdict)
    }

    /// The batch of `step`, if it is complete.
    pub(super) async fn next_batch(&mut self, caller: &v1::Caller, step: u64) -> Result<Batch, Refusal> {
        self.known(caller)?;
        self.state.touch_learner(self.now(), &caller.caller_id, step)?;
        let committed = self.state.committed();
        let nothing = |head| Ok(Batch { head, groups: Vec::new() });
        if self.state.phase() == Phase::Complete || step.min(committed) >= self.state.plan().steps {
            return nothing(Head::RunComplete);
        }
        if self.ended {
            return nothing(Head::Pending);
        }
        let replay = step < committed;
        if !replay && self.state.phase() != (Phase::Train { step }) {
            return nothing(Head::Pending);
        }
        let groups = match self.groups_of(step).await {
            Ok(groups) => groups,
            Err(reason) => {
                self.fail(reason.clone()).await;
                return Err(Refusal::Forbidden(reason));
            }
        };
        let expected_digest = self.state.digest(step + 1).filter(|_| replay).unwrap_or_default().to_owned();
        let checkpoint = !replay && self.checkpoint_of(step);
        Ok(Batch { head: Head::Ready { expected_digest, checkpoint }, groups })
    }

    /// Groups of a step in slot order: from the ledger, or from the data itself.
    async fn groups_of(&self, step: u64) -> Result<Vec<v1::GroupMsg>, String> {
        let slots = self.material.config.rollout.prompts_per_step;
        if self.material.supervised() {
            let group = |slot| {
                let group = self
                    .material
                    .supervised_group(Work { purpose: Purpose::Train, step, slot })
                    .map_err(|e| e.to_string())?;
                v1::GroupMsg::try_from(&group).map_err(|e| e.to_string())
            };
            return (0..slots).map(group).collect();
        }
        let rows = self.ledger.groups(step).await.map_err(|e| e.to_string())?;
        if rows.len() != slots as usize || rows.iter().enumerate().any(|(i, (slot, _))| *slot as usize != i) {
            return Err(format!("the ledger holds {} of {slots} groups of step {step}", rows.len()));
        }
        let decode = |(slot, body): (u32, Option<Vec<u8>>)| {
            let body = body.ok_or_else(|| checkpoints::none_usable(self.dir.path(), step, self.kept()))?;
            v1::GroupMsg::decode(body.as_slice())
                .map_err(|e| format!("the ledger's group of step {step}, slot {slot}: {e}"))
        };
        rows.into_iter().map(decode).collect()
    }

    /// Checkpoints that are not pruned, newest first.
    fn kept(&self) -> &[CheckpointRow] {
        let keep = self.material.config.checkpoint.keep as usize;
        self.checkpoints.get(..keep).unwrap_or(&self.checkpoints)
    }

    pub(super) fn checkpoint_due(&self, step: u64) -> bool {
        (step + 1).is_multiple_of(self.material.config.checkpoint.every) || step + 1 == self.state.plan().steps
    }

    /// The commit point of a step.
    pub(super) async fn commit(&mut self, request: Committing) -> Result<CommitVerdict, Refusal> {
        let caller = request.caller.clone().unwrap_or_default();
        self.first_speaks(&caller)?;
        let verdict = self.state.judge_commit(request.step, request.version, &request.weights_digest);
        match &verdict {
            CommitVerdict::Replayed => self.state.learner_lives(self.now()),
            CommitVerdict::Refused(_) => {}
            CommitVerdict::Diverged(reason) => self.fail(reason.clone()).await,
            CommitVerdict::Fresh => {
                if let Err(reason) = self.commit_fresh(&request).await {
                    self.fail(reason.clone()).await;
                    return Ok(CommitVerdict::Refused(reason));
                }
                self.preempt_with(!request.checkpoint.is_empty()).await;
            }
        }
        Ok(verdict)
    }

    async fn commit_fresh(&mut self, request: &Committing) -> Result<(), String> {
        let (step, digest) = (request.step, &request.weights_digest);
        let groups = self.groups_of(step).await?;
        let groups =
            groups.into_iter().map(|g| Group::try_from(g).map_err(|e| e.to_string())).collect::<Result<Vec<_>, _>>()?;
        if self.material.supervised() {
            self.samples += groups.len() as u64;
            self.step_tokens = groups.iter().flat_map(|g| &g.completions).map(|c| c.tokens.len() as u64).sum();
        }
        let seconds = self.now() - self.step_began;
        let rate = self.step_tokens as f64 / seconds.max(1e-9);
        let metrics =
            step_metrics::line(step, request.version, digest, &groups, self.material.supervised(), &request.metrics);
        let own = [("step_seconds", seconds), ("run_seconds", self.seconds()), ("tokens_per_second", rate)];
        let timings = step_metrics::timing_line(step, &request.timings, &own);
        let mut writes = vec![
            Write::Commit {
                step,
                version: request.version,
                digest: digest.clone(),
                metrics: metrics.clone(),
                timings: timings.clone(),
                checkpoint: request.checkpoint.clone(),
                manifest: request.checkpoint_manifest.clone(),
            },
            Write::Seconds { epoch: self.epoch, seconds: self.now() },
        ];
        if !request.checkpoint.is_empty() {
            let row = CheckpointRow {
                name: request.checkpoint.clone(),
                steps: request.version,
                manifest: request.checkpoint_manifest.clone(),
            };
            self.checkpoints.insert(0, row);
            if let Some(second) = self.checkpoints.get(1) {
                let keep = self.material.config.checkpoint.texts_mb.saturating_mul(1_000_000);
                writes.push(Write::Prune { below: second.steps, keep });
            }
        }
        self.ledger.commit(writes).await.map_err(|e| e.to_string())?;
        self.state.commit(self.now(), step, digest);
        self.dir.append("metrics.jsonl", &metrics).map_err(|e| e.to_string())?;
        self.dir.append("timing.jsonl", &timings).map_err(|e| e.to_string())?;
        extra(tensorboard::add_step(self.dir.path(), request.version, &metrics, &timings));
        self.pace.add(seconds, rate);
        self.after_commit(request, &groups, &metrics);
        Ok(())
    }

    fn after_commit(&mut self, request: &Committing, groups: &[Group], metrics: &str) {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        if !request.checkpoint.is_empty() {
            metric::CHECKPOINT_LAST_SUCCESS_TIMESTAMP_SECONDS.with([]).set(unix);
            self.dir.prune_checkpoints(&self.checkpoints, self.material.config.checkpoint.keep as usize);
            if let Some(newest) = self.checkpoints.first() {
                self.observer.event(&Event::Checkpoint(newest.clone()));
            }
        }
        let flat = groups.iter().filter(|g| g.rewards.windows(2).all(|w| w[0] == w[1])).count();
        metric::REWARD_ZERO_VARIANCE_GROUPS_RATIO.with([]).set(flat as f64 / groups.len().max(1) as f64);
        let metrics: serde_json::Value = serde_json::from_str(metrics).unwrap_or_default();
        self.last_metrics = Some(metrics.clone());
        let (step, steps) = (request.step, self.state.plan().steps);
        self.observer.event(&Event::Step {
            step,
            steps,
            metrics,
            seconds: self.pace.newest,
            tokens_per_second: self.pace.tokens_per_second,
            seconds_left: self.pace.seconds_left(steps - self.state.committed()),
            timings: request.timings.clone(),
        });
    }

    /// Shows the figures of a finished evaluation and writes its per-question file.
    pub(super) fn announce_evaluation(&mut self, version: u64) {
        let Some(evaluation) = self.evaluations.get(&version) else { return };
        let Some(figures) = evaluation.figures(self.state.plan().questions) else { return };
        for (mode, value) in
            [("greedy", figures.greedy), ("mean", figures.mean), ("mean_t03", figures.mean_t03), ("vote", figures.vote)]
        {
            metric::EVAL_ACCURACY_RATIO.with(["test", mode]).set(value);
        }
        metric::VOTE_LABEL_ACCURACY_RATIO.with(["test"]).set(figures.vote);
        if let Err(e) = self.dir.write_evaluation(version, self.state.plan().steps, evaluation) {
            tracing::warn!("{e}");
        }
        if let Ok(figures) = serde_json::to_value(&figures) {
            extra(tensorboard::add_evaluation(self.dir.path(), version, &figures));
        }
        self.observer.event(&Event::Evaluated { version, figures });
    }

    fn first_speaks(&mut self, caller: &v1::Caller) -> Result<(), Refusal> {
        self.known(caller)?;
        self.state.touch_first(self.now(), &caller.caller_id)
    }

    /// A rank asks to meet the others of its group.
    pub(super) fn form_group(&mut self, caller: &v1::Caller, meeting: Meeting) -> Result<(u64, Formation), Refusal> {
        self.known(caller)?;
        let met = self.state.group_formed();
        let formation = self.state.form_group(self.now(), &caller.caller_id, meeting)?;
        if !met && self.state.group_formed() {
            tracing::info!(
                ranks = self.state.plan().ranks,
                generation = self.state.generation(),
                "learner group formed"
            );
            self.wake();
        }
        Ok((self.state.generation(), formation))
    }
}

fn absolute(path: impl AsRef<std::path::Path>) -> String {
    let path = path.as_ref();
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()).display().to_string()
}

/// A file that is only looked at is no reason to stop.
fn extra(written: std::io::Result<()>) {
    if let Err(e) = written {
        tracing::warn!("the TensorBoard file cannot be written: {e}");
    }
}
