//! A job's specification: read, checked whole, resolved and digested, and the frozen input of each
//! of its cells.
//!
//! A specification comes from a job file ([`parse`], or [`read::job`] from a disk) or over the wire
//! ([`wire::check`]). Either way it becomes one [`JobSpec`], is judged by one check that names every
//! fault at once, and has one digest. What runs is its [`Resolved`] form, with the defaults written
//! out; [`Resolved::input`] gives the bytes that a cell runs.
//!
//! But for [`read`] the crate is pure: no I/O, no clock, no randomness.

mod check;
mod difference;
mod document;
mod fault;
mod node;
mod path;
mod questions;
pub mod read;
mod resolved;
mod schema;
mod spec;
mod walk;
pub mod wire;

pub use check::{
    Checked, MAX_ATTEMPTS, MAX_DEADLINE_MS, MAX_PRIORITY, MAX_REPEAT, MAX_TIMEOUT_MS, MAX_WEIGHT, OWNED_PARAMETERS,
    check,
};
pub use difference::{MAX_DIFFERENCES, difference};
pub use document::{Format, JobFile, QuestionFile, parse};
pub use fault::{Fault, Faults, MAX_FAULTS, MAX_ID_BYTES, check_id};
pub use resolved::{Resolved, ResolvedModel, ResolvedPolicy, StoredSpecError};
pub use schema::schema;
pub use spec::{JobSpec, Message, Model, Object, OnLeaseLost, Policy, Question, RegionSettings, digest};

/// The version of a cell's input: what [`Resolved::input`] puts into it, and how.
pub const INPUT_VERSION: u32 = 1;
/// The version of the order of a job's cells; see [`Resolved`].
pub const ENUMERATION_VERSION: u32 = 1;
/// The most bytes of a specification, counted in its RFC 8785 JSON, and of a job or question file.
pub const MAX_SPEC_BYTES: usize = 64 << 20;
/// The most cells of a job: their index is a `u32`.
pub const MAX_CELLS: u32 = u32::MAX;
