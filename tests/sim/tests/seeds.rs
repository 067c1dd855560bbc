//! A few hundred worlds, in the tests that everybody runs; `semel-sim ci` runs thousands.

use semel_sim::{faults::Fault, run, world::MIN_EVENTS};

#[test]
fn every_promise_holds_in_the_first_three_hundred_seeds() {
    let mut struck = [0; Fault::ALL.len()];
    for seed in 1..=300 {
        let outcome = run(seed, false);
        let violation = outcome.violation.map(|v| format!("{}: {}", v.rule, v.what));
        assert_eq!(violation, None, "seed {seed}: replay with `cargo run --release -p semel-sim -- {seed}`");
        assert!(outcome.events >= MIN_EVENTS, "seed {seed} has {} events", outcome.events);
        struck.iter_mut().zip(outcome.struck).for_each(|(sum, n)| *sum += n);
    }
    for (fault, n) in Fault::ALL.iter().zip(struck) {
        assert!(n > 0, "{fault:?} never struck");
    }
}

#[test]
fn a_seed_is_the_same_world_every_time() {
    for seed in [1, 7, 2_768] {
        let (one, two) = (run(seed, true), run(seed, true));
        assert_eq!(one.trace, two.trace, "seed {seed}");
        assert!(one.trace.len() > 100, "seed {seed} has a trace");
    }
}
