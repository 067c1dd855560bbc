//! The only place of the coordinator that reads a clock.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use semel_core::id::{Millis, Now, UnixMs};

/// Both clocks. The monotonic one counts from the clock's making; where the machine is suspended it
/// stands still on Linux, and sessions with it.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that starts at 0.
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }
    /// Now, on both clocks.
    pub fn now(&self) -> Now {
        let mono = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
        Now { mono: Millis(mono), wall: UnixMs(i64::try_from(wall).unwrap_or(i64::MAX)) }
    }
}
