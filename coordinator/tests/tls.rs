//! Who may call what, over real TCP: kinds of certificate × tokens × every RPC of the wire contract, and the two HTTP pages.

#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
mod fake;
mod wire;

use fake::coordinator::Coordinator;
use quorum_core::client::{LinkOptions, PageOptions, start_metrics};
use quorum_core::tls::MEMBER_NAME;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};
use wire::{Authority, get, rpcs};

/// What becomes of a call.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Fate {
    /// No connection: the call never reaches a service.
    NoConnection,
    /// Refused for its token.
    NoToken,
    /// A service answers, if only that it does not know the caller.
    Answered,
}

/// Certificate and key, PEM.
type Pair = (String, String);
/// Its name, what the caller shows, whom it expects, its token, and what becomes of it.
type Case<'a> = (&'a str, Option<Pair>, &'a str, Option<&'a str>, Fate);

/// What `coordinator certs` makes, in `dir`.
fn certs(dir: &Path) -> PathBuf {
    let out = Command::new(env!("CARGO_BIN_EXE_coordinator")).arg("certs").arg(dir).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(said.contains("--token-file") && said.contains("cluster.tls_client_ca"), "it prints the flags: {said}");
    dir.to_owned()
}

fn text(path: PathBuf) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// A coordinator with certificates, client certificates and a token, and the authorities callers are signed by.
struct Place {
    _scratch: tempfile::TempDir,
    coordinator: Coordinator,
    certs: PathBuf,
    other: Authority,
    token: String,
}

impl Place {
    fn new(listen: &str, http: &str) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let dir = certs(&scratch.path().join("certs"));
        let other = Authority::new();
        // Several authorities may stand in one file.
        let trusted = scratch.path().join("trusted.pem");
        std::fs::write(&trusted, text(dir.join("coordinator/ca.pem")) + &other.ca).unwrap();
        let own = dir.join("coordinator");
        let sets = [
            format!("cluster.listen={listen}"),
            format!("cluster.http={http}"),
            format!("cluster.tls_cert={}", own.join("cert.pem").display()),
            format!("cluster.tls_key={}", own.join("key.pem").display()),
            format!("cluster.tls_client_ca={}", trusted.display()),
            format!("cluster.token_file={}", own.join("token").display()),
        ];
        let coordinator = Coordinator::start(scratch.path(), &sets.each_ref().map(String::as_str));
        let token = text(own.join("token")).trim().to_owned();
        Self { _scratch: scratch, coordinator, certs: dir, other, token }
    }

    fn port(address: &str) -> &str {
        address.rsplit(':').next().unwrap()
    }

    fn pair(&self, side: &str) -> Pair {
        (text(self.certs.join(side).join("cert.pem")), text(self.certs.join(side).join("key.pem")))
    }

    /// A channel to the coordinator that believes it to be `name`.
    fn channel(&self, identity: Option<Pair>, name: &str) -> Channel {
        let trusted = Certificate::from_pem(text(self.certs.join("member/ca.pem")));
        let mut tls = ClientTlsConfig::new().ca_certificate(trusted).domain_name(name);
        if let Some((cert, key)) = identity {
            tls = tls.identity(Identity::from_pem(cert, key));
        }
        let url = format!("https://127.0.0.1:{}", Self::port(&self.coordinator.url));
        Endpoint::from_shared(url).unwrap().tls_config(tls).unwrap().connect_lazy()
    }
}

