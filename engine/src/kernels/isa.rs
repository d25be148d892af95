//! Run-time choice of the instruction set. Every kernel does the same arithmetic in the same order on each of them,
//! so results are equal bit for bit across instruction sets; only speed differs.

use std::sync::atomic::{AtomicU8, Ordering};

/// Instruction sets with a compiled variant of each kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// 512-bit vectors.
    Avx512,
    /// 256-bit vectors with fused multiply-add.
    Avx2,
    /// Anything older: the engine refuses to start, kernels still work (slowly).
    Baseline,
}

static CHOSEN: AtomicU8 = AtomicU8::new(0);

/// The instruction set in use.
#[inline]
pub fn isa() -> Isa {
    match CHOSEN.load(Ordering::Relaxed) {
        1 => Isa::Avx512,
        2 => Isa::Avx2,
        3 => Isa::Baseline,
        _ => detect(),
    }
}

#[cold]
fn detect() -> Isa {
    let found = if is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("fma")
    {
        Isa::Avx512
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        Isa::Avx2
    } else {
        Isa::Baseline
    };
    choose(found);
    found
}

/// Uses `isa` from now on, for tests that compare instruction sets. Choosing one that the processor lacks is undefined behaviour,
/// which is why this stays inside the crate.
pub(crate) fn choose(isa: Isa) {
    let code = match isa {
        Isa::Avx512 => 1,
        Isa::Avx2 => 2,
        Isa::Baseline => 3,
    };
    CHOSEN.store(code, Ordering::Relaxed);
}

/// Name of the instruction set in use: `avx512`, `avx2` or `baseline`.
pub fn instruction_set() -> &'static str {
    match isa() {
        Isa::Avx512 => "avx512",
        Isa::Avx2 => "avx2",
        Isa::Baseline => "baseline",
    }
}

/// Compiles a function once per instruction set and dispatches at run time.
/// The body must spell fused multiply-adds as `mul_add` so that all variants round alike.
macro_rules! simd {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg : $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn generic($($arg : $ty),*) $(-> $ret)? $body
            #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,bmi2")]
            fn wide($($arg : $ty),*) $(-> $ret)? { generic($($arg),*) }
            #[target_feature(enable = "avx2,fma")]
            fn narrow($($arg : $ty),*) $(-> $ret)? { generic($($arg),*) }
            match $crate::kernels::isa::isa() {
                // SAFETY: the instruction set was detected on this processor.
                $crate::kernels::isa::Isa::Avx512 => unsafe { wide($($arg),*) },
                // SAFETY: as above.
                $crate::kernels::isa::Isa::Avx2 => unsafe { narrow($($arg),*) },
                $crate::kernels::isa::Isa::Baseline => generic($($arg),*),
            }
        }
    };
}
pub(crate) use simd;
