//! Runs both servers until they are told to stop.

use super::Shared;
use super::auth::Guard;
use super::cluster::ClusterService;
use super::http;
use super::learner::LearnerService;
use super::listen::Sockets;
use super::look::Look;
use super::observe::Observed;
use super::page;
use super::rollout::RolloutService;
use metrics_exporter_prometheus::PrometheusHandle;
use quorum_core::config::ClusterSection;
use quorum_core::token::Token;
use quorum_proto::v1::cluster_server::ClusterServer;
use quorum_proto::v1::learner_server::LearnerServer;
use quorum_proto::v1::rollout_server::RolloutServer;
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

/// Without keepalive a call hangs for ever after a partition.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Why the servers do not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("{key} {path}: {reason}")]
    File { key: &'static str, path: String, reason: String },
    #[error("{0}")]
    Token(String),
    #[error("TLS from cluster.tls_cert and cluster.tls_key: {0}")]
    Tls(String),
}

/// Both servers, running.
pub struct Server {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    look: Look,
}

impl Server {
    /// Lets those who ask again and again how the run stands see its end; takes no time when there are none.
    pub async fn farewell(&self) {
        self.look.farewell().await;
    }

    /// Stops taking calls and waits for those under way, for a moment.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        for task in self.tasks {
            let abort = task.abort_handle();
            if tokio::time::timeout(Duration::from_millis(500), task).await.is_err() {
                abort.abort();
            }
        }
    }
}

/// Starts both servers on their sockets.
///
/// # Errors
/// Certificates or token cannot be used.
pub fn serve(
    sockets: Sockets,
    cluster: &ClusterSection,
    shared: &Shared,
    page: PrometheusHandle,
) -> Result<Server, ServeError> {
    let (stop, stopped) = watch::channel(false);
    let look = Look::new(shared);
    let token = match cluster.token_file.as_str() {
        "" => None,
        path => Some(Token::read("cluster.token_file", Path::new(path)).map_err(ServeError::Token)?),
    };
    let guard = Guard(token.clone());
    let limit = cluster.max_message_bytes;
    let mut builder = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .tcp_keepalive(Some(KEEPALIVE))
        .max_concurrent_streams(Some(1024));
    if !cluster.tls_cert.is_empty() {
        builder = builder.tls_config(tls(cluster)?).map_err(|e| ServeError::Tls(describe(&e)))?;
    }
    macro_rules! guarded {
        ($server:ident, $service:expr) => {
            Observed(InterceptedService::new(
                $server::new($service).max_decoding_message_size(limit).max_encoding_message_size(limit),
                guard.clone(),
            ))
        };
    }
    let router = builder
        .add_service(guarded!(ClusterServer, ClusterService(shared.clone(), look.clone())))
        .add_service(guarded!(RolloutServer, RolloutService(shared.clone())))
        .add_service(guarded!(LearnerServer, LearnerService(shared.clone())));
    let incoming = TcpIncoming::from(sockets.grpc).with_nodelay(Some(true)).with_keepalive(Some(KEEPALIVE));
    let signal = |mut seen: watch::Receiver<bool>| async move {
        // The sender being gone also means stop.
        let _ = seen.wait_for(|s| *s).await;
    };
    let grpc_stop = signal(stopped.clone());
    let grpc = tokio::spawn(async move {
        if let Err(e) = router.serve_with_incoming_shutdown(incoming, grpc_stop).await {
            tracing::error!("gRPC server: {}", describe(&e));
        }
    });
    let app = http::router(shared.clone(), look.clone(), page);
    let pages = page::serve(sockets.http, app, cluster, token.as_ref(), signal(stopped))?;
    let http = tokio::spawn(async move {
        if let Err(e) = pages.await {
            tracing::error!("HTTP server: {e}");
        }
    });
    Ok(Server { stop, tasks: vec![grpc, http], look })
}

fn tls(cluster: &ClusterSection) -> Result<ServerTlsConfig, ServeError> {
    let read = |key: &'static str, path: &str| {
        std::fs::read(path).map_err(|e| ServeError::File { key, path: path.to_owned(), reason: e.to_string() })
    };
    let (cert, key) = (read("cluster.tls_cert", &cluster.tls_cert)?, read("cluster.tls_key", &cluster.tls_key)?);
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(cert, key));
    Ok(match cluster.tls_client_ca.as_str() {
        "" => tls,
        path => tls.client_ca_root(Certificate::from_pem(read("cluster.tls_client_ca", path)?)),
    })
}

/// tonic hides the cause behind "transport error".
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        text = format!("{text}: {e}");
        cause = e.source();
    }
    text
}
