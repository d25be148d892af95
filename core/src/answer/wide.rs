//! The wide notation, rewritten into the common one before it is read: Unicode signs, words for numbers, option phrases, currencies,
//! Markdown, CJK punctuation and units. Plain rewriting of characters and words; meaning is decided elsewhere.

use super::lex::{Kind, Token, lex};

/// Tokens of an answer in the wide notation.
pub(super) fn tokens(answer: &str) -> Vec<Token> {
    let text = signs(answer);
    let text = text.trim().trim_matches(|c| matches!(c, '*' | '`' | '_' | '#')).trim();
    let text = text.strip_suffix('.').filter(|t| !t.ends_with('.')).unwrap_or(text).trim();
    let text = without_prefix(text);
    if let Some(letter) = option_letter(text) {
        return lex(letter);
    }
    if let Some(n) = number_word(text) {
        return lex(&n.to_string());
    }
    let mut tokens = lex(&text.replace("**", "^"));
    join_thousands(&mut tokens);
    words(&mut tokens);
    tokens
}

/// One character after another; only the root looks ahead.
fn signs(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 8);
    let mut chars = s.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '！'..='～' => out.extend(char::from_u32(c as u32 - 0xFEE0)),
            '。' => out.push('.'),
            '、' => out.push(','),
            '–' | '—' | '‒' => out.push('-'),
            '·' | '⋅' | '∙' => out.push_str("\\cdot "),
            '∞' => out.push_str("\\infty "),
            '°' | 'º' | '˚' => out.push_str("^\\circ "),
            '℃' | '℉' => out.push_str("^\\circ "),
            '²' => out.push_str("^{2}"),
            '³' => out.push_str("^{3}"),
            '½' => out.push_str("\\frac{1}{2}"),
            '⅓' => out.push_str("\\frac{1}{3}"),
            '⅔' => out.push_str("\\frac{2}{3}"),
            '¼' => out.push_str("\\frac{1}{4}"),
            '¾' => out.push_str("\\frac{3}{4}"),
            '⅛' => out.push_str("\\frac{1}{8}"),
            '“' | '”' => out.push('"'),
            '‘' | '’' => out.push('\''),
            '€' | '£' | '¥' | '₹' | '￥' => {}
            '~' | '\u{a0}' | '\u{202f}' | '\u{2009}' | '\u{3000}' => out.push(' '),
            '√' => {
                out.push_str("sqrt(");
                let radicand = |c: &char| c.is_ascii_digit() || *c == '.';
                if chars.peek() == Some(&'(') {
                    // `√(x+1)` brings its own closing bracket.
                    chars.next();
                } else if chars.peek().is_some_and(radicand) {
                    out.extend(std::iter::from_fn(|| chars.next_if(radicand)));
                    out.push(')');
                } else {
                    out.extend(chars.next());
                    out.push(')');
                }
            }
            c => out.push(c),
        }
    }
    out
}

/// Without "answer:", "答案是", "about", a currency's name.
fn without_prefix(text: &str) -> &str {
    const PREFIXES: &[&str] = &[
        "the answer is",
        "final answer:",
        "answer:",
        "answer is",
        "approximately",
        "approx.",
        "approx",
        "about",
        "usd",
        "us$",
        "us\\$",
        "rs.",
        "rs",
        "答案是",
        "答案为",
        "答案:",
        "答案",
        "选",
    ];
    for p in PREFIXES {
        let Some(head) = text.get(..p.len()) else { continue };
        let rest = &text[p.len()..];
        let ends =
            !p.ends_with(|c: char| c.is_ascii_alphabetic()) || rest.starts_with(|c: char| !c.is_ascii_alphabetic());
        if head.eq_ignore_ascii_case(p) && ends && !rest.trim().is_empty() {
            return rest.trim_start();
        }
    }
    text
}

/// `Option A`, `A.`, `A)`, `(A) 10`, `A: 10` → `A`.
fn option_letter(text: &str) -> Option<&str> {
    const WORDS: &[&str] = &["option", "choice", "answer"];
    let mut rest = text;
    let mut named = false;
    for w in WORDS {
        if let Some(head) = text.get(..w.len())
            && head.eq_ignore_ascii_case(w)
            && text[w.len()..].starts_with(' ')
        {
            rest = text[w.len()..].trim_start();
            named = true;
        }
    }
    let opened = rest.starts_with('(');
    let rest = rest.strip_prefix('(').unwrap_or(rest);
    let letter = rest.get(..1).filter(|l| l.starts_with(|c: char| c.is_ascii_uppercase()))?;
    let after = &rest[1..];
    let told = match after.chars().next() {
        None => return (named && !opened).then_some(letter),
        Some(')') => after[1..].is_empty() || after[1..].starts_with([' ', ':']),
        Some('.' | ':') if !opened => after[1..].is_empty() || after[1..].starts_with(' '),
        _ => false,
    };
    told.then_some(letter)
}

