//! Broken inputs: each ends in one clear error or a record that is set aside with its reason; none panics.

use super::*;

fn good() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let records: Vec<Record> = (0..40).map(|i| record(i, "<image>a", &[image("rgb.png")])).collect();
    write_parquet(&path, &records).unwrap();
    fs::read(&path).unwrap()
}

/// A PNG whose header promises `side` × `side` pixels.
fn promising(side: u32) -> Vec<u8> {
    let mut png = image("rgb.png");
    png[16..20].copy_from_slice(&side.to_be_bytes());
    png[20..24].copy_from_slice(&side.to_be_bytes());
    let crc = !png[12..29].iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 })
    });
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    png
}

#[test]
fn broken_files_are_one_error_that_says_what_and_where() {
    let whole = good();
    let end = whole.len();
    let edited = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        edit(&mut bytes);
        bytes
    };
    let layout = |name: &str| fs::read(fixtures().with_file_name("data_layouts").join(name)).unwrap();
    let long_lines = format!("{{\"problem\": \"{}\"}}\n", "x".repeat(5 << 20)).repeat(2);
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("truncated.parquet", whole[..end / 2].to_vec(), &["not a readable parquet file"]),
        ("magic.parquet", edited(&|b| b[end - 4..].copy_from_slice(b"PAR2")), &["not a readable parquet file"]),
        (
            "footer_long.parquet",
            edited(&|b| b[end - 8..end - 4].copy_from_slice(&u32::MAX.to_le_bytes())),
            &["not a readable parquet file"],
        ),
        (
            "footer_short.parquet",
            edited(&|b| b[end - 8..end - 4].copy_from_slice(&3u32.to_le_bytes())),
            &["not a readable parquet file"],
        ),
        (
            "footer_none.parquet",
            edited(&|b| b[end - 8..end - 4].copy_from_slice(&0u32.to_le_bytes())),
            &["not a readable parquet file"],
        ),
        ("pages.parquet", edited(&|b| b[8..200].fill(0xff)), &["not a readable parquet file"]),
        ("empty.parquet", Vec::new(), &["not a readable parquet file"]),
        (
            "pointer.parquet",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n".to_vec(),
            &["Git LFS pointer"],
        ),
        (
            "brotli.parquet",
            layout("codec_brotli.parquet"),
            &["`problem` is compressed with brotli", "zstd, snappy, gzip"],
        ),
        ("lz4.parquet", layout("codec_lz4.parquet"), &["`problem` is compressed with lz4"]),
        (
            "type.parquet",
            layout("question_list.parquet"),
            &["column `question` is a list", "text or a number", "data.question_column"],
        ),
        (
            "image_type.parquet",
            layout("image_number.parquet"),
            &["column `image` is int64", "{bytes, path}", "data.image_column"],
        ),
        (
            "name.parquet",
            layout("image_named_otherwise.parquet"),
            &["no column `images` or `image`", "did you mean `scan`?", "question, scan"],
        ),
        (
            "no_column.jsonl",
            br#"{"text": "x", "image": "a.png"}"#.to_vec(),
            &["no column `problem` or `question`", "text, image"],
        ),
        (
            "photo.jsonl",
            br#"{"question": "x", "photo": "a.png"}"#.to_vec(),
            &["no column `images`", "`photo`", "text only"],
        ),
        ("utf8.jsonl", b"\xff\xfe{\x00\"\x00".to_vec(), &["no usable record", "not a JSON object"]),
        ("lists.jsonl", b"[1]\n[2]\n".to_vec(), &["no usable record among 2 rows", "not a JSON object"]),
        ("long.jsonl", long_lines.into_bytes(), &["no usable record among 2 rows", "data.max_record_bytes = 4194304"]),
        ("empty.jsonl", Vec::new(), &["no usable record among 0 rows", "it is empty"]),
        ("objects.jsonl", b"{}\n{}\n".to_vec(), &["no usable record among 2 rows", "an empty object"]),
        ("only_bad.jsonl", br#"{"question": "", "image": "a.png"}"#.to_vec(), &["no usable record", "no question"]),
        ("empty.csv", Vec::new(), &["it is empty"]),
        ("quote.csv", b"question\n\"never closed".to_vec(), &["no usable record", "never closed"]),
        ("picture.png", image("rgb.png"), &["unknown kind of file"]),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes, parts) in cases {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        let message = open(&path).expect_err(name).to_string();
        for part in parts.iter().chain([&name]) {
            assert!(message.contains(part), "{name}: {message}");
        }
        assert!(message.len() < 500 && !message.contains('\n'), "{name}: {message}");
    }
    let folder = dir.path().join("folder.parquet");
    fs::create_dir(&folder).unwrap();
    assert!(open(&folder).unwrap_err().to_string().contains("unknown kind of file"));
}

