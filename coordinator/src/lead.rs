//! Leadership of a namespace: take the epoch, read the tables, lead, and do it again when memory is in doubt.

use std::{any::Any, collections::VecDeque, panic::AssertUnwindSafe, sync::Arc};

use backon::{ExponentialBuilder, Retryable};
use futures_util::FutureExt;
use semel_core::{Committed, Config, Core, id::Seq};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    refused::Refused,
    shell::{Ended, Input, Leading, Owner},
    specs::Specs,
    store::{ReadError, Store},
};

/// Rebuilds within [`REBUILD_WINDOW_MS`] after which leadership is given up: something is wrong that rebuilding does not cure.
const MAX_REBUILDS: usize = 3;
/// An hour.
const REBUILD_WINDOW_MS: u64 = 3_600_000;
/// Tries of a takeover after the first, doubling their wait from a second up to a minute.
const MAX_TAKEOVER_TRIES: usize = 10;

/// Why a coordinator leads no more.
#[derive(Debug, thiserror::Error)]
pub enum LeadError {
    /// The tables can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// What was read breaks a promise.
    #[error("the tables can't be led from: {0}; run `semel audit` on the store")]
    Tables(String),
    /// Memory had to be rebuilt too often.
    #[error("gave up the leadership after {MAX_REBUILDS} rebuilds within an hour; the last: {0}")]
    Broken(String),
    /// Another coordinator took over.
    #[error("deposed: epoch {0} has taken over")]
    Deposed(semel_core::id::Epoch),
}

/// Leads until `stop`.
pub(crate) async fn lead(
    store: Arc<dyn Store>,
    specs: Arc<Specs>,
    config: Config,
    mut inbox: mpsc::Receiver<Input>,
    leading: watch::Sender<Leading>,
    stop: CancellationToken,
) -> Result<(), LeadError> {
    let clock = Clock::start();
    let refused = Refused::default();
    let mut rebuilds = VecDeque::new();
    // The first takeover fails at once: whoever started the process is there to read why.
    let mut tries = 0;
    loop {
        let backoff = ExponentialBuilder::default().with_jitter().with_max_times(tries);
        let taking_over = (|| take_over(&store, config, clock))
            .retry(backoff)
            .when(|error| matches!(error, LeadError::Read(error) if error.is_transient()))
            .notify(|error, wait| tracing::warn!(%error, ?wait, "the takeover is tried again"));
        let (core, takeover) = tokio::select! {
            biased;
            // Nothing was taken in since the last leadership, so there is nothing to finish.
            () = stop.cancelled() => return Ok(()),
            taken = taking_over => taken?,
        };
        tries = MAX_TAKEOVER_TRIES;
        leading.send_replace(Leading { at: Some((core.epoch(), Seq(0))), stalled: false });
        tracing::info!(epoch = core.epoch().get(), "leads");
        let owner = Owner::new(core, clock, takeover, store.clone(), specs.clone(), &leading, &refused);
        // An assertion that fails says that memory is wrong, as `Broken` does.
        let running = AssertUnwindSafe(owner.run(&mut inbox, stop.cancelled())).catch_unwind();
        let ended = running.await.unwrap_or_else(|panic| Ended::Rebuild(words_of(panic.as_ref())));
        leading.send_replace(Leading::default());
        let why = match ended {
            Ended::Stopped => return Ok(()),
            Ended::Deposed(epoch) => return Err(LeadError::Deposed(epoch)),
            Ended::Refused(culprit, why) => {
                tracing::error!(why, ?culprit, "the store refused a batch for good: events are committed one by one");
                if refused.note(culprit) {
                    continue;
                }
                why
            }
            Ended::Rebuild(why) => why,
        };
        tracing::error!(why, "leadership ends before anything false is written; memory is rebuilt from the tables");
        let now = clock.now().mono;
        rebuilds.push_back(now);
        rebuilds.retain(|at| now.since(*at) <= REBUILD_WINDOW_MS);
        if rebuilds.len() > MAX_REBUILDS {
            return Err(LeadError::Broken(why));
        }
    }
}

/// Rule L1: the higher epoch first, then the tables, then everybody.
#[expect(clippy::disallowed_methods, reason = "the takeover is a commit of its own: `campaign` has answered")]
async fn take_over(store: &Arc<dyn Store>, config: Config, clock: Clock) -> Result<(Core, Committed), LeadError> {
    let epoch = store.campaign().await?;
    let loaded = store.load(epoch).await?;
    let core = Core::load(config, epoch, clock.now(), loaded).map_err(|broken| LeadError::Tables(broken.0))?;
    Ok((core, Committed::by_store(epoch, Seq(0))))
}

fn words_of(panic: &(dyn Any + Send)) -> String {
    let words = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("a panic: {}", words.unwrap_or("without words"))
}
