//! `semel`: a matrix of questions × models × regions, every cell recorded exactly once.
//!
//! A file per verb in `verbs/`. Every verb but `audit` speaks the contract, over the [`road`] to a
//! coordinator: one that runs, else one in this process for the call. `audit` reads the tables only.

mod arguments;
mod attendance;
mod clock;
mod exit;
mod hint;
mod json;
mod picture;
mod rate;
mod road;
mod signals;
mod table;
mod terminal;
mod unknown;
mod verbs;
mod words;

use std::{process::ExitCode, time::Duration};

use clap::Parser;

use crate::{arguments::Arguments, exit::Exit};

/// How long tasks that were given up may take to end with the process.
const LEFTOVERS: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    terminal::choose_colors(arguments.color);
    start_log(arguments.verbose);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::report(Err(anyhow::anyhow!("the runtime can't be made: {error}"))).into(),
    };
    let exit: Exit = exit::report(runtime.block_on(verbs::run(arguments)));
    runtime.shutdown_timeout(LEFTOVERS);
    exit.into()
}

/// Logs go to stderr, and only when they are asked for: by RUST_LOG, or by -v.
fn start_log(verbose: u8) {
    use tracing_subscriber::{EnvFilter, fmt};
    let asked = match verbose {
        0 => "off",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(asked));
    let is_colored = console::colors_enabled_stderr();
    fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(is_colored).init();
}
