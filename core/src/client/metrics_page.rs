//! A tiny HTTP page for Prometheus on an ephemeral loopback port. It answers every request with the metrics and closes; it is no web server.

use crate::metric;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Longest request head that is read before answering.
const HEAD: usize = 8 << 10;
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two sweeps of the recorder's old samples.
const UPKEEP: Duration = Duration::from_secs(5);

/// Installs the process's recorder, whose histograms have these `buckets`, and serves it; returns the page's address, empty if another
/// recorder is installed (tests).
///
/// # Errors
/// When no port can be bound.
pub async fn start_metrics(buckets: &[f64]) -> std::io::Result<String> {
    let Some(handle) = recorder(buckets) else { return Ok(String::new()) };
    metric::describe();
    let upkeep = handle.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(UPKEEP).await;
            upkeep.run_upkeep();
        }
    });
    serve_metrics(move || handle.render()).await
}

fn recorder(buckets: &[f64]) -> Option<PrometheusHandle> {
    PrometheusBuilder::new().set_buckets(buckets).ok()?.install_recorder().ok()
}

/// Serves `render()` on a free port of 127.0.0.1; returns `127.0.0.1:PORT`. Stops with the runtime.
///
/// # Errors
/// When no port can be bound.
async fn serve_metrics(render: impl Fn() -> String + Send + Sync + 'static) -> std::io::Result<String> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?.to_string();
    let render: Arc<dyn Fn() -> String + Send + Sync> = Arc::new(render);
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let render = render.clone();
                    tokio::spawn(async move {
                        let _ = tokio::time::timeout(PATIENCE, answer(stream, render)).await;
                    });
                }
                // For example out of file descriptors: give others time to close theirs.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    });
    Ok(address)
}

async fn answer(mut stream: TcpStream, render: Arc<dyn Fn() -> String + Send + Sync>) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut part = [0u8; 1024];
    while head.len() < HEAD && !head.windows(4).any(|w: &[u8]| w == b"\r\n\r\n") {
        let n = stream.read(&mut part).await?;
        if n == 0 {
            break;
        }
        head.extend(part.iter().take(n));
    }
    let body = render();
    let reply = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(reply.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_page_is_served_on_loopback() {
        let address = serve_metrics(|| "quorum_up 1\n".into()).await.unwrap();
        assert!(address.starts_with("127.0.0.1:"));
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK") && text.ends_with("\r\n\r\nquorum_up 1\n"), "{text}");
    }
}
