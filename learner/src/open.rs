//! Opening a learner: the model, the newest checkpoint that verifies, the reference policy.

use crate::checkpoint::{self, Origin};
use crate::connection::Connection;
use crate::error::LearnerError;
use crate::group::Group;
use crate::learner::Learner;
use crate::metrics::Timer;
use crate::objective::Rule;
use crate::options::Options;
use crate::zero::Zero;
use quorum_core::config::{ObjectiveKind, RunConfig};
use quorum_core::digest::policy_digest;
use quorum_engine::{AdamW, Devices, Engine, PolicyDist, Trainer};
use quorum_model::{Checkpoint, FrozenSource, Partition};
use quorum_proto::v1;
use std::path::{Path, PathBuf};
use std::sync::Arc;

impl<'g> Learner<'g> {
    /// Loads the newest checkpoint that verifies on every rank, else the start model.
    ///
    /// # Errors
    /// A model that cannot be read or is not the one the run began with.
    pub fn open(connection: Connection, group: &'g mut Group, options: &Options) -> Result<Self, LearnerError> {
        let session = connection.session.clone();
        let config = session.config.clone();
        let place = session.reply.learner.clone().unwrap_or_default();
        let (model_dir, run_dir) = (PathBuf::from(&place.model_dir), PathBuf::from(&place.run_dir));
        let model = Checkpoint::open(&model_dir)?.with_template_options((&config.template).into());
        same_files(&session.reply.model_files, &model, &model_dir)?;
        let threads = options.threads(&config);
        let at = |source| LearnerError::Engine { step: place.checkpoint_step, source };
        let (engine, stored) = engine(&model, &model_dir, &session.reply, &config, &options.device, threads)?;
        let parts = engine.partition().clone();
        let share = group.share();
        let zero = Zero::new(parts.trainable.total(), share, config.learner.reduction);
        let trainer = Trainer::sharded(engine, share.own_lanes(), adamw(&config), zero.owned());
        let mut trainer = trainer.with_checkpointing(config.train.checkpointing);
        let rule = Rule::of(&config.objective);
        let names: Vec<String> = [place.checkpoint.clone()]
            .into_iter()
            .chain(place.older.iter().map(|c| c.name.clone()))
            .filter(|n| !n.is_empty())
            .collect();
        let origin = Origin { run_id: &session.reply.run_id, config_digest: &session.reply.config_digest };
        let loaded = checkpoint::load_newest(&run_dir, &names, &parts, origin, &zero.owned(), group)
            .map_err(|e| connection.cause(e))?;
        let mut start = None;
        if loaded.is_none() || rule.needs_reference() {
            start = Some(start_weights(&stored, &parts, &model_dir, &session.reply.start_weights_digest, &config)?);
        }
        let (weights, step) = match loaded {
            Some(loaded) => {
                trainer.restore(loaded.m, loaded.v, loaded.state.adam_steps).map_err(at)?;
                (loaded.weights, loaded.state.step)
            }
            None if rule.needs_reference() => (start.clone().unwrap_or_default(), 0),
            None => (start.take().unwrap_or_default(), 0),
        };
        #[cfg(feature = "nccl")]
        let broadcaster =
            options.member.fabric.clone().map(|f| crate::broadcast::Broadcaster::new(f, options.device_index()));
        let policy = policy(&config, &model);
        let digest = policy_digest(&weights, config.train.precision);
        tracing::info!(step, committed = place.committed_steps, digest, threads, "learner ready");
        Ok(Self {
            start: start.filter(|_| rule.needs_reference()),
            config,
            connection,
            model,
            group,
            trainer,
            zero,
            rule,
            policy,
            weights: Arc::new(weights),
            digest,
            step,
            run_dir,
            threads,
            mismatch: 0.0,
            timer: Timer::default(),
            #[cfg(feature = "nccl")]
            broadcaster,
        })
    }
}

fn adamw(config: &RunConfig) -> AdamW {
    let o = &config.optim;
    let max_grad_norm = if o.grad_clip > 0.0 { o.grad_clip } else { f32::INFINITY };
    AdamW { beta1: o.beta1, beta2: o.beta2, eps: o.epsilon, weight_decay: o.weight_decay, max_grad_norm }
}

/// π: at the sampling temperature for policy optimisation, the model's own for supervised tuning.
fn policy(config: &RunConfig, model: &Checkpoint) -> PolicyDist {
    let temperature = match config.objective.kind {
        ObjectiveKind::Grpo => config.rollout.temperature,
        ObjectiveKind::Sft => 1.0,
    };
    PolicyDist {
        temperature,
        forbidden: model.processor.forbidden_tokens(),
        stop: model.processor.stop_tokens().to_vec(),
    }
}

/// The engine with the frozen weights in place, and the model's files.
fn engine(
    model: &Checkpoint,
    dir: &Path,
    reply: &v1::JoinReply,
    config: &RunConfig,
    devices: &Devices,
    threads: usize,
) -> Result<(Engine, FrozenSource), LearnerError> {
    let parts = Partition::of(&model.config, &model.layout, &config.train)?;
    let source = FrozenSource::new(model.stored()?, &parts);
    if source.total() > 0 {
        let found = source.digest();
        if found != reply.frozen_digest {
            let what = format!("its frozen weights have digest {found}, the run began with {}", reply.frozen_digest);
            return Err(LearnerError::AnotherModel { dir: dir.display().to_string(), what });
        }
    }
    let at = |source| LearnerError::Engine { step: 0, source };
    let mut loader = Engine::loader_on(devices.clone(), &model.config, parts, source.bf16(), threads).map_err(at)?;
    source.visit(|entry, tensor| loader.put(&entry.name, &tensor).map_err(at))?;
    Ok((loader.finish().map_err(at)?, source))
}

/// The trainable weights of version 0, if they are those the run began with (an empty digest: it begins now).
fn start_weights(
    source: &FrozenSource,
    parts: &Partition,
    dir: &Path,
    digest: &str,
    config: &RunConfig,
) -> Result<Vec<f32>, LearnerError> {
    let weights = match parts.lora {
        Some(_) => parts.fresh_adapters(config.run.seed),
        None => source.stored().load(&parts.trainable)?,
    };
    if !digest.is_empty() {
        let found = policy_digest(&weights, config.train.precision);
        if found != digest {
            let what = format!("its weights have digest {found}, the run began with {digest}");
            return Err(LearnerError::AnotherModel { dir: dir.display().to_string(), what });
        }
    }
    Ok(weights)
}

/// The model directory as this machine sees it must be the coordinator's.
fn same_files(files: &[v1::SideFile], model: &Checkpoint, dir: &Path) -> Result<(), LearnerError> {
    for file in files {
        let here = model.side_files().get(&file.name).map(|bytes| blake3::hash(bytes).to_hex().to_string());
        if here.as_deref() != Some(file.hash.as_str()) {
            return Err(LearnerError::AnotherModel {
                dir: dir.display().to_string(),
                what: format!("{} differs", file.name),
            });
        }
    }
    Ok(())
}
