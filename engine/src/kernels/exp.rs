//! exp for vectorised loops: one polynomial, no branches, the same bits on every instruction set.

const LOG2E: f32 = std::f32::consts::LOG2_E;
const LN2_HI: f32 = 0.693_359_4;
const LN2_LO: f32 = -2.121_944_4e-4;
/// Below this the result is 0.
const LOWEST: f32 = -87.336_54;
const HIGHEST: f32 = 88.376_26;

/// e^x with a relative error below 2e-7; 0 below −87.3 (−∞ included), clamped above 88.4, NaN for NaN. Inlined into the caller's loop.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let c = if x > HIGHEST { HIGHEST } else { x };
    let c = if c < LOWEST { LOWEST } else { c };
    let n = c.mul_add(LOG2E, 0.5).floor();
    let r = n.mul_add(-LN2_HI, c);
    let r = n.mul_add(-LN2_LO, r);
    let p = 1.987_569_1e-4f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let y = p.mul_add(r * r, r) + 1.0;
    // 2^n by way of 1.5·2^23: the sum's low mantissa bits hold n as an integer, without a float → int conversion.
    let bits = (n + 12_582_912.0).to_bits();
    let scale = f32::from_bits(bits.wrapping_add(127) << 23);
    let y = y * scale;
    let y = if x < LOWEST { 0.0 } else { y };
    if x.is_nan() { x } else { y }
}

/// 1 / (1 + e^−x).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_f64() {
        for i in -87_000..88_000 {
            let x = i as f32 * 1e-3 + 1.234e-4;
            let want = f64::from(x).exp();
            let err = (f64::from(exp(x)) - want).abs() / want;
            assert!(err < 2e-7, "exp({x}) is off by {err:e}");
        }
    }

    #[test]
    fn edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(1e30).is_finite());
    }
}
