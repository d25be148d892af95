//! Heartbeats on a task of their own, so that a process busy with long arithmetic does not look dead; and what the coordinator says in return.

use super::{ClientError, Session};
use quorum_proto::v1;
use std::collections::BTreeSet;
use std::future::Future;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// What a process reports about itself.
#[derive(Debug, Default)]
pub struct Vitals {
    /// Policy version served.
    pub version: AtomicU64,
    pub leases: AtomicU32,
    /// Tokens generated since the start of the process.
    pub tokens: AtomicU64,
}

/// Standing with the coordinator.
#[derive(Debug, Clone)]
pub enum Pulse {
    Beating,
    /// Join again.
    Fenced(String),
    /// The run ended, or the coordinator wants this process gone.
    Stopped(String),
    /// Nobody has answered for too long.
    Lost(ClientError),
}

/// Leases that the coordinator took back. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Cancellations(Arc<Mutex<BTreeSet<u64>>>);

impl Cancellations {
    /// Whether this lease was taken back.
    pub fn contains(&self, lease: u64) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&lease)
    }

    fn extend(&self, leases: Vec<u64>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(leases);
    }
}

/// Handle of the heartbeat task; dropping it ends the task.
pub struct Heartbeat {
    pulse: watch::Receiver<Pulse>,
    cancelled: Cancellations,
    task: JoinHandle<()>,
}

impl Heartbeat {
    /// Starts beating at the interval the coordinator asked for. Gives up `patience` after the last answer.
    pub fn start(session: &Session, vitals: Arc<Vitals>, patience: Duration) -> Self {
        let (sender, pulse) = watch::channel(Pulse::Beating);
        let cancelled = Cancellations::default();
        let beater = Beater { session: session.clone(), vitals, cancelled: cancelled.clone(), patience };
        let task = tokio::spawn(async move {
            let end = beater.run().await;
            let _ = sender.send(end);
            // Keep the sender: a closed channel would look like an end of its own.
            sender.closed().await;
        });
        Self { pulse, cancelled, task }
    }

    /// The present standing.
    pub fn pulse(&self) -> Pulse {
        self.pulse.borrow().clone()
    }

    /// Completes when the standing is no longer `Beating`. A task that ended abnormally counts as `Fenced`.
    pub fn watch(&self) -> impl Future<Output = Pulse> + Send + use<> {
        let mut pulse = self.pulse.clone();
        async move {
            match pulse.wait_for(|p| !matches!(p, Pulse::Beating)).await {
                Ok(end) => end.clone(),
                Err(_) => Pulse::Fenced("the heartbeat task ended".into()),
            }
        }
    }

    /// The leases that the coordinator took back so far, and from now on.
    pub fn cancellations(&self) -> Cancellations {
        self.cancelled.clone()
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Beater {
    session: Session,
    vitals: Arc<Vitals>,
    cancelled: Cancellations,
    patience: Duration,
}

impl Beater {
    async fn run(&self) -> Pulse {
        let interval = Duration::from_secs_f64(self.session.reply.heartbeat_seconds.clamp(0.05, 60.0));
        let deadline = interval.max(Duration::from_secs(2));
        let mut answered = (Instant::now(), 0u64);
        loop {
            let tokens = self.vitals.tokens.load(Ordering::Relaxed);
            let rate = tokens.saturating_sub(answered.1) as f64 / answered.0.elapsed().as_secs_f64().max(1e-3);
            match self.beat(tokens, rate, deadline).await {
                Ok(reply) if reply.stop => return Pulse::Stopped(reply.reason),
                Ok(reply) => {
                    answered = (Instant::now(), tokens);
                    self.cancelled.extend(reply.cancelled_leases);
                }
                Err(ClientError::Fenced { reason, .. }) => return Pulse::Fenced(reason),
                Err(error) if !error.is_transient() => return Pulse::Lost(error),
                Err(error) if answered.0.elapsed() > self.patience => return Pulse::Lost(self.given_up(error)),
                Err(error) => tracing::debug!(%error, "heartbeat not answered"),
            }
            tokio::time::sleep(interval).await;
        }
    }

    async fn beat(&self, tokens: u64, rate: f64, deadline: Duration) -> Result<v1::HeartbeatReply, ClientError> {
        let request = v1::HeartbeatRequest {
            caller: Some(self.session.caller("")),
            version: self.vitals.version.load(Ordering::Relaxed),
            running_leases: self.vitals.leases.load(Ordering::Relaxed),
            tokens_per_second: rate,
            generated_tokens_total: tokens,
        };
        let link = &self.session.link;
        link.call("Heartbeat", deadline, link.cluster().heartbeat(request)).await
    }

    fn given_up(&self, error: ClientError) -> ClientError {
        ClientError::Unreachable {
            url: self.session.link.url().into(),
            call: "Heartbeat",
            seconds: self.patience.as_secs_f64(),
            last: error.to_string(),
        }
    }
}
