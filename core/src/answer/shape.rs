//! The outer form of an answer: list, relation, interval, tuple, set, union, matrix, ratio, expression, word. Each form has a canonical key.

use super::expr::Expr;
use super::lex::{Kind, Token, plain};
use super::relation;
use super::units;
use super::value::{Env, Value, eval};

/// Deepest nesting of brackets that is read.
const MAX_DEPTH: u32 = 12;

/// How letters and signs are read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    /// The letter i is the imaginary unit, degrees inside functions are converted, nested lists are matrices.
    pub wide: bool,
    pub depth: u32,
}

impl Reading {
    fn deeper(self) -> Option<Self> {
        (self.depth < MAX_DEPTH).then_some(Self { depth: self.depth + 1, ..self })
    }
}

/// The key of a part that may also be text.
pub(super) fn element(tokens: &[Token], r: Reading) -> String {
    key(tokens, r).unwrap_or_else(|| text_key(&plain(tokens)))
}

/// The key of an answer that is not mathematics.
pub(super) fn text_key(plain: &str) -> String {
    if plain.len() <= 64 {
        format!("t:{plain}")
    } else {
        format!("t#{}", &blake3::hash(plain.as_bytes()).to_hex()[..32])
    }
}

/// The key of tokens that are mathematics or plain words; `None` for text.
pub(super) fn key(tokens: &[Token], r: Reading) -> Option<String> {
    let r = r.deeper()?;
    let tokens = unwrap(tokens);
    if tokens.is_empty() {
        return None;
    }
    if let Some(k) = matrix(tokens, r) {
        return Some(k);
    }
    let parts = split(tokens, is_separator)?;
    if parts.len() > 1 {
        return list(&parts, r);
    }
    if let Some(k) = words(tokens, r) {
        return k;
    }
    if let Some(k) = relation::key(tokens, r) {
        return k.map(|rel| rel.key);
    }
    for (name, sign) in [("cup", '∪'), ("cap", '∩')] {
        let parts = split(tokens, |all, i| all[i].cmd() == Some(name) || (name == "cup" && is_cup_letter(all, i)))?;
        if parts.len() > 1 {
            let mut keys = parts.iter().map(|p| key(p, r)).collect::<Option<Vec<_>>>()?;
            keys.sort_unstable();
            keys.dedup();
            return Some(keys.join(&sign.to_string()));
        }
    }
    if let Some(k) = bracketed(tokens, r) {
        return k;
    }
    if let Some(k) = ratio(tokens, r) {
        return Some(k);
    }
    number_or_infinity(tokens, r)
}

/// Without outer braces and quotes.
pub(super) fn unwrap(mut tokens: &[Token]) -> &[Token] {
    loop {
        let (Some(first), Some(last)) = (tokens.first(), tokens.last()) else { return tokens };
        let quoted = tokens.len() > 1 && ['"', '\''].iter().any(|q| first.is(*q) && last.is(*q));
        if !(quoted || (first.is('{') && closing(tokens) == Some(tokens.len() - 1))) {
            return tokens;
        }
        tokens = &tokens[1..tokens.len() - 1];
    }
}

/// +1 for an opening bracket, −1 for a closing one.
fn nesting(t: &Token) -> i32 {
    match &t.kind {
        Kind::Sym('(' | '[' | '{') => 1,
        Kind::Sym(')' | ']' | '}') => -1,
        Kind::Cmd(c) => match c.as_str() {
            "{" | "langle" | "begin" => 1,
            "}" | "rangle" | "end" => -1,
            _ => 0,
        },
        _ => 0,
    }
}

/// Where the bracket opened by the first token closes.
fn closing(tokens: &[Token]) -> Option<usize> {
    let mut depth = 0;
    tokens.iter().position(|t| {
        depth += nesting(t);
        depth <= 0
    })
}

/// Splits outside brackets; `None` if brackets do not match.
pub(super) fn split(tokens: &[Token], at: impl Fn(&[Token], usize) -> bool) -> Option<Vec<&[Token]>> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0);
    for i in 0..tokens.len() {
        depth += nesting(&tokens[i]);
        if depth < 0 {
            return None;
        }
        if depth == 0 && at(tokens, i) {
            parts.push(&tokens[start..i]);
            start = i + 1;
        }
    }
    parts.push(&tokens[start..]);
    (depth == 0).then_some(parts)
}

fn is_comma(t: &Token) -> bool {
    t.is(',') || t.is(';')
}

/// A comma, or "and" / "or" between other things (", and" counts once: the word then stands at the start of a part).
fn is_separator(tokens: &[Token], i: usize) -> bool {
    let t = &tokens[i];
    let joins = |t: &Token| t.word().is_some_and(|w| matches!(w.to_ascii_lowercase().as_str(), "and" | "or"));
    (is_comma(t) && !tokens.get(i + 1).is_some_and(joins))
        || (joins(t) && i > 0 && i + 1 < tokens.len())
        || matches!(t.cmd(), Some("land" | "lor" | "wedge" | "vee"))
}

