//! Who may fetch weights from a worker whose relay listens beyond this machine: kinds of certificate × tokens × both of its calls.

#![allow(clippy::unwrap_used)]

mod support;

use quorum_core::client::{JoinOptions, LinkOptions, Session};
use quorum_core::tls::MEMBER_NAME;
use quorum_proto::v1;
use quorum_proto::v1::relay_client::RelayClient;
use quorum_rollout_worker::relay::{Relay, RelayOptions};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::{Fake, config};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// An authority, and a member's certificate and key signed by it.
struct Files {
    ca: String,
    cert: String,
    key: String,
}

fn files() -> Files {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().unwrap();
    let ca = authority.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(authority, key);
    let mut member = CertificateParams::new([MEMBER_NAME.to_owned()]).unwrap();
    member.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().unwrap();
    Files { ca, cert: member.signed_by(&key, &issuer).unwrap().pem(), key: key.serialize_pem() }
}

/// An address of this machine that others could dial; none on a machine without a network.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // Sends nothing: it only asks which way packets would take.
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|a| a.ip()).filter(|ip| !ip.is_loopback())
}

async fn session(fake_url: &str) -> Session {
    let join = JoinOptions {
        link: LinkOptions { url: fake_url.into(), ..LinkOptions::default() },
        role: v1::Role::RolloutWorker,
        caller_id: "worker-a".into(),
        run_id: String::new(),
        config_digest: String::new(),
        instruction_set: "test".into(),
        metrics_address: String::new(),
        relay_address: String::new(),
        rank: 0,
        world: 1,
        patience: Duration::from_secs(10),
    };
    Session::join(&join).await.unwrap()
}

fn channel(url: &str, ca: &str, identity: Option<&Files>) -> Channel {
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca)).domain_name(MEMBER_NAME);
    if let Some(files) = identity {
        tls = tls.identity(Identity::from_pem(&files.cert, &files.key));
    }
    Endpoint::from_shared(url.to_owned()).unwrap().tls_config(tls).unwrap().connect_lazy()
}

/// Codes of both calls.
async fn calls(channel: Channel, token: Option<&str>) -> [Code; 2] {
    fn with<T>(message: T, token: Option<&str>) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        request
    }
    async fn code<T>(reply: Result<tonic::Response<tonic::Streaming<T>>, Status>) -> Code {
        match reply {
            Err(status) => status.code(),
            Ok(stream) => stream.into_inner().message().await.err().map_or(Code::Ok, |s| s.code()),
        }
    }
    let mut relay = RelayClient::new(channel);
    let weights = code(relay.fetch_weights(with(v1::FetchWeightsRequest::default(), token)).await).await;
    let frozen = code(relay.fetch_frozen(with(v1::FetchFrozenRequest::default(), token)).await).await;
    [weights, frozen]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_wants_the_certificate_and_the_token() {
    let Some(own) = own_address() else {
        eprintln!("no network address besides loopback on this machine: nothing to try");
        return;
    };
    let scratch = tempfile::tempdir().unwrap();
    let (right, foreign) = (files(), files());
    let write = |name: &str, text: &str| -> PathBuf {
        let path: &Path = scratch.path();
        std::fs::write(path.join(name), text).unwrap();
        path.join(name)
    };
    let mut settings = config();
    settings.cluster.tls_cert = "cert.pem".into();
    settings.cluster.tls_key = "key.pem".into();
    settings.cluster.tls_client_ca = "ca.pem".into();
    let fake = Fake::new(settings, &BTreeMap::new()).serve().await;
    let link = LinkOptions {
        url: fake.url.clone(),
        token_file: Some(write("token", TOKEN)),
        tls_ca: Some(write("ca.pem", &right.ca)),
        tls_cert: Some(write("cert.pem", &right.cert)),
        tls_key: Some(write("key.pem", &right.key)),
    };
    let options = RelayOptions { listen: Some(format!("{own}:0")), dir: None, link, insecure: false };
    let mut relay = Relay::bind(options).await.unwrap();
    assert!(relay.url.starts_with("https://"), "{}", relay.url);
    relay.serve(&session(&fake.url).await).unwrap();

    let url = relay.url.clone();
    let no_connection = |codes: [Code; 2]| {
        codes.iter().all(|c| matches!(c, Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled))
    };
    let none = calls(channel(&url, &right.ca, None), Some(TOKEN)).await;
    assert!(no_connection(none), "no certificate: {none:?}");
    let other = calls(channel(&url, &right.ca, Some(&foreign)), Some(TOKEN)).await;
    assert!(no_connection(other), "foreign authority: {other:?}");
    let fooled = calls(channel(&url, &foreign.ca, Some(&right)), Some(TOKEN)).await;
    assert!(no_connection(fooled), "a caller does not believe a foreign relay: {fooled:?}");
    let plain = Endpoint::from_shared(url.replace("https", "http")).unwrap().connect_lazy();
    let plain = calls(plain, Some(TOKEN)).await;
    assert!(no_connection(plain), "plain text: {plain:?}");
    for token in [None, Some("0123456789abcdef0123456789abcdee")] {
        let codes = calls(channel(&url, &right.ca, Some(&right)), token).await;
        assert_eq!(codes, [Code::Unauthenticated; 2], "{token:?}");
    }
    let served = calls(channel(&url, &right.ca, Some(&right)), Some(TOKEN)).await;
    assert!(!no_connection(served) && served.iter().all(|c| *c != Code::Unauthenticated), "all right: {served:?}");
}
