//! Roots, powers, logarithms and trigonometric functions of values. Roots and logarithms of rationals go through their prime factors,
//! so √12 = 2√3 and log₂8 = 3; of anything else, a root is taken in the field and a function is an unknown named by its argument's key.

use super::field::{E, gcd};
use super::value::Value;

/// base^exponent.
pub(super) fn power(base: Value, exponent: Value) -> Option<Value> {
    match exponent.rational() {
        Some((n, 1)) => {
            if base.is_zero() && n <= 0 {
                return None;
            }
            base.powi(n)
        }
        Some((n, d)) => root(base, u32::try_from(d).ok()?)?.powi(n),
        // a^−x = 1/a^x: the sign of the exponent is settled before it names an unknown.
        None if exponent.real < 0.0 => power(base, exponent.neg())?.inv(),
        None => {
            let name = format!("{}^{}", base.key(), exponent.key());
            let constant = base.is_constant() && exponent.is_constant();
            Some(Value::atom("power", &name, constant, base.real.powf(exponent.real)))
        }
    }
}

/// The n-th root (principal where that is real).
pub(super) fn root(v: Value, n: u32) -> Option<Value> {
    if n == 0 {
        return None;
    }
    if n == 1 || v.is_zero() {
        return Some(v);
    }
    let real = if n % 2 == 1 {
        v.real.abs().powf(1.0 / f64::from(n)).copysign(v.real)
    } else {
        v.real.powf(1.0 / f64::from(n))
    };
    let mut out = match v.rational() {
        Some((num, den)) => rational_root(num, den, n),
        None => field_root(v, n),
    }
    .unwrap_or_else(|| Value::atom("root", &format!("{n} {}", v.key()), v.is_constant(), real));
    out.real = real;
    Some(out)
}

/// (n/d)^(1/order) = (n·d^(order−1))^(1/order) / d, factor by factor.
fn rational_root(n: i64, d: i64, order: u32) -> Option<Value> {
    let mut out = if n >= 0 {
        Value::int(1)
    } else if order % 2 == 1 {
        Value::int(-1)
    } else if order == 2 {
        Value::build(f64::NAN, |_, _| Some(E { re: 0, im: 1 }))?
    } else {
        return None;
    };
    let mut factors = factor(n.unsigned_abs());
    factors.extend(factor(d as u64).into_iter().map(|(q, k)| (q, -k)));
    for (q, k) in factors {
        // q^(k/order) in lowest terms.
        let g = gcd(u64::from(k.unsigned_abs()), u64::from(order)).max(1) as i64;
        let (k, r) = (i64::from(k) / g, i64::from(order) / g);
        out = out.mul(prime_root(q, r as u32)?.powi(k)?);
    }
    Some(out)
}

/// The root of a prime (or of any element) in the field, if there is a fixed choice of it.
fn prime_root(q: u64, order: u32) -> Option<Value> {
    let v = Value::int(i64::try_from(q).ok()?);
    if order == 1 { Some(v) } else { field_root(v, order) }
}

fn field_root(v: Value, order: u32) -> Option<Value> {
    let odd = order >> order.trailing_zeros();
    if order / odd > 2 {
        return None;
    }
    // The square root may leave F_p, where odd roots are unique; so the odd root comes first.
    let inner = if odd == 1 { v } else { Value::build(f64::NAN, |k, p| v.at[k].odd_root(u64::from(odd), p))? };
    if odd == order { Some(inner) } else { Value::build(f64::NAN, |k, p| inner.at[k].sqrt(p)) }
}

/// Prime factors with exponents; n < 2³⁰, so at most 2¹⁵ trial divisions.
fn factor(mut n: u64) -> Vec<(u64, i32)> {
    let mut out = Vec::new();
    let mut q = 2;
    while q * q <= n {
        let mut k = 0;
        while n.is_multiple_of(q) {
            n /= q;
            k += 1;
        }
        if k > 0 {
            out.push((q, k));
        }
        q += 1;
    }
    if n > 1 {
        out.push((n, 1));
    }
    out
}

/// The natural logarithm.
pub(super) fn log(v: Value) -> Option<Value> {
    if v.is_zero() {
        return None;
    }
    let euler = Value::atom("constant", "e", true, std::f64::consts::E);
    if v.at == euler.at {
        return Some(Value::int(1));
    }
    match v.rational() {
        Some((n, d)) if n > 0 => {
            let of = |x: i64| {
                factor(x as u64).into_iter().fold(Value::int(0), |sum, (q, k)| {
                    let l = Value::atom("log", &q.to_string(), true, (q as f64).ln());
                    sum.add(l.mul(Value::int(i64::from(k))))
                })
            };
            Some(of(n).sub(of(d)))
        }
        _ => Some(Value::atom("log", &v.key(), v.is_constant(), v.real.ln())),
    }
}

/// A named function. Sine and cosine are exact at multiples of 30° and 45°, and satisfy sin² + cos² = 1 everywhere.
pub(super) fn call(name: &str, v: Value) -> Option<Value> {
    let (sine, cosine) = match name {
        "sin" | "cos" | "tan" | "cot" | "sec" | "csc" => sine_cosine(v)?,
        "exp" => return power(Value::atom("constant", "e", true, std::f64::consts::E), v),
        _ => return Some(Value::atom(name, &v.key(), v.is_constant(), f64::NAN)),
    };
    Some(match name {
        "sin" => sine,
        "cos" => cosine,
        "tan" => sine.mul(cosine.inv()?),
        "cot" => cosine.mul(sine.inv()?),
        "sec" => cosine.inv()?,
        _ => sine.inv()?,
    })
}

fn sine_cosine(v: Value) -> Option<(Value, Value)> {
    let pi = Value::atom("constant", "pi", true, std::f64::consts::PI);
    if let Some((n, d)) = v.mul(pi.inv()?).rational()
        && 12 % d == 0
    {
        let twelfths = (n * (12 / d)).rem_euclid(24);
        if let (Some(s), Some(c)) = (exact_sine(twelfths), exact_sine((twelfths + 6) % 24)) {
            return Some((s, c));
        }
    }
    // With t = tan(x/2): sin x = 2t/(1+t²), cos x = (1−t²)/(1+t²).
    let odd = v.real < 0.0;
    let v = if odd { v.neg() } else { v };
    let t = Value::atom("half-angle", &v.key(), v.is_constant(), (v.real / 2.0).tan());
    let t2 = t.mul(t);
    let under = Value::int(1).add(t2).inv()?;
    let sine = t.add(t).mul(under);
    let cosine = Value::int(1).sub(t2).mul(under);
    Some((if odd { sine.neg() } else { sine }, cosine))
}

/// sin(π·k/12) for the k at which it is 0, ±1/2, ±√2/2, ±√3/2 or ±1.
fn exact_sine(k: i64) -> Option<Value> {
    let half = Value::ratio(1, 2)?;
    let v = match k % 12 {
        0 => Value::int(0),
        2 | 10 => half,
        3 | 9 => root(Value::int(2), 2)?.mul(half),
        4 | 8 => root(Value::int(3), 2)?.mul(half),
        6 => Value::int(1),
        _ => return None,
    };
    Some(if k >= 12 { v.neg() } else { v })
}
