//! The executable: bad input ends with one line on stderr that names it, and status 1; nothing is left behind.

// Helpers outside #[test] functions may panic too: that fails the test.
#![allow(clippy::unwrap_used)]

use quorum_coordinator::ledger::{Ledger, Write};
use quorum_coordinator::prepare::{Prepared, RunRequest, configuration, prepare};
use quorum_coordinator::rundir::RunDir;
use quorum_data::Record;
use quorum_model::Checkpoint;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn coordinator(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_coordinator")).args(args).env_remove("QUORUM_SET").output().unwrap()
}

const PORTS: [&str; 4] = ["--set", "cluster.listen=127.0.0.1:0", "--set", "cluster.http=127.0.0.1:0"];

#[test]
fn bad_input_gets_one_line() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("run");
    let run_dir = format!("run.dir={}", dir.display());
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = held.local_addr().unwrap().to_string();
    let in_use = format!("cluster.listen={taken}");
    let nowhere = tmp.path().join("nowhere").display().to_string();
    let cases: [(&[&str], &[&str]); 10] = [
        (&["--device", "cuda:0"], &["--device", "--workers"]),
        #[cfg(not(feature = "s3"))]
        (&["--set", "run.mirror=s3://bucket/run"], &["run.mirror", "--features quorum-coordinator/s3"]),
        #[cfg(feature = "s3")]
        (&["--set", "run.mirror=s3://bu cket/run"], &["bu cket"]),
        (&["--set", "run.step=3"], &["`run.step`", "`run.steps`"]),
        (&["--set", "run.steps=many"], &["run.steps"]),
        (&["--set", "model.path=/nonexistent/model"], &["/nonexistent/model"]),
        (&["--config", "/nonexistent/run.toml"], &["/nonexistent/run.toml"]),
        (&["--set", &in_use], &[taken.as_str(), "cluster.listen"]),
        (&["--set", "cluster.listen=0.0.0.0:0"], &["cluster.listen", "--insecure"]),
        (&["--resume", &nowhere], &["nowhere", "holds no run"]),
        (&["export", &nowhere, "--to", "x"], &["nowhere", "holds no run"]),
    ];
    for (args, words) in cases {
        let mut all: Vec<&str> =
            if args[0] == "export" { Vec::new() } else { [&PORTS[..], &["--set", &run_dir]].concat() };
        all.extend(args);
        let out = coordinator(&all);
        let text = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(1), "{args:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
        assert!(text.starts_with("error: ") && words.iter().all(|w| text.contains(w)), "{args:?}: {text}");
        assert!(!dir.exists(), "{args:?} left a run directory behind");
    }
}

#[test]
fn a_device_that_the_children_do_not_have_is_refused_before_anything_begins() {
    use std::os::unix::fs::PermissionsExt;
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("run");
    let program = tmp.path().join("coordinator");
    std::fs::copy(env!("CARGO_BIN_EXE_coordinator"), &program).unwrap();
    // Executables that know one device.
    for name in ["rollout-worker", "learner"] {
        let script = "#!/bin/sh\ncase \"$*\" in *--check-device*cuda:9*) echo \"error: built without CUDA; build with: X\" >&2; exit 1;; esac\n";
        std::fs::write(tmp.path().join(name), script).unwrap();
        std::fs::set_permissions(tmp.path().join(name), PermissionsExt::from_mode(0o755)).unwrap();
    }
    let run = |devices: &str, more: &[&str]| {
        let run_dir = format!("run.dir={}", dir.display());
        let all = [&PORTS[..], &["--set", &run_dir, "--workers", "1", "--device", devices], more].concat();
        let out = Command::new(&program).args(all).env_remove("QUORUM_SET").output().unwrap();
        (out.status.code(), String::from_utf8(out.stderr).unwrap())
    };
    let (code, text) = run("cpu,cuda:9", &[]);
    assert_eq!((code, text.lines().count()), (Some(1), 1), "{text}");
    assert!(
        text.contains("--device cpu,cuda:9 is not for this rollout-worker: built without CUDA; build with: X"),
        "{text}"
    );
    assert!(!dir.exists(), "a run directory was left behind");
    let (code, text) = run("cpu", &["--set", "model.path=/nonexistent/model"]);
    assert!(code == Some(1) && text.contains("/nonexistent/model"), "a good device is no obstacle: {text}");
}

