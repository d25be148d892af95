//! Layouts of other writers and of published data sets (`tests/fixtures/data_layouts`, `data_presets`, made by pyarrow and `datasets`).

use super::*;
use quorum_core::config::{RunConfig, load};

fn layout(name: &str) -> PathBuf {
    fixtures().with_file_name("data_layouts").join(name)
}

fn preset(name: &str, sets: &[&str]) -> RunConfig {
    let mut all = vec![format!("data.preset={name}")];
    all.extend(sets.iter().map(|s| s.to_string()));
    load(None, &all).unwrap()
}

fn questions(data: &Dataset) -> Vec<(&str, usize, Option<&str>)> {
    data.records().iter().map(|r| (r.question.as_str(), r.images.len(), r.answer.as_deref())).collect()
}

#[test]
fn lists_of_images_are_read_however_they_are_written() {
    let expected = [("<image>one", 1, None), ("<image><image>two", 2, None), ("none", 0, None)];
    let reference = open(&layout("list_element.parquet")).unwrap();
    let names: Vec<Option<&str>> = reference.records()[1].images.iter().map(|i| i.path.as_deref()).collect();
    assert_eq!(names, [None, Some("c.png")]);
    let codecs = ["none", "snappy", "gzip", "zstd"].map(|codec| format!("codec_{codec}.parquet"));
    let lists = ["element", "item", "array", "required", "bytes"].map(|kind| format!("list_{kind}.parquet"));
    for name in codecs.iter().chain(&lists).map(String::as_str).chain(["large.parquet"]) {
        let data = open(&layout(name)).unwrap();
        assert_eq!(questions(&data), expected, "{name}");
        assert_eq!(data.digest(), reference.digest(), "{name}");
        assert_eq!(data.set_aside_count(), 0, "{name}");
    }
}

#[test]
fn single_images_numbers_and_text_alone_are_read() {
    let data = open(&layout("bytes.parquet")).unwrap();
    assert_eq!(questions(&data), [("<image>a", 1, Some("7"))]);
    assert!(data.set_aside()[0].reason.contains("no image in column `image`"), "{:?}", data.set_aside());
    assert_eq!(questions(&open(&layout("fixed.parquet")).unwrap()), [("<image>a", 1, Some("true"))]);
    let text = open(&layout("text.parquet")).unwrap();
    assert_eq!(questions(&text), [("What is 2 + 3?", 0, Some("5")), ("And 4 + 4?", 0, Some("8"))]);
}

#[test]
fn rows_with_empty_cells_are_set_aside_one_by_one() {
    let data = open(&layout("nulls.parquet")).unwrap();
    assert_eq!(questions(&data), [("<image>a", 1, Some("1.5"))]);
    let reasons: Vec<&str> = data.set_aside().iter().map(|s| s.reason.as_str()).collect();
    let expected = ["no question", "no image", "neither bytes nor path", "neither bytes nor path", "no question"];
    assert_eq!(reasons.len(), expected.len(), "{reasons:?}");
    for (reason, part) in reasons.iter().zip(expected) {
        assert!(reason.contains(part), "{reason}");
    }
    let data = open(&layout("floats.parquet")).unwrap();
    assert_eq!(questions(&data), [("a", 0, Some("0.1"))]);
    assert!(data.set_aside()[0].reason.contains("holds NaN instead of a number"));
    assert_eq!(
        open(&layout("bad_utf8.parquet")).unwrap().set_aside()[0].reason,
        "column `question` is not valid UTF-8"
    );
}

