//! Reading: our own layout, other writers' layouts, and everything that can be wrong with a file or a row.

mod broken;
mod layouts;

use super::*;
use crate::record::{Columns, ImageBytes};
use crate::writer::write_parquet;
use quorum_core::config::{AnswerForm, DataSection, ImagePlacement};
use std::fs;
use tempfile::TempDir;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/data_images")
}

fn image(name: &str) -> Vec<u8> {
    fs::read(fixtures().join(name)).unwrap()
}

fn record(row: u64, question: &str, images: &[Vec<u8>]) -> Record {
    Record {
        row,
        id: Some(format!("q{row}")),
        question: question.into(),
        images: images
            .iter()
            .enumerate()
            .map(|(i, b)| ImageBytes::new(b.clone(), (i == 0).then(|| format!("{i}.png"))))
            .collect(),
        answer: None,
        response: None,
    }
}

fn open(path: &Path) -> Result<Dataset, DataError> {
    Dataset::open(path, &OpenOptions::default())
}

fn jsonl(lines: &[&str]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.png"), image("grey.png")).unwrap();
    let path = dir.path().join("train.jsonl");
    fs::write(&path, lines.join("\n")).unwrap();
    (dir, path)
}

#[test]
fn parquet_round_trips_with_lists_of_images_and_missing_cells() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let mut records = vec![
        record(0, "<image>a", &[image("grey.png")]),
        record(1, "<image>b<image>", &[image("rgb.png"), image("rgba.png")]),
    ];
    records.extend((2..5000).map(|i| record(i, "<image>c", &[image("one_bit.png")])));
    records[1].answer = Some("7".into());
    write_parquet(&path, &records).unwrap();
    let data = open(&path).unwrap();
    assert_eq!(data.records(), records);
    assert!(data.set_aside().is_empty() && !data.is_labelled());
    let first = fs::read(&path).unwrap();
    write_parquet(&path, &records).unwrap();
    assert_eq!(first, fs::read(&path).unwrap());
}

#[test]
fn files_of_other_writers_are_read() {
    let data = open(&fixtures().join("struct.parquet")).unwrap();
    assert_eq!(data.len(), 2);
    assert_eq!(data.records()[0].answer.as_deref(), Some("1"));
    assert_eq!(data.records()[0].images[0].hash(), data.records()[1].images[0].hash());
    let strict = OpenOptions { placement: ImagePlacement::AsWritten, ..OpenOptions::default() };
    let data = Dataset::open(&fixtures().join("paths.parquet"), &strict).unwrap();
    assert_eq!(data.records()[1].images.len(), 2);
    assert_eq!(data.set_aside().len(), 1);
    let data = open(&fixtures().join("paths.parquet")).unwrap();
    assert_eq!(data.records()[2].question, "<image>Three?");
}

#[test]
fn bad_rows_are_set_aside_with_a_reason_and_the_rest_keeps_its_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let png = image("rgb.png");
    let cut = png[..png.len() - 20].to_vec();
    let records = vec![
        record(0, "<image>good", std::slice::from_ref(&png)),
        record(1, "<image><image>one image", std::slice::from_ref(&png)),
        record(2, "<image>cut", &[cut]),
        record(3, "<image>text", &[b"hello".to_vec()]),
        record(4, "<image>none", &[]),
        record(5, "<image>good too", &[png]),
    ];
    write_parquet(&path, &records).unwrap();
    let data = open(&path).unwrap();
    assert_eq!(data.records().iter().map(|r| r.row).collect::<Vec<_>>(), [0, 5]);
    assert_eq!(data.by_row(5).unwrap().question, "<image>good too");
    assert!(data.by_row(2).is_none());
    let kinds: Vec<(&str, u64)> = data.set_aside_by_kind().iter().map(|(k, n)| (*k, *n)).collect();
    assert_eq!(kinds, [(Fault::IMAGE_COUNT, 2), (Fault::IMAGE_DECODE, 2)]);
    let reasons: Vec<String> = data.set_aside().iter().map(SetAside::to_string).collect();
    let expected = [
        "has 2 `<image>` but the record has 1 image(s)",
        "0.png: not a readable PNG",
        "0.png: not a readable PNG",
        "has 1 `<image>` but the record has 0 image(s)",
    ];
    assert_eq!(reasons.len(), expected.len());
    for (i, (reason, part)) in reasons.iter().zip(expected).enumerate() {
        assert!(reason.contains(part) && reason.contains(&format!("x.parquet, row {}", i + 1)), "{reason}");
    }
}

