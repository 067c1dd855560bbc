//! `semel completions`: shell completions.

use std::io::Write;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::{exit::Exit, terminal::Out};

/// Print the completions of a shell
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  source <(semel completions bash)\n  semel completions fish > semel.fish")]
pub struct Arguments {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints them.
///
/// # Errors
/// They can't be written.
pub fn run(arguments: &Arguments) -> anyhow::Result<Exit> {
    // Made whole first: the generator panics where it can't write.
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut crate::arguments::Arguments::command(), "semel", &mut script);
    let mut out = Out::new();
    out.write_all(&script)?;
    out.flush()?;
    Ok(Exit::Complete)
}
