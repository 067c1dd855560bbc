//! `semel schema`: the job file's JSON Schema.

use clap::Args;

use crate::{exit::Exit, terminal::Out};

/// Print the JSON Schema of the job file, for editors
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  semel schema > job.schema.json\n  # and in the job file: # yaml-language-server: $schema=job.schema.json"
)]
pub struct Arguments {}

/// Prints it.
///
/// # Errors
/// It can't be written.
pub fn run() -> anyhow::Result<Exit> {
    Out::new().json(&semel_spec::schema())?;
    Ok(Exit::Complete)
}
