//! Activations with their gradients: SwiGLU on fused gate|up rows, the exact (erf) GELU of the vision mergers, and the two cheap GELUs
//! of vision blocks.

use super::exp::{exp, sigmoid};
use super::isa::simd;

simd! {
    /// out\[row, i\] = silu(gate) · up where a row of `gu` is gate|up, each `n` wide.
    pub fn swiglu(gu: &[f32], n: usize, out: &mut [f32]) {
        for (gu, out) in gu.chunks_exact(2 * n).zip(out.chunks_exact_mut(n)) {
            let (g, u) = gu.split_at(n);
            for i in 0..n {
                out[i] = g[i] * sigmoid(g[i]) * u[i];
            }
        }
    }
}

simd! {
    /// From gate|up and d(out): out again (for the down projection's gradient) and d(gate|up).
    pub fn swiglu_backward(gu: &[f32], n: usize, dout: &[f32], out: &mut [f32], dgu: &mut [f32]) {
        let rows = gu.chunks_exact(2 * n).zip(dout.chunks_exact(n)).zip(out.chunks_exact_mut(n)).zip(dgu.chunks_exact_mut(2 * n));
        for (((gu, dout), out), dgu) in rows {
            let (g, u) = gu.split_at(n);
            let (dg, du) = dgu.split_at_mut(n);
            for i in 0..n {
                let s = sigmoid(g[i]);
                let silu = g[i] * s;
                out[i] = silu * u[i];
                du[i] = dout[i] * silu;
                dg[i] = dout[i] * u[i] * (s + silu * (1.0 - s));
            }
        }
    }
}

/// erf by W. J. Cody's rational approximations (Math. Comp. 23, 1969), absolute error below 1e-12.
fn erf(x: f64) -> f64 {
    let ax = x.abs();
    let y = if ax < 0.5 {
        let t = x * x;
        let p = [
            3.209_377_589_138_469_5e3,
            3.774_852_376_853_02e2,
            1.138_641_541_510_501_6e2,
            3.161_123_743_870_565_6,
            1.857_777_061_846_031_5e-1,
        ];
        let q = [
            2.844_236_833_439_171e3,
            1.282_616_526_077_372_3e3,
            2.440_246_379_344_441_7e2,
            2.360_129_095_234_412_1e1,
            1.0,
        ];
        return x * poly(&p, t) / poly(&q, t);
    } else if ax < 4.0 {
        let p = [
            1.230_339_354_797_997_2e3,
            2.051_078_377_826_071_5e3,
            1.712_047_612_634_070_6e3,
            8.819_522_212_417_69e2,
            2.986_351_381_974_001e2,
            6.611_919_063_714_163e1,
            8.883_149_794_388_376,
            5.641_884_969_886_701e-1,
            2.153_115_354_744_038_5e-8,
        ];
        let q = [
            1.230_339_354_803_749_4e3,
            3.439_367_674_143_721_6e3,
            4.362_619_090_143_247e3,
            3.290_799_235_733_459_6e3,
            1.621_389_574_566_690_2e3,
            5.371_811_018_620_099e2,
            1.176_939_508_913_125e2,
            1.574_492_611_070_983_5e1,
            1.0,
        ];
        1.0 - (-ax * ax).exp() * poly(&p, ax) / poly(&q, ax)
    } else {
        1.0
    };
    y.copysign(x)
}

/// Σ cᵢ tⁱ.
fn poly(c: &[f64], t: f64) -> f64 {
    c.iter().rev().fold(0.0, |acc, &x| acc * t + x)
}

/// x · Φ(x), elementwise.
pub fn gelu(x: &[f32], out: &mut [f32]) {
    for (o, &x) in out.iter_mut().zip(x) {
        let x = f64::from(x);
        *o = (0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))) as f32;
    }
}

simd! {
    /// d ← d · (Φ(x) + x φ(x)), elementwise, Φ recovered from `y` = gelu(x) where x is not tiny.
    pub fn gelu_backward(x: &[f32], y: &[f32], d: &mut [f32]) {
        for ((d, &x), &y) in d.iter_mut().zip(x).zip(y) {
            let cdf = if x.abs() > 1e-3 { y / x } else { 0.5 + 0.398_942_3 * x };
            let pdf = 0.398_942_3 * exp(-0.5 * x * x);
            *d *= x.mul_add(pdf, cdf);
        }
    }
}

simd! {
    /// x · σ(f x), elementwise: SiLU for f = 1, the "quick" GELU for f = 1.702.
    pub fn sigmoid_gate(f: f32, x: &[f32], out: &mut [f32]) {
        for (o, &x) in out.iter_mut().zip(x) {
            *o = x * sigmoid(f * x);
        }
    }
}

