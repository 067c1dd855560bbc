//! The binary as people use it: real processes, real stores, real signals.

#[path = "semel/bad_input.rs"]
mod bad_input;
#[path = "semel/bad_jobs.rs"]
mod bad_jobs;
#[path = "semel/elsewhere.rs"]
mod elsewhere;
#[path = "semel/exports.rs"]
mod exports;
#[path = "semel/outages.rs"]
mod outages;
#[path = "semel/outputs.rs"]
mod outputs;
#[path = "semel/running.rs"]
mod running;
#[path = "semel/steering.rs"]
mod steering;
#[path = "semel/support.rs"]
mod support;
#[path = "semel/told.rs"]
mod told;
#[path = "semel/walk.rs"]
mod walk;
