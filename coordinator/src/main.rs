//! `semel-coordinator`: settings, start, signals, exit code.

use std::{io::IsTerminal, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use clap::Parser;
use semel_coordinator::{Limits, Settings, services::MAX_OUTPUT_BYTES, start};
use semel_files::secret::read_token;
use tokio::signal::unix::{SignalKind, signal};

/// Runs the coordinator of one store: hands out cells, records each exactly once.
#[derive(Parser)]
#[command(
    version,
    after_help = "Example:\n  semel-coordinator --store sqlite:./semel.db --listen 127.0.0.1:7601 --token-file ./token"
)]
struct Arguments {
    /// The store: sqlite:PATH.
    #[arg(long, default_value = "sqlite:./semel.db")]
    store: String,
    /// Where to listen; loopback only.
    #[arg(long, default_value = "127.0.0.1:7601")]
    listen: SocketAddr,
    /// A file with the bearer token that every call must show. Without it a random one is made, and
    /// stands in the endpoint file beside the store.
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// How long a session lives after its last heartbeat.
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    session_ttl: Duration,
    /// How often agents send a heartbeat; a lease unacknowledged for that long is taken back.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    heartbeat: Duration,
    /// The largest output that is recorded, in bytes.
    #[arg(long, default_value_t = Limits::default().max_output_bytes)]
    max_output_bytes: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut running = start(settings(arguments)?).await?;
    tracing::info!(address = %running.address(), "listening");
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        ended = running.ended() => ended?,
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tokio::select! {
        stopped = running.stop() => stopped?,
        _ = term.recv() => bail!("told to stop twice: stopped at once"),
        _ = int.recv() => bail!("told to stop twice: stopped at once"),
    }
    Ok(())
}

fn settings(arguments: Arguments) -> anyhow::Result<Settings> {
    let Some(path) = arguments.store.strip_prefix("sqlite:") else {
        bail!("--store {:?}: this release stores in SQLite; write sqlite:PATH", arguments.store);
    };
    let token = arguments.token_file.as_deref().map(read_token).transpose().context("--token-file")?;
    let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let (ttl_ms, heartbeat_ms) = (ms(arguments.session_ttl), ms(arguments.heartbeat));
    if heartbeat_ms == 0 || ttl_ms < 2 * heartbeat_ms {
        bail!("--session-ttl {ttl_ms} ms must be at least twice --heartbeat {heartbeat_ms} ms, and that more than 0");
    }
    let core = semel_core::Config {
        ttl_ms,
        heartbeat_ms,
        margin_ms: heartbeat_ms,
        ack_ms: heartbeat_ms,
        ..semel_core::Config::default()
    };
    if arguments.max_output_bytes == 0 || arguments.max_output_bytes > MAX_OUTPUT_BYTES {
        bail!("--max-output-bytes {}: 1 to {MAX_OUTPUT_BYTES}", arguments.max_output_bytes);
    }
    let limits = Limits { max_output_bytes: arguments.max_output_bytes, ..Limits::default() };
    Ok(Settings { store: path.into(), listen: arguments.listen, token, core, limits })
}
