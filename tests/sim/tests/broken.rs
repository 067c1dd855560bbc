//! The simulator can fail: for each promise and rule, a deliberate break that it has to find.
//!
//! Each variant is a build of three small crates, and takes some seconds; all of them run one after the
//! other, in one folder, so that only what a patch touches is built again.

#![expect(clippy::print_stdout, reason = "the table of rules, variants and seeds")]

use std::path::Path;

use semel_sim::broken::{Bench, MAX_SEEDS, variants};

#[test]
fn every_broken_variant_is_found_by_the_checker_of_its_rule() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = tempfile::tempdir().expect("a scratch folder");
    let bench = Bench::new(&repository, folder.path()).expect("a copy of the three crates");
    let mut missed = Vec::new();
    let all = variants(&repository).expect("patches with a header");
    assert!(all.len() >= 30, "{} variants", all.len());
    for variant in all {
        match bench.try_out(&variant) {
            Ok(Some(found)) if variant.expect.contains(&found.rule) => {
                println!("{:<4} {:<60} {} in seed {}", variant.rule, variant.name, found.rule, found.seed);
            }
            Ok(Some(found)) => {
                missed.push(format!("{}: {} is no checker of it: {}", variant.name, found.rule, found.what))
            }
            Ok(None) => missed.push(format!("{}: not found in seeds 1..={MAX_SEEDS}", variant.name)),
            Err(error) => missed.push(format!("{}: {error}", variant.name)),
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
