//! `semel-sim`: replays a seed, or runs many.

#![expect(clippy::print_stdout, reason = "what it finds is its output")]

use std::{ops::RangeInclusive, path::Path, process::ExitCode};

use semel_sim::{
    broken::{Bench, variants},
    clock,
    faults::Fault,
    run,
};

const HELP: &str = "\
semel-sim: seeded worlds over the coordinator's core and the agent's session

    semel-sim SEED             replays one seed and prints what happened
    semel-sim --seeds A..=B    runs many; prints the rate, and each failure with the command that replays it
    semel-sim ci               seeds 1..=2000, and 500 fresh ones whose first is printed
    semel-sim first N          the first of the seeds 1..=N in which a promise breaks: rule, seed, what was seen
    semel-sim broken [NAME]    builds each variant of tests/sim/broken, and tells which seed finds it
";

/// Fixed seeds of `ci`.
const FIXED: RangeInclusive<u64> = 1..=2_000;
/// Fresh seeds of `ci`.
const FRESH: u64 = 500;

fn main() -> ExitCode {
    // A failed assertion of a machine is an outcome here; its text is printed with the seed.
    std::panic::set_hook(Box::new(|_| {}));
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let failures = match words[..] {
        ["ci"] => {
            let fresh = clock::fresh();
            println!("fresh seeds from {fresh}");
            many(FIXED) + many(fresh..=fresh + FRESH - 1)
        }
        ["first", most] => first(most.parse().unwrap_or(0)),
        ["broken"] => broken(""),
        ["broken", name] => broken(name),
        ["--seeds", range] | [range] if range.contains("..=") => match seeds(range) {
            Some(range) => many(range),
            None => return usage(),
        },
        ["--seeds", seed] | [seed] => match seed.parse() {
            Ok(seed) => one(seed),
            Err(_) => return usage(),
        },
        _ => return usage(),
    };
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn usage() -> ExitCode {
    println!("{HELP}");
    ExitCode::from(2)
}

fn seeds(range: &str) -> Option<RangeInclusive<u64>> {
    let (from, to) = range.split_once("..=")?;
    Some(from.parse().ok()?..=to.parse().ok()?)
}

fn one(seed: u64) -> u64 {
    let outcome = run(seed, true);
    for line in &outcome.trace {
        println!("{line}");
    }
    println!("seed {seed}: {} events, {} steps of the core", outcome.events, outcome.steps);
    for (fault, struck) in Fault::ALL.iter().zip(outcome.struck) {
        println!("    {fault:?}: {struck}");
    }
    match outcome.violation {
        Some(v) => {
            println!("VIOLATION {}: {}", v.rule, v.what);
            1
        }
        None => {
            println!("every promise held");
            0
        }
    }
}

fn many(seeds: RangeInclusive<u64>) -> u64 {
    let elapsed = clock::start();
    let (mut count, mut events, mut steps, mut failures) = (0u64, 0, 0, 0);
    let mut rare = [0u64; Fault::ALL.len()];
    for seed in seeds {
        let outcome = run(seed, false);
        count += 1;
        events += outcome.events;
        steps += outcome.steps;
        for (never, struck) in rare.iter_mut().zip(outcome.struck) {
            *never += u64::from(struck > 0);
        }
        if let Some(v) = outcome.violation {
            failures += 1;
            println!(
                "VIOLATION {} in seed {seed}: {}\n    replay: cargo run --release -p semel-sim -- {seed}",
                v.rule, v.what
            );
        }
    }
    let seconds = elapsed().as_secs_f64().max(1e-9);
    println!(
        "{count} seeds, {events} events, {steps} steps of the core in {seconds:.1} s: {:.0} seeds/s, {:.0} events/s",
        count as f64 / seconds,
        events as f64 / seconds
    );
    for (fault, seeds) in Fault::ALL.iter().zip(rare) {
        println!("    {fault:?} struck in {seeds} seeds");
    }
    println!("{failures} failures");
    failures
}

fn first(most: u64) -> u64 {
    for seed in 1..=most {
        if let Some(v) = run(seed, false).violation {
            println!("{} {seed} {}", v.rule, v.what);
            return 1;
        }
    }
    0
}

/// A table of the variants: rule, variant, what found it, in which seed.
fn broken(name: &str) -> u64 {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = std::env::temp_dir().join("semel-sim-broken");
    let all = variants(&repository).and_then(|v| Ok((v, Bench::new(&repository, &folder)?)));
    let (all, bench) = match all {
        Ok(both) => both,
        Err(error) => {
            println!("{error}");
            return 1;
        }
    };
    let mut missed = 0;
    for variant in all.iter().filter(|v| v.name.contains(name)) {
        let line = match bench.try_out(variant) {
            Ok(Some(found)) => {
                missed += u64::from(!variant.expect.contains(&found.rule));
                format!("found by {} in seed {}: {}", found.rule, found.seed, found.what)
            }
            Ok(None) => {
                missed += 1;
                "NOT FOUND".to_owned()
            }
            Err(error) => {
                missed += 1;
                format!("ERROR {error}")
            }
        };
        println!("{:<4} {:<60} {line}", variant.rule, variant.name);
    }
    missed
}
