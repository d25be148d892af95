//! Generated arithmetic word problems for a pretrained text model: unlabelled training questions, labelled validation and test questions.
//! The three parts share no pair of numbers, so nothing that is learned of one pair is asked again.

use anyhow::Context;
use quorum_core::seed::Stream;
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

/// Arguments of `word-problems`.
#[derive(clap::Args)]
pub struct Args {
    /// Directory for train.jsonl, train.labels.jsonl, validation.jsonl and test.jsonl.
    #[arg(long, default_value = "runs/word-problems/data")]
    out: PathBuf,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Unlabelled training questions.
    #[arg(long, default_value_t = 1024)]
    train: usize,
    /// Labelled questions to choose a recipe on.
    #[arg(long, default_value_t = 192)]
    validation: usize,
    /// Labelled questions to report.
    #[arg(long, default_value_t = 512)]
    test: usize,
}

const TEMPLATES: [&str; 12] = [
    "What is {a} + {b}?",
    "What is {a} plus {b}?",
    "What is the sum of {a} and {b}?",
    "{n} has {a} {o} and buys {b} more. How many {o} does {n} have now?",
    "{n} has {a} {o} and gets {b} more from a friend. How many {o} does {n} have now?",
    "{n} finds {a} {o} in the morning and {b} in the evening. How many {o} did {n} find?",
    "There are {a} {o} on the table and {b} {o} in a box. How many {o} are there in total?",
    "{n} has {a} {o}. {m} has {b} {o}. How many {o} do they have together?",
    "A shop sold {a} {o} on Monday and {b} on Tuesday. How many {o} did it sell?",
    "{n} put {a} {o} into a bag, then {b} more. How many {o} are in the bag?",
    "{n} counted {a} {o} and {m} counted {b} others. How many did they count?",
    "Add {a} {o} to {b} {o}. How many {o} is that?",
];
const NAMES: [&str; 12] = ["Tom", "Anna", "Lucy", "Ben", "Maria", "Sam", "Emma", "Jack", "Nina", "Paul", "Rosa", "Leo"];
const OBJECTS: [&str; 12] = [
    "apples", "books", "marbles", "pencils", "coins", "stones", "cards", "shells", "cookies", "stamps", "balls", "cups",
];

/// Deals all pairs 1..=9 × 1..=9 (order ignored) to the parts, then draws distinct questions of each part's pairs.
pub fn run(args: &Args) -> anyhow::Result<()> {
    fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    let mut draw = Draw { stream: Stream::named("word problems", &[args.seed]), counter: 0 };
    let mut pairs: Vec<(usize, usize)> = (1..=9).flat_map(|a| (a..=9).map(move |b| (a, b))).collect();
    for i in (1..pairs.len()).rev() {
        pairs.swap(i, draw.below(i + 1));
    }
    let (test, rest) = pairs.split_at(15);
    let (validation, train) = rest.split_at(6);
    let train = questions(&mut draw, train, args.train)?;
    let lines = |labelled: bool, part: &[(String, usize)]| -> String {
        let line = |(i, (q, a)): (usize, &(String, usize))| match labelled {
            true => json!({"id": format!("{i}"), "problem": q, "answer": a.to_string()}).to_string() + "\n",
            false => json!({"id": format!("{i}"), "problem": q}).to_string() + "\n",
        };
        part.iter().enumerate().map(line).collect()
    };
    let labels = train.iter().enumerate();
    let labels: String =
        labels.map(|(i, (_, a))| json!({"row": i, "answer": a.to_string()}).to_string() + "\n").collect();
    let validation = questions(&mut draw, validation, args.validation)?;
    let test = questions(&mut draw, test, args.test)?;
    for (name, text) in [
        ("train.jsonl", lines(false, &train)),
        ("train.labels.jsonl", labels),
        ("validation.jsonl", lines(true, &validation)),
        ("test.jsonl", lines(true, &test)),
    ] {
        let path = args.out.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// `count` different questions over `pairs`, with their sums.
fn questions(draw: &mut Draw, pairs: &[(usize, usize)], count: usize) -> anyhow::Result<Vec<(String, usize)>> {
    let mut seen = BTreeSet::new();
    let mut out = Vec::with_capacity(count);
    let mut tries = 0;
    while out.len() < count {
        let (a, b) = pairs[draw.below(pairs.len())];
        let (a, b) = if draw.below(2) == 0 { (a, b) } else { (b, a) };
        let n = draw.below(NAMES.len());
        let m = (n + 1 + draw.below(NAMES.len() - 1)) % NAMES.len();
        let text = TEMPLATES[draw.below(TEMPLATES.len())]
            .replace("{a}", &a.to_string())
            .replace("{b}", &b.to_string())
            .replace("{n}", NAMES[n])
            .replace("{m}", NAMES[m])
            .replace("{o}", OBJECTS[draw.below(OBJECTS.len())]);
        if seen.insert(text.clone()) {
            out.push((text, a + b));
        }
        tries += 1;
        anyhow::ensure!(tries < 100 * count + 1000, "cannot make {count} different questions; ask for fewer");
    }
    Ok(out)
}

struct Draw {
    stream: Stream,
    counter: u64,
}

impl Draw {
    /// Uniform in `0..n`.
    fn below(&mut self, n: usize) -> usize {
        self.counter += 1;
        self.stream.below(n as u64, self.counter) as usize
    }
}
