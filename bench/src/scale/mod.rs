//! From 1 to 10,000 workers: the cost model of `docs/scaling.md` beside a simulation around the coordinator's real state machine. Every figure that goes
//! in can be given; the defaults are the measurements named in the document.

mod cost;
pub(crate) mod runs;
mod sim;

use cost::{Job, Machines};
use serde_json::json;

/// Arguments of `scale`.
#[derive(clap::Args)]
pub struct Args {
    /// Numbers of workers.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 10, 100, 1000, 10_000])]
    workers: Vec<u32>,
    /// Parameters of the model.
    #[arg(long, default_value_t = 7.6e9)]
    parameters: f64,
    /// Bytes a published parameter.
    #[arg(long, default_value_t = 2.0)]
    bytes: f64,
    /// Prompts a step.
    #[arg(long, default_value_t = 512)]
    prompts: u32,
    #[arg(long, default_value_t = 16)]
    samples: u32,
    #[arg(long, default_value_t = 512.0)]
    prompt_tokens: f64,
    #[arg(long, default_value_t = 512.0)]
    response_tokens: f64,
    /// Sampled tokens a second of one worker.
    #[arg(long, default_value_t = 2500.0)]
    decode_rate: f64,
    /// Seconds of a worker for a prompt and its images; otherwise a third of the learner's.
    #[arg(long)]
    worker_prompt: Option<f64>,
    #[arg(long, default_value_t = 8)]
    ranks: u32,
    /// Tokens a second of one learner rank.
    #[arg(long, default_value_t = 8000.0)]
    train_rate: f64,
    /// Seconds of a learner rank for a prompt and its images; otherwise its tokens at the training rate.
    #[arg(long)]
    rank_prompt: Option<f64>,
    /// Bytes a second out of one process.
    #[arg(long, default_value_t = 1.2e9)]
    bandwidth: f64,
    /// `cluster.relay_fanout`.
    #[arg(long, default_value_t = 4)]
    fan_out: u32,
    /// Lease + submit pairs a second: `quorum-bench swarm`.
    #[arg(long, default_value_t = 5000.0)]
    pairs: f64,
    /// `cluster.prompts_per_lease`.
    #[arg(long, default_value_t = 16)]
    lease: u32,
    /// Largest deviation of a group's mean length from the mean, as a share of it.
    #[arg(long, default_value_t = 0.2)]
    spread: f64,
    #[arg(long, default_value_t = 3)]
    steps: u64,
}

/// One JSON line for each number of workers: prediction, simulation, and how far apart they are.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let job = Job {
        parameters: args.parameters,
        weight_bytes: args.parameters * args.bytes,
        prompts: f64::from(args.prompts),
        samples: f64::from(args.samples),
        response_tokens: args.response_tokens,
    };
    let rank_prompt = args.rank_prompt.unwrap_or(args.prompt_tokens / args.train_rate);
    for &workers in &args.workers {
        let machines = Machines {
            workers: f64::from(workers.max(1)),
            decode_rate: args.decode_rate,
            // Forward alone, where the learner also goes backward.
            worker_prompt: args.worker_prompt.unwrap_or(rank_prompt / 3.0),
            ranks: f64::from(args.ranks.max(1)),
            train_rate: args.train_rate,
            rank_prompt,
            bandwidth: args.bandwidth,
            fan_out: f64::from(args.fan_out.max(1)),
            pairs: args.pairs,
            lease: f64::from(args.lease.max(1)),
        };
        let predicted = cost::step(&job, &machines);
        let simulated = sim::run(&job, &machines, args.spread, args.steps)?;
        let off = predicted.total / simulated.step_seconds - 1.0;
        let line = json!({"bench": "scale", "workers": workers, "predicted": predicted, "simulated": simulated, "prediction_off": off});
        println!("{line}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_formulas_follow_the_simulation() {
        let job = Job { parameters: 1e9, weight_bytes: 2e9, prompts: 256.0, samples: 8.0, response_tokens: 200.0 };
        for workers in [1.0, 2.0, 16.0, 100.0, 1000.0] {
            let machines = Machines {
                workers,
                decode_rate: 1000.0,
                worker_prompt: 0.1,
                ranks: 4.0,
                train_rate: 5000.0,
                rank_prompt: 0.02,
                bandwidth: 1e9,
                fan_out: 4.0,
                pairs: 5000.0,
                lease: 4.0,
            };
            let predicted = cost::step(&job, &machines);
            let simulated = sim::run(&job, &machines, 0.1, 4).unwrap();
            assert_eq!((simulated.granted, simulated.accepted), (1024, 1024));
            let off = predicted.total / simulated.step_seconds - 1.0;
            assert!(off.abs() < 0.15, "{workers} workers: {predicted:?} {simulated:?}");
        }
    }
}
