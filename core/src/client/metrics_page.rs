//! The page of a worker or learner for Prometheus and for probes. It answers one request a connection and closes; it is no web server.
//! On loopback it is plain and answers to local names alone; beyond, it is HTTPS with the process's certificate and asks for the token; `--insecure` allows to leave out either.

use super::LinkOptions;
use super::page::respond;
use crate::host::{is_local, refusal};
use crate::metric;
use crate::tls::{TlsListener, may_listen, server_config};
use crate::token::Token;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

/// Longest request head that is read before answering.
const HEAD: usize = 8 << 10;
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two sweeps of the recorder's old samples.
const UPKEEP: Duration = Duration::from_secs(5);

/// Where the page listens, and what protects it.
#[derive(Debug, Clone, Default)]
pub struct PageOptions {
    /// `HOST:PORT`; empty = a free port of 127.0.0.1.
    pub listen: String,
    /// Certificate, key and token of the process, and the coordinator, towards which an unspecified host is announced.
    pub link: LinkOptions,
    /// Allows an address beyond loopback without TLS and token.
    pub insecure: bool,
}

struct Page {
    render: Box<dyn Fn() -> String + Send + Sync>,
    token: Option<Token>,
    /// On loopback, where no token is asked for.
    local: bool,
}

/// Installs the process's recorder and serves it; returns the address to announce, empty if another
/// recorder is installed (tests).
///
/// # Errors
/// The address cannot be bound, or reaches beyond loopback unprotected; certificate or token cannot be used.
pub async fn start_metrics(options: &PageOptions) -> io::Result<String> {
    let Some(handle) = recorder() else { return Ok(String::new()) };
    metric::describe();
    let upkeep = handle.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(UPKEEP).await;
            upkeep.run_upkeep();
        }
    });
    serve_metrics(options, move || handle.render()).await
}

fn recorder() -> Option<PrometheusHandle> {
    let mut histograms = metric::ALL.iter().filter(|m| m.kind == metric::Kind::Histogram);
    let builder = histograms.try_fold(PrometheusBuilder::new(), |builder, m| {
        builder.set_buckets_for_metric(Matcher::Full(m.name.into()), metric::buckets(m))
    });
    builder.ok()?.install_recorder().ok()
}

/// Serves `render()`; returns the address to announce. Stops with the runtime.
async fn serve_metrics(
    options: &PageOptions,
    render: impl Fn() -> String + Send + Sync + 'static,
) -> io::Result<String> {
    let listen = if options.listen.is_empty() { "127.0.0.1:0" } else { &options.listen };
    let wrong = |reason: String| io::Error::other(format!("--metrics {listen}: {reason}"));
    let mut found = listen.to_socket_addrs().map_err(|e| wrong(format!("{e}; give HOST:PORT, e.g. 0.0.0.0:7072")))?;
    let address = found.next().ok_or_else(|| wrong("the name has no address".into()))?;
    let link = &options.link;
    let identity = link.tls_cert.as_deref().zip(link.tls_key.as_deref());
    if !may_listen(address, identity.is_some(), link.token_file.is_some(), options.insecure) {
        let fix = "give --tls-cert, --tls-key and --token-file, or allow it with --insecure";
        return Err(wrong(format!("it reaches beyond this machine: {fix}")));
    }
    let beyond = !address.ip().is_loopback();
    let token = link.token_file.as_deref().filter(|_| beyond);
    let token = token.map(|file| Token::read("--token-file", file)).transpose().map_err(wrong)?;
    let page = Arc::new(Page { render: Box::new(render), token, local: !beyond });
    let listener = TcpListener::bind(address).await.map_err(|e| wrong(e.to_string()))?;
    let bound = listener.local_addr()?;
    match identity.filter(|_| beyond) {
        None => drop(tokio::spawn(plain(listener, page))),
        Some((cert, key)) => {
            let listener = TlsListener::new(listener, server_config(cert, key).map_err(wrong)?)?;
            tokio::spawn(secure(listener, page));
        }
    }
    Ok(announced(bound, &link.url))
}

/// What others dial: an unspecified host becomes this machine's address towards the coordinator, else its host name.
fn announced(bound: SocketAddr, coordinator: &str) -> String {
    if !bound.ip().is_unspecified() {
        return bound.to_string();
    }
    let authority = coordinator.split_once("://").map_or(coordinator, |(_, rest)| rest).trim_end_matches('/');
    let towards = || -> io::Result<IpAddr> {
        let target = authority.to_socket_addrs()?.next().ok_or(io::ErrorKind::NotFound)?;
        let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        // Connecting a UDP socket sends nothing; it only chooses the route.
        let socket = UdpSocket::bind(any)?;
        socket.connect(target)?;
        Ok(socket.local_addr()?.ip())
    };
    match towards() {
        Ok(ip) => SocketAddr::new(ip, bound.port()).to_string(),
        Err(_) => {
            let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            format!("{}:{}", name.trim(), bound.port())
        }
    }
}

