//! A joined process: who it is, which run it serves, and retries with backoff. Joining again gives a new session.

use super::{ClientError, Link, LinkOptions};
use crate::config::{self, RunConfig};
use quorum_proto::v1;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Deadline of a short call.
const SHORT: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Who joins what.
#[derive(Debug, Clone)]
pub struct JoinOptions {
    pub link: LinkOptions,
    pub role: v1::Role,
    /// Stable over reconnects.
    pub caller_id: String,
    /// Empty = any run.
    pub run_id: String,
    /// Empty = any configuration.
    pub config_digest: String,
    /// Of the numeric kernels, e.g. `avx512`: results are promised bit for bit inside one of them only.
    pub instruction_set: String,
    /// Address of the process's own metrics page; empty = none.
    pub metrics_address: String,
    /// URL of the process's own relay of weights; empty = it hands nothing on.
    pub relay_address: String,
    pub rank: u32,
    pub world: u32,
    /// How long an absent coordinator is waited for.
    pub patience: Duration,
}

/// The answer to Join, and the link it came over. Cheap to clone.
#[derive(Clone)]
pub struct Session {
    pub link: Link,
    pub reply: Arc<v1::JoinReply>,
    pub config: Arc<RunConfig>,
    caller_id: Arc<str>,
    /// Where the address came from, if from a file.
    source: Option<Arc<LinkOptions>>,
}

impl Session {
    /// Joins, waiting for a coordinator that is not there yet.
    ///
    /// # Errors
    /// `Unreachable` after `patience`, `Refused` at once, `Protocol` if the answer cannot be read or belongs to another configuration.
    pub async fn join(options: &JoinOptions) -> Result<Self, ClientError> {
        let fixed = if options.link.file().is_none() { Some(Link::new(&options.link)?) } else { None };
        let request = request(options);
        let url = fixed.as_ref().map_or(options.link.url.as_str(), Link::url).to_owned();
        let start = Instant::now();
        let (link, reply) = retry(&url, "Join", &options.caller_id, options.patience, || {
            let (fixed, request) = (fixed.clone(), request.clone());
            // A coordinator whose socket accepts and never answers is not waited for any longer than an absent one.
            let deadline = SHORT.min(options.patience.saturating_sub(start.elapsed()));
            async move {
                let link = fixed.map_or_else(|| options.link.found().and_then(|found| Link::new(&found)), Ok)?;
                let reply = link.call("Join", deadline, link.cluster().join(request)).await?;
                Ok((link, reply))
            }
        })
        .await?;
        let unusable = |reason: String| ClientError::Protocol { url: link.url().into(), call: "Join", reason };
        let config = config::from_toml(&reply.config_toml, "the coordinator's configuration")
            .map_err(|e| unusable(e.to_string()))?;
        let digest = config::digest(&config);
        if digest != reply.config_digest {
            return Err(unusable(format!(
                "its configuration digest is {} but reads here as {digest}",
                reply.config_digest
            )));
        }
        let link = link.with_limit(reply.max_message_bytes);
        crate::logging::about_run(&reply.run_id, &options.caller_id, options.role == v1::Role::RolloutWorker);
        Ok(Self {
            link,
            reply: Arc::new(reply),
            config: Arc::new(config),
            caller_id: options.caller_id.as_str().into(),
            source: options.link.file().map(|_| Arc::new(options.link.clone())),
        })
    }

    /// Identifies a state-changing call; `key` is its idempotency key.
    pub fn caller(&self, key: impl Into<String>) -> v1::Caller {
        v1::Caller {
            run_id: self.reply.run_id.clone(),
            epoch: self.reply.epoch,
            caller_id: self.caller_id.to_string(),
            idempotency_key: key.into(),
        }
    }

