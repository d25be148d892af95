//! Generated code of the wire contract `quorum.v1`. Regenerate with `QUORUM_REGENERATE=1 cargo test -p quorum-proto`.

#![allow(clippy::all, missing_docs)]

/// `quorum.v1`.
pub mod v1 {
    include!("generated/quorum.v1.rs");
}

/// Version of the contract; a process that speaks another one is refused at Join.
pub const PROTOCOL_VERSION: u32 = 1;
