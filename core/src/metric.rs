//! The metric catalogue: every name declared once, typed by kind and number of labels. What it is not: a recorder or an exporter; those belong to the processes.

mod buckets;
mod declare;

pub use buckets::buckets;
pub use declare::{Counter, Declared, Gauge, Histogram, Kind, announce, describe};

use declare::catalogue;

catalogue! {
    gauge BUILD_INFO: "quorum_build_info" ["version", "revision", "features"] "1" "Build information (value is always 1).";
    gauge COORDINATOR_EPOCH: "quorum_coordinator_epoch" [] "1" "Fencing epoch of the running coordinator; rises by one at each start.";
    gauge COORDINATOR_PROMPTS: "quorum_coordinator_prompts" ["state"] "1" "Prompts of the current phase by state (ready = waiting for a worker, leased, graded); of the whole run: trained, quarantined.";
    gauge COORDINATOR_STEPS_REMAINING: "quorum_coordinator_steps_remaining" [] "1" "Steps of the run that are not committed yet; 0 from the last one on.";
    counter COORDINATOR_LEASES_GRANTED: "quorum_coordinator_leases_granted_total" [] "1" "Leases handed out.";
    counter COORDINATOR_LEASES_EXPIRED: "quorum_coordinator_leases_expired_total" ["reason"] "1" "Leases taken back (deadline, worker_lost, drain).";
    counter COORDINATOR_SUBMISSIONS: "quorum_coordinator_submissions_total" ["outcome"] "1" "Rollout submissions by outcome (accepted, duplicate, stale_fence, stale_version, invalid).";
    gauge COORDINATOR_WORKERS: "quorum_coordinator_workers" ["role", "state"] "1" "Known processes by role and state (ready, suspect = a heartbeat is overdue, lost = gone silent and not back).";
    histogram COORDINATOR_RPC_DURATION_SECONDS: "quorum_coordinator_rpc_duration_seconds" ["method", "code"] "s" "Server-side gRPC latency until the answer begins; Lease, NextBatch and FormGroup wait for work in it.";
    counter COORDINATOR_RPC_REJECTED: "quorum_coordinator_rpc_rejected_total" ["reason"] "1" "Requests refused before a handler ran (unauthenticated, forbidden, too_large, malformed).";
    histogram COORDINATOR_LEDGER_FSYNC_DURATION_SECONDS: "quorum_coordinator_ledger_fsync_duration_seconds" [] "s" "Time to make a state change durable.";
    gauge COORDINATOR_LEDGER_BYTES: "quorum_coordinator_ledger_bytes" [] "B" "Size of the journal on disk.";
    counter DATA_RECORDS_REJECTED: "quorum_data_records_rejected_total" ["source", "reason"] "1" "Input records set aside before the start (bad_json, bad_value, missing_field, image_count, image_path, image_too_large, image_decode, too_long, unfit).";
    counter ROLLOUT_GENERATED_TOKENS: "quorum_rollout_generated_tokens_total" ["worker"] "tok" "Completion tokens generated.";
    counter ROLLOUT_PROMPT_TOKENS: "quorum_rollout_prompt_tokens_total" ["worker"] "tok" "Prompt tokens prefilled, image tokens included.";
    counter ROLLOUT_COMPLETIONS: "quorum_rollout_completions_total" ["finish_reason"] "1" "Completions by finish reason (stop, length, error, cancelled).";
    histogram ROLLOUT_RESPONSE_LENGTH_TOKENS: "quorum_rollout_response_length_tokens" [] "tok" "Completion length.";
    histogram ROLLOUT_GROUP_DURATION_SECONDS: "quorum_rollout_group_duration_seconds" [] "s" "Time to generate and grade one prompt group.";
    gauge ROLLOUT_QUEUE_DEPTH: "quorum_rollout_queue_depth" ["worker"] "1" "Requests waiting in a worker's engine.";
    gauge ROLLOUT_RUNNING_REQUESTS: "quorum_rollout_running_requests" ["worker"] "1" "Requests being decoded.";
    gauge ROLLOUT_KV_CACHE_USAGE_RATIO: "quorum_rollout_kv_cache_usage_ratio" ["worker"] "ratio" "KV cache in use (0 to 1).";
    gauge ROLLOUT_WEIGHT_VERSION: "quorum_rollout_weight_version" ["worker"] "1" "Policy version a worker serves.";
    gauge ROLLOUT_IDLE_RATIO: "quorum_rollout_idle_ratio" ["worker"] "ratio" "Share of the last interval a worker had nothing to do.";
    histogram VOTE_MAJORITY_FRACTION: "quorum_vote_majority_fraction" ["dataset"] "ratio" "Share of a group's answers that agree with its majority answer.";
    histogram VOTE_DISTINCT_ANSWERS: "quorum_vote_distinct_answers" ["dataset"] "1" "Distinct answers in a group.";
    histogram VOTE_ENTROPY_NATS: "quorum_vote_entropy_nats" ["dataset"] "nat" "Entropy of a group's answer distribution.";
    counter VOTE_UNPARSED_ANSWERS: "quorum_vote_unparsed_answers_total" ["dataset"] "1" "Completions with no extractable answer.";
    counter VOTE_GROUPS: "quorum_vote_groups_total" ["dataset", "outcome"] "1" "Groups by outcome (used, zero_variance, no_majority, below_threshold, tie, above_band).";
    gauge VOTE_LABEL_ACCURACY_RATIO: "quorum_vote_label_accuracy_ratio" ["dataset"] "ratio" "Share of held-out questions whose majority answer equals the reference label.";
    histogram REWARD_VALUE: "quorum_reward_value" ["source"] "1" "Reward per completion by reward source.";
    histogram REWARD_GROUP_STD: "quorum_reward_group_std" [] "1" "Standard deviation of rewards in a group.";
    gauge REWARD_ZERO_VARIANCE_GROUPS_RATIO: "quorum_reward_zero_variance_groups_ratio" [] "ratio" "Share of groups in the step with no reward spread.";
    gauge LEARNER_STEP: "quorum_learner_step" [] "1" "Optimizer steps done.";
    gauge LEARNER_LAST_STEP_TIMESTAMP_SECONDS: "quorum_learner_last_step_timestamp_seconds" [] "s" "Unix time of the last optimizer step.";
    histogram LEARNER_STEP_DURATION_SECONDS: "quorum_learner_step_duration_seconds" ["phase"] "s" "Step time by phase (wait_batch, encode, logprob, forward_backward, all_reduce, optimizer, checkpoint, publish).";
    counter LEARNER_TOKENS: "quorum_learner_tokens_total" ["rank"] "tok" "Tokens trained on.";
    gauge LEARNER_LOSS: "quorum_learner_loss" ["term"] "1" "Loss by term (policy, kl, total).";
    gauge LEARNER_POLICY_ENTROPY_NATS: "quorum_learner_policy_entropy_nats" [] "nat" "Mean token entropy of the policy.";
    gauge LEARNER_KL_NATS: "quorum_learner_kl_nats" ["against"] "nat" "Mean token KL against the reference policy.";
    gauge LEARNER_CLIP_FRACTION_RATIO: "quorum_learner_clip_fraction_ratio" ["side"] "ratio" "Share of tokens clipped (low, high).";
    gauge LEARNER_RATIO_MAX: "quorum_learner_ratio_max" [] "1" "Largest importance ratio in the step.";
    gauge LEARNER_ADVANTAGE_MEAN: "quorum_learner_advantage_mean" [] "1" "Mean advantage.";
    gauge LEARNER_GRAD_NORM: "quorum_learner_grad_norm" [] "1" "Gradient norm before clipping.";
    gauge LEARNER_LEARNING_RATE: "quorum_learner_learning_rate" [] "1" "Learning rate.";
    gauge LEARNER_MFU_RATIO: "quorum_learner_mfu_ratio" ["rank"] "ratio" "Model FLOP utilisation (0 to 1).";
    gauge LEARNER_GPU_MEMORY_BYTES: "quorum_learner_gpu_memory_bytes" ["rank", "kind"] "B" "GPU memory (allocated, reserved, peak).";
    histogram LEARNER_STALENESS_STEPS: "quorum_learner_staleness_steps" [] "step" "Learner step minus the policy version of each trained sample.";
    counter LEARNER_NONFINITE: "quorum_learner_nonfinite_total" ["where"] "1" "Steps skipped because a loss or gradient was not finite.";
    counter LEARNER_COLLECTIVE_RESTARTS: "quorum_learner_collective_restarts_total" ["reason"] "1" "Communicator rebuilds (peer_lost, timeout, resize).";
    histogram WEIGHT_SYNC_DURATION_SECONDS: "quorum_weight_sync_duration_seconds" ["transport"] "s" "Time from publish until the last worker holds the version.";
    counter WEIGHT_SYNC_BYTES: "quorum_weight_sync_bytes_total" ["transport"] "B" "Bytes of weights moved.";
    counter WEIGHT_SYNC_FAILURES: "quorum_weight_sync_failures_total" ["reason"] "1" "Weight updates that failed (checksum, timeout, disconnected).";
    histogram CHECKPOINT_DURATION_SECONDS: "quorum_checkpoint_duration_seconds" ["phase"] "s" "Checkpoint time by phase (write = files written, made durable and digested).";
    gauge CHECKPOINT_LAST_SUCCESS_TIMESTAMP_SECONDS: "quorum_checkpoint_last_success_timestamp_seconds" [] "s" "Unix time of the last committed checkpoint.";
    gauge CHECKPOINT_SIZE_BYTES: "quorum_checkpoint_size_bytes" [] "B" "Size of the last committed checkpoint.";
    counter CHECKPOINT_FAILURES: "quorum_checkpoint_failures_total" ["reason"] "1" "Checkpoints that could not be written (enospc, io) or read again (verify).";
    gauge LEARNER_ROLLOUT_MISMATCH_NATS: "quorum_learner_rollout_mismatch_nats" [] "nat" "Largest absolute difference between rollout and learner log-probs of the step; 0 on CPU.";
    gauge VOTE_BLIND_AGREEMENT_RATIO: "quorum_vote_blind_agreement_ratio" ["dataset"] "ratio" "Share of sampled prompts whose majority is the same without the image.";
    gauge EVAL_ACCURACY_RATIO: "quorum_eval_accuracy_ratio" ["dataset", "mode"] "ratio" "Held-out accuracy by mode (greedy, mean, vote).";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_follow_prometheus_rules() {
        let mut seen = BTreeSet::new();
        for m in ALL {
            assert!(seen.insert(m.name), "{} is declared twice", m.name);
            assert!(m.name.starts_with("quorum_"), "{}", m.name);
            assert!(m.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{}", m.name);
            assert_eq!(m.kind == Kind::Counter, m.name.ends_with("_total"), "{}: only counters end in _total", m.name);
            assert!(m.help.ends_with('.'), "{}: help is a sentence", m.name);
            assert!(m.labels.iter().all(|l| !["step", "prompt", "row"].contains(l)), "{}: unbounded label", m.name);
            if m.unit == "s" {
                assert!(m.name.trim_end_matches("_total").ends_with("_seconds"), "{}", m.name);
            }
        }
    }

    #[test]
    fn handles_work_without_a_recorder() {
        COORDINATOR_LEASES_GRANTED.with([]).increment(1);
        COORDINATOR_WORKERS.with(["learner", "ready"]).set(1.0);
        COORDINATOR_RPC_DURATION_SECONDS.with(["lease", "ok"]).record(0.1);
        describe();
    }
}