/// `five`, `twenty-four`, `one hundred`.
fn number_word(text: &str) -> Option<u64> {
    const ONES: &[&str] = &[
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ];
    const TENS: &[&str] = &["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];
    let lower = text.to_ascii_lowercase();
    let mut total: Option<u64> = None;
    for word in lower.split(|c: char| c == '-' || c.is_whitespace()).filter(|w| !w.is_empty()) {
        let place = |list: &[&str]| list.iter().position(|x| *x == word).map(|i| i as u64);
        total = match (place(ONES), place(TENS), total) {
            (Some(n), _, None) => Some(n),
            (Some(n @ 1..=9), _, Some(t)) if t % 10 == 0 && t > 10 => Some(t + n),
            (_, Some(n), None) => Some(20 + 10 * n),
            (_, Some(n), Some(t)) if t % 100 == 0 && t > 0 => Some(t + 20 + 10 * n),
            (_, _, Some(t @ 1..=9)) if word == "hundred" => Some(t * 100),
            _ => return None,
        };
    }
    total
}

/// `1 000` and `1\,000` as one number.
fn join_thousands(tokens: &mut Vec<Token>) {
    let mut i = 0;
    while i + 1 < tokens.len() {
        let joined = match (&tokens[i].kind, &tokens[i + 1].kind) {
            (Kind::Num(a), Kind::Num(b)) => {
                let first = i == 0 || !matches!(tokens[i - 1].kind, Kind::Num(_));
                let whole = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
                let grouped = b.split('.').next().is_some_and(|g| g.len() == 3 && whole(g)) && !b.contains(['e', 'E']);
                let fraction = tokens.get(i + 2).is_some_and(|t| t.is('/'));
                (first && whole(a) && !a.starts_with('0') && grouped && !fraction && a.len() % 3 <= 3)
                    .then(|| format!("{a}{b}"))
            }
            _ => None,
        };
        match joined {
            Some(n) => {
                tokens[i].kind = Kind::Num(n);
                tokens.remove(i + 1);
            }
            None => i += 1,
        }
    }
}

/// Magnitudes become powers of ten, `x` between numbers a product, `sqrt3` a root, and other words after a number text (units).
fn words(tokens: &mut Vec<Token>) {
    let mut i = 0;
    while i < tokens.len() {
        let Some(w) = tokens[i].word().map(str::to_lowercase) else {
            i += 1;
            continue;
        };
        let is_number = |t: Option<&Token>| matches!(t, Some(Token { kind: Kind::Num(_), .. }));
        let after_number = i > 0 && is_number(tokens.get(i - 1));
        let before_number = is_number(tokens.get(i + 1));
        let magnitude = match w.as_str() {
            "thousand" => "3",
            "million" => "6",
            "billion" => "9",
            "trillion" => "12",
            _ => "",
        };
        let part = |kind| Token { kind, space: false, text: false };
        if after_number && !magnitude.is_empty() {
            let power =
                [Kind::Cmd("times".into()), Kind::Num("10".into()), Kind::Sym('^'), Kind::Num(magnitude.into())];
            tokens.splice(i..=i, power.map(part));
            i += 4;
            continue;
        }
        if w == "x" && after_number && before_number {
            tokens[i].kind = Kind::Cmd("times".into());
        } else if w == "sqrt" && before_number {
            tokens[i].kind = Kind::Cmd("sqrt".into());
            tokens.insert(i + 1, part(Kind::Sym('{')));
            tokens.insert(i + 3, part(Kind::Sym('}')));
        } else if w.chars().count() > 1 || !w.is_ascii() {
            let value_before =
                i > 0 && (after_number || tokens[i - 1].text || matches!(tokens[i - 1].cmd(), Some("circ" | "pi")));
            let known =
                super::parse::is_function(&w) || matches!(w.as_str(), "pi" | "and" | "or" | "to" | "inf" | "sqrt");
            tokens[i].text |= value_before && !known;
        }
        i += 1;
    }
}
