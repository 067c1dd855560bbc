//! The agent: runs executions where it sits and reports them to its coordinator.
//!
//! Three threads of concern, and what each may wait for: the session's thread ([`run`] starts it)
//! waits for the network only; executions run on the caller's runtime; the spool's thread waits for
//! the disk. The session itself is decided by the pure machine in `semel-session`.

mod clock;
pub mod config;
pub mod executor;
mod models;
mod slots;
mod spool;
mod stream;
mod wire;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Once};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use semel_proto::v1 as pb;
use semel_session::{Session, Settings, StopReason};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use config::AgentSpec;
use models::Models;
use slots::Slots;
use spool::Spool;
use stream::{Coordinator, Driver, End, Parts};

pub use models::{PROBE_BACKOFF_MAX, PROBE_BACKOFF_MIN, PROBE_LIMIT, WARM_FOR};
pub use slots::DEFAULT_MAX_OUTPUT_BYTES;
pub use spool::{DEFAULT_LIMIT_BYTES as DEFAULT_SPOOL_LIMIT_BYTES, SpoolError};

/// The version of the protocol that this agent speaks.
pub const PROTOCOL_VERSION: u32 = 1;
/// Events that may wait for the session's thread, beside one for each slot and each model. Beyond it
/// executions wait before they tell their end.
pub const EVENT_QUEUE: usize = 64;
/// How long running executions may finish after a shutdown, by default.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(30);

/// One agent, as a process or a task runs it.
#[derive(Clone)]
pub struct AgentConfig {
    /// Where the coordinator listens: `host:port`.
    pub coordinator: String,
    /// The bearer token that the coordinator wants.
    pub token: String,
    /// The namespace that the agent serves.
    pub namespace: String,
    /// Who the agent is and what it serves.
    pub spec: AgentSpec,
    /// The folder in which results wait for their receipts. One agent each.
    pub spool: PathBuf,
    /// The most bytes that results may take in the spool; at the limit no lease is taken.
    pub spool_limit_bytes: u64,
    /// How long work runs on without word from the coordinator; the session's TTL if `None`.
    pub orphan_limit: Option<Duration>,
    /// How long running executions may finish after a shutdown.
    pub grace: Duration,
}

impl AgentConfig {
    /// An agent with the defaults.
    pub fn new(
        coordinator: impl Into<String>,
        token: impl Into<String>,
        spec: AgentSpec,
        spool: impl Into<PathBuf>,
    ) -> Self {
        Self {
            coordinator: coordinator.into(),
            token: token.into(),
            namespace: "default".to_owned(),
            spec,
            spool: spool.into(),
            spool_limit_bytes: DEFAULT_SPOOL_LIMIT_BYTES,
            orphan_limit: None,
            grace: DEFAULT_GRACE,
        }
    }
}

impl fmt::Debug for AgentConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentConfig")
            .field("coordinator", &self.coordinator)
            .field("token", &"…")
            .field("namespace", &self.namespace)
            .field("spec", &self.spec)
            .field("spool", &self.spool)
            .field("spool_limit_bytes", &self.spool_limit_bytes)
            .field("orphan_limit", &self.orphan_limit)
            .field("grace", &self.grace)
            .finish()
    }
}

/// How an agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was shut down, and handed back what it held.
    Done {
        /// Results without a receipt; they wait in the spool for the next start.
        results_left: u64,
    },
    /// A newer process under the same agent id took over. Starting again would only take it back.
    Superseded,
}

