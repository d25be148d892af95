//! A coordinator in the test's own process: it hands out what the test put in and keeps what it gets. No ledger, no rules.
//! Shared with the learner's tests by path.
#![allow(dead_code, unused_imports)]

mod fake;
mod material;

pub use fake::{Fake, Running};
pub use material::{checkpoint, config, fixture, grant, image, prompt};
