//! LaTeX (or plain text) to tokens. Style, spacing and math delimiters vanish here; nothing is interpreted.

/// One token.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    /// A literal: digits, point, exponent, thousands separators already taken out.
    Num(String),
    /// A run of letters.
    Word(String),
    /// `\name` without the backslash; `\{` is `{`.
    Cmd(String),
    Sym(char),
}

/// A token with what surrounds it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub kind: Kind,
    /// White space stood before it.
    pub space: bool,
    /// It stood inside `\text{…}` or the like.
    pub text: bool,
}

impl Token {
    pub fn is(&self, c: char) -> bool {
        self.kind == Kind::Sym(c)
    }

    pub fn cmd(&self) -> Option<&str> {
        if let Kind::Cmd(c) = &self.kind { Some(c) } else { None }
    }

    pub fn word(&self) -> Option<&str> {
        if let Kind::Word(w) = &self.kind { Some(w) } else { None }
    }
}

/// Commands without meaning of their own.
const STYLE: &[&str] = &[
    "displaystyle",
    "textstyle",
    "scriptstyle",
    "limits",
    "tiny",
    "small",
    "normalsize",
    "large",
    "Large",
    "LARGE",
    "huge",
    "Huge",
    "left",
    "right",
    "big",
    "Big",
    "bigg",
    "Bigg",
    "bigl",
    "bigr",
    "Bigl",
    "Bigr",
    "mleft",
    "mright",
    "bf",
    "rm",
    "it",
    "boxed",
    "fbox",
    "mathbf",
    "mathit",
    "mathsf",
    "boldsymbol",
    "bm",
    "underline",
    "emph",
    "mathord",
    "$",
    "pounds",
];
/// Commands whose argument is text.
const TEXT: &[&str] = &["text", "textbf", "textit", "textrm", "textnormal", "mbox", "hbox", "textsf", "texttt"];
/// Commands whose first argument does not show.
const DROPPED: &[&str] = &["hspace", "vspace", "phantom", "hphantom", "color", "textcolor"];
/// Blanks.
const SPACE: &[&str] = &[",", ";", ":", " ", "quad", "qquad", "thinspace", "enspace", "newline", "\n", "\t", ">"];

/// Signs beyond ASCII that are read, as the command or character they stand for.
fn sign(c: char) -> Option<Kind> {
    let cmd = |s: &str| Some(Kind::Cmd(s.to_owned()));
    match c {
        '−' => Some(Kind::Sym('-')),
        '×' => cmd("times"),
        '÷' => cmd("div"),
        'π' => cmd("pi"),
        '≤' | '⩽' => cmd("le"),
        '≥' | '⩾' => cmd("ge"),
        '≠' => cmd("ne"),
        '≈' => cmd("approx"),
        '±' => cmd("pm"),
        '∪' => cmd("cup"),
        '∩' => cmd("cap"),
        '∈' => cmd("in"),
        '∅' => cmd("emptyset"),
        '∠' => cmd("angle"),
        'α' => cmd("alpha"),
        'β' => cmd("beta"),
        'γ' => cmd("gamma"),
        'δ' => cmd("delta"),
        'θ' => cmd("theta"),
        'λ' => cmd("lambda"),
        'μ' => cmd("mu"),
        'ρ' => cmd("rho"),
        'σ' => cmd("sigma"),
        'φ' => cmd("phi"),
        'ω' => cmd("omega"),
        _ => None,
    }
}

/// Tokens of `s`, with braces balanced: stray closing ones are dropped, missing ones added at the end.
pub(super) fn lex(s: &str) -> Vec<Token> {
    let matrix = s.contains("matrix") || s.contains("{array}") || s.contains("{cases}");
    let mut lexer = Lexer {
        chars: s.chars().map(narrow).collect(),
        at: 0,
        space: false,
        out: Vec::new(),
        bracketed: false,
        matrix,
    };
    lexer.run();
    lexer.out
}

/// Full-width digits and letters as ASCII.
fn narrow(c: char) -> char {
    match c {
        '０'..='９' | 'Ａ'..='Ｚ' | 'ａ'..='ｚ' => char::from_u32(c as u32 - 0xFEE0).unwrap_or(c),
        _ => c,
    }
}

