# Shortcuts, each one line of what a person would type. `./scripts/test` needs none of them.

# The list of recipes.
default:
    @just --list --unsorted

# The main job on a real model, from nothing: builds, fetches, serves, runs, audits.
run:
    ./scripts/first-run

# Everything that must hold before a change lands.
test:
    ./scripts/test

# The rules of this code base that read as text: sizes, sleeps, clocks, dependencies.
tidy:
    cargo test --test tidy

# Formats Rust and the contract.
fmt:
    cargo fmt --all
    "$(scripts/tool buf)" format --write

# Clippy on everything, warnings as errors.
lint:
    cargo clippy --workspace --all-targets -- -D warnings

# The contract's names, comments and form.
buf:
    "$(scripts/tool buf)" lint
    "$(scripts/tool buf)" format --diff --exit-code

# Replays one seed of the simulator, or a range: `just sim 42`, `just sim 1..=2000`.
sim seeds:
    cargo run --release -p semel-sim -- --seeds {{ seeds }}

# The rate of 100,000 cells of an instant executor, beside bare inserts of the same rows.
bench-run:
    cargo bench -p semel --bench run

# Licences, bans and sources of the dependencies.
deny:
    "$(scripts/tool cargo-deny)" --locked check licenses bans sources

# Known vulnerabilities of the dependencies, by the public advisory database.
advisories:
    @scripts/advisories

# Writes the JSON Schema of the job file, for editors.
schema:
    cargo run --quiet -p semel -- schema > examples/job.schema.json

# The documentation of every crate.
doc:
    cargo doc --workspace --no-deps --open
