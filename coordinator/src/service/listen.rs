//! Binding: loopback unless the run is protected, and clear words when a port is taken.

use quorum_core::config::ClusterSection;
use quorum_core::tls::may_listen;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use tokio::net::{TcpListener, TcpSocket};

/// A thousand workers may connect at once.
const BACKLOG: u32 = 4096;

/// Why nothing listens.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("{key} = \"{address}\" is no address: {reason}; give HOST:PORT, e.g. 127.0.0.1:7070")]
    Address { key: &'static str, address: String, reason: String },
    #[error(
        "{key} = \"{address}\" reaches beyond this machine: set cluster.tls_cert, cluster.tls_key and cluster.token_file (`coordinator certs DIR` makes them), or allow it with --insecure"
    )]
    Open { key: &'static str, address: String },
    #[error(
        "port in use: cannot listen on {address}; stop what listens there, or choose another with --set {key}=127.0.0.1:PORT (0 = any)"
    )]
    InUse { key: &'static str, address: SocketAddr },
    #[error("cannot listen on {address} ({key}): {source}")]
    Bind { key: &'static str, address: SocketAddr, source: io::Error },
}

/// The two listening sockets.
pub struct Sockets {
    pub grpc: TcpListener,
    pub http: TcpListener,
}

/// Binds both addresses. Needs a Tokio runtime.
///
/// # Errors
/// By key and address: unusable, unsafe, or in use.
pub fn bind(cluster: &ClusterSection) -> Result<Sockets, ListenError> {
    let (grpc, http) = addresses(cluster).map_err(|mut wrong| wrong.swap_remove(0))?;
    Ok(Sockets { grpc: listen("cluster.listen", grpc)?, http: listen("cluster.http", http)? })
}

/// The gRPC and the HTTP address, without listening.
///
/// # Errors
/// Everything that is unusable or unsafe about them; at least one.
pub fn addresses(cluster: &ClusterSection) -> Result<(SocketAddr, SocketAddr), Vec<ListenError>> {
    let mut wrong = Vec::new();
    let mut keep = |found: Result<SocketAddr, ListenError>| found.map_err(|e| wrong.push(e)).ok();
    let (tls, token) = (!cluster.tls_cert.is_empty(), !cluster.token_file.is_empty());
    let mut safe = |key: &'static str, text: &str| {
        keep(address(key, text).and_then(|a| match may_listen(a, tls, token, cluster.insecure) {
            true => Ok(a),
            false => Err(ListenError::Open { key, address: text.to_owned() }),
        }))
    };
    let (grpc, http) = (safe("cluster.listen", &cluster.listen), safe("cluster.http", &cluster.http));
    match (grpc, http) {
        (Some(grpc), Some(http)) => Ok((grpc, http)),
        _ => Err(wrong),
    }
}

fn address(key: &'static str, text: &str) -> Result<SocketAddr, ListenError> {
    let wrong = |reason: String| ListenError::Address { key, address: text.to_owned(), reason };
    let mut found = text.to_socket_addrs().map_err(|e| wrong(e.to_string()))?;
    found.next().ok_or_else(|| wrong("the name has no address".into()))
}

fn listen(key: &'static str, address: SocketAddr) -> Result<TcpListener, ListenError> {
    let bound = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A restarted coordinator must not wait for old connections to fade.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bound().map_err(|source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse { key, address },
        _ => ListenError::Bind { key, address, source },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(listen: &str, http: &str) -> ClusterSection {
        ClusterSection { listen: listen.into(), http: http.into(), ..ClusterSection::default() }
    }

    #[tokio::test]
    async fn nothing_opens_beyond_loopback_unprotected() {
        let message = |c: &ClusterSection| bind(c).err().map(|e| e.to_string()).unwrap_or_default();
        let mut c = section("0.0.0.0:0", "127.0.0.1:0");
        assert!(message(&c).contains("cluster.tls_cert"));
        c.tls_cert = "cert.pem".into();
        c.tls_key = "key.pem".into();
        assert!(message(&c).contains("cluster.token_file"), "TLS alone does not authenticate");
        c.token_file = "token".into();
        assert_eq!(message(&c), "");
        let mut c = section("127.0.0.1:0", "0.0.0.0:0");
        assert!(message(&c).contains("cluster.http"));
        (c.tls_cert, c.tls_key) = ("cert.pem".into(), "key.pem".into());
        assert!(message(&c).contains("cluster.token_file"), "the page needs both, too");
        c.tls_cert.clear();
        c.insecure = true;
        assert_eq!(message(&c), "");
    }

    #[tokio::test]
    async fn a_port_in_use_names_address_and_key() {
        let held = bind(&section("127.0.0.1:0", "127.0.0.1:0")).unwrap();
        let taken = held.grpc.local_addr().unwrap().to_string();
        let e = bind(&section(&taken, "127.0.0.1:0")).err().unwrap().to_string();
        assert!(e.contains(&taken) && e.contains("cluster.listen"), "{e}");
        let e = bind(&section("127.0.0.1:0", &taken)).err().unwrap().to_string();
        assert!(e.contains(&taken) && e.contains("cluster.http"), "{e}");
        let e = bind(&section("nonsense", "127.0.0.1:0")).err().unwrap().to_string();
        assert!(e.contains("cluster.listen") && e.contains("HOST:PORT"), "{e}");
    }
}