#[test]
fn large_cells_are_refused_before_they_are_copied() {
    let small = OpenOptions { max_record_bytes: 3, ..OpenOptions::default() };
    let message = Dataset::open(&layout("list_element.parquet"), &small).unwrap_err().to_string();
    assert!(message.contains("more text than data.max_record_bytes = 3"), "{message}");
    let limits = crate::Limits { max_bytes: 60, ..crate::Limits::default() };
    let data =
        Dataset::open(&layout("list_element.parquet"), &OpenOptions { limits, ..OpenOptions::default() }).unwrap();
    assert_eq!(questions(&data), [("none", 0, None)]);
    assert_eq!(data.set_aside_by_kind().get(Fault::IMAGE_TOO_LARGE), Some(&2));
    assert!(data.set_aside()[0].reason.contains("data.max_image_bytes = 60"), "{:?}", data.set_aside());
}

#[test]
fn every_preset_loads_its_published_layout() {
    let dir = fixtures().with_file_name("data_presets");
    let at = |name: &str, split: &str| PathBuf::from(format!("{}#{split}", dir.join(name).display()));
    let open = |name: &str, split: &str| {
        let data = Dataset::open(&at(name, split), &OpenOptions::from(&preset(name, &[]).data)).unwrap();
        assert_eq!((data.len(), data.set_aside_count()), (2, 0), "{name}");
        data
    };
    assert_eq!(questions(&open("geometry3k", "train"))[0], ("<image>Find x.", 1, Some("3")));
    open("geometry3k", "validation");
    open("geometry3k", "test");
    let geoqa = open("geoqa", "train");
    assert_eq!(questions(&geoqa)[0].1, 1);
    assert!(questions(&geoqa)[0].0.starts_with("<image>As shown"));
    assert_eq!(questions(&geoqa)[0].2, Some("145°"));
    assert!(geoqa.records()[0].response.is_none());
    assert_eq!(questions(&open("mmr1", "train"))[1], ("<image>What is x?", 1, Some("\\frac{1}{2}")));
    let vista = open("mathvista", "testmini");
    let expected = [
        ("<image>How far is it? (Unit: m)", 1, Some("1.2")),
        ("<image>Which angle is right?\n(A) 45°\n(B) 90°\n(C) 135°", 1, Some("B")),
    ];
    assert_eq!(questions(&vista), expected);
    assert_eq!(vista.records()[1].id.as_deref(), Some("2"));
    assert!(open("mathvista", "test").records().iter().all(|r| r.answer.is_none()));
}

#[test]
fn a_preset_that_does_not_fit_says_what_the_file_has() {
    let path = fixtures().with_file_name("data_presets").join("geoqa");
    let message = Dataset::open(&path, &OpenOptions::from(&preset("mathvista", &[]).data)).unwrap_err().to_string();
    for part in ["`question` or `query`", "image, problem, solution", "preset `mathvista`"] {
        assert!(message.contains(part), "{message}");
    }
    let own =
        preset("mathvista", &["data.question_column=problem", "data.template={question}", "data.answer_form=tagged"]);
    assert_eq!(Dataset::open(&path, &OpenOptions::from(&own.data)).unwrap().len(), 2);
}

#[test]
fn columns_of_jsonl_and_csv_fill_a_template() {
    let (dir, path) = jsonl(&[
        r#"{"query": "Which?", "choices": ["one", "two"], "hint": "Think.", "label": "two"}"#,
        r#"{"query": "How many?", "choices": [], "label": 2}"#,
    ]);
    let template = |path: &Path, template: &str| {
        let columns = Columns { answer: "label".into(), ..Columns::default() };
        let options = OpenOptions {
            columns,
            template: template.into(),
            answer_form: AnswerForm::Letter,
            ..OpenOptions::default()
        };
        Dataset::open(path, &options)
    };
    let data = template(&path, "{hint}\n{question}\n{choices}").unwrap();
    assert_eq!(questions(&data), [("Think.\nWhich?\n(A) one\n(B) two", 0, Some("B")), ("How many?", 0, Some("2"))]);
    let tells = template(&path, "{question} {label}").unwrap_err().to_string();
    assert!(tells.contains("shows column `label`, which is the answer"), "{tells}");
    let missing = template(&path, "{question} {hints}").unwrap_err().to_string();
    assert!(
        missing.contains("no column `hints` for the template;") && missing.contains("did you mean `hint`?"),
        "{missing}"
    );
    let csv = dir.path().join("t.csv");
    fs::write(&csv, "question,label,file_name\n\"Why, \"\"why\"\"?\",3,a.png\nshort row\n").unwrap();
    let data = template(&csv, "{question}").unwrap();
    assert_eq!(questions(&data), [("<image>Why, \"why\"?", 1, Some("3"))]);
    assert!(data.set_aside()[0].reason.contains("1 cells, the first row names 3 columns"));
}

