//! The command line as it is written.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use semel_files::secret::read_token;

use crate::{
    exit::Refused,
    road::Target,
    terminal::Color,
    verbs::{audit, cancel, check, completions, export, list, pause, retry, run, schema, selftest, show, why},
};

/// Runs a matrix of questions × models × regions, and records every cell exactly once.
///
/// A job file says what is asked; an agents file, or --openai URL, says how the models are reached. All that is known of a
/// job is in one SQLite file, the store. `run` starts a coordinator on it, and is refused where one runs already; `audit` reads
/// the tables alone; the other verbs about jobs speak to the coordinator that runs on the store, else to one that they start for
/// the call.
#[derive(Debug, Parser)]
#[command(name = "semel", version, after_help = AFTER_HELP, max_term_width = 120, disable_help_subcommand = true)]
pub struct Arguments {
    #[command(subcommand)]
    pub verb: Verb,
    #[command(flatten)]
    pub place: Place,
    /// When to use colours; NO_COLOR in the environment switches them off as well.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    pub color: Color,
    /// Logs to stderr: -v decisions, -vv more. RUST_LOG says it finer. Nothing is logged by default.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

const AFTER_HELP: &str = "\
Exit codes: 0 complete · 1 error, or no such job · 2 refused input · 3 complete with failures, or the job is closed · 4 interrupted · 5 an audit found a difference

Example:
  semel run examples/first.yaml --openai http://127.0.0.1:11434/v1
  semel audit first
  semel export first --format csv -o first.csv";

/// Which coordinator, on which store.
#[derive(Debug, Args)]
pub struct Place {
    /// The store: a SQLite file. [default: ./semel.db]
    #[arg(long, global = true, env = "SEMEL_STORE", value_name = "PATH")]
    pub store: Option<PathBuf>,
    /// Speak to the coordinator that listens here, in place of the store's own.
    #[arg(long, global = true, value_name = "HOST:PORT", requires = "token_file")]
    pub coordinator: Option<String>,
    /// The file with that coordinator's bearer token.
    #[arg(long, global = true, value_name = "FILE", requires = "coordinator")]
    pub token_file: Option<PathBuf>,
}

/// The store where none is named; the help says so.
const DEFAULT_STORE: &str = "./semel.db";

impl Place {
    /// The store that is named, or else the default one.
    pub fn store(&self) -> &Path {
        self.store.as_deref().unwrap_or(Path::new(DEFAULT_STORE))
    }

    /// Whether the command line or the environment names a store.
    pub fn is_store_named(&self) -> bool {
        self.store.is_some()
    }

    /// Which coordinator that names.
    ///
    /// # Errors
    /// The token's file can't be used.
    pub fn target(&self) -> anyhow::Result<Target> {
        let (Some(address), Some(file)) = (&self.coordinator, &self.token_file) else {
            return Ok(Target::Store(self.store().to_owned()));
        };
        let token = read_token(file).map_err(|error| Refused(format!("--token-file {error}")))?;
        Ok(Target::Remote { address: address.clone(), token })
    }
}

/// A duration as people write it.
///
/// # Errors
/// It is none, in words that show one.
pub fn duration(text: &str) -> Result<Duration, String> {
    // The library's own words are of its grammar.
    humantime::parse_duration(text).map_err(|_| "is no duration; write a number and a unit, as 90s or 2m".to_owned())
}

/// How a verb answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For scripts: one JSON value on stdout.
    Json,
}

/// The choice of an output.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct OutputArgs {
    /// How to answer.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

impl OutputArgs {
    /// Whether a script reads the answer.
    pub fn is_json(self) -> bool {
        self.output == Output::Json
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    Run(run::Arguments),
    Check(check::Arguments),
    Audit(audit::Arguments),
    List(list::Arguments),
    Show(show::Arguments),
    Why(why::Arguments),
    Retry(retry::Arguments),
    Cancel(cancel::Arguments),
    Pause(pause::Arguments),
    Resume(pause::ResumeArguments),
    Export(export::Arguments),
    Selftest(selftest::Arguments),
    Completions(completions::Arguments),
    Schema(schema::Arguments),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_verb_says_what_it_does_and_gives_an_example() {
        for verb in Arguments::command().get_subcommands() {
            let name = verb.get_name();
            assert!(verb.get_about().is_some(), "{name}");
            let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains(&format!("semel {name}")), "{name} has no example: {help}");
        }
    }
}
