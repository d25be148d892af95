//! What an expression is worth: its images in two finite fields at two points, and a floating-point estimate that only settles signs.
//! Equal images mean equal expressions, so the key of a value is its images (or the rational, where it is a small one).

use super::expr::Expr;
use super::field::{E, PRIMES, pow, rational};
use super::surd;

/// Two primes × two points.
pub(super) const IMAGES: usize = 4;

/// The prime of image `k`.
pub(super) fn prime(k: usize) -> u64 {
    PRIMES[k / 2]
}

/// An evaluated expression.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Value {
    pub at: [E; IMAGES],
    /// The value with every variable at a fixed positive number; NaN if unknown.
    pub real: f64,
}

/// How letters are read, and one variable that is replaced by a number.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Env<'a> {
    /// The letter i is the imaginary unit.
    pub imaginary: bool,
    pub set: Option<(&'a str, i64)>,
}

impl Value {
    /// The same element in all images.
    pub fn build(real: f64, f: impl Fn(usize, u64) -> Option<E>) -> Option<Value> {
        let mut at = [E::ZERO; IMAGES];
        for (k, image) in at.iter_mut().enumerate() {
            *image = f(k, prime(k))?;
        }
        Some(Value { at, real })
    }

    pub fn int(n: i64) -> Value {
        let mut at = [E::ZERO; IMAGES];
        for (k, image) in at.iter_mut().enumerate() {
            *image = E::int(n, prime(k));
        }
        Value { at, real: n as f64 }
    }

    pub fn ratio(n: i64, d: i64) -> Option<Value> {
        Value::int(n).mul(Value::int(d).inv()?).into()
    }

    /// An unknown of its own, named by `tag` and `name`; the same number at both points if `constant`.
    pub fn atom(tag: &str, name: &str, constant: bool, real: f64) -> Value {
        let mut at = [E::ZERO; IMAGES];
        for (k, image) in at.iter_mut().enumerate() {
            let mut h = blake3::Hasher::new_derive_key("quorum 2026 answer atom v1");
            h.update(&[k as u8 / 2, if constant { 0 } else { k as u8 % 2 }]);
            h.update(&(tag.len() as u64).to_le_bytes());
            h.update(tag.as_bytes());
            h.update(name.as_bytes());
            let mut bytes = [0; 8];
            h.finalize_xof().fill(&mut bytes);
            let p = prime(k);
            let r = u64::from_le_bytes(bytes) % p;
            // Squares under one prime and non-squares under the other: no sign of √(x²) can pass for x.
            let square = E::real(super::field::mul(r, r, p));
            *image = if k < 2 { square } else { square.neg(p) };
        }
        Value { at, real }
    }

    pub fn add(self, o: Value) -> Value {
        self.zip(o, self.real + o.real, E::add)
    }

    pub fn sub(self, o: Value) -> Value {
        self.zip(o, self.real - o.real, E::sub)
    }

    pub fn mul(self, o: Value) -> Value {
        self.zip(o, self.real * o.real, E::mul)
    }

    fn zip(mut self, o: Value, real: f64, f: impl Fn(E, E, u64) -> E) -> Value {
        for k in 0..IMAGES {
            self.at[k] = f(self.at[k], o.at[k], prime(k));
        }
        self.real = real;
        self
    }

    pub fn neg(self) -> Value {
        Value::int(0).sub(self)
    }

    /// `None` where it is zero.
    pub fn inv(self) -> Option<Value> {
        Value::build(1.0 / self.real, |k, p| self.at[k].inv(p))
    }

    /// Integer power.
    pub fn powi(self, n: i64) -> Option<Value> {
        let real = self.real.powf(n as f64);
        let base = if n < 0 { self.inv()? } else { self };
        Value::build(real, |k, p| Some(base.at[k].pow(n.unsigned_abs(), p)))
    }

    /// True if no variable matters.
    pub fn is_constant(&self) -> bool {
        self.at[0] == self.at[1] && self.at[2] == self.at[3]
    }

    pub fn is_zero(&self) -> bool {
        self.at.iter().all(|e| e.is_zero())
    }

    /// Numerator and denominator, if it is a rational with both below 2³⁰.
    pub fn rational(&self) -> Option<(i64, i64)> {
        if !self.is_constant() || self.at.iter().any(|e| e.im != 0) {
            return None;
        }
        let r = rational(self.at[0].re, PRIMES[0])?;
        (Some(r) == rational(self.at[2].re, PRIMES[1])).then_some(r)
    }

    /// The value as an integer below 2³⁰.
    pub fn integer(&self) -> Option<i64> {
        self.rational().filter(|(_, d)| *d == 1).map(|(n, _)| n)
    }

    /// The canonical key: `3/2` for small rationals, a digest of the images for everything else.
    pub fn key(&self) -> String {
        match self.rational() {
            Some((n, 1)) => n.to_string(),
            Some((n, d)) => format!("{n}/{d}"),
            None => format!("#{}", digest(&self.at)),
        }
    }
}