struct Lexer {
    chars: Vec<char>,
    at: usize,
    space: bool,
    out: Vec<Token>,
    /// A bracket stood before: a comma then separates.
    bracketed: bool,
    /// Row ends are to be kept apart from commands.
    matrix: bool,
}

impl Lexer {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn push(&mut self, kind: Kind, text: bool) {
        self.bracketed |= matches!(kind, Kind::Sym('(' | '['));
        self.bracketed |= matches!(&kind, Kind::Cmd(c) if c == "{");
        self.out.push(Token { kind, space: std::mem::take(&mut self.space), text });
    }

    fn run(&mut self) {
        // Open braces: whether each stands in text, and whether it is a token (the braces of a text command are not).
        let mut open: Vec<(bool, bool)> = Vec::new();
        let mut text_next = false;
        while let Some(c) = self.peek(0) {
            let text = open.last().is_some_and(|(text, _)| *text);
            match c {
                '{' => {
                    self.at += 1;
                    open.push((text || text_next, !text_next));
                    if !text_next {
                        self.push(Kind::Sym('{'), text);
                    }
                }
                '}' => {
                    self.at += 1;
                    if let Some((text, true)) = open.pop() {
                        self.push(Kind::Sym('}'), text);
                    }
                }
                '$' => self.at += 1,
                c if c.is_whitespace() || (c == '~' && text) => {
                    self.space = true;
                    self.at += 1;
                    continue;
                }
                '\\' => {
                    if self.command(text) {
                        text_next = true;
                        continue;
                    }
                }
                c if c.is_ascii_digit() || (c == '.' && self.peek(1).is_some_and(|d| d.is_ascii_digit())) => {
                    self.number(text);
                }
                c => {
                    if let Some(kind) = sign(c) {
                        self.at += 1;
                        self.push(kind, text);
                    } else if c.is_alphabetic() {
                        self.word(text);
                    } else {
                        self.at += 1;
                        self.push(Kind::Sym(c), text);
                    }
                }
            }
            text_next = false;
        }
        while let Some((text, shown)) = open.pop() {
            if shown {
                self.push(Kind::Sym('}'), text);
            }
        }
    }

    /// Reads a command; true if its argument is text.
    fn command(&mut self, text: bool) -> bool {
        self.at += 1;
        // A doubled backslash before a name is an escaping accident, except in a matrix, where it ends a row.
        if !self.matrix && self.peek(0) == Some('\\') && self.peek(1).is_some_and(char::is_alphabetic) {
            self.at += 1;
        }
        let start = self.at;
        while self.peek(0).is_some_and(|c| c.is_ascii_alphabetic()) {
            self.at += 1;
        }
        if self.at == start && self.at < self.chars.len() {
            self.at += 1;
        }
        let name: String = self.chars[start..self.at].iter().collect();
        match name.as_str() {
            "" | "(" | ")" | "[" | "]" => self.space = true,
            "!" => {}
            n if TEXT.contains(&n) => return true,
            n if STYLE.contains(&n) => {
                // `\right.` and `\left.` are invisible.
                if matches!(n, "left" | "right") && self.peek(0) == Some('.') {
                    self.at += 1;
                }
            }
            n if SPACE.contains(&n) => self.space = true,
            n if DROPPED.contains(&n) => self.skip_group(),
            "mathrm" | "operatorname" => return self.roman(),
            "%" => self.push(Kind::Sym('%'), text),
            "dfrac" | "tfrac" | "cfrac" => self.push(Kind::Cmd("frac".into()), text),
            "dbinom" | "tbinom" => self.push(Kind::Cmd("binom".into()), text),
            "leq" | "leqslant" => self.push(Kind::Cmd("le".into()), text),
            "geq" | "geqslant" => self.push(Kind::Cmd("ge".into()), text),
            "neq" => self.push(Kind::Cmd("ne".into()), text),
            "lt" => self.push(Kind::Sym('<'), text),
            "gt" => self.push(Kind::Sym('>'), text),
            "varnothing" => self.push(Kind::Cmd("emptyset".into()), text),
            "lbrace" => self.push(Kind::Cmd("{".into()), text),
            "rbrace" => self.push(Kind::Cmd("}".into()), text),
            "lvert" | "rvert" | "vert" | "mid" => self.push(Kind::Sym('|'), text),
            "ast" => self.push(Kind::Sym('*'), text),
            "colon" => self.push(Kind::Sym(':'), text),
            _ => self.push(Kind::Cmd(name), text),
        }
        false
    }