/// `(1,2)U(3,4)`.
fn is_cup_letter(tokens: &[Token], i: usize) -> bool {
    tokens[i].word() == Some("U")
        && i > 0
        && nesting(&tokens[i - 1]) < 0
        && tokens.get(i + 1).is_some_and(|t| nesting(t) > 0)
}

/// An unbracketed list: order does not matter. Names of assignments matter only where they differ.
fn list(parts: &[&[Token]], r: Reading) -> Option<String> {
    let mut entries = Vec::with_capacity(parts.len());
    for part in parts {
        let part = unwrap(part);
        if part.is_empty() {
            return None;
        }
        let named = match relation::key(part, r) {
            Some(Some(rel)) => (rel.name, rel.key),
            _ => (None, element(part, r)),
        };
        entries.push(named);
    }
    let names: Vec<&String> = entries.iter().filter_map(|(n, _)| n.as_ref()).collect();
    let distinct = names.iter().any(|n| *n != names[0]);
    let keys = entries.iter().map(|(n, k)| match n {
        Some(n) if distinct => format!("{n}={k}"),
        _ => k.clone(),
    });
    Some(set(keys.collect(), false))
}

fn set(mut keys: Vec<String>, dedup: bool) -> String {
    keys.sort_unstable();
    if dedup {
        keys.dedup();
    }
    match keys.as_slice() {
        [one] => one.clone(),
        _ => format!("{{{}}}", keys.join(";")),
    }
}

/// Letters only, bare or in one pair of brackets: an option letter, a product such as AB, or text (`Some(None)`).
fn words(tokens: &[Token], r: Reading) -> Option<Option<String>> {
    let inner = match tokens {
        [a, inner @ .., b] if (a.is('(') && b.is(')')) || (a.is('[') && b.is(']')) => unwrap(inner),
        _ => tokens,
    };
    // `B\text{ only}`: what follows a letter in a text group explains it.
    let inner = match inner {
        [letter, rest @ ..] if letter.is_letter() && !letter.text && rest.iter().all(|t| t.text) => &inner[..1],
        _ => inner,
    };
    let all: Option<Vec<&str>> = inner.iter().map(Token::word).collect();
    let all = all.filter(|w| !w.is_empty())?;
    if all.iter().any(|w| matches!(*w, "pi" | "inf" | "infinity" | "sqrt") || super::parse::is_function(w)) {
        return None;
    }
    let word: String = all.concat();
    let mut letters = word.chars();
    if let (Some(c), None) = (letters.next(), letters.next())
        && c.is_ascii()
    {
        return Some(Some(c.to_ascii_lowercase().to_string()));
    }
    if is_product(&word) {
        return Some(number_or_infinity(inner, r));
    }
    let lower: String = word.chars().flat_map(char::to_lowercase).collect();
    Some(Some(text_key(&lower)))
}

/// Two or three letters that are rather names of points or variables than a word: no vowels, or the first letters of the alphabet.
fn is_product(word: &str) -> bool {
    let all = |f: &dyn Fn(char) -> bool| word.chars().all(f);
    let lower = word.to_ascii_lowercase();
    let mut letters: Vec<char> = lower.chars().collect();
    letters.sort_unstable();
    letters.dedup();
    let distinct = letters.len() == word.len();
    let no_vowel = |but: &str| !letters.iter().any(|c| "aeiou".contains(*c) && !but.contains(*c));
    (2..=3).contains(&word.len())
        && distinct
        && ((all(&|c| c.is_ascii_lowercase()) && (no_vowel("") || all(&|c| ('a'..='d').contains(&c))))
            || (all(&|c| c.is_ascii_uppercase()) && (no_vowel("a") || all(&|c| ('A'..='H').contains(&c)))))
}

/// Intervals and tuples keep order and brackets, sets lose both; one element alone is itself.
fn bracketed(tokens: &[Token], r: Reading) -> Option<Option<String>> {
    let (first, last) = (tokens.first()?, tokens.last()?);
    if nesting(first) <= 0 || first.is('{') || closing(tokens)? != tokens.len() - 1 {
        return None;
    }
    let inner = &tokens[1..tokens.len() - 1];
    if first.cmd() == Some("{") && inner.is_empty() {
        return Some(Some("{}".into()));
    }
    let parts = split(inner, |all, i| is_comma(&all[i]))?;
    if parts.iter().any(|p| p.is_empty()) {
        return Some(None);
    }
    let braces = first.cmd() == Some("{");
    if braces != (last.cmd() == Some("}")) {
        return Some(None);
    }
    if parts.len() == 1 {
        let plain_pair = (first.is('(') && last.is(')')) || (first.is('[') && last.is(']')) || braces;
        return if plain_pair && (braces || no_signs_needed(inner)) { Some(key(inner, r)) } else { None };
    }
    let keys: Vec<String> = parts.iter().map(|p| element(p, r)).collect();
    if braces {
        return Some(Some(set(keys, true)));
    }
    if r.wide
        && let Some(rows) = nested_rows(&keys, first, last)
    {
        return Some(Some(rows));
    }
    let (open, close) = (plain(&tokens[..1]), plain(&tokens[tokens.len() - 1..]));
    Some(Some(format!("{open}{}{close}", keys.join(";"))))
}

