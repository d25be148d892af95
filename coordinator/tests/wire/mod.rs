//! Raw material of the TLS tests: an authority of the test's own, an HTTPS request, and the RPCs that the wire contract names.

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// An authority whose key is kept, so that it can sign what `coordinator certs` never would.
pub struct Authority {
    pub ca: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap().pem();
        Self { ca, issuer: Issuer::new(params, key) }
    }

    /// Certificate and key of a client; the certificate ends `days` from now.
    pub fn client(&self, days: i32) -> (String, String) {
        let mut params = CertificateParams::new(["member".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let now = date_time_ymd(1970, 1, 1) + SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        params.not_before = now - DAY * 10;
        params.not_after = if days < 0 { now - DAY * days.unsigned_abs() } else { now + DAY * days.unsigned_abs() };
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// `/quorum.v1.SERVICE/METHOD` of every RPC in the contract; fails if a service is neither in `services` nor the workers' own.
pub fn rpcs(services: &[&str]) -> Vec<String> {
    let contract = include_str!("../../../proto/proto/quorum/v1/quorum.proto");
    let (mut service, mut found) = ("", Vec::new());
    for line in contract.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("service ") {
            service = rest.split([' ', '{']).next().unwrap();
            assert!(services.contains(&service) || service == "Relay", "service {service} has no test");
        }
        if let Some(rest) = line.strip_prefix("rpc ").filter(|_| services.contains(&service)) {
            found.push(format!("/quorum.v1.{service}/{}", rest.split('(').next().unwrap().trim()));
        }
    }
    found
}

/// One HTTPS request: status and the whole answer. An error is one of the connection.
pub async fn get(
    address: &str,
    name: &str,
    ca: &str,
    path: impl AsRef<str>,
    more: String,
) -> std::io::Result<(u16, String)> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let request = format!("GET {} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{more}\r\n", path.as_ref());
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    // A page may close without TLS's goodbye once all is said.
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    Ok((status, answer))
}
