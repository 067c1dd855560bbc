//! The coordinator: a shell of tokio, tonic and sqlx around the pure core of `semel-core`.
//!
//! A report's road: `services/agent.rs` (wire → event) → `shell.rs` (step, group commit) →
//! `semel_core` (decide) → `store/` (one transaction) → back: the shell opens the outbox with the
//! proof of the commit, and `services/agent.rs` sends the receipt.

pub mod audit;
pub mod clock;
pub mod endpoint;
pub mod jobspec;
mod lead;
mod refused;
pub mod services;
pub mod shell;
pub mod specs;
pub mod store;

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

pub use lead::LeadError;
pub use shell::{Leading, Limits, Shell, ShellError};

use crate::{
    endpoint::Endpoint,
    specs::Specs,
    store::{Store, sqlite::SqliteStore},
};

/// How long a stop waits for the store to close.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// Random bytes of a token that nobody chose.
const TOKEN_BYTES: usize = 24;

/// What a coordinator is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The SQLite file.
    pub store: PathBuf,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The bearer token that every call shows; a random one if `None`.
    pub token: Option<String>,
    /// Times of the core.
    pub core: semel_core::Config,
    /// Sizes that the edge holds to.
    pub limits: Limits,
}

/// Why a coordinator did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store can't be opened, or another process has it.
    #[error(transparent)]
    Store(#[from] store::sqlite::OpenError),
    /// The address can't be listened on.
    #[error("can't listen on {0}: {1}")]
    Listen(SocketAddr, io::Error),
    /// The address is reachable from other machines, and this release has no TLS.
    #[error("listen address {0} is not on loopback: without TLS a coordinator listens on 127.0.0.1 or ::1 only")]
    NotLoopback(SocketAddr),
    /// The endpoint file can't be written.
    #[error("can't write {0}: {1}")]
    Endpoint(PathBuf, io::Error),
    /// No randomness for a token.
    #[error("the system has no randomness: {0}")]
    Random(getrandom::Error),
    /// The store was opened and can't be led.
    #[error(transparent)]
    Lead(#[from] LeadError),
}

/// A coordinator that serves.
pub struct Running {
    address: SocketAddr,
    token: String,
    path: PathBuf,
    store: Arc<SqliteStore>,
    stop: CancellationToken,
    streams: CancellationToken,
    led: JoinHandle<Result<(), LeadError>>,
    served: JoinHandle<Result<(), tonic::transport::Error>>,
}

/// Opens the store, takes the leadership, and serves.
///
/// # Errors
/// Whatever stands in the way, in words that say what to do. Nothing is left running.
pub async fn start(settings: Settings) -> Result<Running, StartError> {
    if !settings.listen.ip().is_loopback() {
        return Err(StartError::NotLoopback(settings.listen));
    }
    let token = settings.token.map_or_else(random_token, Ok).map_err(StartError::Random)?;
    let store = Arc::new(SqliteStore::open(&settings.store).await?);
    let listener = TcpListener::bind(settings.listen).await.map_err(|e| StartError::Listen(settings.listen, e))?;
    let address = listener.local_addr().map_err(|e| StartError::Listen(settings.listen, e))?;

    let shared: Arc<dyn Store> = store.clone();
    let specs = Arc::new(Specs::new(shared.clone()));
    let (leading, mut following) = watch::channel(Leading::default());
    let (shell, inbox) = Shell::new(shared.clone(), specs.clone(), settings.limits, following.clone());
    let (stop, streams) = (CancellationToken::new(), CancellationToken::new());
    let mut led = tokio::spawn(lead::lead(shared, specs, settings.core, inbox, leading, stop.clone()));
    tokio::select! {
        // Once leading has ended there is nothing to wait for: the other branch says why.
        Ok(_) = following.wait_for(|l| l.at.is_some()) => {}
        ended = &mut led => {
            store.close().await;
            return Err(ended.unwrap_or_else(|panic| Err(LeadError::Broken(panic.to_string()))).err().map_or_else(
                || StartError::Lead(LeadError::Broken("it ended before it led".into())),
                StartError::Lead,
            ));
        }
    }
    let endpoint = Endpoint { address: address.to_string(), token: token.clone(), pid: std::process::id() };
    endpoint::write(&settings.store, &endpoint)
        .map_err(|e| StartError::Endpoint(endpoint::path(&settings.store), e))?;
    let serve = {
        let (token, streams) = (token.clone(), streams.clone());
        async move { services::serve(shell, listener, &token, streams).await }
    };
    let served = tokio::spawn(serve);
    Ok(Running { address, token, path: settings.store, store, stop, streams, led, served })
}

fn random_token() -> Result<String, getrandom::Error> {
    let mut bytes = [0; TOKEN_BYTES];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

impl Running {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
    /// The token that every call shows.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Waits until it leads no more, which it does of itself only when something is wrong.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn ended(&mut self) -> Result<(), LeadError> {
        (&mut self.led).await.unwrap_or_else(|panic| Err(LeadError::Broken(panic.to_string())))
    }

    /// Commits what was taken in, says it, ends every stream, and gives the store back.
    ///
    /// # Errors
    /// It had stopped leading before, for this reason.
    pub async fn stop(mut self) -> Result<(), LeadError> {
        self.stop.cancel();
        let led = if self.led.is_finished() { Ok(()) } else { self.ended().await };
        self.streams.cancel();
        if let Err(error) = (&mut self.served).await {
            tracing::error!(%error, "the server ended badly");
        }
        if let Err(error) = endpoint::remove(&self.path) {
            tracing::warn!(%error, "the endpoint file stays behind");
        }
        if tokio::time::timeout(CLOSE_LIMIT, self.store.close()).await.is_err() {
            tracing::warn!("the store was not closed in time: what was committed is in its log, and is found there");
        }
        led
    }
}
