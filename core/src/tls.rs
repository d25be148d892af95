//! TLS for pages and services that listen: PEM files to a server configuration, and a listener whose handshakes cannot hold each other up.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

/// Longest handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes under way at once; more callers wait in the kernel's queue.
const HANDSHAKES: usize = 256;
/// Finished handshakes that wait to be served.
const QUEUE: usize = 64;

/// The DNS name in every certificate of a worker or learner that `coordinator certs` makes: who dials one by its address checks this name.
pub const MEMBER_NAME: &str = "quorum-member";

/// Whether a socket may listen on `address`: on loopback always, beyond it with TLS and a token, or if `insecure` says so.
pub fn may_listen(address: SocketAddr, tls: bool, token: bool, insecure: bool) -> bool {
    address.ip().is_loopback() || (tls && token) || insecure
}

/// A server configuration from a certificate chain and its key, without client certificates.
///
/// # Errors
/// By file: it cannot be read, holds no certificate or key, or the two do not belong together.
pub fn server_config(cert: &Path, key: &Path) -> Result<Arc<ServerConfig>, String> {
    let named = |path: &Path, e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let chain: Vec<CertificateDer> =
        CertificateDer::pem_file_iter(cert).and_then(Iterator::collect).map_err(|e| named(cert, &e))?;
    if chain.is_empty() {
        return Err(named(cert, &"there is no certificate in it"));
    }
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| named(key, &e))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| named(cert, &e))?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|e| format!("{} with {}", named(cert, &e), key.display()))?;
    Ok(Arc::new(config))
}

/// A listener that hands out connections whose handshake is done. Stops when dropped.
pub struct TlsListener {
    local: SocketAddr,
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    task: tokio::task::JoinHandle<()>,
}

impl TlsListener {
    /// Starts accepting. Needs a Tokio runtime.
    ///
    /// # Errors
    /// The socket has no local address.
    pub fn new(listener: TcpListener, config: Arc<ServerConfig>) -> std::io::Result<Self> {
        let local = listener.local_addr()?;
        let (done, ready) = mpsc::channel(QUEUE);
        let task = tokio::spawn(accept(listener, TlsAcceptor::from(config), done));
        Ok(Self { local, ready, task })
    }

    /// The next connection. Pending for ever once accepting has ended.
    pub async fn accept(&mut self) -> (TlsStream<TcpStream>, SocketAddr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            None => std::future::pending().await,
        }
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

impl Drop for TlsListener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, done: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>) {
    let room = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(_) => {
                // For example out of file descriptors: give others time to close theirs.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, done) = (acceptor.clone(), done.clone());
        tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => drop(done.send((stream, peer)).await),
                Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake refused"),
                Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
            }
            drop(permit);
        });
    }
}