/// Calls with an empty message: on the wire every kind of RPC is a stream of messages each way.
async fn call(channel: Channel, path: &str, token: Option<&str>) -> Fate {
    let mut grpc = tonic::client::Grpc::new(channel);
    let fate = |status: Status| match status.code() {
        Code::Unauthenticated => Fate::NoToken,
        // What services say to an empty message.
        Code::PermissionDenied | Code::FailedPrecondition | Code::NotFound | Code::InvalidArgument => Fate::Answered,
        // Made up by the caller's own side, from the error of the connection.
        Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled if status.source().is_some() => {
            Fate::NoConnection
        }
        other => panic!("{path}: {other:?} {status}"),
    };
    if grpc.ready().await.is_err() {
        return Fate::NoConnection;
    }
    let mut request = Request::new(tokio_stream::once(()));
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    match grpc.streaming(request, path.parse().unwrap(), codec).await {
        Err(status) => fate(status),
        Ok(reply) => match reply.into_inner().message().await {
            Ok(_) => Fate::Answered,
            Err(status) => fate(status),
        },
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rpc_wants_the_right_certificate_and_the_token() {
    let place = Place::new("127.0.0.1:0", "127.0.0.1:0");
    let foreign = certs(&place.certs.with_file_name("foreign"));
    let foreign = Some((text(foreign.join("member/cert.pem")), text(foreign.join("member/key.pem"))));
    let right = Some(place.pair("member"));
    let good = Some(place.token.as_str());
    let wrong: String = place.token.chars().rev().collect();
    let cases: [Case; 9] = [
        ("no certificate", None, "localhost", good, Fate::NoConnection),
        ("foreign authority", foreign, "localhost", good, Fate::NoConnection),
        ("expired", Some(place.other.client(-1)), "localhost", good, Fate::NoConnection),
        ("not for clients", Some(place.pair("coordinator")), "localhost", good, Fate::NoConnection),
        ("coordinator of another name", right.clone(), "elsewhere", good, Fate::NoConnection),
        ("no token", right.clone(), "localhost", None, Fate::NoToken),
        ("wrong token", right.clone(), "localhost", Some(&wrong), Fate::NoToken),
        ("all right", right, "localhost", good, Fate::Answered),
        ("all right, second authority", Some(place.other.client(1)), "localhost", good, Fate::Answered),
    ];
    let rpcs = rpcs(&["Cluster", "Rollout", "Learner"]);
    assert!(rpcs.len() >= 12, "{rpcs:?}");
    let mut calls = 0;
    for (name, identity, server, token, expected) in cases {
        for path in &rpcs {
            let channel = place.channel(identity.clone(), server);
            let fate = tokio::time::timeout(std::time::Duration::from_secs(20), call(channel, path, token));
            assert_eq!(fate.await.expect("a call ends"), expected, "{name}: {path}");
            calls += 1;
        }
    }
    assert_eq!(calls, 9 * rpcs.len());
    // Plain text finds no service behind TLS.
    let plain = Endpoint::from_shared(place.coordinator.url.clone()).unwrap().connect_lazy();
    assert_eq!(call(plain, &rpcs[0], good).await, Fate::NoConnection);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_client_certificates_the_token_still_guards() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = certs(&scratch.path().join("certs"));
    let own = dir.join("coordinator");
    let sets = ["cert.pem", "key.pem", "token"].map(|f| own.join(f).display().to_string());
    let [cert, key, token] = &sets;
    let sets =
        [format!("cluster.tls_cert={cert}"), format!("cluster.tls_key={key}"), format!("cluster.token_file={token}")];
    let coordinator = Coordinator::start(scratch.path(), &sets.each_ref().map(String::as_str));
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(text(own.join("ca.pem"))));
    let url = coordinator.url.replace("http://127.0.0.1", "https://localhost");
    let channel = || Endpoint::from_shared(url.clone()).unwrap().tls_config(tls.clone()).unwrap().connect_lazy();
    let token = text(own.join("token")).trim().to_owned();
    for path in rpcs(&["Cluster", "Rollout", "Learner"]) {
        assert_eq!(call(channel(), &path, None).await, Fate::NoToken, "{path}");
        assert_eq!(call(channel(), &path, Some(&token)).await, Fate::Answered, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_beyond_loopback_want_tls_and_the_token_except_for_probes() {
    let place = Place::new("127.0.0.1:0", "0.0.0.0:0");
    let ca = text(place.certs.join("member/ca.pem"));
    let member = |file: &str| Some(place.certs.join("member").join(file));
    let link = LinkOptions {
        url: place.coordinator.url.clone(),
        token_file: member("token"),
        tls_cert: member("cert.pem"),
        tls_key: member("key.pem"),
        tls_ca: member("ca.pem"),
    };
    let options = PageOptions { listen: "0.0.0.0:0".into(), link, insecure: false };
    let announced = start_metrics(&options).await.unwrap();
    assert!(announced.starts_with("127.0.0.1:"), "{announced}");
    let local = format!("127.0.0.1:{}", Place::port(&place.coordinator.http));
    let bearer = format!("authorization: Bearer {}\r\n", place.token);
    for (address, name) in [(local.as_str(), "localhost"), (&announced, MEMBER_NAME)] {
        let ask = |path: &'static str, more: String| get(address, name, &ca, path, more);
        assert_eq!(ask("/healthz", String::new()).await.unwrap().0, 200, "{name}");
        assert_eq!(ask("/metrics", String::new()).await.unwrap().0, 401, "{name}");
        assert_eq!(ask("/metrics", "authorization: Bearer nonsense\r\n".into()).await.unwrap().0, 401, "{name}");
        assert_eq!(ask("/metrics", bearer.clone()).await.unwrap().0, 200, "{name}");
        assert!(get(address, "elsewhere", &ca, "/metrics", bearer.clone()).await.is_err(), "the name is checked");
        assert!(get(address, name, &place.other.ca, "/metrics", bearer.clone()).await.is_err(), "and the authority");
    }
    // A browser comes once with the token in the address and goes on with a cookie.
    let ask = |path: String, more: String| get(&local, "localhost", &ca, path, more);
    assert_eq!(ask("/sd?token=nonsense".into(), String::new()).await.unwrap().0, 401);
    let (status, head) = ask(format!("/sd?token={}", place.token), String::new()).await.unwrap();
    assert!(status == 303 && head.contains("location: /sd\r\n") && head.contains("HttpOnly"), "{head}");
    let (_, head) = ask(format!("//evil.example/?token={}", place.token), String::new()).await.unwrap();
    assert!(head.contains("location: /evil.example/\r\n"), "no other site is named: {head}");
    assert_eq!(ask("/sd".into(), format!("cookie: a=b; quorum_token={}\r\n", place.token)).await.unwrap().0, 200);
    assert_eq!(ask("/sd".into(), "cookie: quorum_token=nonsense\r\n".into()).await.unwrap().0, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_directory_leads_to_a_coordinator_with_tls() {
    let place = Place::new("127.0.0.1:0", "0.0.0.0:0");
    let dir = place.certs.with_file_name("run");
    let port = Place::port(&place.coordinator.url);
    let endpoints = format!(r#"{{"http":"{}","url":"https://localhost:{port}"}}"#, place.coordinator.http);
    std::fs::write(dir.join("endpoints.json"), endpoints).unwrap();
    let status = |flags: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_coordinator"));
        for name in ["CA", "CERT", "KEY"] {
            command.env_remove(format!("QUORUM_TLS_{name}"));
        }
        command.arg("status").arg(&dir);
        for flag in flags {
            let file = if *flag == "token-file" { "token".to_owned() } else { format!("{}.pem", &flag[4..]) };
            command.arg(format!("--{flag}")).arg(place.certs.join("member").join(file));
        }
        let out = command.env_remove("QUORUM_ID").env_remove("QUORUM_COORDINATOR").output().unwrap();
        (
            out.status.success(),
            String::from_utf8_lossy(&out.stdout).into_owned(),
            String::from_utf8_lossy(&out.stderr).into_owned(),
        )
    };
    let (answered, said, error) = status(&["tls-ca", "tls-cert", "tls-key", "token-file"]);
    assert!(answered && said.contains("\"run_id\": \"fake\""), "{said}{error}");
    let (answered, _, error) = status(&[]);
    assert!(!answered && error.contains("--tls-ca") && error.contains(&format!("https://localhost:{port}")), "{error}");
    let (answered, _, error) = status(&["tls-ca", "tls-cert", "tls-key"]);
    assert!(!answered && error.contains("token"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn insecure_leaves_out_what_is_not_set_and_nothing_else() {
    let scratch = tempfile::tempdir().unwrap();
    let token_file = scratch.path().join("token");
    std::fs::write(&token_file, "0123456789abcdef").unwrap();
    let token_set = format!("cluster.token_file={}", token_file.display());
    let coordinator =
        Coordinator::start(scratch.path(), &["cluster.http=0.0.0.0:0", "cluster.insecure=true", &token_set]);
    let ask = async |path: &str, more: &str| {
        let mut stream =
            TcpStream::connect(("127.0.0.1", Place::port(&coordinator.http).parse().unwrap())).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: box.example\r\nconnection: close\r\n{more}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    };
    for path in ["/", "/api/v1/run", "/metrics", "/status"] {
        assert!(ask(path, "").await.starts_with("HTTP/1.1 401"), "{path}");
    }
    assert!(ask("/healthz", "").await.starts_with("HTTP/1.1 200"));
    assert!(ask("/sd", "authorization: Bearer 0123456789abcdef\r\n").await.starts_with("HTTP/1.1 200"));
    // A browser keeps no secure cookie from a plain page.
    let admitted = ask("/?token=0123456789abcdef", "").await;
    assert!(admitted.starts_with("HTTP/1.1 303") && !admitted.contains("Secure"), "{admitted}");
}
