//! `coordinator status`: asks a running coordinator, by its HTTP page on this machine or by its gRPC address from anywhere. Text for people on a
//! terminal, JSON for programs.

use super::watch;
use crate::rundir::ENDPOINTS;
use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;
use quorum_core::client::{Credentials, Link};
use quorum_proto::v1::StatusRequest;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer that is read.
const LARGEST: u64 = 16 << 20;

/// Where a coordinator's page is if nothing else is said.
const USUAL: &str = "127.0.0.1:7071";

/// Whom to ask. Without any of them 127.0.0.1:7071.
#[derive(Debug, Clone, Args)]
pub struct StatusOptions {
    /// Its run directory, which names its addresses: the gRPC one is asked if that is https and --tls-ca is given, else its page.
    #[arg(value_name = "RUN_DIR", conflicts_with = "http")]
    pub run_dir: Option<PathBuf>,
    /// Its HTTP address.
    #[arg(long, value_name = "ADDR")]
    pub http: Option<String>,
    /// Its gRPC address, with the same flags as a worker's; from anywhere, and also where its page is HTTPS. Stronger than RUN_DIR.
    #[arg(long, value_name = "URL", env = "QUORUM_COORDINATOR")]
    pub coordinator: Option<String>,
    #[command(flatten)]
    pub credentials: Credentials,
    /// Fail unless the worker or learner of this name is a member; prints it alone.
    #[arg(long, value_name = "ID", env = "QUORUM_ID")]
    pub member: Option<String>,
    /// Show it every second until the run ends: a screen on a terminal, in a pipe a line for each change. Status 0 if the run completes.
    #[arg(long, conflicts_with = "json")]
    pub watch: bool,
    /// JSON on a terminal too.
    #[arg(long)]
    pub json: bool,
}

/// Whom to ask, and how.
#[derive(Clone)]
pub(super) struct Asking(StatusOptions);

impl Asking {
    /// The status of now.
    pub(super) fn ask(&self) -> anyhow::Result<Value> {
        match (&self.0.coordinator, &self.0.run_dir) {
            (Some(url), _) if self.0.http.is_none() => call(url, &self.0),
            (_, Some(dir)) => found(dir, &self.0),
            _ => page(self.0.http.as_deref().unwrap_or(USUAL)),
        }
    }
}

pub(super) fn status(options: &StatusOptions) -> anyhow::Result<ExitCode> {
    let asking = Asking(options.clone());
    if options.watch {
        if let Some(id) = &options.member {
            bail!("--watch shows the whole run, not {id} alone: leave out --member (and QUORUM_ID), or --watch");
        }
        return watch::watch(&asking);
    }
    let status = asking.ask()?;
    match &options.member {
        Some(id) => member(&status, id)?,
        None if options.json || !watch::on_terminal() => super::show(&format!("{status:#}\n"))?,
        None => super::show(&watch::fitting(&status).iter().map(|line| format!("{line}\n")).collect::<String>())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints what is known of one member.
fn member(status: &Value, id: &str) -> anyhow::Result<()> {
    let members = status.get("members").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let member = members.iter().find(|m| m.get("id").and_then(Value::as_str) == Some(id));
    let member = member.ok_or_else(|| {
        let ids: Vec<_> = members.iter().filter_map(|m| m.get("id")?.as_str()).collect();
        anyhow!("{id} is no member of the run; members are: {}", ids.join(", "))
    })?;
    super::show(&format!("{member:#}\n"))
}

/// Asks by gRPC.
fn call(url: &str, options: &StatusOptions) -> anyhow::Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let reply = runtime.block_on(async {
        let link = Link::new(&options.credentials.link(url.to_owned()))?;
        link.call("Status", TIMEOUT, link.cluster().status(StatusRequest {})).await
    });
    // A name server that does not answer holds its lookup for longer than the call may take.
    runtime.shutdown_background();
    Ok(serde_json::from_str(&reply?.json)?)
}

/// Asks the coordinator of a run directory: where it has TLS and an authority to trust is given by gRPC, else by its page.
fn found(dir: &Path, options: &StatusOptions) -> anyhow::Result<Value> {
    let endpoints = announced(dir)?;
    let text = |key: &str| endpoints.get(key).and_then(Value::as_str);
    let url = text("url").filter(|url| url.starts_with("https://"));
    if let Some(url) = url.filter(|_| options.credentials.tls_ca.is_some()) {
        return call(url, options);
    }
    let http = text("http").ok_or_else(|| anyhow!("{} names no HTTP address", dir.join(ENDPOINTS).display()))?;
    let dir = dir.display();
    let body = get(http, "/status").with_context(|| match url {
        Some(url) => format!(
            "the page of the run in {dir} does not answer at {http}; beyond its machine ask {url}: give --tls-ca and, as its workers have them, --token-file, --tls-cert and --tls-key"
        ),
        None => format!(
            "the coordinator of {dir} does not answer at {http}; if it was killed, go on with `coordinator --resume {dir}`"
        ),
    })?;
    parsed(&body, http)
}

/// Asks the HTTP page.
fn page(http: &str) -> anyhow::Result<Value> {
    let body = get(http, "/status").with_context(|| {
        format!("no coordinator answers at {http}; give its run directory, or its HTTP address with --http")
    })?;
    parsed(&body, http)
}

fn parsed(body: &str, http: &str) -> anyhow::Result<Value> {
    serde_json::from_str(body).with_context(|| format!("{http} is no coordinator's HTTP page"))
}

/// The addresses that the coordinator of a run directory wrote down.
fn announced(dir: &Path) -> anyhow::Result<Value> {
    let path = dir.join(ENDPOINTS);
    let text = std::fs::read_to_string(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound if dir.join(crate::rundir::LEDGER).is_file() => anyhow!(
            "no coordinator runs in {dir}; its results are in report.json and metrics.jsonl, or go on with `coordinator --resume {dir}`",
            dir = dir.display()
        ),
        std::io::ErrorKind::NotFound => anyhow!("run directory {} holds no run", dir.display()),
        _ => anyhow!("{}: {e}", path.display()),
    })?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
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
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| anyhow!("the answer is no HTTP; where the page is HTTPS, ask with --coordinator https://HOST:PORT and the flags of a worker"))?;
    let line = head.lines().next().unwrap_or_default();
    ensure!(line.split(' ').nth(1) == Some("200"), "it says: {line}");
    Ok(body.to_owned())
}
