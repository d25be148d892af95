//! A coordinator in process over real TCP, with a worker and a learner whose arithmetic is a hash: exactly reproducible, and cheap.

pub mod coordinator;
pub mod learner;
pub mod worker;

use quorum_proto::v1;

/// Bytes of a fake slab.
pub const SLAB: usize = 64;
/// Questions in the fake training and test sets.
pub const TRAIN: usize = 10;
pub const TEST: usize = 3;

/// Start weights.
pub fn start_weights() -> Vec<u8> {
    vec![7; SLAB]
}

/// The weights after a step: a function of the weights before it and of every token, log-prob and reward of the batch in order.
pub fn train(weights: &[u8], items: &[v1::BatchItem]) -> Vec<u8> {
    let mut h = blake3::Hasher::new();
    h.update(weights);
    for item in items {
        let (prompt, group) = (item.prompt.as_ref().unwrap(), item.group.as_ref().unwrap());
        h.update(&prompt.row.to_le_bytes()).update(prompt.text.as_bytes()).update(&group.slot.to_le_bytes());
        for c in &group.completions {
            c.tokens.iter().for_each(|t| _ = h.update(&t.to_le_bytes()));
            c.logprobs.iter().for_each(|l| _ = h.update(&l.to_le_bytes()));
        }
        group.rewards.iter().for_each(|r| _ = h.update(&r.to_le_bytes()));
    }
    let mut out = vec![0; SLAB];
    h.finalize_xof().fill(&mut out);
    out
}

pub fn digest(weights: &[u8]) -> String {
    quorum_core::digest::sha256_hex(weights)
}

pub fn join(role: v1::Role, id: &str) -> v1::JoinRequest {
    v1::JoinRequest {
        role: role.into(),
        caller_id: id.into(),
        protocol_version: quorum_proto::PROTOCOL_VERSION,
        instruction_set: "fake".into(),
        world: 1,
        ..Default::default()
    }
}

pub fn caller(reply: &v1::JoinReply, id: &str) -> v1::Caller {
    v1::Caller {
        run_id: reply.run_id.clone(),
        epoch: reply.epoch,
        caller_id: id.into(),
        idempotency_key: String::new(),
    }
}
