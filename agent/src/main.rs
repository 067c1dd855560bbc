//! `semel-agent`: one agent as a process.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use semel_agent::config::{self, AgentSpec};
use semel_agent::{AgentConfig, DEFAULT_GRACE, DEFAULT_SPOOL_LIMIT_BYTES, Ended};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit code of an agent that a newer process of the same id replaced: starting it again is wrong.
const EXIT_SUPERSEDED: u8 = 3;

/// Runs executions in its region and reports them to a coordinator.
///
/// Example: semel-agent --coordinator 127.0.0.1:7601 --agents agents.yaml --agent us-east --token-file token --spool ./spool
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Where the coordinator listens: host:port.
    #[arg(long, env = "SEMEL_COORDINATOR")]
    coordinator: String,
    /// The agents file (YAML or JSON): which agents there are, and how each reaches its models.
    #[arg(long)]
    agents: PathBuf,
    /// Which agent of the file this is; may be left out if the file has one only.
    #[arg(long)]
    agent: Option<String>,
    /// A file with the bearer token that the coordinator wants.
    #[arg(long)]
    token_file: PathBuf,
    /// The namespace that the agent serves.
    #[arg(long, default_value = "default")]
    namespace: String,
    /// The folder in which finished results wait for their receipts; one agent each. Made if it isn't there.
    #[arg(long)]
    spool: PathBuf,
    /// The most bytes of results in the spool; at the limit no lease is taken.
    #[arg(long, default_value_t = DEFAULT_SPOOL_LIMIT_BYTES)]
    spool_limit: u64,
    /// How long running executions may finish after SIGTERM or SIGINT before they are aborted and handed back. A
    /// second signal ends the process at once.
    #[arg(long, value_parser = humantime::parse_duration, default_value = DEFAULT_GRACE_TEXT)]
    grace: Duration,
    /// How long work runs on without word from the coordinator [default: the session's TTL, which the coordinator says].
    /// Longer means that a cell may be called a second time while it still runs here.
    #[arg(long, value_parser = humantime::parse_duration)]
    orphan_limit: Option<Duration>,
    /// Logs as JSON, one object a line. What is logged is set by RUST_LOG; info by default.
    #[arg(long)]
    log_json: bool,
}

const DEFAULT_GRACE_TEXT: &str = "30s";
const _: () = assert!(DEFAULT_GRACE.as_secs() == 30, "the help says the default");

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_log(arguments.log_json);
    match serve(arguments) {
        Ok(Ended::Done { results_left }) => {
            tracing::info!(results_left, "agent ended");
            ExitCode::SUCCESS
        }
        Ok(Ended::Superseded) => {
            tracing::error!("a newer process runs under this agent id; this one stops for good");
            ExitCode::from(EXIT_SUPERSEDED)
        }
        Err(error) => {
            // One line, with its causes; no backtrace.
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: Arguments) -> anyhow::Result<Ended> {
    let spec = choose(config::read(&arguments.agents, &BTreeMap::new())?, arguments.agent.as_deref())?;
    let token = semel_files::secret::read_token(&arguments.token_file).context("--token-file")?;
    let config = AgentConfig {
        namespace: arguments.namespace,
        spool_limit_bytes: arguments.spool_limit,
        orphan_limit: arguments.orphan_limit,
        grace: arguments.grace,
        ..AgentConfig::new(arguments.coordinator, token, spec, arguments.spool)
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("making the runtime")?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate()).context("listening to SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listening to SIGINT")?;
        let stop = shutdown.clone();
        let signals = async move {
            for _ in 0..2 {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                tracing::info!("told to stop; once more stops at once");
                stop.cancel();
            }
        };
        tokio::select! {
            ended = semel_agent::run(config, shutdown) => ended,
            () = signals => bail!("stopped at once; finished results are in the spool"),
        }
    })
}

/// The agent of the file that this process is.
fn choose(specs: Vec<AgentSpec>, id: Option<&str>) -> anyhow::Result<AgentSpec> {
    let ids = specs.iter().map(|spec| spec.id.as_str()).collect::<Vec<_>>().join(", ");
    let mut chosen = specs.into_iter().filter(|spec| id.is_none_or(|id| spec.id == id));
    match (chosen.next(), chosen.next(), id) {
        (Some(spec), None, _) => Ok(spec),
        (None, _, Some(id)) => bail!("--agent {id:?} is not in the agents file; it has: {ids}"),
        (None, _, None) => bail!("the agents file has no agent"),
        (Some(_), Some(_), _) => bail!("the agents file has several agents; say which with --agent: {ids}"),
    }
}

fn start_log(json: bool) {
    use tracing_subscriber::{EnvFilter, fmt};
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    if json { log.json().init() } else { log.init() }
}