simd! {
    /// From x and d(out): out again and d(x).
    pub fn sigmoid_gate_backward(f: f32, x: &[f32], dout: &[f32], out: &mut [f32], dx: &mut [f32]) {
        for (((dx, out), &x), &dout) in dx.iter_mut().zip(out).zip(x).zip(dout) {
            let s = sigmoid(f * x);
            *out = x * s;
            *dx = dout * (s + f * *out * (1.0 - s));
        }
    }
}

/// 2 √(2/π), and the cubic term of the tanh approximation.
const TANH_SCALE: f32 = 1.595_769_2;
const TANH_CUBE: f32 = 0.044_715;

simd! {
    /// x · (1 + tanh(√(2/π)(x + 0.044715 x³))) / 2, elementwise; (1 + tanh u) / 2 is σ(2u).
    pub fn gelu_tanh(x: &[f32], out: &mut [f32]) {
        for (o, &x) in out.iter_mut().zip(x) {
            *o = x * sigmoid(TANH_SCALE * x * (TANH_CUBE * x).mul_add(x, 1.0));
        }
    }
}

simd! {
    /// From x and d(out): out again and d(x).
    pub fn gelu_tanh_backward(x: &[f32], dout: &[f32], out: &mut [f32], dx: &mut [f32]) {
        for (((dx, out), &x), &dout) in dx.iter_mut().zip(out).zip(x).zip(dout) {
            let s = sigmoid(TANH_SCALE * x * (TANH_CUBE * x).mul_add(x, 1.0));
            let slope = TANH_SCALE * (3.0 * TANH_CUBE * x).mul_add(x, 1.0);
            *out = x * s;
            *dx = dout * (s + *out * (1.0 - s) * slope);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_has_known_values() {
        for (x, want) in [
            (0.1, 0.112_462_916_018_284_89),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.5, 0.999_593_047_982_555),
            (-1.5, -0.966_105_146_475_310_8),
        ] {
            assert!((erf(x) - want).abs() < 1e-12, "erf({x}) = {}", erf(x));
        }
    }

    #[test]
    fn gradients_agree_with_differences() {
        let gelu1 = |x: f64| 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2));
        for i in -60..60 {
            let x = i as f32 * 0.1 + 0.013;
            let (mut y, mut d) = ([0.0], [1.0]);
            gelu(&[x], &mut y);
            gelu_backward(&[x], &y, &mut d);
            let want = (gelu1(f64::from(x) + 1e-5) - gelu1(f64::from(x) - 1e-5)) / 2e-5;
            assert!((f64::from(d[0]) - want).abs() < 1e-5, "gelu'({x}) = {} against {want}", d[0]);
            let (mut out, mut dgu) = ([0.0], [0.0; 2]);
            swiglu_backward(&[x, 0.7], 1, &[1.0], &mut out, &mut dgu);
            let f = |g: f64| g / (1.0 + (-g).exp()) * 0.7;
            let want = (f(f64::from(x) + 1e-5) - f(f64::from(x) - 1e-5)) / 2e-5;
            assert!((f64::from(dgu[0]) - want).abs() < 1e-5);
        }
    }

    #[test]
    fn cheap_gelus_and_their_gradients_agree_with_f64() {
        let quick = |x: f64| x / (1.0 + (-1.702 * x).exp());
        let tanh = |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh());
        type Backward = fn(&[f32], &[f32], &mut [f32], &mut [f32]);
        type Case<'a> = (&'a dyn Fn(f64) -> f64, fn(&[f32], &mut [f32]), Backward);
        let cases: [Case; 2] = [
            (&quick, |x, y| sigmoid_gate(1.702, x, y), |x, dy, y, dx| sigmoid_gate_backward(1.702, x, dy, y, dx)),
            (&tanh, gelu_tanh, gelu_tanh_backward),
        ];
        for (f, forward, backward) in cases {
            for i in -80..80 {
                let x = i as f32 * 0.1 + 0.017;
                let (mut y, mut again, mut d) = ([0.0], [0.0], [0.0]);
                forward(&[x], &mut y);
                backward(&[x], &[1.0], &mut again, &mut d);
                let wide = f64::from(x);
                assert_eq!(y, again);
                assert!((f64::from(y[0]) - f(wide)).abs() < 2e-6, "f({x}) = {}", y[0]);
                let want = (f(wide + 1e-5) - f(wide - 1e-5)) / 2e-5;
                assert!((f64::from(d[0]) - want).abs() < 1e-5, "f'({x}) = {} against {want}", d[0]);
            }
        }
    }
}
