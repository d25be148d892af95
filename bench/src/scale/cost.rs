//! The cost model: seconds of a step from tokens, FLOPs and bytes. Closed formulas, no simulation; `docs/scaling.md` explains each.

use serde::Serialize;

/// What is trained and how: everything that does not depend on the machines.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Job {
    pub parameters: f64,
    /// Bytes of a published version.
    pub weight_bytes: f64,
    /// Prompts a step.
    pub prompts: f64,
    /// Responses a prompt.
    pub samples: f64,
    /// Mean tokens of a response.
    pub response_tokens: f64,
}

/// The machines.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Machines {
    pub workers: f64,
    /// Sampled tokens a second of one worker, all its samples together.
    pub decode_rate: f64,
    /// Seconds that a worker takes for a prompt and its images, once for all samples.
    pub worker_prompt: f64,
    pub ranks: f64,
    /// Sampled tokens a second that one learner rank trains on.
    pub train_rate: f64,
    /// Seconds that a rank takes for a prompt and its images, once for all samples.
    pub rank_prompt: f64,
    /// Bytes a second out of one process.
    pub bandwidth: f64,
    /// Children of a process in the relay tree.
    pub fan_out: f64,
    /// Lease + submit pairs a second of the coordinator.
    pub pairs: f64,
    /// Prompts a worker leases at once.
    pub lease: f64,
}

/// Seconds of a synchronous step, by cause.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Step {
    /// The learner uploads the version, and the relay tree hands it on.
    pub weights: f64,
    pub sampling: f64,
    /// Leases and submissions, if they cannot hide behind the sampling.
    pub coordinator: f64,
    pub training: f64,
    /// All of it.
    pub total: f64,
    /// The largest of the four.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub limit: &'static str,
}

impl Machines {
    /// Seconds of one worker for a prompt and `tokens` of its responses.
    pub fn sample(&self, tokens: f64) -> f64 {
        self.worker_prompt + tokens / self.decode_rate
    }

    /// Seconds of all ranks for a prompt and `tokens` of its responses.
    pub fn train(&self, tokens: f64) -> f64 {
        (self.rank_prompt + tokens / self.train_rate) / self.ranks
    }
}

/// Levels below the coordinator of a tree in which everybody has `fan_out` children.
pub fn depth(workers: f64, fan_out: f64) -> f64 {
    let (mut reached, mut level, mut levels) = (0.0, 1.0, 0.0);
    while reached < workers {
        level *= fan_out.max(1.0);
        reached += level;
        levels += 1.0;
    }
    levels
}

/// Bytes of a chunk of the weights: a relay hands on what it has checked.
pub const CHUNK: f64 = (1 << 20) as f64;

/// Seconds until the last worker holds a version that lies in the coordinator: every level sends to `children` at once, chunk by chunk.
pub fn spread(job: &Job, m: &Machines) -> f64 {
    let children = m.fan_out.min(m.workers).max(1.0);
    let whole = job.weight_bytes * children / m.bandwidth;
    let chunk = CHUNK.min(job.weight_bytes) * children / m.bandwidth;
    whole + (depth(m.workers, m.fan_out) - 1.0).max(0.0) * chunk
}

/// The prediction.
pub fn step(job: &Job, m: &Machines) -> Step {
    let weights = job.weight_bytes / m.bandwidth + spread(job, m);
    // Leases are handed out in whole batches: the last round is as long as the others, however few take part in it.
    let busy = (job.prompts / m.lease).ceil().min(m.workers).max(1.0);
    let rounds = (job.prompts / (busy * m.lease)).ceil();
    let lease = m.lease.min((job.prompts / busy).ceil());
    let sampling = rounds * lease * m.sample(job.samples * job.response_tokens);
    let through = job.prompts / m.pairs;
    let coordinator = (through - sampling).max(0.0) + job.prompts.min(m.workers) / m.pairs;
    let training = job.prompts * m.train(job.samples * job.response_tokens);
    let parts = [("weights", weights), ("sampling", sampling), ("coordinator", coordinator), ("training", training)];
    let limit = parts.iter().max_by(|a, b| a.1.total_cmp(&b.1)).map_or("", |p| p.0);
    Step { weights, sampling, coordinator, training, total: weights + sampling + coordinator + training, limit }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_are_as_deep_as_they_must_be() {
        assert_eq!([1.0, 4.0, 5.0, 20.0, 21.0, 1000.0].map(|w| depth(w, 4.0)), [1.0, 1.0, 2.0, 2.0, 3.0, 5.0]);
        assert_eq!(depth(3.0, 1.0), 3.0);
    }
}