async fn plain(listener: TcpListener, page: Arc<Page>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => serve(stream, page.clone()),
            // For example out of file descriptors: give others time to close theirs.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn secure(mut listener: TlsListener, page: Arc<Page>) {
    loop {
        let (stream, _) = listener.accept().await;
        serve(stream, page.clone());
    }
}

fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, page: Arc<Page>) {
    tokio::spawn(async move {
        let _ = tokio::time::timeout(PATIENCE, answer(stream, &page)).await;
    });
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, page: &Page) -> io::Result<()> {
    let mut head = Vec::new();
    let mut part = [0u8; 1024];
    while head.len() < HEAD && !head.windows(4).any(|w: &[u8]| w == b"\r\n\r\n") {
        let n = stream.read(&mut part).await?;
        if n == 0 {
            break;
        }
        head.extend(part.iter().take(n));
    }
    let head = String::from_utf8_lossy(&head);
    let path = head.split(' ').nth(1).unwrap_or_default();
    let (status, kind, body) = match page.refuses(path, &head) {
        None => respond(path, &page.render),
        Some((status, why)) => (status, "text/plain; charset=utf-8", why),
    };
    let reason = match status {
        200 => "OK",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        _ => "Service Unavailable",
    };
    let length = body.len();
    let reply = format!(
        "HTTP/1.1 {status} {reason}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    );
    stream.write_all(reply.as_bytes()).await?;
    stream.shutdown().await
}

impl Page {
    /// Status and reason of a request that is not answered. Probes come from machines without the token, and learn nothing but yes or no.
    fn refuses(&self, path: &str, head: &str) -> Option<(u16, String)> {
        let header = |name: &str| {
            let mut headers = head.lines().skip(1).filter_map(|line| line.split_once(':'));
            headers.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
        };
        if let Some(host) = header("host").filter(|host| self.local && !is_local(host)) {
            return Some((403, refusal(host)));
        }
        let Some(token) = &self.token else { return None };
        let admitted =
            matches!(path, "/healthz" | "/readyz") || token.matches(header("authorization").map(str::as_bytes));
        (!admitted).then(|| (401, "the request carries no valid token\n".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpStream;

    async fn get(address: &str, path: &str, host: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn the_page_is_served_on_loopback_to_local_names() {
        let address = serve_metrics(&PageOptions::default(), || "quorum_up 1\n".into()).await.unwrap();
        assert!(address.starts_with("127.0.0.1:"));
        let text = get(&address, "/metrics", &address).await;
        assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("\r\n\r\nquorum_up 1\n"), "{text}");
        let text = get(&address, "/metrics", "evil.example:7071").await;
        assert!(text.starts_with("HTTP/1.1 403 Forbidden") && text.contains("evil.example"), "{text}");
    }

    #[tokio::test]
    async fn nothing_opens_beyond_loopback_unprotected() {
        let mut options = PageOptions { listen: "0.0.0.0:0".into(), ..PageOptions::default() };
        options.link.url = "http://127.0.0.1:7070".into();
        let refused = serve_metrics(&options, String::new).await.unwrap_err().to_string();
        assert!(refused.contains("0.0.0.0:0") && refused.contains("--tls-cert") && refused.contains("--insecure"));
        options.insecure = true;
        let address = serve_metrics(&options, || "quorum_up 1\n".into()).await.unwrap();
        assert!(address.starts_with("127.0.0.1:"), "the way to the coordinator is announced: {address}");
        let text = get(&address, "/metrics", "box.example").await;
        assert!(text.starts_with("HTTP/1.1 200"), "beyond loopback it has names: {text}");
        options.listen = "nonsense".into();
        assert!(serve_metrics(&options, String::new).await.unwrap_err().to_string().contains("HOST:PORT"));
    }

    #[test]
    fn only_probes_need_no_token() {
        let file = std::env::temp_dir().join(format!("quorum-page-token-{}", std::process::id()));
        std::fs::write(&file, "0123456789abcdef").unwrap();
        let page = Page { render: Box::new(String::new), token: Some(Token::read("x", &file).unwrap()), local: false };
        std::fs::remove_file(&file).unwrap();
        let head = |more: &str| format!("GET / HTTP/1.1\r\nhost: x\r\n{more}\r\n\r\n");
        let admits = |path: &str, head: String| page.refuses(path, &head).is_none();
        assert!(admits("/metrics", head("AUTHORIZATION: Bearer 0123456789abcdef")));
        assert!(!admits("/metrics", head("authorization: Bearer 0123456789abcdee")));
        assert!(!admits("/metrics", head("")) && !admits("/healthz/../metrics", head("")));
        assert!(admits("/healthz", head("")) && admits("/readyz", head("")));
    }
}
