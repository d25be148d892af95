//! The worker's life: join, then rounds of lease → weights → images → generate → submit, until the run ends, the coordinator is gone for good, or it is asked to drain.

use crate::arrivals::Arrivals;
use crate::engine_actor::EngineHandle;
use crate::error::WorkerError;
use crate::generator::{Answer, Generator, Work};
use crate::images::Images;
use crate::metrics;
use crate::model::Model;
use crate::options::Options;
use crate::relay::{Relay, Shelf};
use crate::submit::submit;
use crate::weights::WeightStore;
use futures::future::try_join_all;
use quorum_core::client::{ClientError, Heartbeat, JoinOptions, Pulse, Session, Vitals, set_ready};
use quorum_core::logging::about_step;
use quorum_core::metric;
use quorum_proto::v1;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Longest poll for a lease, and what the call may take beyond it.
const POLL: Duration = Duration::from_secs(15);
const GRACE: Duration = Duration::from_secs(10);
/// Between being fenced and joining again, and after stale leases.
const PAUSE: Duration = Duration::from_millis(300);
/// Between the end of a run and looking for the next, with `--stay`.
const NEXT_RUN: Duration = Duration::from_secs(30);

/// How the outside asks the worker to stop.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// Finish and submit what is leased, then leave (SIGTERM).
    pub drain: CancellationToken,
    /// Give leases back at once and leave (a second signal).
    pub release: CancellationToken,
}

/// How a session ended.
enum End {
    Over(String),
    Drained,
    Rejoin(String),
}

