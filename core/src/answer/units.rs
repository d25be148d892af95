//! Units of measure and other words after a value. An answer is compared by its number: "5 cm" is 5.

use super::lex::{Kind, Token};

/// Words that are units wherever they follow a value; a plural -s or -es is understood.
const WORDS: &[&str] = &[
    "mm",
    "cm",
    "dm",
    "km",
    "meter",
    "metre",
    "millimeter",
    "millimetre",
    "centimeter",
    "centimetre",
    "kilometer",
    "kilometre",
    "inch",
    "foot",
    "feet",
    "ft",
    "yard",
    "mile",
    "mph",
    "kmh",
    "kmph",
    "second",
    "sec",
    "minute",
    "min",
    "hour",
    "hr",
    "day",
    "week",
    "month",
    "year",
    "yr",
    "kg",
    "mg",
    "gm",
    "gram",
    "kilogram",
    "pound",
    "lb",
    "degree",
    "deg",
    "unit",
    "square",
    "cubic",
    "sq",
    "liter",
    "litre",
    "acre",
    "hectare",
    "gallon",
    "percent",
    "percentage",
    "pct",
    "per",
];
/// Letters that are units only after a blank (or a slash) and a bare number.
const LETTERS: &[&str] = &["m", "g", "s", "h", "l", "t"];

fn is_unit_word(w: &str) -> bool {
    let w = w.to_ascii_lowercase();
    WORDS.contains(&w.as_str())
        || ["s", "es"].iter().any(|end| w.strip_suffix(end).is_some_and(|stem| stem.len() > 1 && WORDS.contains(&stem)))
}

/// The tokens without a trailing unit (`cm^2`, `\text{ apples}`, `km/h`, `square units`) if a value remains before it.
pub(super) fn strip(tokens: &[Token]) -> &[Token] {
    // Walk left over everything a unit may be made of; remember the leftmost place where one begins right after a value.
    let mut end = tokens.len();
    let mut best = end;
    while end > 1 {
        let i = end - 1;
        let unit = is_unit(tokens, i);
        if unit && value_ends(&tokens[i - 1]) {
            best = i;
        }
        if !(unit || is_glue(tokens, i)) {
            break;
        }
        end = i;
    }
    &tokens[..best]
}

fn is_unit(tokens: &[Token], i: usize) -> bool {
    let t = &tokens[i];
    if t.text {
        return !matches!(t.kind, Kind::Num(_));
    }
    let Some(w) = t.word() else { return false };
    if is_unit_word(w) {
        return true;
    }
    let placed = t.space || tokens[..i].last().is_some_and(|t| t.is('/'));
    let bare = |t: &Token| t.text || t.word().is_none_or(|w| is_unit_word(w) || LETTERS.contains(&w));
    LETTERS.contains(&w) && placed && tokens[..i].iter().all(bare)
}

/// Exponents, slashes, points and braces between and after units.
fn is_glue(tokens: &[Token], i: usize) -> bool {
    match &tokens[i].kind {
        Kind::Sym('^' | '.' | '-' | '{' | '}') => true,
        Kind::Sym('/') => tokens.get(i + 1).is_some_and(|t| t.word().is_some()),
        Kind::Num(n) => n.len() == 1 && is_exponent(&tokens[..i]),
        Kind::Cmd(c) => c == "cdot",
        _ => false,
    }
}

fn is_exponent(before: &[Token]) -> bool {
    before.iter().rev().find(|t| !t.is('{') && !t.is('-')).is_some_and(|t| t.is('^'))
}

/// True if a value may end with this token: a number, a letter, a closed bracket, a percent or degree sign, π.
fn value_ends(t: &Token) -> bool {
    match &t.kind {
        Kind::Num(_) => true,
        Kind::Word(w) => !t.text && (w.chars().count() == 1 || w == "pi"),
        Kind::Sym(c) => !t.text && matches!(c, ')' | ']' | '}' | '%' | '!' | '|'),
        Kind::Cmd(c) => matches!(c.as_str(), "pi" | "circ" | "degree" | "}"),
    }
}