    /// `\mathrm{cm}` is text, `\mathrm{e}` and `\mathrm{24}` are not.
    fn roman(&self) -> bool {
        let letters = self.chars[self.at.min(self.chars.len())..]
            .iter()
            .skip_while(|c| matches!(**c, '{' | '~') || c.is_whitespace());
        letters.take_while(|c| c.is_ascii_alphabetic()).count() >= 2
    }

    /// Steps over `{…}` without nesting.
    fn skip_group(&mut self) {
        if self.peek(0) == Some('{') {
            self.at += self.chars[self.at..].iter().position(|c| *c == '}').map_or(0, |n| n + 1);
        }
        self.space = true;
    }

    fn word(&mut self, text: bool) {
        let start = self.at;
        while self.peek(0).is_some_and(|c| c.is_alphabetic() && sign(c).is_none()) {
            self.at += 1;
        }
        let word: String = self.chars[start..self.at].iter().collect();
        self.push(Kind::Word(word), text);
    }

    fn number(&mut self, text: bool) {
        let mut n = String::new();
        self.digits(&mut n);
        self.thousands(&mut n);
        if self.peek(0) == Some('.') && !n.contains('.') {
            if self.peek(1).is_some_and(|c| c.is_ascii_digit()) {
                n.push('.');
                self.at += 1;
                self.digits(&mut n);
            } else if self.peek(1).is_none_or(|c| c != '.') {
                // A point at the end of a number: `24.`
                self.at += 1;
                n.push('.');
            }
        }
        let sign = usize::from(matches!(self.peek(1), Some('+' | '-')));
        if matches!(self.peek(0), Some('e' | 'E')) && self.peek(1 + sign).is_some_and(|c| c.is_ascii_digit()) {
            n.extend(&self.chars[self.at..=self.at + sign]);
            self.at += 1 + sign;
            self.digits(&mut n);
        }
        self.push(Kind::Num(n), text);
    }

    fn digits(&mut self, into: &mut String) {
        while let Some(c) = self.peek(0).filter(char::is_ascii_digit) {
            into.push(c);
            self.at += 1;
        }
    }

    /// Takes in `,ddd` groups (also `{,}ddd` and `,\!ddd`) if what is read so far and all that follows is a properly grouped number.
    fn thousands(&mut self, n: &mut String) {
        if n.is_empty() || n.len() > 3 {
            return;
        }
        let (mut at, mut groups, mut sure) = (self.at, String::new(), !self.bracketed);
        loop {
            let rest: String = self.chars[at..].iter().take(8).collect();
            let Some(mark) = ["{,}", ",\\!\\!", ",\\!", "\\!,\\!", ","].into_iter().find(|m| rest.starts_with(m))
            else {
                break;
            };
            let from = at + mark.len();
            let digits = self.chars[from.min(self.chars.len())..].iter().take_while(|c| c.is_ascii_digit()).count();
            if digits != 3 {
                // `1,00` and `1,000,00` are lists, not numbers.
                if digits > 0 && mark == "," {
                    return;
                }
                break;
            }
            sure |= mark != "," || self.chars[from] == '0';
            groups.extend(&self.chars[from..from + 3]);
            at = from + 3;
        }
        if sure {
            n.push_str(&groups);
            self.at = at;
        }
    }
}

/// The text of tokens without blanks and braces, in lower case: the key of an answer that is not mathematics.
pub(super) fn plain(tokens: &[Token]) -> String {
    let mut out = String::new();
    for t in tokens {
        match &t.kind {
            Kind::Num(s) => out.push_str(s),
            Kind::Word(s) => out.extend(s.chars().flat_map(char::to_lowercase)),
            Kind::Cmd(s) => {
                out.push('\\');
                out.push_str(s);
            }
            Kind::Sym('{' | '}') => {}
            Kind::Sym(c) => out.push(*c),
        }
    }
    out
}