    /// Repeats `attempt` while its error is transient, with jittered exponential pauses, until `patience` is over.
    ///
    /// # Errors
    /// The first error that is not transient, `Fenced` if the coordinator has come up elsewhere, or `Unreachable` with the last error.
    pub async fn retry<T, F, A>(&self, call: &'static str, patience: Duration, mut attempt: F) -> Result<T, ClientError>
    where
        F: FnMut() -> A,
        A: Future<Output = Result<T, ClientError>>,
    {
        retry(self.link.url(), call, &self.caller_id, patience, || {
            let tried = attempt();
            async move {
                let result = tried.await;
                match self.moved().filter(|_| result.as_ref().is_err_and(ClientError::is_transient)) {
                    Some(fenced) => Err(fenced),
                    None => result,
                }
            }
        })
        .await
    }

    /// What to say if the coordinator has come up at another address.
    fn moved(&self) -> Option<ClientError> {
        let found = self.source.as_ref()?.found().ok()?;
        let now = Link::new(&found).ok()?;
        let url = self.link.url().to_owned();
        (now.url() != url).then(|| ClientError::Fenced { url, reason: format!("it is at {} now", now.url()) })
    }

    /// How long a relay may be silent.
    pub fn relay_patience(&self) -> Duration {
        Duration::from_secs_f64(self.config.cluster.relay_seconds.clamp(0.05, 600.0))
    }

    /// Says goodbye; failing to is harmless, the coordinator then waits for the heartbeats to stop.
    pub async fn leave(&self, reason: &str) {
        let request = v1::LeaveRequest { caller: Some(self.caller("leave")), reason: reason.to_owned() };
        if let Err(error) = self.link.call("Leave", SHORT, self.link.cluster().leave(request)).await {
            tracing::debug!(%error, "leaving without goodbye");
        }
    }
}

fn request(options: &JoinOptions) -> v1::JoinRequest {
    v1::JoinRequest {
        role: options.role.into(),
        caller_id: options.caller_id.clone(),
        run_id: options.run_id.clone(),
        config_digest: options.config_digest.clone(),
        instruction_set: options.instruction_set.clone(),
        protocol_version: quorum_proto::PROTOCOL_VERSION,
        quorum_version: env!("CARGO_PKG_VERSION").into(),
        metrics_address: options.metrics_address.clone(),
        rank: options.rank,
        world: options.world,
        pid: std::process::id(),
        relay_address: options.relay_address.clone(),
    }
}

async fn retry<T, F, A>(
    url: &str,
    call: &'static str,
    who: &str,
    patience: Duration,
    mut attempt: F,
) -> Result<T, ClientError>
where
    F: FnMut() -> A,
    A: Future<Output = Result<T, ClientError>>,
{
    let start = Instant::now();
    for round in 0u32.. {
        let error = match attempt().await {
            Err(error) if error.is_transient() => error,
            done => return done,
        };
        let pause = pause(who, round);
        if start.elapsed() + pause > patience {
            return Err(late(url, call, patience, error));
        }
        tracing::debug!(%error, round, "trying again");
        tokio::time::sleep(pause).await;
    }
    Err(ClientError::Protocol { url: url.into(), call, reason: "retries exhausted".into() })
}

/// The deadline's own error; bytes that stay damaged are reported as such.
fn late(url: &str, call: &'static str, patience: Duration, last: ClientError) -> ClientError {
    match last {
        ClientError::Transient { reason, .. } => {
            ClientError::Unreachable { url: url.into(), call, seconds: patience.as_secs_f64(), last: reason }
        }
        other => other,
    }
}

/// Doubling pause of attempt `round`, spread by ±25 % so that many processes do not come back together.
fn pause(who: &str, round: u32) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << round.min(16)).min(LONGEST_PAUSE);
    let spread = crate::seed::Stream::named(who, &[u64::from(std::process::id())]).uniform(u64::from(round));
    doubled.mul_f64(0.75 + 0.5 * spread)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn transient() -> ClientError {
        ClientError::Transient { url: "http://c:1".into(), call: "Lease", reason: "connection refused".into() }
    }

    #[tokio::test]
    async fn a_passing_failure_is_retried() {
        let tries = Cell::new(0);
        let value = retry("http://c:1", "Lease", "w", Duration::from_secs(60), || {
            tries.set(tries.get() + 1);
            let n = tries.get();
            async move { if n < 5 { Err(transient()) } else { Ok(n) } }
        })
        .await;
        assert_eq!(value.unwrap(), 5);
    }

    #[tokio::test]
    async fn the_deadline_names_the_coordinator_and_the_last_cause() {
        let start = Instant::now();
        let error =
            retry::<(), _, _>("http://c:1", "Lease", "w", Duration::from_secs(1), || async { Err(transient()) })
                .await
                .unwrap_err();
        assert!(start.elapsed() >= Duration::from_millis(300), "it gave up before trying");
        let text = error.to_string();
        assert!(text.contains("http://c:1") && text.contains("1 s") && text.contains("connection refused"), "{text}");
    }

    #[tokio::test]
    async fn a_socket_that_accepts_and_never_answers_costs_no_more_than_the_patience() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let options = JoinOptions {
            link: LinkOptions { url: silent.local_addr().unwrap().to_string(), ..LinkOptions::default() },
            role: v1::Role::RolloutWorker,
            caller_id: "w".into(),
            run_id: String::new(),
            config_digest: String::new(),
            instruction_set: String::new(),
            metrics_address: String::new(),
            relay_address: String::new(),
            rank: 0,
            world: 1,
            patience: Duration::from_millis(1500),
        };
        let start = Instant::now();
        let error = Session::join(&options).await.map(|_| ()).unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
        assert!(start.elapsed() < Duration::from_secs(3), "it took {:?}", start.elapsed());
    }

    #[tokio::test]
    async fn a_refusal_is_final() {
        let tries = Cell::new(0);
        let refused = ClientError::Refused { url: "u".into(), call: "Join", reason: "another run".into() };
        let error = retry::<(), _, _>("u", "Join", "w", Duration::from_secs(30), || {
            tries.set(tries.get() + 1);
            let refused = refused.clone();
            async move { Err(refused) }
        })
        .await
        .unwrap_err();
        assert!(error.to_string().contains("another run"));
        assert_eq!(tries.get(), 1);
    }
}
