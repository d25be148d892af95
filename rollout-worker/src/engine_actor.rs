//! The engine on a thread of its own behind a bounded channel, so that long arithmetic never delays heartbeats or calls.

use crate::error::WorkerError;
use crate::generator::{Answer, Generator, Work};
use crate::load::LOAD;
use quorum_core::client::Weights;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{mpsc, oneshot};

/// Asked between decoding steps whether the batch is still wanted.
pub type Unwanted = Box<dyn Fn() -> bool + Send + Sync>;

struct Job {
    weights: Arc<Weights>,
    work: Vec<Work>,
    unwanted: Unwanted,
    dropped: Arc<AtomicBool>,
    reply: oneshot::Sender<Vec<Answer>>,
}

/// Handle of the engine thread; the thread ends with its last handle.
#[derive(Clone)]
pub struct EngineHandle {
    jobs: mpsc::Sender<Job>,
}

impl EngineHandle {
    /// Starts the thread.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn start(generator: Generator) -> Result<Self, WorkerError> {
        let (jobs, mut inbox) = mpsc::channel::<Job>(1);
        let serve = move || {
            while let Some(job) = inbox.blocking_recv() {
                let unwanted = || job.dropped.load(Ordering::Relaxed) || (job.unwanted)();
                let samples = samples(&job.work);
                LOAD.began(samples);
                let answers = generator.answer(&job.weights, &job.work, &unwanted);
                LOAD.ended(samples);
                let _ = job.reply.send(answers);
            }
        };
        std::thread::Builder::new()
            .name("engine".into())
            .spawn(serve)
            .map_err(|source| WorkerError::Start { what: "the engine thread", source })?;
        Ok(Self { jobs })
    }

    /// Answers a batch of leases. Dropping the future cancels the batch.
    ///
    /// # Errors
    /// The engine thread died.
    pub async fn answer(
        &self,
        weights: Arc<Weights>,
        work: Vec<Work>,
        unwanted: Unwanted,
    ) -> Result<Vec<Answer>, WorkerError> {
        let (reply, answers) = oneshot::channel();
        let guard = Dropped(Arc::new(AtomicBool::new(false)));
        let job = Job { weights, work, unwanted, dropped: guard.0.clone(), reply };
        let place = self.jobs.reserve().await.map_err(|_| WorkerError::EngineGone)?;
        LOAD.queued(samples(&job.work));
        place.send(job);
        answers.await.map_err(|_| WorkerError::EngineGone)
    }
}

fn samples(work: &[Work]) -> usize {
    work.iter().map(|w| w.grant.samples.len()).sum()
}

/// Raises the flag when the waiting future goes away.
struct Dropped(Arc<AtomicBool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
