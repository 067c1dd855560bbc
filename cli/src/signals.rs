//! SIGINT and SIGTERM: the first asks for a clean stop, the second for one at once.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What the signals asked for so far.
#[derive(Clone, Debug)]
pub struct Signals {
    /// Stop cleanly.
    pub stop: CancellationToken,
    /// Stop at once.
    pub now: CancellationToken,
}

/// Takes the signals over from here on.
///
/// # Errors
/// The system doesn't give them.
pub fn watch() -> anyhow::Result<Signals> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listening to SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listening to SIGTERM")?;
    let signals = Signals { stop: CancellationToken::new(), now: CancellationToken::new() };
    let told = signals.clone();
    tokio::spawn(async move {
        for token in [told.stop, told.now] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            token.cancel();
        }
    });
    Ok(signals)
}
