//! Final answers: taking them out of a response (`extract`), and deciding which of them are the same (`canonical`).
//!
//! Two answers are equivalent exactly if their canonical keys are equal, so equivalence is symmetric and transitive by construction and
//! clusters do not depend on order. What counts as the same, and why, is in `docs/answers.md`.

mod expr;
mod extract;
mod field;
mod grade;
mod lex;
mod parse;
mod relation;
mod shape;
mod surd;
mod units;
mod value;
mod wide;

pub use extract::{ExtractRule, extract};
pub use grade::{GradeError, grade};

use serde::{Deserialize, Serialize};

/// Which ways of writing an answer are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Notation {
    /// LaTeX and plain ASCII mathematics, as the public graders read it.
    #[default]
    Common,
    /// Also Unicode signs (`60°`, `√2`, `x²`), number words, "option A", "5 dollars", "2 million", Markdown, and CJK punctuation and units.
    Wide,
}

/// The canonical key of an answer: equal keys mean equivalent answers.
///
/// Readable for numbers (`3/2`), letters (`a`), text (`t:redcircle`) and structures of these; a digest for other expressions.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Canonical(String);

impl Canonical {
    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key as text.
    pub fn into_string(self) -> String {
        self.0
    }
}

/// Longer answers are only compared as text.
const MAX_BYTES: usize = 2000;
/// Answers of more tokens are only compared as text.
const MAX_TOKENS: usize = 600;

/// The key in the common notation; `None` for an empty answer, which is equivalent to nothing.
pub fn canonical(answer: &str) -> Option<Canonical> {
    canonical_in(answer, Notation::Common)
}

/// The key in a notation. Time and memory are linear in the answer's length.
pub fn canonical_in(answer: &str, notation: Notation) -> Option<Canonical> {
    if answer.len() > MAX_BYTES {
        let plain: String = answer.chars().filter(|c| !c.is_whitespace()).flat_map(char::to_lowercase).collect();
        return (!plain.is_empty()).then(|| Canonical(shape::text_key(&plain)));
    }
    let is_wide = notation == Notation::Wide;
    let mut tokens = if is_wide { wide::tokens(answer) } else { lex::lex(answer) };
    // `\text{5 cm}` around the whole answer says nothing about its parts.
    if tokens.iter().all(|t| t.text) {
        tokens.iter_mut().for_each(|t| t.text = false);
    }
    // `\\` at the end is a line break.
    let line_breaks = tokens.iter().rev().take_while(|t| t.cmd() == Some("\\")).count();
    let tokens = &tokens[..tokens.len() - line_breaks];
    let plain = lex::plain(tokens);
    if plain.is_empty() {
        return None;
    }
    if tokens.len() > MAX_TOKENS {
        return Some(Canonical(shape::text_key(&plain)));
    }
    let reading = shape::Reading { wide: is_wide, depth: 0 };
    let key = shape::key(without_full_stop(tokens), reading);
    Some(Canonical(key.unwrap_or_else(|| shape::text_key(&plain))))
}

/// A full stop after mathematics ends the sentence, not the formula; after words it is kept.
fn without_full_stop(tokens: &[lex::Token]) -> &[lex::Token] {
    match shape::unwrap(tokens) {
        [rest @ .., stop] if stop.is('.') && rest.iter().any(|t| t.word().is_none()) => rest,
        _ => tokens,
    }
}

/// True if both answers have one key (in the common notation).
pub fn equivalent(a: &str, b: &str) -> bool {
    canonical(a).is_some_and(|a| Some(a) == canonical(b))
}
