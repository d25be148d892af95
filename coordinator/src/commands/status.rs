//! `coordinator status`: asks a running coordinator's HTTP page.

use anyhow::{Context, anyhow, ensure};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer that is read.
const LARGEST: u64 = 16 << 20;

pub(super) fn status(http: &str) -> anyhow::Result<()> {
    let body = get(http, "/status")
        .with_context(|| format!("no coordinator answers at {http}; give its HTTP address with --http"))?;
    let status: Value = serde_json::from_str(&body).with_context(|| format!("{http} is no coordinator's HTTP page"))?;
    println!("{status:#}");
    Ok(())
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
