//! Tokens of one expression to a syntax tree. Whatever is not plainly an expression is refused, and the answer then is text.

use super::expr::{Expr, number};
use super::lex::{Kind, Token};

/// Deepest nesting that is read.
const MAX_DEPTH: u32 = 100;
/// Functions of one argument.
const FUNCTIONS: &[&str] = &[
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "exp", "log", "ln",
    "lg",
];
/// Commands that are letters.
const GREEK: &[&str] = &[
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "varepsilon",
    "zeta",
    "eta",
    "theta",
    "vartheta",
    "iota",
    "kappa",
    "lambda",
    "mu",
    "nu",
    "xi",
    "rho",
    "sigma",
    "tau",
    "phi",
    "varphi",
    "chi",
    "psi",
    "omega",
    "Gamma",
    "Delta",
    "Theta",
    "Lambda",
    "Sigma",
    "Phi",
    "Psi",
    "Omega",
    "ell",
];

/// True for commands that are letters.
pub(super) fn is_greek(name: &str) -> bool {
    GREEK.contains(&name)
}

/// Parses all tokens as one expression. `plus_minus` is the sign that `\pm` stands for; `degrees` makes `^\circ` π/180 inside functions.
pub(super) fn parse(tokens: &[Token], plus_minus: i8, degrees: bool) -> Option<Expr> {
    let mut p = Parser { tokens: letters_apart(tokens), at: 0, depth: 0, plus_minus, degrees, in_function: false };
    let e = p.sum()?;
    (p.at == p.tokens.len()).then_some(e)
}

