//! Arithmetic in F_p[i], i² = −1, for two fixed primes p ≡ 3 (mod 4): the domain in which expressions are evaluated to compare them.
//! Identical expressions always agree there; different ones disagree up to a chance of about 2⁻¹²⁰ (Schwartz–Zippel). Nothing grows:
//! (x+1)^1000 costs as much as (x+1)^2.

/// The primes. p − 1 has no factor 3, 5, 7, 11, 13, 17, 19, so that odd roots of those orders are unique; the primes up to 23 are
/// squares, so that they can be taken out of square roots: √(12x) = 2√3·√x.
pub(super) const PRIMES: [u64; 2] = [4_611_686_018_427_231_119, 4_610_686_018_426_986_599];

/// re + im·i modulo a prime that the caller names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct E {
    pub re: u64,
    pub im: u64,
}

pub(super) fn mul(a: u64, b: u64, p: u64) -> u64 {
    (u128::from(a) * u128::from(b) % u128::from(p)) as u64
}

fn add(a: u64, b: u64, p: u64) -> u64 {
    let s = a + b;
    if s >= p { s - p } else { s }
}

fn neg(a: u64, p: u64) -> u64 {
    if a == 0 { 0 } else { p - a }
}

/// a^n by squaring.
pub(super) fn pow(mut a: u64, mut n: u64, p: u64) -> u64 {
    let mut r = 1;
    while n > 0 {
        if n & 1 == 1 {
            r = mul(r, a, p);
        }
        a = mul(a, a, p);
        n >>= 1;
    }
    r
}

impl E {
    pub const ZERO: E = E { re: 0, im: 0 };
    pub const ONE: E = E { re: 1, im: 0 };

    pub fn real(re: u64) -> Self {
        E { re, im: 0 }
    }

    pub fn int(n: i64, p: u64) -> Self {
        E::real(n.rem_euclid(p as i64) as u64)
    }

    pub fn is_zero(self) -> bool {
        self == E::ZERO
    }

    pub fn add(self, o: E, p: u64) -> E {
        E { re: add(self.re, o.re, p), im: add(self.im, o.im, p) }
    }

    pub fn neg(self, p: u64) -> E {
        E { re: neg(self.re, p), im: neg(self.im, p) }
    }

    pub fn sub(self, o: E, p: u64) -> E {
        self.add(o.neg(p), p)
    }

    pub fn mul(self, o: E, p: u64) -> E {
        let re = add(mul(self.re, o.re, p), neg(mul(self.im, o.im, p), p), p);
        let im = add(mul(self.re, o.im, p), mul(self.im, o.re, p), p);
        E { re, im }
    }

    /// `None` for zero.
    pub fn inv(self, p: u64) -> Option<E> {
        let norm = add(mul(self.re, self.re, p), mul(self.im, self.im, p), p);
        if norm == 0 {
            return None;
        }
        let s = pow(norm, p - 2, p);
        Some(E { re: mul(self.re, s, p), im: mul(neg(self.im, p), s, p) })
    }

    pub fn pow(self, mut n: u64, p: u64) -> E {
        let (mut a, mut r) = (self, E::ONE);
        while n > 0 {
            if n & 1 == 1 {
                r = r.mul(a, p);
            }
            a = a.mul(a, p);
            n >>= 1;
        }
        r
    }

    /// A fixed square root of an element of F_p: in F_p if there is one, otherwise i times one. `None` for other elements.
    pub fn sqrt(self, p: u64) -> Option<E> {
        if self.im != 0 {
            return None;
        }
        let r = pow(self.re, (p + 1) / 4, p);
        Some(if mul(r, r, p) == self.re { E::real(r) } else { E { re: 0, im: r } })
    }

    /// The root of odd order `n` of an element of F_p. `None` for other elements, or if it is not unique.
    pub fn odd_root(self, n: u64, p: u64) -> Option<E> {
        if self.im != 0 {
            return None;
        }
        Some(E::real(pow(self.re, inverse(n % (p - 1), p - 1)?, p)))
    }
}

/// 1/n modulo m by the extended Euclidean algorithm.
fn inverse(n: u64, m: u64) -> Option<u64> {
    let (mut r0, mut r1) = (i128::from(m), i128::from(n));
    let (mut t0, mut t1) = (0i128, 1i128);
    while r1 != 0 {
        let q = r0 / r1;
        (r0, r1) = (r1, r0 - q * r1);
        (t0, t1) = (t1, t0 - q * t1);
    }
    (r0 == 1).then(|| t0.rem_euclid(i128::from(m)) as u64)
}

/// Numerator and denominator below this are recognised.
const SMALL: u64 = 1 << 30;

/// The rational n/d with |n|, d < 2³⁰ that is `v` modulo `p`, if there is one (it is unique).
pub(super) fn rational(v: u64, p: u64) -> Option<(i64, i64)> {
    let (mut r0, mut r1) = (p as i128, v as i128);
    let (mut t0, mut t1) = (0i128, 1i128);
    while r1 >= SMALL as i128 {
        let q = r0 / r1;
        (r0, r1) = (r1, r0 - q * r1);
        (t0, t1) = (t1, t0 - q * t1);
    }
    if t1 == 0 || t1.unsigned_abs() >= u128::from(SMALL) {
        return None;
    }
    let (n, d) = if t1 < 0 { (-r1, -t1) } else { (r1, t1) };
    let g = gcd(n.unsigned_abs() as u64, d as u64).max(1) as i128;
    Some(((n / g) as i64, (d / g) as i64))
}

pub(super) fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_laws_hold() {
        for p in PRIMES {
            assert_eq!((p % 4, p % 3), (3, 2));
            assert!([2u64, 3, 5, 7, 11, 13, 17, 19, 23].iter().all(|q| pow(*q, (p - 1) / 2, p) == 1));
            let a = E { re: 12_345_678_901, im: 987_654_321 };
            assert_eq!(a.mul(a.inv(p).unwrap(), p), E::ONE);
            for q in [2i64, 3, 5, -7, 30] {
                let q = E::int(q, p);
                let r = q.sqrt(p).unwrap();
                assert_eq!(r.mul(r, p), q);
                let c = q.odd_root(3, p).unwrap();
                assert_eq!(c.mul(c, p).mul(c, p), q);
            }
        }
    }

    #[test]
    fn small_rationals_come_back() {
        for p in PRIMES {
            for (n, d) in [(0i64, 1i64), (1, 1), (-1, 1), (2, 3), (-355, 113), (1_000_000_007, 1_000_003)] {
                let v = E::int(n, p).mul(E::int(d, p).inv(p).unwrap(), p);
                assert_eq!(rational(v.re, p), Some((n, d)));
            }
        }
    }
}
