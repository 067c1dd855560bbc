//! The only place that reads a clock: how fast the simulator is, and where fresh seeds begin.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Measures from here on.
pub fn start() -> impl Fn() -> Duration {
    let began = Instant::now();
    move || began.elapsed()
}

/// A number that was not there before.
pub fn fresh() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() * 1_000)
}
