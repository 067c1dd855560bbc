//! The only place of the command line that reads a clock.

use std::{
    fmt,
    time::{Duration, Instant},
};

/// Time since it was started.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts at 0.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// How long ago that was.
    pub fn reading(&self) -> Duration {
        self.0.elapsed()
    }
}

/// The time of day at which something was heard, for people: no two are ever compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard(jiff::Timestamp);

impl Heard {
    /// Now.
    pub fn now() -> Self {
        Self(jiff::Timestamp::now())
    }

    /// As RFC 3339, in UTC, to the millisecond.
    pub fn as_time(self) -> String {
        format!("{:.3}", self.0)
    }
}

/// `as last heard at 13:05:09 UTC`.
impl fmt::Display for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "as last heard at {} UTC", self.0.strftime("%H:%M:%S"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_heard_is_told_with_its_time_of_day() {
        let heard = Heard(jiff::Timestamp::new(1_767_225_669, 12_000_000).expect("a time"));
        assert_eq!(heard.to_string(), "as last heard at 00:01:09 UTC");
        assert_eq!(heard.as_time(), "2026-01-01T00:01:09.012Z");
    }
}