#[test]
fn image_folders_with_and_without_metadata() {
    let dir = tempfile::tempdir().unwrap();
    for split in ["train", "test"] {
        fs::create_dir_all(dir.path().join(split).join("deep")).unwrap();
        fs::write(dir.path().join(split).join("deep/a.png"), image("grey.png")).unwrap();
    }
    let at = |split: &str| PathBuf::from(format!("{}#{split}", dir.path().display()));
    let options = OpenOptions { template: "How many?".into(), ..OpenOptions::default() };
    let data = Dataset::open(&at("test"), &options).unwrap();
    assert_eq!(questions(&data), [("<image>How many?", 1, None)]);
    assert_eq!(data.records()[0].id.as_deref(), Some("test/deep/a.png"));
    fs::write(dir.path().join("train/metadata.jsonl"), r#"{"file_name": "deep/a.png", "question": "Jsonl?"}"#).unwrap();
    fs::write(dir.path().join("test/metadata.csv"), "file_name,question\ndeep/a.png,Csv?\n").unwrap();
    assert_eq!(questions(&open(&at("train")).unwrap()), [("<image>Jsonl?", 1, None)]);
    assert_eq!(questions(&open(&at("test")).unwrap()), [("<image>Csv?", 1, None)]);
    assert!(open(dir.path()).unwrap_err().to_string().contains("several splits (test, train)"));
}

#[test]
fn paths_start_at_the_file_the_data_set_or_the_image_root() {
    let dir = tempfile::tempdir().unwrap();
    for (name, picture) in
        [("pictures/a.png", "grey.png"), ("data/b.png", "rgb.png"), ("elsewhere/pictures/a.png", "rgba.png")]
    {
        fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
        fs::write(dir.path().join(name), image(picture)).unwrap();
    }
    let lines = [
        r#"{"question": "from the data set", "image": "pictures/a.png"}"#,
        r#"{"question": "from the file", "image": {"path": "b.png"}}"#,
    ];
    fs::write(dir.path().join("data/train.jsonl"), lines.join("\n")).unwrap();
    let data = open(dir.path()).unwrap();
    assert_eq!(data.len(), 2);
    let options = OpenOptions { image_root: Some(dir.path().join("elsewhere")), ..OpenOptions::default() };
    let moved = Dataset::open(dir.path(), &options).unwrap();
    assert_eq!((moved.len(), moved.set_aside()[0].kind), (1, Fault::IMAGE_PATH));
    assert_ne!(moved.records()[0].images[0].hash(), data.records()[0].images[0].hash());
}

#[cfg(unix)]
#[test]
fn links_of_the_hubs_cache_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    let hub = dir.path().join("datasets--x--y");
    fs::create_dir_all(hub.join("snapshots/abc/train")).unwrap();
    fs::create_dir(hub.join("blobs")).unwrap();
    fs::write(hub.join("blobs/0123"), image("grey.png")).unwrap();
    fs::write(hub.join("blobs/4567"), r#"{"file_name": "a.png", "question": "Q"}"#).unwrap();
    std::os::unix::fs::symlink("../../../blobs/0123", hub.join("snapshots/abc/train/a.png")).unwrap();
    std::os::unix::fs::symlink("../../../blobs/4567", hub.join("snapshots/abc/train/metadata.jsonl")).unwrap();
    assert_eq!(open(&hub.join("snapshots/abc")).unwrap().len(), 1);
}