/// Serves until the run is over or `stop` says so.
///
/// # Errors
/// One line that names the coordinator, the model or the engine.
pub async fn run(options: Options, stop: Stop) -> Result<(), WorkerError> {
    let metrics_address = metrics::start(&options.member.page()).await?;
    metrics::of_worker(&options.caller_id());
    let mut relay = Relay::bind(options.relay()).await?;
    let mut join = JoinOptions {
        link: options.member.link(),
        role: v1::Role::RolloutWorker,
        caller_id: options.caller_id(),
        run_id: options.member.run.clone(),
        config_digest: String::new(),
        instruction_set: options.describe_devices(),
        metrics_address,
        relay_address: relay.url.clone(),
        rank: 0,
        world: 1,
        patience: options.member.join_patience(),
    };
    let mut engines: Option<(Model, Vec<EngineHandle>)> = None;
    loop {
        let session = tokio::select! {
            joined = Session::join(&join) => joined,
            () = stop.drain.cancelled() => return Ok(()),
        };
        let end = match session {
            Ok(session) => {
                joined(&session, &mut join);
                join.patience = options.member.reconnect_patience();
                relay.serve(&session)?;
                serve(session, &options, &relay.shelf, &mut engines, &stop).await
            }
            Err(error) => Err(error.into()),
        };
        match end {
            Ok(End::Drained) => return Ok(()),
            Ok(End::Rejoin(reason)) => {
                tracing::info!(reason, "joining again");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            Ok(End::Over(reason)) => tracing::info!(reason, "the run is over for this worker"),
            Err(error) if options.stay && error.is_run_failed() => tracing::error!("{error}"),
            Err(error) => return Err(error),
        }
        if !options.stay {
            return Ok(());
        }
        join.run_id.clone_from(&options.member.run);
        join.config_digest.clear();
        tokio::select! {
            () = tokio::time::sleep(NEXT_RUN) => {}
            () = stop.drain.cancelled() => return Ok(()),
        }
    }
}

/// Notes what was joined, so that the next join is to the same.
fn joined(session: &Session, join: &mut JoinOptions) {
    tracing::info!(run = session.reply.run_id, epoch = session.reply.epoch, coordinator = session.link.url(), "joined");
    join.run_id.clone_from(&session.reply.run_id);
    join.config_digest.clone_from(&session.reply.config_digest);
}

/// One session, from Join to its end.
async fn serve(
    session: Session,
    options: &Options,
    shelf: &Shelf,
    engines: &mut Option<(Model, Vec<EngineHandle>)>,
    stop: &Stop,
) -> Result<End, WorkerError> {
    let ended = match Serving::start(session, options, shelf, engines).await {
        Ok(mut serving) => serving.until_end(stop).await,
        Err(error) => Err(error),
    };
    match ended {
        Err(WorkerError::Client(error)) if error.is_fenced() => Ok(End::Rejoin(error.to_string())),
        other => other,
    }
}

/// One session at work.
struct Serving {
    session: Session,
    patience: Duration,
    /// One a device; they share the leases.
    engines: Vec<EngineHandle>,
    heartbeat: Heartbeat,
    vitals: Arc<Vitals>,
    weights: WeightStore,
    images: Images,
    submissions: JoinSet<()>,
}

impl Serving {
    async fn start(
        session: Session,
        options: &Options,
        shelf: &Shelf,
        engines: &mut Option<(Model, Vec<EngineHandle>)>,
    ) -> Result<Self, WorkerError> {
        let vitals = Arc::new(Vitals::default());
        let heartbeat = Heartbeat::start(&session, vitals.clone(), options.member.reconnect_patience());
        let (model, engines) = match engines.take().filter(|(model, _)| model.serves(&session)) {
            Some(ready) => engines.insert(ready),
            None => {
                let model = Model::fetch(&session).await?;
                let arithmetic = model.engines(&session, &options.device, options.threads(), shelf).await?;
                let start =
                    |e| EngineHandle::start(Generator::new(model.checkpoint.clone(), session.config.clone(), e));
                let handles = arithmetic.into_iter().map(start).collect::<Result<_, _>>()?;
                engines.insert((model, handles))
            }
        };
        let trainable = model.trainable(&session)?;
        Ok(Self {
            weights: WeightStore::new(trainable, shelf.clone()).with(Arrivals::of(&session, options, trainable, shelf)),
            engines: engines.clone(),
            session,
            patience: options.member.reconnect_patience(),
            heartbeat,
            vitals,
            images: Images::default(),
            submissions: JoinSet::new(),
        })
    }

    async fn until_end(&mut self, stop: &Stop) -> Result<End, WorkerError> {
        // Whatever version is leased next will be fetched; until then nothing is missing.
        set_ready(true);
        let ended = {
            let pulse = self.heartbeat.watch();
            tokio::select! {
                biased;
                () = stop.release.cancelled() => Ok(End::Drained),
                pulse = pulse => standing(pulse),
                end = self.rounds(stop) => end,
            }
        };
        set_ready(false);
        let farewell = match &ended {
            Ok(End::Drained) => Some("drained".to_owned()),
            Ok(End::Over(reason)) => Some(reason.clone()),
            Err(error) if error.is_run_failed() => Some("the run has failed".to_owned()),
            _ => None,
        };
        if let Some(reason) = farewell {
            tracing::info!(reason, "leaving");
            self.session.leave(&reason).await;
        }
        ended
    }

    /// Rounds until the run is complete or a drain was asked for; then waits for what is still being submitted.
    async fn rounds(&mut self, stop: &Stop) -> Result<End, WorkerError> {
        let end = loop {
            while self.submissions.try_join_next().is_some() {}
            let leased = tokio::select! {
                biased;
                () = stop.drain.cancelled() => break End::Drained,
                leased = self.lease() => leased?,
            };
            if leased.run_complete {
                break End::Over("complete".into());
            }
            if !leased.leases.is_empty() {
                self.round(leased.leases).await?;
            }
        };
        while self.submissions.join_next().await.is_some() {}
        Ok(end)
    }

    async fn lease(&self) -> Result<v1::LeaseReply, ClientError> {
        let (session, engines) = (&self.session, self.engines.len() as u32);
        session
            .retry("Lease", self.patience, || async move {
                let request = v1::LeaseRequest {
                    caller: Some(session.caller("")),
                    capacity: session.config.cluster.prompts_per_lease.saturating_mul(engines),
                    wait_seconds: POLL.as_secs_f64(),
                };
                session.link.call("Lease", POLL + GRACE, session.link.rollout().lease(request)).await
            })
            .await
    }

    /// Answers one set of leases; leases of several versions are answered version by version.
    async fn round(&mut self, leases: Vec<v1::LeaseGrant>) -> Result<(), WorkerError> {
        let received = Instant::now();
        self.vitals.leases.store(leases.len() as u32, Ordering::Relaxed);
        leases.first().inspect(|l| about_step(l.step));
        let mut versions: Vec<u64> = leases.iter().map(|l| l.version).collect();
        versions.sort_unstable();
        versions.dedup();
        for version in versions {
            let batch = leases.iter().filter(|l| l.version == version).cloned().collect();
            self.batch(version, batch, received).await?;
        }
        self.vitals.leases.store(0, Ordering::Relaxed);
        Ok(())
    }

    async fn batch(&mut self, version: u64, leases: Vec<v1::LeaseGrant>, received: Instant) -> Result<(), WorkerError> {
        set_ready(self.vitals.version.load(Ordering::Relaxed) == version);
        let weights = match self.weights.get(&self.session, version).await {
            Ok(weights) => weights,
            Err(error @ ClientError::Missing { .. }) => {
                tracing::info!(version, %error, "leases dropped: their version is gone");
                tokio::time::sleep(PAUSE).await;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        self.vitals.version.store(version, Ordering::Relaxed);
        metrics::serves(version);
        let mut work = Vec::with_capacity(leases.len());
        for grant in leases {
            let hashes = grant.prompt.as_ref().map_or(&[][..], |p| &p.images);
            match self.images.of_prompt(&self.session, hashes).await? {
                Ok(images) => work.push(Work { grant, images }),
                Err(reason) => self.submit(&grant, Answer::Failure(reason), received, 0.0),
            }
        }
        let start = Instant::now();
        let share = work.len().div_ceil(self.engines.len()).max(1);
        let asked = self.engines.iter().zip(work.chunks(share)).map(|(engine, share)| {
            let cancelled = self.heartbeat.cancellations();
            let ids: Vec<u64> = share.iter().map(|w| w.grant.lease_id).collect();
            let unwanted = Box::new(move || !ids.is_empty() && ids.iter().all(|id| cancelled.contains(*id)));
            engine.answer(weights.clone(), share.to_vec(), unwanted)
        });
        let answers = try_join_all(asked).await?.into_iter().flatten();
        let seconds = start.elapsed().as_secs_f64();
        for (work, answer) in work.iter().zip(answers) {
            self.submit(&work.grant, answer, received, seconds);
        }
        Ok(())
    }

    /// Sends an answer in the background, so that the next lease need not wait for it.
    fn submit(&mut self, grant: &v1::LeaseGrant, answer: Answer, received: Instant, seconds: f64) {
        let (group, failure) = match answer {
            Answer::Group(group) => {
                metrics::group(&group);
                metric::ROLLOUT_GROUP_DURATION_SECONDS.with([]).record(seconds);
                let tokens: usize = group.completions.iter().map(|c| c.tokens.len()).sum();
                self.vitals.tokens.fetch_add(tokens as u64, Ordering::Relaxed);
                (Some(group), String::new())
            }
            Answer::Failure(reason) => {
                metrics::lost("error", grant.samples.len());
                (None, reason)
            }
            Answer::Cancelled => {
                metrics::lost("cancelled", grant.samples.len());
                return;
            }
        };
        let request = v1::SubmitRequest {
            caller: Some(self.session.caller(format!("{}-{}", grant.lease_id, grant.fence))),
            lease_id: grant.lease_id,
            fence: grant.fence,
            group,
            generate_seconds: seconds,
            failure,
        };
        let deadline = received + Duration::try_from_secs_f64(grant.deadline_seconds).unwrap_or(POLL);
        self.submissions.spawn(submit(self.session.clone(), request, deadline));
    }
}

/// What the heartbeats' end means.
fn standing(pulse: Pulse) -> Result<End, WorkerError> {
    match pulse {
        Pulse::Beating => Ok(End::Rejoin("the heartbeats stopped".into())),
        Pulse::Fenced(reason) => Ok(End::Rejoin(reason)),
        Pulse::Stopped(reason) => Ok(End::Over(reason)),
        Pulse::Lost(error) => Err(error.into()),
    }
}
