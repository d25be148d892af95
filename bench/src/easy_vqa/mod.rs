//! `easy-vqa`: converts the easy-VQA benchmark (4,000 + 1,000 images, 48 k questions, 13 answers, MIT) into Quorum's parts. The same package and parameters give the same bytes.
//! The official test part is converted as it is; warm-up, unlabelled and validation parts are made of the official training part and share no image.

mod question;

use anyhow::{Context, Result, bail, ensure};
use question::{Asked, COLORS, Fact, SHAPES, fact_behind};
use quorum_core::seed::Stream;
use quorum_data::record::{ImageBytes, Record};
use quorum_data::writer::write_parquet;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::path::{Path, PathBuf};

/// Arguments of `easy-vqa`.
#[derive(clap::Args)]
pub struct Args {
    /// The package's data directory, with train/questions.json, train/images and the same of test.
    #[arg(long)]
    package: PathBuf,
    /// Directory to write.
    #[arg(long, default_value = "runs/easy-vqa/data")]
    out: PathBuf,
    /// Training images with labels for the warm-up.
    #[arg(long, default_value_t = 800)]
    warmup: usize,
    /// Share of warm-up questions whose annotator misreads the colour or the shape, and answers and reasons by that.
    #[arg(long, default_value_t = 0.4)]
    wrong_rate: f64,
    /// Training images whose questions are held out for choosing settings.
    #[arg(long, default_value_t = 250)]
    validation: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// One question of the package.
struct Asking {
    question: String,
    answer: String,
}

/// One image with all its questions, in the order of the package.
struct Picture {
    name: String,
    image: ImageBytes,
    entries: Vec<Asking>,
}

/// Writes all parts, prints a line for each.
pub fn run(args: &Args) -> Result<()> {
    ensure!((0.0..=1.0).contains(&args.wrong_rate), "--wrong-rate must lie in 0..1");
    fs::create_dir_all(&args.out).with_context(|| format!("cannot create {}", args.out.display()))?;
    let train = read(&args.package.join("train"), "train")?;
    let test = read(&args.package.join("test"), "test")?;
    let Parts { warmup, validation, unlabelled } = deal(&train, args)?;
    write(&args.out, "warmup", &annotated(&warmup, args)?)?;
    let unlabelled = shuffled(records(&unlabelled), args.seed, 1);
    write_labels(&args.out.join("unlabelled.labels.jsonl"), &unlabelled)?;
    let bare: Vec<Record> = unlabelled.into_iter().map(|r| Record { answer: None, ..r }).collect();
    write(&args.out, "unlabelled", &bare)?;
    write(&args.out, "validation", &shuffled(records(&validation), args.seed, 2))?;
    write(&args.out, "test", &records(&test.iter().collect::<Vec<_>>()))
}

/// The pictures of one official part, by number.
fn read(dir: &Path, part: &str) -> Result<Vec<Picture>> {
    let path = dir.join("questions.json");
    let text = fs::read(&path).with_context(|| {
        format!("cannot read {}; --package is the directory easy_vqa/data of the unpacked package", path.display())
    })?;
    let rows: Vec<(String, String, u64)> =
        serde_json::from_slice(&text).with_context(|| format!("{} is no list of questions", path.display()))?;
    let mut pictures: BTreeMap<u64, Picture> = BTreeMap::new();
    for (question, answer, number) in rows {
        let picture = match pictures.entry(number) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(fresh) => fresh.insert(picture(dir, part, number)?),
        };
        picture.entries.push(Asking { question, answer });
    }
    Ok(pictures.into_values().collect())
}

fn picture(dir: &Path, part: &str, number: u64) -> Result<Picture> {
    let file = dir.join(format!("images/{number}.png"));
    let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let name = format!("{part}-{number:04}");
    Ok(Picture { image: ImageBytes::new(bytes, Some(format!("{name}.png"))), name, entries: Vec::new() })
}

/// Training images, each in one part.
struct Parts<'a> {
    warmup: Vec<&'a Picture>,
    validation: Vec<&'a Picture>,
    unlabelled: Vec<&'a Picture>,
}

/// The warm-up takes images of which the labels say what they show.
fn deal<'a>(train: &'a [Picture], args: &Args) -> Result<Parts<'a>> {
    let order = Stream::named("easy-vqa deck", &[args.seed]).permutation(train.len());
    let mut parts = Parts { warmup: Vec::new(), validation: Vec::new(), unlabelled: Vec::new() };
    for picture in order.into_iter().filter_map(|i| train.get(i)) {
        if parts.validation.len() < args.validation {
            parts.validation.push(picture);
        } else if parts.warmup.len() < args.warmup && fact_of(picture).is_some() {
            parts.warmup.push(picture);
        } else {
            parts.unlabelled.push(picture);
        }
    }
    if parts.warmup.len() < args.warmup || parts.unlabelled.is_empty() {
        bail!("{} images are too few for --warmup {} and --validation {}", train.len(), args.warmup, args.validation);
    }
    Ok(parts)
}

fn fact_of(picture: &Picture) -> Option<Fact> {
    fact_behind(picture.entries.iter().map(|e| (e.question.as_str(), e.answer.as_str())))
}

fn records(pictures: &[&Picture]) -> Vec<Record> {
    let mut records = Vec::new();
    for picture in pictures {
        for (i, entry) in picture.entries.iter().enumerate() {
            records.push(Record {
                row: records.len() as u64,
                id: Some(format!("{}-{i:02}", picture.name)),
                question: format!("<image>{}", entry.question),
                images: vec![picture.image.clone()],
                answer: Some(entry.answer.clone()),
                response: None,
            });
        }
    }
    records
}