#[test]
fn grade_adds_the_verdict_to_each_line() {
    let tmp = tempfile::tempdir().unwrap();
    let pairs = tmp.path().join("pairs.jsonl");
    std::fs::write(&pairs, "{\"a\":\"1/2\",\"b\":\"0.5\"}\n{\"a\":\"12\",\"b\":\"13\"}\n").unwrap();
    let out = coordinator(&["grade", "--pairs", pairs.to_str().unwrap()]);
    assert!(out.status.success());
    let text = String::from_utf8(out.stdout).unwrap();
    assert_eq!(
        text,
        "{\"a\":\"1/2\",\"b\":\"0.5\",\"equivalent\":true}\n{\"a\":\"12\",\"b\":\"13\",\"equivalent\":false}\n"
    );
    std::fs::write(&pairs, "{\"a\":\"1\",\"b\":\"1\"}\nnonsense\n").unwrap();
    let out = coordinator(&["grade", "--pairs", pairs.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8(out.stderr).unwrap().contains("line 2"));
}

#[test]
fn the_resolved_configuration_is_printed() {
    let out = coordinator(&["config", "--set", "run.steps=3"]);
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success() && text.contains("steps = 3") && text.starts_with("# digest "), "{text}");
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn at_home(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_coordinator"))
        .args(args)
        .env_remove("QUORUM_SET")
        .current_dir(repository())
        .output()
        .unwrap()
}

#[test]
fn a_plan_tells_every_mistake_at_once() {
    let tmp = tempfile::tempdir().unwrap();
    let run = format!("run.dir={}", tmp.path().join("run").display());
    let sets = [
        run.as_str(),
        "run.stpes=3",
        "optim.learning_rate=fast",
        "objective.kind=guess",
        "rollout.top_p=3.0",
        "cluster.listen=0.0.0.0:0",
        "cluster.token_file=no/token",
        "model.path=no/model",
        "data.train=no/train.parquet",
        "data.test=no/test.parquet",
    ];
    let mut args = vec!["plan"];
    sets.iter().for_each(|s| args.extend(["--set", s]));
    let out = at_home(&args);
    let text = String::from_utf8(out.stdout).unwrap();
    assert_eq!(out.status.code(), Some(1), "{text}");
    let words = [
        "`run.steps`?",
        "optim.learning_rate",
        "objective.kind",
        "rollout.top_p",
        "0.0.0.0:0",
        "no/token",
        "no/model",
        "no/train.parquet",
        "no/test.parquet",
    ];
    for word in words {
        assert_eq!(text.lines().filter(|l| l.starts_with("  - ") && l.contains(word)).count(), 1, "{word}: {text}");
    }
    assert!(text.starts_with("9 mistakes"), "{text}");
    assert!(!tmp.path().join("run").exists(), "plan wrote something");
}

#[test]
fn a_plan_needs_no_weights_and_starts_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let model = tmp.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for file in std::fs::read_dir(repository().join("assets/model")).unwrap().flatten() {
        if file.path().extension().is_none_or(|e| e != "safetensors") {
            std::fs::copy(file.path(), model.join(file.file_name())).unwrap();
        }
    }
    let (run, path) = (tmp.path().join("run"), format!("model.path={}", model.display()));
    let run_dir = format!("run.dir={}", run.display());
    let sets = ["--set", &path, "--set", &run_dir, "--set", "optim.gradient_batches=3"];
    let out = at_home(&[&["plan", "--workers", "2", "--json"][..], &sets[..]].concat());
    let plan: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    // The children's executables are built by other packages.
    let mistakes = plan["mistakes"].as_array().unwrap();
    assert!(mistakes.iter().all(|m| m.as_str().unwrap().contains("cargo build")), "{mistakes:?}");
    assert!(plan["notes"].to_string().contains("*.safetensors"), "{plan}");
    let prompts = &plan["prompts"];
    assert_eq!((&prompts["measured"], &prompts["image_tokens"]["max"]), (&8000.into(), &4.into()));
    assert_eq!(plan["batch"]["gradient_batches"], serde_json::json!([42, 43, 43]));
    assert_eq!(plan["memory"]["workers"], 2);
    let total = |p: &str| -> u64 {
        plan["memory"][p].as_object().unwrap().values().filter_map(serde_json::Value::as_u64).sum()
    };
    let sum = total("coordinator") + 2 * total("worker") + total("learner");
    assert_eq!(plan["memory"]["total"].as_u64(), Some(sum));
    assert!(!run.exists());
    // Shapes alone are planned, too: what is missing is said.
    std::fs::remove_file(model.join("tokenizer.json")).unwrap();
    let out = at_home(&[&["plan"][..], &sets[..]].concat());
    let text = String::from_utf8(out.stdout).unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(
        text.contains("tokenizer.json") && text.contains("tokens are assumed") && text.contains("verdict"),
        "{text}"
    );
}

