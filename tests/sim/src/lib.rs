//! The simulator: one seeded world over both pure machines, the coordinator's core and the agent's session.
//!
//! A world has one coordinator (the real core and its log, the tables as its store), agents in three
//! regions (the real session machine, simulated executors and spools), a network of ordered streams,
//! and callers. Everything that can go wrong is drawn from the seed and strikes at random; then the
//! faults stop, and every job must end. A checker for each promise, by its number, watches what is
//! committed, what is said, and what runs. The same seed is the same world, event by event.

pub mod agent;
pub mod broken;
pub mod checkers;
pub mod client;
pub mod clock;
mod coordinator;
pub mod dice;
mod edge;
pub mod faults;
mod machine;
mod network;
mod shares;
mod store;
mod strikes;
mod told;
mod turns;
mod words;
pub mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use checkers::Violation;
use world::World;

/// What came of a seed.
#[derive(Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Events of its world.
    pub events: u64,
    /// Events that the core stepped.
    pub steps: u64,
    /// How often each kind of fault struck, in the order of [`faults::Fault::ALL`].
    pub struck: [u64; faults::Fault::ALL.len()],
    /// What did not hold.
    pub violation: Option<Violation>,
    /// What happened, if a trace was wanted.
    pub trace: Vec<String>,
}

/// Runs the world of a seed.
pub fn run(seed: u64, traced: bool) -> Outcome {
    let mut world = World::new(seed, traced);
    let result = catch_unwind(AssertUnwindSafe(|| world.run()));
    let violation = match result {
        Ok(check) => check.err(),
        Err(panic) => Some(panicked(&*panic)),
    };
    Outcome {
        seed,
        events: world.events,
        steps: world.steps,
        struck: world.struck,
        violation,
        trace: world.trace.take().unwrap_or_default(),
    }
}

/// An assertion of a machine failed: it names the promise or rule that it holds.
fn panicked(panic: &(dyn std::any::Any + Send)) -> Violation {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    let what = text.unwrap_or("a panic").to_owned();
    Violation { rule: rule_in(&what), what }
}

/// The promise or rule that an assertion's text begins with: `promise 4: …`, `rule C9: …`, `S4: …`.
pub(crate) fn rule_in(text: &str) -> String {
    let text = text.strip_prefix("rule ").unwrap_or(text);
    if let Some(number) = text.strip_prefix("promise ") {
        return format!("P{}", number.chars().next().unwrap_or('?'));
    }
    let name = text.split(':').next().unwrap_or_default();
    let is_rule = name.len() <= 3 && name.starts_with(|c: char| c.is_ascii_uppercase());
    if is_rule { name.to_owned() } else { "assertion".to_owned() }
}