/// The reason against a line of JSON between two good ones.
fn reason_against(line: &[u8]) -> String {
    let (dir, path) = jsonl(&[]);
    for (name, bytes) in [
        ("empty.png", Vec::new()),
        ("cut.png", image("rgb.png")[..200].to_vec()),
        ("cut.jpg", image("progressive.jpg")[..800].to_vec()),
        ("bomb.png", promising(50_000)),
        ("text.png", b"hello".to_vec()),
        ("large.png", vec![0; (32 << 20) + 1]),
    ] {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    fs::create_dir_all(dir.path().join("folder.png")).unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("a.png"), image("grey.png")).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(outside.path(), dir.path().join("link")).unwrap();
    let line = String::from_utf8_lossy(line).replace("OUTSIDE", &outside.path().display().to_string()).into_bytes();
    let good = br#"{"question": "good", "image": "a.png", "answer": 1}"#;
    fs::write(&path, [good, &line[..], good].join(&b"\n"[..])).unwrap();
    let data = open(&path).unwrap();
    assert_eq!(data.records().iter().map(|r| r.row).collect::<Vec<_>>(), [0, 2], "{}", String::from_utf8_lossy(&line));
    assert_eq!((data.set_aside()[0].row, data.set_aside_count()), (1, 1));
    assert_eq!(data.set_aside()[0].file, path);
    data.set_aside()[0].reason.clone()
}

#[test]
fn broken_records_are_set_aside_with_their_reason() {
    let with_image = |image: &str| format!(r#"{{"question": "Q", "image": "{image}"}}"#).into_bytes();
    let long = format!(r#"{{"question": "{}", "image": "a.png"}}"#, "x".repeat(5 << 20)).into_bytes();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (with_image("../a.png"), "does not exist"),
        (with_image("OUTSIDE/a.png"), "leads out of"),
        (with_image("link/a.png"), "leads out of"),
        (with_image("/etc/hostname"), "leads out of"),
        (with_image("folder.png"), "is not a file"),
        (with_image("nowhere.png"), "does not exist"),
        (with_image("empty.png"), "not a readable PNG"),
        (with_image("cut.png"), "not a readable PNG"),
        (with_image("cut.jpg"), "cut off"),
        (with_image("text.png"), "not a readable PNG"),
        (with_image("bomb.png"), "more than data.max_image_pixels"),
        (with_image("large.png"), "more than data.max_image_bytes"),
        (br#"{"question": "Q", "image": ""}"#.to_vec(), "must hold a path"),
        (br#"{"question": "Q", "image": {"bytes": "aGVsbG8="}}"#.to_vec(), "must hold a path"),
        (br#"{"question": "Q", "image": null}"#.to_vec(), "no image in column `image`"),
        (br#"{"question": "<image>Q<image>", "image": "a.png"}"#.to_vec(), "has 2 `<image>` but the record has 1"),
        (br#"{"question": "Q <image>", "image": []}"#.to_vec(), "has 1 `<image>` but the record has 0"),
        (br#"{"question": " \n", "image": "a.png"}"#.to_vec(), "no question in column `question`"),
        (br#"{"question": "Q", "image": "a.png", "answer": NaN}"#.to_vec(), "not a JSON object"),
        (br#"{"question": "Q", "image": "a.png", "answer": 1e999}"#.to_vec(), "not a JSON object"),
        (br#"{"question": "Q", "image": "a.png", "answer": {"a": 1}}"#.to_vec(), "where text is expected"),
        (br#"{"question": "Q", "question": "R", "image": "a.png"}"#.to_vec(), "key `question` stands twice"),
        (br#"{"question": "Q", "image": "a.png"} trailing"#.to_vec(), "not a JSON object"),
        (br#"{"question": "Q", "image": "a.png""#.to_vec(), "not a JSON object"),
        (b"\"text\"".to_vec(), "not a JSON object"),
        ([b"{\"question\": \"", &b"[".repeat(200)[..], b"\""].concat(), "not a JSON object"),
        (b"[".repeat(100_000), "not a JSON object"),
        (long, "data.max_record_bytes = 4194304"),
    ];
    for (line, part) in cases {
        let reason = reason_against(&line);
        assert!(reason.contains(part), "{} … expected {part:?}", reason);
        assert!(reason.len() < 400 && !reason.contains('\n'), "{reason}");
    }
}

#[test]
fn bytes_that_are_not_utf8_spoil_their_line_alone() {
    let (_dir, path) = jsonl(&[]);
    let good: &[u8] = br#"{"question": "good", "image": "a.png"}"#;
    fs::write(&path, [good, b"{\"question\": \"\xc3\x28\", \"image\": \"a.png\"}", good].join(&b"\n"[..])).unwrap();
    let data = open(&path).unwrap();
    assert_eq!((data.len(), data.set_aside()[0].row), (2, 1));
    assert!(data.set_aside()[0].reason.contains("not a JSON object"));
}
