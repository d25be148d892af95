//! Checks and times our CUDA kernels against candle's operations on a GPU: `gpu_kernels [small|3b]`. One line a result; exit status 1 if one is off.

use quorum_engine::candle::fused::check::{Shape, compare};
use std::process::ExitCode;

fn main() -> ExitCode {
    let shape = match std::env::args().nth(1).as_deref() {
        None | Some("3b") => Shape { rows: 2048, hidden: 2048, heads: 16, kv_heads: 2, head: 128, vocab: 151_936 },
        Some("small") => Shape { rows: 320, hidden: 96, heads: 4, kv_heads: 2, head: 32, vocab: 1000 },
        Some(_) => {
            eprintln!("usage: gpu_kernels [small|3b]");
            return ExitCode::from(2);
        }
    };
    let mut failed = 0;
    println!("| function | difference | allowed | kernel µs | candle µs | |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for bf16 in [false, true] {
        let results = match compare(0, bf16, &shape) {
            Ok(results) => results,
            Err(error) => {
                eprintln!("gpu_kernels: {error}");
                return ExitCode::from(2);
            }
        };
        for r in results {
            // NaN is off too.
            let good = r.off <= r.allowed;
            failed += u32::from(!good);
            let verdict = if good { "ok" } else { "WRONG" };
            println!(
                "| {} | {:.1e} | {:.0e} | {:.0} | {:.0} | {verdict} |",
                r.name, r.off, r.allowed, r.kernel, r.plain
            );
        }
    }
    ExitCode::from(u8::from(failed > 0))
}
