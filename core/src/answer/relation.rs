//! Equations and inequalities. A name in front of an equals sign only says what the value is of (`x = 5` is 5); lines are solved
//! for y, and other equations are known up to a constant factor.

use super::expr::Expr;
use super::lex::{Kind, Token, plain};
use super::shape::{Reading, element, env, split, value, value_key};
use super::value::{Env, IMAGES, Value, digest, eval, prime};

/// A relation's key, and the name of what it gives the value of.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rel {
    pub name: Option<String>,
    pub key: String,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Op {
    Equal,
    Approximately,
    Element,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

/// The relation sign at `i` and how many tokens it takes.
fn op(tokens: &[Token], i: usize) -> Option<(Op, usize)> {
    let then_equal = tokens.get(i + 1).is_some_and(|t| t.is('='));
    Some(match &tokens[i].kind {
        Kind::Sym('=') => (Op::Equal, 1),
        Kind::Sym('<') if then_equal => (Op::LessEqual, 2),
        Kind::Sym('>') if then_equal => (Op::GreaterEqual, 2),
        Kind::Sym('<') => (Op::Less, 1),
        Kind::Sym('>') => (Op::Greater, 1),
        Kind::Cmd(c) => match c.as_str() {
            "approx" | "simeq" | "equiv" => (Op::Approximately, 1),
            "in" => (Op::Element, 1),
            "le" => (Op::LessEqual, 1),
            "ge" => (Op::GreaterEqual, 1),
            _ => return None,
        },
        _ => return None,
    })
}

/// `None` if there is no relation sign outside brackets; `Some(None)` if there is one that makes no sense.
pub(super) fn key(tokens: &[Token], r: Reading) -> Option<Option<Rel>> {
    let mut ops = Vec::new();
    let mut second = usize::MAX;
    // `split` walks the tokens once; the second sign of `<=` belongs to the first.
    let signs: Vec<Option<(Op, usize)>> = (0..tokens.len())
        .map(|i| {
            let found = if i == second { None } else { op(tokens, i) };
            if let Some((_, 2)) = found {
                second = i + 1;
            }
            found
        })
        .collect();
    let parts = split(tokens, |_, i| signs[i].is_some())?;
    if parts.len() < 2 {
        return None;
    }
    let mut at = 0;
    let mut sides: Vec<&[Token]> = Vec::with_capacity(parts.len());
    for (n, part) in parts.iter().enumerate() {
        let width: usize = if n == 0 { 0 } else { ops.last().map_or(1, |(_, w)| *w) };
        sides.push(part.get(width.saturating_sub(1)..).unwrap_or(&[]));
        at += part.len();
        if let Some(Some(o)) = signs.get(at) {
            ops.push(*o);
        }
        at += 1;
    }
    let ops: Vec<Op> = ops.into_iter().map(|(o, _)| o).collect();
    Some(relation(&sides, &ops, r))
}

fn relation(sides: &[&[Token]], ops: &[Op], r: Reading) -> Option<Rel> {
    if ops.iter().all(|o| matches!(o, Op::Equal | Op::Approximately | Op::Element)) {
        return equation(sides, ops, r);
    }
    let mut keys = Vec::with_capacity(ops.len());
    for (pair, op) in sides.windows(2).zip(ops) {
        keys.push(inequality(pair[0], *op, pair[1], r)?);
    }
    keys.sort_unstable();
    keys.dedup();
    Some(Rel { name: None, key: keys.join("&") })
}

fn equation(sides: &[&[Token]], ops: &[Op], r: Reading) -> Option<Rel> {
    let (first, rest) = sides.split_first()?;
    if rest.iter().any(|s| s.is_empty()) {
        return None;
    }
    // `\approx 3.5`
    let value_of = |side: &[Token], name: Option<&[Token]>| Some(Rel { name: name.map(plain), key: element(side, r) });
    if first.is_empty() {
        return value_of(rest.first()?, None);
    }
    let last = sides.last()?;
    if is_name(first) && !(rest.len() == 1 && is_name(last) && ops[0] != Op::Element) {
        return value_of(rest.first()?, Some(first));
    }
    if ops.contains(&Op::Element) {
        return None;
    }
    if is_name(last) && !is_name(first) {
        return value_of(first, Some(last));
    }
    let (a, _) = value(first, 1, r)?;
    let (b, _) = value(last, 1, r)?;
    if sides.len() > 2 {
        return None;
    }
    solve(Expr::Add(a.clone().into(), Expr::Neg(b.into()).into()), &a, r)
}

/// lhs − rhs = 0: the common value if there is no variable; y, if it depends linearly on y and on other variables (`y - 2x = 1` is the
/// line `y = 2x + 1`); else the curve. An equation in one unknown is not its solution.
fn solve(f: Expr, left: &Expr, r: Reading) -> Option<Rel> {
    let v = eval(&f, &env(r))?;
    let mut names = Vec::new();
    f.variables(&mut names);
    if names.is_empty() {
        let common = eval(left, &env(r))?;
        return v.is_zero().then(|| Rel { name: None, key: value_key(left, &common, r) });
    }
    let unknown = "y";
    if names.len() > 1
        && names.contains(&unknown)
        && let Some(solution) = linear_solution(&f, unknown, r)
    {
        let lone =
            names.iter().find(|n| eval(&Expr::Var((**n).to_owned()), &env(r)).is_some_and(|x| x.at == solution.at));
        let key = lone
            .map_or_else(|| solution.key(), |n| if n.len() == 1 { n.to_ascii_lowercase() } else { format!("v:{n}") });
        return Some(Rel { name: Some(unknown.to_owned()), key });
    }
    Some(Rel { name: None, key: format!("eq:{}", shape_of(&v)?) })
}

/// −f(0)/slope where f(0), f(1), f(2) lie on a line whose slope holds no variable.
fn linear_solution(f: &Expr, unknown: &str, r: Reading) -> Option<Value> {
    let at = |n| eval(f, &Env { set: Some((unknown, n)), ..env(r) });
    let (f0, f1, f2) = (at(0)?, at(1)?, at(2)?);
    let slope = f1.sub(f0);
    let bends = !f2.sub(f1).sub(slope).is_zero();
    if bends || !slope.is_constant() || slope.is_zero() {
        return None;
    }
    Some(f0.neg().mul(slope.inv()?))
}

/// What is left of a function when constant factors do not count: the quotient of its values at the two points.
fn shape_of(v: &Value) -> Option<String> {
    let mut quotients = Vec::with_capacity(IMAGES / 2);
    for k in [0, 2] {
        quotients.push(v.at[k].mul(v.at[k + 1].inv(prime(k))?, prime(k)));
    }
    Some(digest(&quotients))
}

/// lhs < rhs as lhs − rhs < 0, up to a positive factor; the estimate at a fixed point tells the sign of the factor.
fn inequality(left: &[Token], op: Op, right: &[Token], r: Reading) -> Option<String> {
    let infinite = |t: &[Token]| t.iter().any(|t| t.cmd() == Some("infty"));
    if infinite(left) || infinite(right) {
        return None;
    }
    let f = value(left, 1, r)?.1.sub(value(right, 1, r)?.1);
    if f.is_constant() || !f.real.is_finite() || f.real == 0.0 {
        return None;
    }
    let (flip, strict) = match op {
        Op::Less => (false, true),
        Op::LessEqual => (false, false),
        Op::Greater => (true, true),
        Op::GreaterEqual => (true, false),
        Op::Equal | Op::Approximately | Op::Element => return None,
    };
    let below = (f.real < 0.0) != flip;
    let sign = if strict { "lt" } else { "le" };
    Some(format!("{sign}:{}:{}", if below { "holds" } else { "fails" }, shape_of(&f)?))
}

/// True for what only names a quantity: `x`, `BC`, `x_1`, `f(x)`, `\angle A`, `Area of ABC`, `(x,y)`.
fn is_name(tokens: &[Token]) -> bool {
    let mut letters = false;
    let mut depth = 0;
    for (i, t) in tokens.iter().enumerate() {
        let before = i.checked_sub(1).map(|j| &tokens[j]);
        let ok = match &t.kind {
            Kind::Word(w) => {
                letters = true;
                w != "pi"
            }
            Kind::Cmd(c) => {
                letters |= super::parse::is_greek(c);
                super::parse::is_greek(c)
                    || matches!(
                        c.as_str(),
                        "angle" | "measuredangle" | "triangle" | "overline" | "vec" | "hat" | "bar" | "widehat"
                    )
            }
            Kind::Sym('(') => {
                depth += 1;
                true
            }
            Kind::Sym(')') => {
                depth -= 1;
                true
            }
            Kind::Sym('_' | '{' | '}' | '\'' | '|') => true,
            Kind::Sym(',') => depth > 0,
            Kind::Sym(_) => false,
            Kind::Num(_) => {
                depth > 0
                    || (before.is_some_and(|b| b.word().is_some()) && !t.space)
                    || before.is_some_and(|b| b.is('_') || b.is('{'))
            }
        };
        if !ok {
            return false;
        }
    }
    letters && depth == 0
}