#[test]
fn json_lines_with_every_fault() {
    let (_dir, path) = jsonl(&[
        r#"{"problem": "<image>ok", "image": "a.png", "answer": 3, "id": 9}"#,
        r#"{"problem": "<image>missing", "image": "b.png"}"#,
        "",
        "not json",
        r#"[1]"#,
        r#"{"problem": "<image>number", "image": 3}"#,
        r#"{"image": "a.png"}"#,
        r#"{"problem": {"a": 1}, "image": "a.png"}"#,
        r#"{"problem": "<image><image>two", "image": ["a.png", "a.png"]}"#,
    ]);
    let data = open(&path).unwrap();
    assert_eq!(data.records().iter().map(|r| r.row).collect::<Vec<_>>(), [0, 8]);
    assert_eq!((data.records()[0].answer.as_deref(), data.records()[0].id.as_deref()), (Some("3"), Some("9")));
    let rows: Vec<u64> = data.set_aside().iter().map(|s| s.row).collect();
    assert_eq!(rows, [1, 3, 4, 5, 6, 7]);
    assert!(data.set_aside()[0].reason.contains("b.png"));
    assert!(data.set_aside()[4].reason.contains("no question in column `problem`"));
}

#[test]
fn records_found_unfit_later_join_the_list_in_order() {
    let (_dir, path) = jsonl(&[
        r#"{"problem": "<image>ok", "image": "a.png"}"#,
        r#"{"problem": "<image>too long", "image": "a.png"}"#,
        r#"{"problem": "", "image": "a.png"}"#,
        r#"{"problem": "<image>ok too", "image": "a.png"}"#,
    ]);
    let mut data = open(&path).unwrap();
    let moved = data.set_aside_where(|r| r.question.contains("long").then(|| "900 tokens".to_string()));
    assert_eq!((moved, data.len(), data.set_aside_count()), (1, 2, 2));
    let listed: Vec<(u64, &str)> = data.set_aside().iter().map(|s| (s.row, s.kind)).collect();
    assert_eq!(listed, [(1, Fault::UNFIT), (2, Fault::MISSING_FIELD)]);
    let line = serde_json::to_string(&data.set_aside()[0]).unwrap();
    assert!(line.contains(r#""row":1,"row_in_file":1,"kind":"unfit","reason":"900 tokens""#), "{line}");
}

#[test]
fn all_are_counted_but_not_all_are_listed() {
    let lines: Vec<String> = (0..SET_ASIDE_KEPT + 50).map(|_| r#"{"problem": 1, "image": []}"#.to_string()).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).chain([r#"{"problem": "x"}"#; 60]).collect();
    let broken = ["{"; SET_ASIDE_KEPT + 7];
    let (_dir, path) = jsonl(&[&lines[..2], &broken[..]].concat());
    let data = open(&path).unwrap();
    assert_eq!((data.len(), data.set_aside().len()), (2, SET_ASIDE_KEPT));
    assert_eq!(data.set_aside_count(), SET_ASIDE_KEPT as u64 + 7);
}

#[test]
fn whole_file_faults_are_one_clear_error() {
    let message = |path: &Path| open(path).unwrap_err().to_string();
    assert!(message(Path::new("/nowhere/x.parquet")).contains("/nowhere/x.parquet: not found"));
    let (dir, path) = jsonl(&[r#"{"probelm": "<image>x", "image": "a.png"}"#]);
    let missing = message(&path);
    assert!(
        missing.contains("no column `problem` or `question`") && missing.contains("did you mean `probelm`?"),
        "{missing}"
    );
    assert!(missing.contains("data.question_column"), "{missing}");
    let bad = dir.path().join("bad.parquet");
    fs::write(&bad, "version https://git-lfs.github.com/spec/v1").unwrap();
    assert!(message(&bad).contains("not a readable parquet file"));
    let other = dir.path().join("data.txt");
    fs::write(&other, "a,b").unwrap();
    assert!(message(&other).contains("unknown kind of file"));
    fs::write(&path, "").unwrap();
    assert!(message(&path).contains("no usable record among 0 rows"));
    fs::write(&path, "{\"problem\": \"<image><image>x\", \"image\": \"a.png\"}\n").unwrap();
    assert!(message(&path).contains("the question has 2 `<image>`"));
    let options = OpenOptions::from(&Columns { answer: "label".into(), ..Columns::default() });
    assert!(Dataset::open(&path, &options).unwrap_err().to_string().contains("no column `label` for the answer"));
}

#[test]
fn damaged_parquet_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    write_parquet(&path, &[record(0, "<image>a", &[image("grey.png")]), record(1, "<image>b", &[image("grey.png")])])
        .unwrap();
    let layouts = ["list_required.parquet", "large.parquet", "nulls.parquet", "codec_gzip.parquet", "fixed.parquet"];
    let layouts = layouts.map(|name| fs::read(fixtures().with_file_name("data_layouts").join(name)).unwrap());
    for whole in std::iter::once(fs::read(&path).unwrap()).chain(layouts) {
        for at in (0..whole.len()).step_by(7) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0xff;
            fs::write(&path, &damaged).unwrap();
            let _ = open(&path);
            fs::write(&path, &whole[..at]).unwrap();
            assert!(open(&path).is_err());
        }
    }
}

#[test]
fn labels_join_by_row_or_id() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let png = image("grey.png");
    let records: Vec<Record> = (0..3).map(|i| record(i, "<image>a", std::slice::from_ref(&png))).collect();
    write_parquet(&path, &records).unwrap();
    let mut data = open(&path).unwrap();
    let labels = dir.path().join("labels.jsonl");
    fs::write(
        &labels,
        "{\"row\": 2, \"answer\": \"5\"}\n\n{\"id\": \"q0\", \"answer\": 4}\n{\"row\": 99, \"answer\": \"1\"}\n",
    )
    .unwrap();
    assert_eq!(data.attach_labels(&labels).unwrap(), 2);
    let answers: Vec<Option<&str>> = data.records().iter().map(|r| r.answer.as_deref()).collect();
    assert_eq!(answers, [Some("4"), None, Some("5")]);
    for (line, part) in
        [("{\"row\": 1}", "no `answer`"), ("{\"answer\": \"1\"}", "neither `row` nor `id`"), ("x", "not a JSON object")]
    {
        fs::write(&labels, line).unwrap();
        let message = data.attach_labels(&labels).unwrap_err().to_string();
        assert!(message.contains(part) && message.contains("line 1"), "{message}");
    }
}

#[test]
fn a_directory_is_its_data_files_or_its_images() {
    let dir = tempfile::tempdir().unwrap();
    let png = image("grey.png");
    fs::write(dir.path().join("b.png"), &png).unwrap();
    fs::write(dir.path().join("a.jpg"), image("rotated.jpg")).unwrap();
    let data = open(dir.path()).unwrap();
    assert_eq!(data.records().iter().map(|r| r.id.as_deref().unwrap()).collect::<Vec<_>>(), ["a.jpg", "b.png"]);
    for name in ["1.parquet", "2.parquet"] {
        let records: Vec<Record> = (0..2).map(|i| record(i, "<image>a", std::slice::from_ref(&png))).collect();
        write_parquet(&dir.path().join(name), &records).unwrap();
    }
    let data = open(dir.path()).unwrap();
    assert_eq!(data.records().iter().map(|r| r.row).collect::<Vec<_>>(), [0, 1, 2, 3]);
}

#[test]
fn the_digest_sees_every_field() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let base = record(0, "<image>a", &[image("grey.png")]);
    let digest = |r: &Record| {
        write_parquet(&path, std::slice::from_ref(r)).unwrap();
        open(&path).unwrap().digest()
    };
    let variants = [
        Record { question: "<image>b".into(), ..base.clone() },
        Record { answer: Some("1".into()), ..base.clone() },
        Record { response: Some("1".into()), ..base.clone() },
        Record { images: vec![ImageBytes::new(image("rgb.png"), None)], ..base.clone() },
    ];
    let mut digests: Vec<String> = variants.iter().map(digest).collect();
    digests.push(digest(&base));
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), 5);
}

#[test]
fn options_follow_the_configuration() {
    let mut section = DataSection::default();
    assert_eq!(OpenOptions::from(&section).columns, Columns::default());
    section.question_column = "ask".into();
    section.max_image_pixels = 7;
    let options = OpenOptions::from(&section);
    assert_eq!((options.columns.question.as_str(), options.limits.max_pixels), ("ask", 7));
}
