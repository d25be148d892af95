//! Compares the engine with a directory of reference outputs (a checkpoint plus `expected.json` and `expected.safetensors`, as
//! described in the fixtures' README): one line a check, `name diff tolerance ok`; exit status 1 if any fails.

mod checks;

fn main() -> std::process::ExitCode {
    let device = std::env::args().nth(2).unwrap_or_else(|| "cpu".into()).parse::<quorum_engine::Devices>();
    let (Some(dir), Ok(device)) = (std::env::args_os().nth(1), device) else {
        eprintln!("usage: parity DIR [cpu|candle-cpu|cuda:N|cuda:N+cuda:M]");
        return std::process::ExitCode::from(2);
    };
    match checks::run(std::path::Path::new(&dir), device) {
        Ok(report) => {
            for line in &report.lines {
                println!("{line}");
            }
            std::process::ExitCode::from(u8::from(report.failed > 0))
        }
        Err(e) => {
            eprintln!("parity: {e}");
            std::process::ExitCode::from(2)
        }
    }
}
