//! One part of the bundle: images, questions, and labels that are true, sloppy or absent.

use super::compose::compose;
use super::draw::Draw;
use super::mnist::Scan;
use super::params::{Params, WrongKind};
use super::questions::{OPERATIONS, Operation};
use anyhow::{Context, Result};
use quorum_data::record::{ImageBytes, Record};

/// What a part says about answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Labels {
    /// No answer column.
    None,
    True,
    /// Answer and worked response by annotators who are wrong at `Params::wrong_rate`.
    Sloppy,
}

/// A record and the answer the digits really give.
pub struct Item {
    pub record: Record,
    pub truth: String,
}

/// Makes the part `name` from one pair of scans an image.
pub fn make(params: &Params, name: &str, pairs: &[[Scan; 2]], labels: Labels) -> Result<Vec<Item>> {
    let questions = if labels == Labels::Sloppy { params.warmup_questions.max(1) } else { 1 };
    let mut items = Vec::with_capacity(pairs.len() * questions);
    for (i, pair) in pairs.iter().enumerate() {
        let key = format!("bundle {name}");
        let image = compose(pair, params, &mut Draw::new(&key, &[params.seed, i as u64]))?;
        let image = ImageBytes::new(image, Some(format!("{name}-{i:05}.png")));
        let mut asked = Vec::new();
        for q in 0..questions {
            let mut draw = Draw::new(&format!("{key} question"), &[params.seed, i as u64, q as u64]);
            let operation = fresh_operation(&mut draw, &mut asked)?;
            let question = operation.question(&mut draw);
            let row = items.len() as u64;
            let (answer, response) = annotate(params, labels, operation, [pair[0].digit, pair[1].digit], &mut draw);
            let truth = operation.result(pair[0].digit, pair[1].digit).to_string();
            let record = Record {
                row,
                id: Some(format!("{name}-{row:05}")),
                question,
                images: vec![image.clone()],
                answer,
                response,
            };
            items.push(Item { record, truth });
        }
    }
    Ok(items)
}

/// An operation that was not asked about this image yet, while there is one.
fn fresh_operation(draw: &mut Draw, asked: &mut Vec<Operation>) -> Result<Operation> {
    if asked.len() >= OPERATIONS.len() {
        asked.clear();
    }
    let left: Vec<Operation> = OPERATIONS.into_iter().filter(|o| !asked.contains(o)).collect();
    let operation = *draw.pick(&left).context("no operation")?;
    asked.push(operation);
    Ok(operation)
}

/// Answer and response columns of one question.
fn annotate(
    params: &Params,
    labels: Labels,
    operation: Operation,
    digits: [u8; 2],
    draw: &mut Draw,
) -> (Option<String>, Option<String>) {
    let [a, b] = digits;
    match labels {
        Labels::None => (None, None),
        Labels::True => (Some(operation.result(a, b).to_string()), None),
        Labels::Sloppy => {
            let (a, b, result) = sloppy(params, operation, a, b, draw);
            (Some(result.to_string()), Some(operation.response(a, b, result)))
        }
    }
}

/// What an annotator reads and concludes.
fn sloppy(params: &Params, operation: Operation, a: u8, b: u8, draw: &mut Draw) -> (u8, u8, u8) {
    let wrong = draw.uniform() < params.wrong_rate;
    let right_hand = draw.below(2) == 1;
    let other = draw.below(9) as u8 + 1;
    let result = operation.result(a, b);
    match params.wrong_kind {
        _ if !wrong => (a, b, result),
        WrongKind::MisreadDigit => {
            let (a, b) = if right_hand { (a, (b + other) % 10) } else { ((a + other) % 10, b) };
            (a, b, operation.result(a, b))
        }
        WrongKind::WrongResult => (a, b, wrong_result(operation, result, draw)),
    }
}

/// The result of some other digits, drawn until it differs.
fn wrong_result(operation: Operation, result: u8, draw: &mut Draw) -> u8 {
    loop {
        let other = operation.result(draw.below(10) as u8, draw.below(10) as u8);
        if other != result {
            return other;
        }
    }
}
