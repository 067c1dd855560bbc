//! How fast cells are recorded, and how long the rest takes at that rate.

use std::{collections::VecDeque, time::Duration};

/// What is looked back on; further where fewer than [`LEAST_COUNTED`] were counted in it.
const WINDOW: Duration = Duration::from_secs(30);
/// Looks that are remembered, at most.
const MAX_LOOKS: usize = 256;
/// The least time between two looks of which a rate is made.
const LEAST: Duration = Duration::from_millis(500);
/// The least time that an estimate stands on: by then models are warm.
const LEAST_TIME: Duration = Duration::from_secs(10);
/// The least that an estimate stands on: of fewer one slow cell makes another estimate.
const LEAST_COUNTED: u64 = 10;

/// Looks at a counter, and the rate between the first and the last of them.
#[derive(Clone, Debug, Default)]
pub struct Rate {
    looks: VecDeque<(Duration, u64)>,
    is_held: bool,
}

impl Rate {
    /// Notes that the counter stood at `count` at the time `at`.
    pub fn look(&mut self, at: Duration, count: u64) {
        // A retry takes records back: what was before says nothing of what comes.
        if self.looks.back().is_some_and(|(_, last)| count < *last) {
            self.looks.clear();
        }
        // While nothing moves one look stands for all: so what is slow is looked back on for as long as it takes.
        if self.looks.len() > 1 && self.looks.iter().rev().take(2).all(|(_, known)| *known == count) {
            self.looks.pop_back();
        }
        self.looks.push_back((at, count));
        while self.looks.len() > MAX_LOOKS || self.has_old() {
            self.looks.pop_front();
        }
    }

    /// Notes whether some of what is left waits for what no rate brings: then it can't be said how long it takes.
    pub fn hold(&mut self, is_held: bool) {
        self.is_held = is_held;
    }

    /// Whether the first look is older than what is looked back on, and enough was counted since the second.
    fn has_old(&self) -> bool {
        let (Some((first, _)), Some((_, second)), Some((at, count))) =
            (self.looks.front(), self.looks.get(1), self.looks.back())
        else {
            return false;
        };
        self.looks.len() > 2 && at.saturating_sub(*first) > WINDOW && count.saturating_sub(*second) >= LEAST_COUNTED
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

    /// How long `left` more take at this rate; `None` while it stands on too little to say so.
    pub fn time_for(&self, left: u64) -> Option<Duration> {
        let ((from, first), (to, last)) = (self.looks.front()?, self.looks.back()?);
        if self.is_held || to.saturating_sub(*from) < LEAST_TIME || last.saturating_sub(*first) < LEAST_COUNTED {
            return None;
        }
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
    fn no_time_is_told_until_the_rate_stands_on_enough() {
        let mut rate = Rate::default();
        rate.look(seconds(0), 0);
        rate.look(seconds(2), LEAST_COUNTED * 10);
        assert_eq!(rate.time_for(10), None, "so soon it says nothing of what comes");
        let mut rate = Rate::default();
        rate.look(seconds(0), 0);
        rate.look(LEAST_TIME * 2, LEAST_COUNTED - 1);
        assert_eq!(rate.time_for(10), None, "so few say nothing of what comes");
        rate.look(LEAST_TIME * 2, LEAST_COUNTED);
        assert_eq!(rate.time_for(10), Some(LEAST_TIME * 2));
        rate.hold(true);
        assert_eq!(rate.time_for(10), None, "what waits for an agent takes as long as that");
        rate.hold(false);
        assert_eq!(rate.time_for(10), Some(LEAST_TIME * 2));
    }

    #[test]
    fn what_is_slow_is_looked_back_on_until_enough_was_counted() {
        let mut rate = Rate::default();
        // A cell a minute, and a look each half second.
        for half in 0..2 * 60 * 60 {
            rate.look(Duration::from_millis(500) * half, u64::from(half / 120));
        }
        let left = rate.time_for(10).expect("an hour of it stands on enough").as_secs();
        assert!((540..=720).contains(&left), "{left}");
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
