//! The syntax tree of an expression. What it is worth is decided in `value`.

/// One node.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Expr {
    /// Decimal digits (without leading zeros) times 10^exponent.
    Num {
        digits: String,
        exponent: i64,
    },
    /// A variable by its full name, subscript included.
    Var(String),
    Pi,
    Euler,
    Neg(Box<Expr>),
    Add(Box<Expr>, Box<Expr>),
    Mul(Box<Expr>, Box<Expr>),
    Div(Box<Expr>, Box<Expr>),
    Pow(Box<Expr>, Box<Expr>),
    /// The n-th root.
    Root(u32, Box<Expr>),
    Abs(Box<Expr>),
    Factorial(Box<Expr>),
    Binomial(Box<Expr>, Box<Expr>),
    /// Logarithm of the second to the base of the first.
    Log(Box<Expr>, Box<Expr>),
    /// A named function of one argument.
    Call(String, Box<Expr>),
}

impl Expr {
    pub fn int(n: u32) -> Self {
        Expr::Num { digits: n.to_string(), exponent: 0 }
    }

    /// Adds the names of all variables, in order of appearance, each once.
    pub fn variables<'a>(&'a self, into: &mut Vec<&'a str>) {
        match self {
            Expr::Var(v) => {
                if !into.contains(&v.as_str()) {
                    into.push(v);
                }
            }
            Expr::Num { .. } | Expr::Pi | Expr::Euler => {}
            Expr::Neg(a) | Expr::Root(_, a) | Expr::Abs(a) | Expr::Factorial(a) | Expr::Call(_, a) => a.variables(into),
            Expr::Add(a, b)
            | Expr::Mul(a, b)
            | Expr::Div(a, b)
            | Expr::Pow(a, b)
            | Expr::Binomial(a, b)
            | Expr::Log(a, b) => {
                a.variables(into);
                b.variables(into);
            }
        }
    }
}

/// A literal such as `007.250e3`; `None` if it holds no digit or its exponent is beyond 18 digits.
pub(super) fn number(text: &str) -> Option<Expr> {
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(i) => (&text[..i], text[i + 1..].trim_start_matches('+')),
        None => (text, "0"),
    };
    if exponent.len() > 18 {
        return None;
    }
    let mut exponent: i64 = exponent.parse().ok()?;
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.is_empty() && part.is_empty() {
        return None;
    }
    let part = part.trim_end_matches('0');
    exponent -= part.len() as i64;
    let digits = format!("{whole}{part}");
    let digits = digits.trim_start_matches('0');
    let digits = if digits.is_empty() { "0" } else { digits };
    Some(Expr::Num { digits: digits.to_owned(), exponent })
}