/// 128 bits of a hash of field elements, in hex.
pub(super) fn digest(elements: &[E]) -> String {
    let mut h = blake3::Hasher::new();
    for e in elements {
        h.update(&e.re.to_le_bytes());
        h.update(&e.im.to_le_bytes());
    }
    h.finalize().to_hex()[..32].to_owned()
}

/// Evaluates; `None` where it is undefined (division by zero) or out of scope (a huge factorial).
pub(super) fn eval(e: &Expr, env: &Env<'_>) -> Option<Value> {
    Some(match e {
        Expr::Num { digits, exponent } => literal(digits, *exponent)?,
        Expr::Var(name) => variable(name, env)?,
        Expr::Pi => Value::atom("constant", "pi", true, std::f64::consts::PI),
        Expr::Euler => Value::atom("constant", "e", true, std::f64::consts::E),
        Expr::Neg(a) => eval(a, env)?.neg(),
        Expr::Add(a, b) => eval(a, env)?.add(eval(b, env)?),
        Expr::Mul(a, b) => eval(a, env)?.mul(eval(b, env)?),
        Expr::Div(a, b) => eval(a, env)?.mul(eval(b, env)?.inv()?),
        Expr::Pow(a, b) => power(eval(a, env)?, b, env)?,
        Expr::Root(n, a) => surd::root(eval(a, env)?, *n)?,
        Expr::Abs(a) => absolute(eval(a, env)?)?,
        Expr::Factorial(a) => factorial(eval(a, env)?.integer()?)?,
        Expr::Binomial(n, k) => binomial(eval(n, env)?.integer()?, eval(k, env)?.integer()?)?,
        Expr::Log(b, a) => log(a, env)?.mul(log(b, env)?.inv()?),
        Expr::Call(name, a) => surd::call(name, eval(a, env)?)?,
    })
}

fn literal(digits: &str, exponent: i64) -> Option<Value> {
    let real = format!("{digits}e{exponent}").parse().unwrap_or(f64::NAN);
    Value::build(real, |_, p| {
        let n = digits
            .bytes()
            .fold(0u64, |n, b| ((u128::from(n) * 10 + u128::from(b.wrapping_sub(b'0'))) % u128::from(p)) as u64);
        let scale = pow(10, exponent.rem_euclid((p - 1) as i64) as u64, p);
        Some(E::real(super::field::mul(n, scale, p)))
    })
}

fn variable(name: &str, env: &Env<'_>) -> Option<Value> {
    if let Some((set, n)) = env.set
        && set == name
    {
        return Some(Value::int(n));
    }
    if env.imaginary && name == "i" {
        return Value::build(f64::NAN, |_, _| Some(E { re: 0, im: 1 }));
    }
    let spread = blake3::hash(name.as_bytes()).as_bytes()[0];
    Some(Value::atom("variable", name, false, 1.0 + (f64::from(spread) + 0.5) / 257.0))
}

/// base^exponent, with sums and integer factors of the exponent taken apart: 2^(n+1) = 2·2^n.
fn power(base: Value, exponent: &Expr, env: &Env<'_>) -> Option<Value> {
    let whole = eval(exponent, env)?;
    if whole.rational().is_some() {
        return surd::power(base, whole);
    }
    match exponent {
        Expr::Add(a, b) => Some(power(base, a, env)?.mul(power(base, b, env)?)),
        Expr::Neg(a) => power(base, a, env)?.inv(),
        Expr::Mul(a, b) => match (eval(a, env)?.integer(), eval(b, env)?.integer()) {
            (Some(n), _) => power(base, b, env)?.powi(n),
            (_, Some(n)) => power(base, a, env)?.powi(n),
            _ => surd::power(base, whole),
        },
        _ => surd::power(base, whole),
    }
}

/// ln(e^x) = x; other logarithms by value.
fn log(e: &Expr, env: &Env<'_>) -> Option<Value> {
    match e {
        Expr::Pow(base, exponent) if **base == Expr::Euler => eval(exponent, env),
        _ => surd::log(eval(e, env)?),
    }
}

fn absolute(v: Value) -> Option<Value> {
    if v.is_constant() && v.real.is_finite() && v.at.iter().all(|e| e.re != 0 || e.im != 0) {
        return Some(if v.real < 0.0 { v.neg() } else { v });
    }
    surd::root(v.mul(v), 2)
}

fn factorial(n: i64) -> Option<Value> {
    (0..=1000).contains(&n).then(|| (1..=n).fold(Value::int(1), |v, k| v.mul(Value::int(k))))
}

fn binomial(n: i64, k: i64) -> Option<Value> {
    if !(0..=1000).contains(&n) || !(0..=n).contains(&k) {
        return None;
    }
    factorial(n)?.mul(factorial(k)?.mul(factorial(n - k)?).inv()?).into()
}
