//! The generator on a small stand-in for MNIST, in which every scan is unlike every other.

use super::*;
use clap::Parser;
use quorum_data::{Dataset, Limits, OpenOptions, decode};
use std::collections::BTreeSet;
use tempfile::TempDir;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: Args,
}

/// Two idx pairs of `n` scans: scan i of file f is a 20 × 20 block whose grey level and top row encode (f, i); its digit is i % 10.
fn mnist(n: usize) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["train", "t10k"] {
        let mut images = [0x0803u32, n as u32, 28, 28].iter().flat_map(|v| v.to_be_bytes()).collect::<Vec<u8>>();
        let mut labels = [0x0801u32, n as u32].iter().flat_map(|v| v.to_be_bytes()).collect::<Vec<u8>>();
        for i in 0..n {
            let pixel = |p: usize| {
                if (4..24).contains(&(p / 28)) && (4..24).contains(&(p % 28)) { 80 + (i * 7 % 160) as u8 } else { 0 }
            };
            images.extend((0..28 * 28).map(pixel));
            labels.push((i % 10) as u8);
        }
        fs::write(dir.path().join(format!("{name}-images-idx3-ubyte")), images).unwrap();
        fs::write(dir.path().join(format!("{name}-labels-idx1-ubyte")), labels).unwrap();
    }
    dir
}

fn generate(mnist: &TempDir, extra: &[&str]) -> Result<TempDir> {
    let out = tempfile::tempdir()?;
    let paths = ["x", "--mnist", mnist.path().to_str().unwrap(), "--out", out.path().to_str().unwrap(), "--truth"];
    let sizes = ["--warmup", "300", "--unlabelled", "40", "--validation", "10", "--test", "20"];
    let command = Command::parse_from(paths.into_iter().chain(sizes).chain(extra.iter().copied()));
    run(&command.args)?;
    Ok(out)
}

fn open(out: &TempDir, name: &str) -> Dataset {
    Dataset::open(&out.path().join(name), &OpenOptions::default()).unwrap()
}

/// Share of warm-up answers that differ from the truth.
fn wrong_share(out: &TempDir) -> f64 {
    let data = open(out, "warmup.parquet");
    let mut truth = data.clone();
    truth.attach_labels(&out.path().join("warmup.truth.jsonl")).unwrap();
    let wrong = data.records().iter().zip(truth.records()).filter(|(a, b)| a.answer != b.answer).count();
    wrong as f64 / data.len() as f64
}

#[test]
fn the_same_parameters_give_the_same_bytes() {
    let mnist = mnist(700);
    let (a, b, c) =
        (generate(&mnist, &[]).unwrap(), generate(&mnist, &[]).unwrap(), generate(&mnist, &["--seed", "5"]).unwrap());
    for name in [
        "warmup.parquet",
        "unlabelled.parquet",
        "unlabelled.labels.jsonl",
        "validation.parquet",
        "test.parquet",
        "README.md",
    ] {
        let read = |d: &TempDir| fs::read(d.path().join(name)).unwrap();
        assert_eq!(read(&a), read(&b), "{name}");
        assert_ne!(read(&a), read(&c), "{name}");
    }
}

#[test]
fn parts_have_the_labels_they_should_have() {
    let mnist = mnist(700);
    let out = generate(&mnist, &[]).unwrap();
    let mut unlabelled = open(&out, "unlabelled.parquet");
    assert!(unlabelled.records().iter().all(|r| r.answer.is_none() && r.response.is_none()));
    assert_eq!(unlabelled.attach_labels(&out.path().join("unlabelled.labels.jsonl")).unwrap(), 40);
    for (name, n) in [("validation.parquet", 10), ("test.parquet", 20)] {
        let data = open(&out, name);
        assert!(data.len() == n && data.is_labelled() && data.records().iter().all(|r| r.response.is_none()));
    }
    for record in open(&out, "warmup.parquet").records() {
        let boxed = format!("\\boxed{{{}}}", record.answer.as_deref().unwrap());
        assert!(record.response.as_deref().unwrap().ends_with(&boxed));
        let picture = decode(&record.images[0].bytes, &Limits::default()).unwrap();
        assert_eq!(picture.dimensions(), (56, 56));
        assert!(picture.pixels().any(|p| p.0[0] > 60));
    }
}

#[test]
fn labels_are_wrong_as_often_and_in_the_way_asked_for() {
    let mnist = mnist(700);
    assert_eq!(wrong_share(&generate(&mnist, &["--wrong-rate", "0"]).unwrap()), 0.0);
    assert_eq!(wrong_share(&generate(&mnist, &["--wrong-rate", "1", "--wrong-kind", "wrong-result"]).unwrap()), 1.0);
    let half = wrong_share(&generate(&mnist, &["--wrong-rate", "0.4", "--wrong-kind", "wrong-result"]).unwrap());
    assert!((0.3..0.5).contains(&half), "{half}");
    let misread = wrong_share(&generate(&mnist, &["--wrong-rate", "1"]).unwrap());
    assert!((0.7..1.0).contains(&misread), "{misread}");
}

#[test]
fn no_scan_is_dealt_twice() {
    let mnist = mnist(60);
    let mut deck = Deck::new(Scans::open(mnist.path(), "train").unwrap(), 1, 0);
    assert_eq!(deck.order.iter().collect::<BTreeSet<_>>().len(), 60);
    assert_eq!(deck.deal(10).unwrap().len(), 10);
    assert_eq!(deck.next, 20);
    assert_eq!(deck.deal(20).unwrap().len(), 20);
    assert_eq!(deck.next, 60);
    assert!(deck.deal(1).err().unwrap().to_string().contains("0 are left of 60"));
}

#[test]
fn several_questions_about_an_image_ask_for_different_things() {
    let out = generate(&mnist(700), &["--warmup-questions", "3"]).unwrap();
    let data = open(&out, "warmup.parquet");
    assert_eq!(data.len(), 900);
    for group in data.records().chunks(3) {
        assert_eq!(group[0].images, group[2].images);
        assert_eq!(group.iter().map(|r| &r.question).collect::<BTreeSet<_>>().len(), 3);
    }
}

#[test]
fn missing_and_wrong_files_are_named() {
    let empty = tempfile::tempdir().unwrap();
    let message = format!("{:#}", generate(&empty, &[]).err().unwrap());
    assert!(message.contains("train-images-idx3-ubyte") && message.contains("docs/data.md"), "{message}");
    let bad = mnist(10);
    fs::write(bad.path().join("t10k-labels-idx1-ubyte"), b"\x1f\x8b gzip").unwrap();
    assert!(format!("{:#}", generate(&bad, &[]).err().unwrap()).contains("still compressed"));
}
