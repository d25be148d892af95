//! The coordinator: fixes prompts, leases them, checks and keeps groups, feeds the learner, publishes weights, evaluates, reports. It never runs the model.

pub mod aside;
pub mod card;
pub mod check;
pub mod checkpoints;
pub mod commands;
pub mod delta;
pub mod evaluate;
pub mod fanout;
pub mod launcher;
pub mod ledger;
pub mod lengths;
pub mod material;
pub mod mirror;
mod owner;
pub mod plan;
pub mod prepare;
pub mod resume;
pub mod run;
pub mod rundir;
pub mod service;
pub mod show;
pub mod state;
pub mod step_metrics;
pub mod tensorboard;
pub mod web;
pub mod weights;
