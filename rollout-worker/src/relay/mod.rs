//! Handing weights on to other workers: a small gRPC server under the same rules of safety as the coordinator's.

mod server;
mod shelf;
mod stash;

pub use shelf::{Shelf, Tee};

use crate::error::WorkerError;
use quorum_core::client::{LinkOptions, Session};
use quorum_core::tls::may_listen;
use quorum_core::token::Token;
use quorum_proto::v1::relay_server::RelayServer;
use server::{KEEPALIVE, RelayService};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::service::Interceptor;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Status};

/// Value of `--relay` that switches it off.
const OFF: &str = "off";

/// How a relay listens.
#[derive(Debug, Clone, Default)]
pub struct RelayOptions {
    /// HOST:PORT, or "off"; none = a free port on loopback if the coordinator is there, else off.
    pub listen: Option<String>,
    /// Where large streams are kept while they arrive.
    pub dir: Option<PathBuf>,
    /// The worker's own link: its token and certificates guard the relay, too.
    pub link: LinkOptions,
    pub insecure: bool,
}

/// A relay: bound at the start, serving from the first session on, until it is dropped.
pub struct Relay {
    /// To announce at Join; empty = it hands nothing on.
    pub url: String,
    pub shelf: Shelf,
    options: RelayOptions,
    listener: Option<TcpListener>,
    server: Option<JoinHandle<()>>,
}

/// Refuses calls without the token, if there is one.
#[derive(Clone)]
struct Guard(Option<Token>);

impl Interceptor for Guard {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let given = request.metadata().get("authorization").map(|v| v.as_bytes());
        match &self.0 {
            Some(token) if !token.matches(given) => Err(Status::unauthenticated("the call carries no valid token")),
            _ => Ok(request),
        }
    }
}

impl Relay {
    /// Binds what the options say. Needs a Tokio runtime.
    ///
    /// # Errors
    /// An address that is unusable, in use, or open without protection.
    pub async fn bind(options: RelayOptions) -> Result<Self, WorkerError> {
        let wrong = |reason: String| WorkerError::Relay { listen: options.listen.clone().unwrap_or_default(), reason };
        let near = options.link.is_loopback();
        let listen = match options.listen.as_deref() {
            Some(OFF) => None,
            None if near => Some("127.0.0.1:0"),
            other => other,
        };
        let Some(listen) = listen else {
            return Ok(Self { url: String::new(), shelf: Shelf::default(), options, listener: None, server: None });
        };
        let address = address(listen).map_err(wrong)?;
        let tls = options.link.tls_cert.is_some() && !address.ip().is_loopback();
        if !may_listen(address, tls, options.link.token_file.is_some(), options.insecure) {
            let what = "it reaches beyond this machine: give --tls-cert, --tls-key and --token-file, or --insecure";
            return Err(wrong(what.into()));
        }
        if address.ip().is_unspecified() {
            return Err(wrong("others must be told an address: give this machine's own, e.g. 10.0.0.5:7072".into()));
        }
        let listener = TcpListener::bind(address).await.map_err(|e| wrong(e.to_string()))?;
        let bound = listener.local_addr().map_err(|e| wrong(e.to_string()))?;
        let url = format!("{}://{bound}", if tls { "https" } else { "http" });
        let shelf = Shelf::new(options.dir.clone());
        Ok(Self { url, shelf, options, listener: Some(listener), server: None })
    }

    /// Serves what this session will bring; starts listening at the first one.
    ///
    /// # Errors
    /// Token or certificates cannot be used.
    pub fn serve(&mut self, session: &Session) -> Result<(), WorkerError> {
        self.shelf.serve(session);
        let Some(listener) = self.listener.take() else { return Ok(()) };
        let wrong = |reason: String| WorkerError::Relay { listen: self.url.clone(), reason };
        let link = &self.options.link;
        let token = link.token_file.as_deref().map(|path| Token::read("--token-file", path)).transpose();
        let guard = Guard(token.map_err(wrong)?);
        let mut builder =
            Server::builder().http2_keepalive_interval(Some(KEEPALIVE)).http2_keepalive_timeout(Some(KEEPALIVE));
        if self.url.starts_with("https://") {
            let asked = !session.config.cluster.tls_client_ca.is_empty();
            builder = builder.tls_config(tls(link, asked).map_err(wrong)?).map_err(|e| wrong(e.to_string()))?;
        }
        let service = RelayService { shelf: self.shelf.clone(), served: Arc::default() };
        let router = builder.add_service(RelayServer::with_interceptor(service, guard));
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true)).with_keepalive(Some(KEEPALIVE));
        tracing::debug!(url = self.url, "handing weights on");
        self.server = Some(tokio::spawn(async move {
            if let Err(error) = router.serve_with_incoming(incoming).await {
                tracing::error!(%error, "the relay ended");
            }
        }));
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}

fn address(listen: &str) -> Result<SocketAddr, String> {
    let mut found = listen.to_socket_addrs().map_err(|e| format!("{e}; give HOST:PORT or off"))?;
    found.next().ok_or_else(|| "the name has no address".to_owned())
}

/// The worker's own certificate; callers must show one of the same authority if the coordinator asks for them, too.
fn tls(link: &LinkOptions, asked: bool) -> Result<ServerTlsConfig, String> {
    let read = |what: &str, path: &Option<PathBuf>| {
        let path = path.as_ref().ok_or_else(|| format!("{what} is missing"))?;
        std::fs::read(path).map_err(|e| format!("{what} {}: {e}", path.display()))
    };
    let identity = Identity::from_pem(read("--tls-cert", &link.tls_cert)?, read("--tls-key", &link.tls_key)?);
    let config = ServerTlsConfig::new().identity(identity);
    if !asked {
        return Ok(config);
    }
    Ok(config.client_ca_root(Certificate::from_pem(read("--tls-ca", &link.tls_ca)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn bound(coordinator: &str, listen: Option<&str>, insecure: bool) -> Result<String, String> {
        let link = LinkOptions { url: coordinator.into(), ..LinkOptions::default() };
        let options = RelayOptions { listen: listen.map(str::to_owned), link, insecure, dir: None };
        Relay::bind(options).await.map(|r| r.url.clone()).map_err(|e| e.to_string())
    }

    #[tokio::test]
    async fn nothing_opens_beyond_loopback_unasked_or_unprotected() {
        assert!(bound("http://127.0.0.1:7070", None, false).await.unwrap().starts_with("http://127.0.0.1:"));
        assert_eq!(bound("http://10.9.9.9:7070", None, false).await.unwrap(), "");
        assert_eq!(bound("127.0.0.1:7070", Some("off"), false).await.unwrap(), "");
        let open = bound("127.0.0.1:7070", Some("10.9.9.9:0"), false).await.unwrap_err();
        assert!(open.contains("--tls-cert") && open.contains("10.9.9.9"), "{open}");
        let vague = bound("127.0.0.1:7070", Some("0.0.0.0:0"), true).await.unwrap_err();
        assert!(vague.contains("own"), "{vague}");
        assert!(bound("127.0.0.1:7070", Some("nonsense"), false).await.unwrap_err().contains("HOST:PORT"));
    }
}
