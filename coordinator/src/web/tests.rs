//! The page's API over real TCP, of a run at rest.

use super::api::LISTENERS;
use super::{Source, local_names, router};
use crate::ledger::{Ledger, Write};
use crate::material::{Material, Model};
use quorum_core::vote::{VoteRule, vote};
use quorum_data::Dataset;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A page over a ledger with one step of one group, whose data is gone; its address.
async fn page(dir: &Path) -> String {
    let path = dir.join("ledger.db");
    let (ledger, _) = Ledger::open(&path).unwrap();
    let record = vote(&["7", "7", "8"].map(|a| Some(a.to_owned())), &VoteRule::default());
    let group = Write::Group {
        step: 0,
        slot: 0,
        prompt: 3,
        version: 0,
        samples: 3,
        vote: serde_json::to_string(&record).unwrap(),
        rewards: "[1,1,0]".into(),
        worker: "w".into(),
        body: Vec::new(),
    };
    let step = Write::Commit {
        step: 0,
        version: 1,
        digest: "d".into(),
        metrics: "{}".into(),
        timings: "{}".into(),
        checkpoint: String::new(),
        manifest: String::new(),
    };
    ledger.commit(vec![group, step]).await.unwrap();
    let config = quorum_core::config::load(None, &[]).unwrap();
    let data = Dataset::absent(Path::new("/nonexistent/questions.parquet"));
    let material = Arc::new(Material::new(config, String::new(), data, None, Model::default()));
    let source = Source::at_rest(&path, material, "run", dir, Value::Null, Some("gone".into()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, local_names(router(source))).await });
    address
}

async fn send(address: &str, method: &str, path: &str, host: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// Status and body.
async fn ask(address: &str, method: &str, path: &str, host: &str) -> (u16, String) {
    let mut text = String::new();
    send(address, method, path, host).await.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn what_cannot_be_answered_is_said_in_json_with_its_status() {
    let scratch = tempfile::tempdir().unwrap();
    let address = page(scratch.path()).await;
    let cases = [
        ("GET", "groups/x/0", 400, "x"),
        ("GET", "groups/-1/0", 400, "-1"),
        ("GET", "groups/0/1", 404, "slot 1 of step 0"),
        ("GET", "prompts/nine", 400, "nine"),
        ("GET", "images/00", 404, "no image 00"),
        ("GET", "groups?outcome=ties", 400, "`tie`"),
        ("GET", "groups?order=best", 400, "`agreement`"),
        ("GET", "groups?max_agreement=1.5", 400, "0 to 1"),
        ("GET", "groups?max_agreement=nan", 400, "0 to 1"),
        ("GET", "groups?limit=0", 400, "1 to 500"),
        ("GET", "groups?missing=perhaps", 400, "`true`"),
        ("GET", "groups?colour=red", 400, "`outcome`"),
        ("GET", "steps?from=-3", 400, "from"),
        ("GET", "steps?keys=reward_mean,rewards", 400, "\"rewards\"; there are agreement_mean, "),
        ("GET", "nothing", 404, "/api/v1/nothing"),
        ("POST", "run", 405, "GET"),
    ];
    for (method, path, status, word) in cases {
        let (found, body) = ask(&address, method, &format!("/api/v1/{path}"), "localhost").await;
        let error = serde_json::from_str::<Value>(&body).unwrap_or_else(|e| panic!("{path}: {e}: {body}"));
        let error = error["error"].as_str().unwrap();
        assert!(found == status && error.contains(word), "{path}: {found} {error}");
    }
    let (status, body) =
        ask(&address, "GET", "/api/v1/groups?outcome=used&max_agreement=0.9&limit=1", "localhost").await;
    assert!(status == 200 && body.contains("\"matching\":1"), "{body}");
    let (status, body) = ask(&address, "GET", "/api/v1/steps?keys=reward_mean,step", "localhost").await;
    assert!(status == 200 && body.contains("\"count\":1"), "{body}");
    // Without its data a group still has its vote, and says what is missing.
    let (status, body) = ask(&address, "GET", "/api/v1/groups/0/0", "localhost").await;
    let group: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, group["majority"].as_str(), &group["question"]), (200, Some("7"), &Value::Null));
    assert!(group["note"].as_str().unwrap().contains("not found at /nonexistent/questions.parquet"), "{group}");
}

#[tokio::test]
async fn a_page_without_a_token_answers_to_local_names_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let address = page(scratch.path()).await;
    for host in ["localhost:9000", "127.0.0.1", "[::1]:7071"] {
        assert_eq!(ask(&address, "GET", "/api/v1/run", host).await.0, 200, "{host}");
    }
    let (status, text) = ask(&address, "GET", "/api/v1/run", "evil.example:7071").await;
    assert!(status == 403 && text.contains("evil.example") && text.contains("ssh -L"), "{status} {text}");
}

#[tokio::test]
async fn a_quiet_run_sends_nothing_and_one_listener_too_many_is_told_so() {
    let scratch = tempfile::tempdir().unwrap();
    let address = page(scratch.path()).await;
    let mut seats = Vec::new();
    for _ in 0..LISTENERS {
        let mut stream = send(&address, "GET", "/api/v1/events", "localhost").await;
        let mut head = [0u8; 12];
        stream.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200");
        seats.push(stream);
    }
    let (status, text) = ask(&address, "GET", "/api/v1/events", "localhost").await;
    assert!(status == 503 && text.contains("64 listeners"), "{status} {text}");
    let mut heard = Vec::new();
    let listening = seats[0].read_to_end(&mut heard);
    assert!(tokio::time::timeout(Duration::from_millis(2500), listening).await.is_err(), "the stream stays open");
    assert_eq!(String::from_utf8_lossy(&heard).matches("event: run").count(), 1);
    // A seat that is left is free again.
    drop(seats);
    for _ in 0..100 {
        let mut stream = send(&address, "GET", "/api/v1/events", "localhost").await;
        let mut head = [0u8; 12];
        stream.read_exact(&mut head).await.unwrap();
        if &head == b"HTTP/1.1 200" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("no seat was given back");
}
