//! How fast cells are recorded, and how long the rest takes at that rate.

use std::{collections::VecDeque, time::Duration};

/// What is looked back on.
const WINDOW: Duration = Duration::from_secs(30);
/// Looks that are remembered, at most.
const MAX_LOOKS: usize = 256;
/// The least time between two looks of which a rate is made.
const LEAST: Duration = Duration::from_millis(500);

/// Looks at a counter, and the rate between the first and the last of them.
#[derive(Clone, Debug, Default)]
pub struct Rate {
    looks: VecDeque<(Duration, u64)>,
}

impl Rate {
    /// Notes that the counter stood at `count` at the time `at`.
    pub fn look(&mut self, at: Duration, count: u64) {
        // A retry takes records back: what was before says nothing of what comes.
        if self.looks.back().is_some_and(|(_, last)| count < *last) {
            self.looks.clear();
        }
        self.looks.push_back((at, count));
        while self.looks.len() > MAX_LOOKS
            || (self.looks.len() > 2 && self.looks.front().is_some_and(|(first, _)| at.saturating_sub(*first) > WINDOW))
        {
            self.looks.pop_front();
        }
    }

    /// Counted a second; `None` while there is nothing to tell it by.
    pub fn per_second(&self) -> Option<f64> {
        let ((from, first), (to, last)) = (self.looks.front()?, self.looks.back()?);
        let over = to.saturating_sub(*from);
        if over < LEAST || last <= first {
            return None;
        }
        Some((last - first) as f64 / over.as_secs_f64())
    }

    /// How long `left` more take at this rate.
    pub fn time_for(&self, left: u64) -> Option<Duration> {
        Duration::try_from_secs_f64(left as f64 / self.per_second()?).ok()
    }
}

/// A duration as a person says it: `12 s`, `3 min 5 s`, `2 h 10 min`, `3 d 4 h`.
pub fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{minutes} min {} s", seconds % 60),
        3_600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_rate_is_that_of_the_last_half_minute() {
        let mut rate = Rate::default();
        rate.look(seconds(0), 0);
        assert_eq!(rate.per_second(), None);
        rate.look(seconds(10), 20);
        assert_eq!(rate.per_second(), Some(2.0));
        assert_eq!(rate.time_for(10), Some(seconds(5)));
        rate.look(seconds(60), 420);
        assert_eq!(rate.per_second(), Some(8.0));
    }

    #[test]
    fn nothing_is_promised_where_nothing_moves() {
        let mut rate = Rate::default();
        for at in 0..5 {
            rate.look(seconds(at), 7);
        }
        assert_eq!(rate.time_for(3), None);
        rate.look(seconds(6), 2);
        assert_eq!(rate.per_second(), None);
    }

    #[test]
    fn durations_read_as_people_say_them() {
        let said: Vec<String> = [5, 185, 7_800, 273_600].map(|s| in_words(seconds(s))).to_vec();
        assert_eq!(said, ["5 s", "3 min 5 s", "2 h 10 min", "3 d 4 h"]);
    }
}
