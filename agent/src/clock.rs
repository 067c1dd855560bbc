//! The agent's monotonic clock, as the session machine wants it.

/// Milliseconds of a clock that no one can set, from an arbitrary start.
///
/// On Linux this is `CLOCK_BOOTTIME`, which, other than `std::time::Instant`, also counts the time
/// that the machine was suspended: an agent that wakes up must find that its session has run out
/// before it starts anything (S1).
#[cfg(target_os = "linux")]
pub(crate) fn now_ms() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let nanos = u64::try_from(time.tv_nsec).unwrap_or_default();
    seconds * 1_000 + nanos / 1_000_000
}

/// Milliseconds of a clock that no one can set, from an arbitrary start. Whether it counts the time
/// of a suspended machine is up to the system.
#[cfg(not(target_os = "linux"))]
pub(crate) fn now_ms() -> u64 {
    use std::{sync::OnceLock, time::Instant};
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}