/// Words of up to three letters are products of letters unless they are names; longer ones are one variable. Digits glued to letters
/// belong to the name (`x1`).
fn letters_apart(tokens: &[Token]) -> Vec<Token> {
    let mut out: Vec<Token> = Vec::with_capacity(tokens.len());
    let mut i = 0;
    while let Some(t) = tokens.get(i) {
        i += 1;
        let Some(w) = t.word() else {
            out.push(t.clone());
            continue;
        };
        if let Some(Token { kind: Kind::Num(n), space: false, .. }) = tokens.get(i) {
            i += 1;
            out.push(Token { kind: Kind::Word(format!("{w}{n}")), ..t.clone() });
        } else if FUNCTIONS.contains(&w) || matches!(w, "sqrt" | "pi") || w.chars().count() > 3 {
            out.push(t.clone());
        } else {
            for (k, c) in w.chars().enumerate() {
                out.push(Token { kind: Kind::Word(c.to_string()), space: k == 0 && t.space, text: t.text });
            }
        }
    }
    out
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: u32,
    plus_minus: i8,
    degrees: bool,
    in_function: bool,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn sym(&self, c: char) -> bool {
        self.peek().is_some_and(|t| t.is(c))
    }

    fn cmd(&self) -> Option<&str> {
        self.peek().and_then(Token::cmd)
    }

    fn eat(&mut self, c: char) -> bool {
        let yes = self.sym(c);
        self.at += usize::from(yes);
        yes
    }

    fn eat_cmd(&mut self, names: &[&str]) -> bool {
        let yes = self.cmd().is_some_and(|c| names.contains(&c));
        self.at += usize::from(yes);
        yes
    }

    /// The sign at hand: +1, −1, or what ± means here.
    fn sign(&mut self) -> Option<i8> {
        if self.eat('+') {
            Some(1)
        } else if self.eat('-') {
            Some(-1)
        } else if self.eat_cmd(&["pm"]) {
            Some(self.plus_minus)
        } else if self.eat_cmd(&["mp"]) {
            Some(-self.plus_minus)
        } else {
            None
        }
    }

    fn sum(&mut self) -> Option<Expr> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let mut left = self.product()?;
        while let Some(s) = self.sign() {
            let right = self.product()?;
            let right = if s < 0 { Expr::Neg(right.into()) } else { right };
            left = Expr::Add(left.into(), right.into());
        }
        self.depth -= 1;
        Some(left)
    }

    fn product(&mut self) -> Option<Expr> {
        let mut left = self.factor()?;
        loop {
            if self.eat('*') || self.eat_cmd(&["times", "cdot"]) {
                left = Expr::Mul(left.into(), self.factor()?.into());
            } else if self.eat('/') || self.eat_cmd(&["div"]) {
                left = Expr::Div(left.into(), self.factor()?.into());
            } else if self.starts_factor() {
                left = Expr::Mul(left.into(), self.power()?.into());
            } else {
                return Some(left);
            }
        }
    }

    /// True where a factor may follow without a sign. A number may not follow a letter or a number.
    fn starts_factor(&self) -> bool {
        let Some(t) = self.peek() else { return false };
        match &t.kind {
            Kind::Num(_) => {
                self.at > 0 && {
                    let before = &self.tokens[self.at - 1];
                    before.is(')') || before.is('}') || before.cmd() == Some("pi")
                }
            }
            Kind::Word(w) => {
                t.is_letter() || FUNCTIONS.contains(&w.as_str()) || matches!(w.as_str(), "sqrt" | "pi") || !t.space
            }
            Kind::Cmd(c) => {
                matches!(c.as_str(), "frac" | "sqrt" | "pi" | "binom") || FUNCTIONS.contains(&c.as_str()) || is_greek(c)
            }
            Kind::Sym(c) => matches!(c, '(' | '[' | '{'),
        }
    }

    fn factor(&mut self) -> Option<Expr> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let e = match self.sign() {
            Some(s) => {
                let e = self.factor()?;
                if s < 0 { Expr::Neg(e.into()) } else { e }
            }
            None => self.power()?,
        };
        self.depth -= 1;
        Some(e)
    }

    fn power(&mut self) -> Option<Expr> {
        let base = self.primary()?;
        self.suffix(base)
    }

    /// Degrees, percent, factorial and exponents after a primary.
    fn suffix(&mut self, mut e: Expr) -> Option<Expr> {
        loop {
            if self.eat('%') {
            } else if self.eat('!') {
                e = Expr::Factorial(e.into());
            } else if self.eat_degree() {
                if self.degrees && self.in_function {
                    let half_turn = Expr::Div(Expr::Pi.into(), Expr::int(180).into());
                    e = Expr::Mul(e.into(), half_turn.into());
                }
            } else if self.eat('^') {
                let exponent = self.exponent()?;
                e = Expr::Pow(e.into(), exponent.into());
            } else {
                return Some(e);
            }
        }
    }

    fn eat_degree(&mut self) -> bool {
        if self.eat_cmd(&["degree", "circ"]) {
            return true;
        }
        let is_circ = |t: Option<&Token>| t.and_then(Token::cmd).is_some_and(|c| c == "circ");
        let t = |k: usize| self.tokens.get(self.at + k);
        let length = if !self.sym('^') {
            0
        } else if is_circ(t(1)) {
            2
        } else if t(1).is_some_and(|t| t.is('{')) && is_circ(t(2)) && t(3).is_some_and(|t| t.is('}')) {
            4
        } else {
            0
        };
        self.at += length;
        length > 0
    }

    /// Right-associative: 3^2^2 = 3^(2^2).
    fn exponent(&mut self) -> Option<Expr> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let e = match self.sign() {
            Some(s) => {
                let e = self.exponent()?;
                if s < 0 { Expr::Neg(e.into()) } else { e }
            }
            None => {
                let base = self.primary()?;
                if self.sym('^') && !self.starts_degree() {
                    self.at += 1;
                    Expr::Pow(base.into(), self.exponent()?.into())
                } else {
                    base
                }
            }
        };
        self.depth -= 1;
        Some(e)
    }

    fn primary(&mut self) -> Option<Expr> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let t = self.peek()?.clone();
        self.at += 1;
        let e = self.primary_of(t.kind);
        self.depth -= 1;
        e
    }

    fn primary_of(&mut self, kind: Kind) -> Option<Expr> {
        match kind {
            Kind::Num(n) => self.after_number(&n),
            Kind::Word(w) => self.named(&w),
            Kind::Cmd(c) => match c.as_str() {
                "frac" => Some(Expr::Div(self.argument()?.into(), self.argument()?.into())),
                "binom" => Some(Expr::Binomial(self.argument()?.into(), self.argument()?.into())),
                "sqrt" => self.root(),
                "pi" => Some(Expr::Pi),
                c if FUNCTIONS.contains(&c) => self.function(c),
                c if is_greek(c) => self.variable(c),
                _ => None,
            },
            Kind::Sym('(') => self.closed(')'),
            Kind::Sym('[') => self.closed(']'),
            Kind::Sym('{') => self.closed('}'),
            Kind::Sym('|') => Some(Expr::Abs(self.closed('|')?.into())),
            Kind::Sym(_) => None,
        }
    }

    fn closed(&mut self, end: char) -> Option<Expr> {
        let e = self.sum()?;
        self.eat(end).then_some(e)
    }

    /// A literal, the repeating decimal `0.1\overline{6}`, or a mixed number `3 1/4`, `3\frac{1}{4}`.
    fn after_number(&mut self, n: &str) -> Option<Expr> {
        let e = number(n)?;
        if n.contains('.') && self.cmd() == Some("overline") {
            return self.repeating(e, n);
        }
        if !n.bytes().all(|b| b.is_ascii_digit()) {
            return Some(e);
        }
        let start = self.at;
        match self.proper_fraction() {
            Some(part) => Some(Expr::Add(e.into(), part.into())),
            None => {
                self.at = start;
                Some(e)
            }
        }
    }

    fn repeating(&mut self, head: Expr, n: &str) -> Option<Expr> {
        self.at += 1;
        let Some(Token { kind: Kind::Num(period), .. }) = self.tokens.get(self.at + 1).cloned() else { return None };
        if !(self.eat('{') && period.bytes().all(|b| b.is_ascii_digit())) {
            return None;
        }
        self.at += 1;
        let places = n.split_once('.')?.1.len() as i64;
        let nines = number(&format!("{}e-0", "9".repeat(period.len())))?;
        let tail = Expr::Div(number(&period)?.into(), nines.into());
        let scale = number(&format!("1e-{places}"))?;
        let e = Expr::Add(head.into(), Expr::Mul(tail.into(), scale.into()).into());
        self.eat('}').then_some(e)
    }

    /// ` 1/4` after a blank, or `\frac{1}{4}`: digits only and below 1.
    fn proper_fraction(&mut self) -> Option<Expr> {
        let slash = matches!(self.peek(), Some(Token { kind: Kind::Num(_), space: true, .. }));
        let (n, d) = if slash {
            let n = self.whole()?;
            self.eat('/').then_some(())?;
            (n, self.whole()?)
        } else if self.eat_cmd(&["frac"]) {
            (self.whole_argument()?, self.whole_argument()?)
        } else {
            return None;
        };
        let (small, large) = (n.parse::<u64>().ok()?, d.parse::<u64>().ok()?);
        (small < large).then_some(())?;
        Some(Expr::Div(number(&n)?.into(), number(&d)?.into()))
    }

    fn whole(&mut self) -> Option<String> {
        let Some(Token { kind: Kind::Num(n), .. }) = self.peek() else { return None };
        let n = n.clone();
        self.at += 1;
        n.bytes().all(|b| b.is_ascii_digit()).then_some(n)
    }

    fn whole_argument(&mut self) -> Option<String> {
        if self.eat('{') {
            let n = self.whole()?;
            return self.eat('}').then_some(n);
        }
        self.first_digit()
    }

    /// `\frac12` takes one digit at a time.
    fn first_digit(&mut self) -> Option<String> {
        let Some(Token { kind: Kind::Num(n), .. }) = self.tokens.get_mut(self.at) else { return None };
        if n.len() == 1 || !n.bytes().all(|b| b.is_ascii_digit()) {
            return self.whole();
        }
        let first = n.remove(0);
        Some(first.to_string())
    }

    /// An argument of a command: a braced group, one digit, one letter or one command.
    fn argument(&mut self) -> Option<Expr> {
        match &self.peek()?.kind {
            Kind::Num(_) => {
                let digit = self.first_digit()?;
                number(&digit)
            }
            Kind::Sym('{') | Kind::Word(_) | Kind::Cmd(_) => self.primary(),
            Kind::Sym(_) => None,
        }
    }

    fn root(&mut self) -> Option<Expr> {
        let mut order = 2;
        if self.eat('[') {
            order = self.whole()?.parse().ok().filter(|n| (1..=1000).contains(n))?;
            self.eat(']').then_some(())?;
        }
        Some(Expr::Root(order, self.argument()?.into()))
    }

    fn named(&mut self, w: &str) -> Option<Expr> {
        match w {
            "sqrt" if self.eat('(') => Some(Expr::Root(2, self.closed(')')?.into())),
            "pi" => Some(Expr::Pi),
            "e" if !self.sym('_') => Some(Expr::Euler),
            w if FUNCTIONS.contains(&w) => self.function(w),
            w if w.is_ascii() => self.variable(w),
            // Words of other scripts are text.
            _ => None,
        }
    }

    /// A letter with its subscript.
    fn variable(&mut self, name: &str) -> Option<Expr> {
        let mut name = name.to_owned();
        if self.eat('_') {
            name.push('_');
            let braced = self.eat('{');
            let start = name.len();
            while let Some(t) = self.peek() {
                match &t.kind {
                    Kind::Num(s) | Kind::Word(s) => name.push_str(s),
                    Kind::Sym(',') if braced => name.push(','),
                    _ => break,
                }
                self.at += 1;
                if !braced {
                    break;
                }
            }
            if name.len() == start || (braced && !self.eat('}')) {
                return None;
            }
        }
        (!self.sym('\'')).then_some(Expr::Var(name))
    }

    /// `\sin^2 x`, `\log_2 8`, `\ln(x+1)`.
    fn function(&mut self, name: &str) -> Option<Expr> {
        let mut base = None;
        if self.eat('_') {
            base = Some(self.argument()?);
        }
        let mut exponent = None;
        if !self.starts_degree() && self.eat('^') {
            exponent = Some(self.exponent()?);
        }
        let outer = std::mem::replace(&mut self.in_function, true);
        let arg = if self.eat('(') { self.closed(')') } else { self.open_argument() };
        self.in_function = outer;
        let arg = arg?;
        let e = match (name, base) {
            ("ln", None) => Expr::Log(Expr::Euler.into(), arg.into()),
            ("log" | "lg", None) => Expr::Log(Expr::int(10).into(), arg.into()),
            ("log", Some(b)) => Expr::Log(b.into(), arg.into()),
            (_, None) => Expr::Call(name.to_owned(), arg.into()),
            _ => return None,
        };
        Some(match exponent {
            // sin^{-1} is the inverse function, which `\arcsin` writes plainly.
            Some(Expr::Neg(_)) => return None,
            Some(n) => Expr::Pow(e.into(), n.into()),
            None => e,
        })
    }

    fn starts_degree(&self) -> bool {
        self.sym('^') && self.tokens.get(self.at + 1).is_some_and(|t| t.cmd() == Some("circ"))
    }

    /// Factors up to the next sign, slash or function.
    fn open_argument(&mut self) -> Option<Expr> {
        let mut left = self.power()?;
        while self.starts_factor() && !self.peek().is_some_and(Token::is_function) {
            left = Expr::Mul(left.into(), self.power()?.into());
        }
        Some(left)
    }
}

impl Token {
    /// A word of one letter.
    pub fn is_letter(&self) -> bool {
        self.word().is_some_and(|w| w.chars().count() == 1)
    }

    fn is_function(&self) -> bool {
        self.word().or(self.cmd()).is_some_and(|w| FUNCTIONS.contains(&w))
    }
}

/// True for names of functions.
pub(super) fn is_function(name: &str) -> bool {
    FUNCTIONS.contains(&name)
}