/// Runs an agent until `shutdown`, or until a newer incarnation takes over. Broken connections are
/// no end: it comes back. Dropping the future ends everything at once, as a kill would; finished
/// results are still in the spool then.
///
/// # Errors
/// The configuration can't be used, the spool can't be opened, or the coordinator refuses this agent
/// at the first contact (wrong token, unknown namespace, another protocol).
pub async fn run(config: AgentConfig, shutdown: CancellationToken) -> anyhow::Result<Ended> {
    let coordinator = Coordinator::new(&config.coordinator, &config.token)?;
    if let Some(advice) = executor::init_advice(std::process::id(), &config.spec.models) {
        static SAID: Once = Once::new();
        SAID.call_once(|| tracing::warn!("{advice}"));
    }
    let room = EVENT_QUEUE + config.spec.models.len() + config.spec.slots as usize;
    let (tell, events) = mpsc::channel(room);
    let abandoned = CancellationToken::new();
    let _abandon_on_drop = abandoned.clone().drop_guard();

    let (folder, limit_bytes) = (config.spool.clone(), config.spool_limit_bytes);
    let open = move || Spool::open(&folder, limit_bytes);
    let (spool, recovered) = tokio::task::spawn_blocking(open).await??;
    let spool = Arc::new(spool);
    tracing::info!(
        agent = config.spec.id,
        region = config.spec.region,
        slots = config.spec.slots,
        recovered = recovered.len(),
        "agent starts"
    );

    let models = Models::new(&config.spec, tell.clone(), abandoned.clone());
    tokio::select! {
        () = models.probe_all() => {}
        () = shutdown.cancelled() => {
            let results_left = recovered.len() as u64;
            return Ok(Ended::Done { results_left });
        }
    }

    let settings = Settings {
        slots: config.spec.slots,
        prefetch: config.spec.prefetch,
        orphan_limit_ms: config.orphan_limit.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
        seed: u64::from_le_bytes(random()?),
    };
    let parts = Parts {
        machine: Session::new(settings, clock::now_ms(), recovered),
        coordinator,
        hello: hello(&config, &models)?,
        slots: Slots::new(tokio::runtime::Handle::current(), &config.spec, models, tell.clone()),
        spool: Arc::clone(&spool),
        events,
        tell,
        grace: config.grace,
        shutdown,
        abandoned,
    };
    let end = session_thread(parts)?.await;
    // Writes what is left; the folder is free for another process after this.
    tokio::task::spawn_blocking(move || drop(spool)).await?;
    match end.context("the session's thread panicked; its log says more")? {
        End::Stopped(StopReason::Done { results_left }) => Ok(Ended::Done { results_left }),
        End::Stopped(StopReason::Superseded) => Ok(Ended::Superseded),
        End::Refused(status) => Err(anyhow::anyhow!(
            "the coordinator at {} refuses this agent: {} ({:?})",
            config.coordinator,
            status.message(),
            status.code(),
        )),
        End::Abandoned => Err(anyhow::anyhow!("the agent was abandoned")),
    }
}

/// Runs the session on a thread of its own.
fn session_thread(parts: Parts) -> anyhow::Result<oneshot::Receiver<End>> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("making the session's runtime")?;
    let (done, ended) = oneshot::channel();
    thread::Builder::new()
        .name("semel-session".to_owned())
        .spawn(move || {
            let end = runtime.block_on(Driver::new(parts).run());
            // The caller may be gone; then nobody wants to know.
            let _ = done.send(end);
        })
        .context("starting the session's thread")?;
    Ok(ended)
}

/// What Hello says of this agent; the machine adds what it holds.
fn hello(config: &AgentConfig, models: &Models) -> anyhow::Result<pb::Hello> {
    Ok(pb::Hello {
        protocol_version: PROTOCOL_VERSION,
        namespace: config.namespace.clone(),
        agent_id: config.spec.id.clone(),
        incarnation: Bytes::copy_from_slice(&random::<16>()?),
        region: config.spec.region.clone(),
        models: models.listed(),
        slots: config.spec.slots,
        prefetch: config.spec.prefetch,
        held: Vec::new(),
        spooled: Vec::new(),
        software: concat!("semel-agent ", env!("CARGO_PKG_VERSION")).to_owned(),
    })
}

fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("the system gives no random bytes: {error}"))?;
    Ok(bytes)
}