/// Prepares a run of the bundled model in `dir` with these settings.
fn prepared(dir: &Path, sets: &[String]) -> Prepared {
    let home = repository();
    let mut set = vec![
        format!("run.dir={}", dir.join("run").display()),
        format!("model.path={}", home.join("assets/model").display()),
        format!("data.test={}", home.join("assets/data/validation.parquet").display()),
        format!("data.train={}", home.join("assets/data/validation.parquet").display()),
    ];
    set.extend_from_slice(sets);
    let request = RunRequest { set, ..RunRequest::default() };
    let config = configuration(&request).unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(prepare(&request, config)).unwrap()
}

fn aside(dir: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(dir.join("run/set-aside.jsonl")).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn prompts_that_are_too_long_are_set_aside_before_the_run() {
    let tmp = tempfile::tempdir().unwrap();
    let p = prepared(tmp.path(), &["rollout.max_prompt_tokens=22".into()]);
    let lines = aside(tmp.path());
    let train: Vec<_> = lines.iter().filter(|l| l["set"] == "train").collect();
    assert!(!train.is_empty() && p.material.train_len() > 0);
    let all = p.material.train_len() + train.len();
    assert_eq!(all, p.material.questions() as usize + lines.len() - train.len(), "both sets are the same file here");
    assert!(
        train.iter().all(|l| l["reason"].as_str().unwrap().contains("rollout.max_prompt_tokens = 22")),
        "{lines:?}"
    );
    assert!(train.iter().all(|l| l["file"].as_str().unwrap().ends_with("validation.parquet")));
}

#[test]
fn supervised_records_beyond_the_models_positions_are_set_aside() {
    let tmp = tempfile::tempdir().unwrap();
    let data = tmp.path().join("train.jsonl");
    let record = |response: &str| {
        let image = repository().join("tests/fixtures/images/img_30x20.png").canonicalize().unwrap();
        std::fs::copy(image, tmp.path().join("a.png")).unwrap();
        serde_json::json!({"images": ["a.png"], "problem": "<image>What is it?", "response": response}).to_string()
    };
    let lines = [record("It is \\boxed{7}."), record(&"seven ".repeat(900)), record("\\boxed{8}")];
    std::fs::write(&data, lines.join("\n")).unwrap();
    let sets = [format!("data.train={}", data.display()), "objective.kind=sft".into(), "eval.enabled=false".into()];
    let p = prepared(tmp.path(), &sets);
    assert_eq!(p.material.train_len(), 2);
    let lines = aside(tmp.path());
    assert_eq!((lines.len(), lines[0]["row"].as_u64()), (1, Some(1)));
    let reason = lines[0]["reason"].as_str().unwrap();
    assert!(reason.contains("1024 positions"), "{reason}");
    // Every slot of the run can be filled from what is left.
    let work = quorum_coordinator::state::Work { purpose: quorum_core::Purpose::Train, step: 0, slot: 0 };
    let record: &Record = p.material.record(work).unwrap();
    assert_ne!(record.row, 1);
    p.material.supervised_group(work).unwrap();
}

/// A run directory with one committed step whose checkpoint holds the bundled model's weights.
fn finished_run(dir: &Path) -> (PathBuf, Vec<f32>) {
    let base = dir.join("base/model");
    std::fs::create_dir_all(&base).unwrap();
    for file in std::fs::read_dir(repository().join("assets/model")).unwrap().flatten() {
        std::fs::copy(file.path(), base.join(file.file_name())).unwrap();
    }
    let path = format!("model.path={}", base.display());
    let p = prepared(dir, &["eval.enabled=false".into(), "checkpoint.every=1".into(), path]);
    let model = Checkpoint::open(&base).unwrap();
    let weights = model.load_weights().unwrap();
    let run = dir.join("run");
    let place = p.dir.checkpoint("step-000001");
    std::fs::create_dir_all(&place).unwrap();
    quorum_model::save_safetensors(&place.join("model.safetensors"), &model.layout, &weights).unwrap();
    let commit = Write::Commit {
        step: 0,
        version: 1,
        digest: quorum_core::digest::slab_digest(&weights),
        metrics: "{}".into(),
        timings: "{}".into(),
        checkpoint: "step-000001".into(),
        manifest: "m".into(),
    };
    tokio::runtime::Runtime::new().unwrap().block_on(p.ledger.commit(vec![commit])).unwrap();
    drop(p);
    assert_eq!(Ledger::inspect(&run.join("ledger.db")).unwrap().committed(), 1);
    assert!(RunDir::open(&run).is_ok());
    (run, weights)
}

#[test]
fn an_export_is_sharded_carded_and_never_overwrites() {
    let tmp = tempfile::tempdir().unwrap();
    let (run, weights) = finished_run(tmp.path());
    let to = tmp.path().join("out");
    let (run_dir, out_dir) = (run.to_str().unwrap(), to.to_str().unwrap());
    let export = |more: &[&str]| coordinator(&[&["export", run_dir, "--to", out_dir], more].concat());
    let out = export(&["--dtype", "f32", "--max-shard-size", "1MB"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(to.join("model.safetensors.index.json").is_file() && !to.join("model.safetensors").exists());
    assert_eq!(Checkpoint::open(&to).unwrap().load_weights().unwrap(), weights);
    let card = std::fs::read_to_string(to.join("README.md")).unwrap();
    let digest = quorum_core::digest::slab_digest(&weights);
    for word in ["base_model: \"model\"", digest.as_str(), "validation.parquet", "| 512 |", "same as the base model's"]
    {
        assert!(card.contains(word), "{word}: {card}");
    }
    assert!(!card.contains(tmp.path().to_str().unwrap()), "a path of this machine is published");
    let again = export(&[]);
    let text = String::from_utf8(again.stderr).unwrap();
    assert!(!again.status.success() && text.contains("not empty"), "{text}");
    // Damaged weights are found by their digest in the ledger.
    let file = run.join("checkpoints/step-000001/model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    std::fs::remove_dir_all(&to).unwrap();
    let text = String::from_utf8(export(&[]).stderr).unwrap();
    assert!(text.contains("is damaged") && text.contains("--step") && !to.exists(), "{text}");
    // Another base would make another model than the one the card tells of.
    let side = tmp.path().join("base/model/generation_config.json");
    let text = std::fs::read_to_string(&side).unwrap() + " ";
    std::fs::write(&side, text).unwrap();
    let text = String::from_utf8(export(&[]).stderr).unwrap();
    assert!(text.contains("base/model changed since") && !to.exists(), "{text}");
}

#[test]
fn a_report_needs_neither_the_data_nor_a_writable_directory() {
    let tmp = tempfile::tempdir().unwrap();
    let (run, _) = finished_run(tmp.path());
    for file in ["ledger.db-wal", "ledger.db-shm"] {
        let _ = std::fs::remove_file(run.join(file));
    }
    // SQLite does not follow it, and cannot make its shared memory: as in a directory that cannot be written, whoever runs this.
    std::os::unix::fs::symlink("/nonexistent/shm", run.join("ledger.db-shm")).unwrap();
    let to = tmp.path().join("report.html");
    let gone = tmp.path().join("gone.parquet");
    let report =
        |more: &[&str]| coordinator(&[&["report", run.to_str().unwrap(), "--to", to.to_str().unwrap()], more].concat());
    let out = report(&[]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success() && !said.contains("note"), "{said}");
    let out = report(&["--data", gone.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success() && said.contains("gone.parquet") && said.contains("--data"), "{said}");
    assert!(std::fs::read_to_string(&to).unwrap().contains("questions and images are not shown"));
    // Other data is not shown beside the votes of the run's.
    let out = report(&["--data", repository().join("assets/data/test.parquet").to_str().unwrap()]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success() && said.contains("holds other questions or images"), "{said}");
    // Commits that only the log has are not silently left out.
    std::fs::write(run.join("ledger.db-wal"), "x").unwrap();
    let out = report(&[]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && said.contains("write-ahead log") && said.contains("copy"), "{said}");
}