/// A single bracketed thing that is itself a list or a bracket, rather than an expression.
fn no_signs_needed(inner: &[Token]) -> bool {
    inner.first().is_some_and(|t| nesting(t) > 0 && !t.is('{'))
}

/// `[[1,2],[3,4]]` as a matrix.
fn nested_rows(keys: &[String], first: &Token, last: &Token) -> Option<String> {
    if !(first.is('[') && last.is(']')) {
        return None;
    }
    let rows: Option<Vec<&str>> = keys.iter().map(|k| k.strip_prefix('[')?.strip_suffix(']')).collect();
    let rows: Vec<String> = rows?.iter().map(|r| r.replace(';', ",")).collect();
    Some(format!("M[{}]", rows.join(";")))
}

/// `\begin{pmatrix} … \end{pmatrix}`; the kind of bracket does not matter, but a determinant is not a matrix.
fn matrix(tokens: &[Token], r: Reading) -> Option<String> {
    let [begin, open, name, close, body @ .., end, _, _, _] = tokens else { return None };
    if begin.cmd() != Some("begin") || !open.is('{') || !close.is('}') || end.cmd() != Some("end") {
        return None;
    }
    let (tag, body) = match name.word()? {
        "pmatrix" | "bmatrix" | "matrix" | "Bmatrix" | "smallmatrix" => ("M", body),
        "vmatrix" => ("V", body),
        "array" if body.first()?.is('{') => ("M", &body[closing(body)? + 1..]),
        _ => return None,
    };
    let is_row_end = |t: &Token| t.cmd() == Some("\\");
    let body = if body.last().is_some_and(is_row_end) { &body[..body.len() - 1] } else { body };
    let mut rows = Vec::new();
    for row in split(body, |all, i| is_row_end(&all[i]))? {
        let cells = split(row, |all, i| all[i].is('&'))?;
        rows.push(cells.iter().map(|c| element(c, r)).collect::<Vec<_>>().join(","));
    }
    Some(format!("{tag}[{}]", rows.join(";")))
}

/// `1:2` is the quotient; `2:3:4` is kept up to a factor; `3:30` (two digits after the colon) is a time of day.
fn ratio(tokens: &[Token], r: Reading) -> Option<String> {
    let parts = split(tokens, |all, i| all[i].is(':'))?;
    if parts.len() < 2 {
        return None;
    }
    if let [[Token { kind: Kind::Num(h), .. }], rest @ ..] = parts.as_slice()
        && h.len() <= 2
        && rest.iter().all(|p| matches!(p, [Token { kind: Kind::Num(m), .. }] if m.len() == 2))
    {
        return Some(format!("clock:{}", plain(tokens)));
    }
    let values: Option<Vec<Value>> =
        parts.iter().map(|p| value(p, 1, r).filter(|(_, v)| v.is_constant()).map(|(_, v)| v)).collect();
    let values = values?;
    if let [a, b] = values.as_slice() {
        return Some(a.mul(b.inv()?).key());
    }
    let scale = values.first()?.inv()?;
    let keys: Vec<String> = values.iter().map(|v| v.mul(scale).key()).collect();
    Some(format!("ratio:{}", keys.join(":")))
}

fn number_or_infinity(tokens: &[Token], r: Reading) -> Option<String> {
    let (minus, rest) = match tokens {
        [t, rest @ ..] if t.is('-') => (true, rest),
        [t, rest @ ..] if t.is('+') => (false, rest),
        _ => (false, tokens),
    };
    if let [t] = rest {
        if t.cmd() == Some("infty") || matches!(t.word(), Some("inf" | "infinity")) {
            return Some(if minus { "-inf".into() } else { "inf".into() });
        }
        if t.cmd() == Some("emptyset") && !minus {
            return Some("{}".into());
        }
    }
    let (expr, v) = value(tokens, 1, r)?;
    let k = value_key(&expr, &v, r);
    if tokens.iter().any(|t| matches!(t.cmd(), Some("pm" | "mp"))) {
        let (expr, v) = value(tokens, -1, r)?;
        return Some(set(vec![k, value_key(&expr, &v, r)], true));
    }
    Some(k)
}

/// The expression without its unit, and its value.
pub(super) fn value(tokens: &[Token], plus_minus: i8, r: Reading) -> Option<(Expr, Value)> {
    let expr = super::parse::parse(unwrap(units::strip(unwrap(tokens))), plus_minus, r.wide)?;
    let v = eval(&expr, &env(r))?;
    Some((expr, v))
}

pub(super) fn env(r: Reading) -> Env<'static> {
    Env { imaginary: r.wide, set: None }
}

/// The key of a value; a lone variable is its own name (lower case for single letters, as option letters are).
pub(super) fn value_key(expr: &Expr, v: &Value, r: Reading) -> String {
    let mut names = Vec::new();
    expr.variables(&mut names);
    for name in names {
        let same = eval(&Expr::Var(name.to_owned()), &env(r)).is_some_and(|x| x.at == v.at);
        if same {
            return if name.len() == 1 { name.to_ascii_lowercase() } else { format!("v:{name}") };
        }
    }
    v.key()
}