/// A seeded order, so that the first questions of a part are a sample of it.
fn shuffled(records: Vec<Record>, seed: u64, part: u64) -> Vec<Record> {
    let order = Stream::named("easy-vqa order", &[seed, part]).permutation(records.len());
    let picked = order.into_iter().filter_map(|i| records.get(i).cloned());
    (0..).zip(picked).map(|(row, record)| Record { row, ..record }).collect()
}

/// The warm-up part: answer and worked response of annotators who are sometimes careless.
fn annotated(pictures: &[&Picture], args: &Args) -> Result<Vec<Record>> {
    let mut out = Vec::new();
    for picture in pictures {
        let truth = fact_of(picture).with_context(|| format!("{}: its labels contradict each other", picture.name))?;
        for record in records(&[picture]) {
            let question = record.question.trim_start_matches("<image>");
            let asked =
                Asked::of(question).with_context(|| format!("{}: {question:?} is of no known kind", picture.name))?;
            let row = out.len() as u64;
            let seen = careless(truth, args.wrong_rate, &mut Stream::named("easy-vqa annotator", &[args.seed, row]));
            let answer = asked.answer(seen);
            let response = format!("It is a {} {}. \\boxed{{{answer}}}", seen.color, seen.shape);
            out.push(Record { row, answer: Some(answer.to_string()), response: Some(response), ..record });
        }
    }
    Ok(shuffled(out, args.seed, 0))
}

/// What an annotator sees: the truth, or at `wrong_rate` another colour or another shape.
fn careless(truth: Fact, wrong_rate: f64, stream: &mut Stream) -> Fact {
    let other = |list: &[&'static str], not: &str, stream: &mut Stream| {
        let rest: Vec<&'static str> = list.iter().copied().filter(|w| *w != not).collect();
        rest.get(stream.below(rest.len() as u64, 2) as usize).copied()
    };
    if stream.uniform(0) >= wrong_rate {
        return truth;
    }
    if stream.below(2, 1) == 0 {
        Fact { color: other(&COLORS, truth.color, stream).unwrap_or(truth.color), ..truth }
    } else {
        Fact { shape: other(&SHAPES, truth.shape, stream).unwrap_or(truth.shape), ..truth }
    }
}

fn write(out: &Path, name: &str, records: &[Record]) -> Result<()> {
    let path = out.join(format!("{name}.parquet"));
    write_parquet(&path, records)?;
    println!("{}: {} questions, {} bytes", path.display(), records.len(), fs::metadata(&path)?.len());
    Ok(())
}

fn write_labels(path: &Path, records: &[Record]) -> Result<()> {
    let line = |r: &Record| format!("{}\n", serde_json::json!({"row": r.row, "answer": r.answer}));
    fs::write(path, records.iter().map(line).collect::<String>())
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorum_data::{Dataset, OpenOptions};

    fn package(dir: &Path) {
        let png = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/data_images/rgb.png")).unwrap();
        for (part, images) in [("train", 30), ("test", 5)] {
            fs::create_dir_all(dir.join(part).join("images")).unwrap();
            let mut rows = Vec::new();
            for i in 0..images {
                fs::write(dir.join(format!("{part}/images/{i}.png")), [&png[..], &[i as u8]].concat()).unwrap();
                let (shape, color) = (SHAPES[i % 3], COLORS[i % 8]);
                rows.push((format!("what color is the {shape}?"), color.to_string(), i));
                rows.push((format!("what is the {color} shape?"), shape.to_string(), i));
                rows.push(("is there a red shape?".into(), if color == "red" { "yes" } else { "no" }.into(), i));
            }
            fs::write(dir.join(part).join("questions.json"), serde_json::to_string(&rows).unwrap()).unwrap();
        }
    }

    #[test]
    fn parts_share_no_image_and_only_the_warm_up_has_mistakes() {
        let dir = tempfile::tempdir().unwrap();
        package(dir.path());
        let out = dir.path().join("out");
        let args =
            Args { package: dir.path().into(), out: out.clone(), warmup: 12, wrong_rate: 0.5, validation: 4, seed: 3 };
        run(&args).unwrap();
        let open = |name: &str| Dataset::open(&out.join(name), &OpenOptions::default()).unwrap();
        let (warmup, validation, test) = (open("warmup.parquet"), open("validation.parquet"), open("test.parquet"));
        let mut unlabelled = open("unlabelled.parquet");
        assert_eq!([warmup.len(), validation.len(), test.len(), unlabelled.len()], [36, 12, 15, 42]);
        assert!(unlabelled.records().iter().all(|r| r.answer.is_none()));
        assert_eq!(unlabelled.attach_labels(&out.join("unlabelled.labels.jsonl")).unwrap(), 42);
        let mut seen = std::collections::HashSet::new();
        let truth = |r: &Record| {
            let number: usize = r.id.as_ref().unwrap().split('-').nth(1).unwrap().parse().unwrap();
            let fact = Fact { shape: SHAPES[number % 3], color: COLORS[number % 8] };
            Asked::of(r.question.trim_start_matches("<image>")).unwrap().answer(fact)
        };
        for part in [&warmup, &validation, &unlabelled, &test] {
            let images: std::collections::HashSet<String> =
                part.records().iter().map(|r| r.images[0].path.clone().unwrap()).collect();
            assert!(images.is_disjoint(&seen));
            seen.extend(images);
            let wrong = part.records().iter().filter(|r| r.answer.as_deref() != Some(truth(r))).count();
            assert_eq!(wrong > 0, std::ptr::eq(part, &warmup), "{wrong}");
        }
        assert_eq!(test.records()[1].id.as_deref(), Some("test-0000-01"));
        let first = fs::read(out.join("warmup.parquet")).unwrap();
        run(&args).unwrap();
        assert_eq!(first, fs::read(out.join("warmup.parquet")).unwrap());
    }
}
