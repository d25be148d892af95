//! What the live page costs: the time to show a long history, and the processor time it takes from a run that is watched.

pub mod cost;
pub mod history;

use anyhow::{Context, ensure};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// Sends a request; the stream gives head and body.
fn request(address: &str, path: &str) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).with_context(|| address.to_owned())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    Ok(stream)
}

/// The body of a successful answer.
fn get(address: &str, path: &str) -> anyhow::Result<Vec<u8>> {
    let mut answer = Vec::new();
    request(address, path)?.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").with_context(|| format!("{path}: no answer"))?;
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "{path}: {}", String::from_utf8_lossy(&answer));
    Ok(answer.split_off(end + 4))
}

/// The path that the page asks for to draw all steps, with the names that stand in its script.
fn steps_path(address: &str) -> anyhow::Result<String> {
    let script = String::from_utf8(get(address, "/charts.js")?)?;
    let names = script.split_once("Q.keys = [").and_then(|(_, rest)| rest.split_once("];"));
    let (names, _) = names.context("charts.js names no keys")?;
    let names: Vec<&str> = names.split(',').map(|n| n.trim().trim_matches('\'')).collect();
    Ok(format!("/api/v1/steps?keys={}", names.join(",")))
}
