//! `coordinator status`: asks a running coordinator's HTTP page.

use crate::rundir::ENDPOINTS;
use anyhow::{Context, anyhow, ensure};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer that is read.
const LARGEST: u64 = 16 << 20;

/// Where a coordinator's page is if nothing else is said.
const USUAL: &str = "127.0.0.1:7071";

pub(super) fn status(run_dir: Option<&Path>, http: Option<&str>) -> anyhow::Result<()> {
    let http = match run_dir {
        Some(dir) => announced(dir)?,
        None => http.unwrap_or(USUAL).to_owned(),
    };
    let body = get(&http, "/status").with_context(|| match run_dir {
        Some(dir) => format!(
            "the coordinator of {dir} does not answer at {http}; if it was killed, go on with `coordinator --resume {dir}`",
            dir = dir.display()
        ),
        None => format!("no coordinator answers at {http}; give its run directory, or its HTTP address with --http"),
    })?;
    let status: Value = serde_json::from_str(&body).with_context(|| format!("{http} is no coordinator's HTTP page"))?;
    super::show(&format!("{status:#}\n"))
}

/// The HTTP address that the coordinator of a run directory wrote down.
fn announced(dir: &Path) -> anyhow::Result<String> {
    let path = dir.join(ENDPOINTS);
    let text = std::fs::read_to_string(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound if dir.join("ledger.db").is_file() => anyhow!(
            "no coordinator runs in {dir}; its results are in report.json and metrics.jsonl, or go on with `coordinator --resume {dir}`",
            dir = dir.display()
        ),
        std::io::ErrorKind::NotFound => anyhow!("run directory {} holds no run", dir.display()),
        _ => anyhow!("{}: {e}", path.display()),
    })?;
    let endpoints: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let http = endpoints.get("http").and_then(Value::as_str);
    Ok(http.ok_or_else(|| anyhow!("{} names no HTTP address", path.display()))?.to_owned())
}

/// One HTTP/1.1 request. The page is our own, so nothing more than this is needed.
fn get(address: &str, path: &str) -> anyhow::Result<String> {
    let resolved = address.to_socket_addrs()?.next().ok_or_else(|| anyhow!("the name has no address"))?;
    let mut stream = TcpStream::connect_timeout(&resolved, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: application/json\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(LARGEST).read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| anyhow!("the answer is no HTTP"))?;
    let line = head.lines().next().unwrap_or_default();
    ensure!(line.split(' ').nth(1) == Some("200"), "it says: {line}");
    Ok(body.to_owned())
}
