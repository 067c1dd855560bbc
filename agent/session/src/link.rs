//! The current stream, its heartbeats, and what they prove.

use std::collections::VecDeque;

use crate::types::StreamNumber;

/// How long dialling and greeting may take together, in milliseconds, before the stream is given up.
pub const GREETING_LIMIT_MS: u64 = 10_000;
/// The wait before the first reconnect, in milliseconds; doubled with each failure in a row.
pub const BACKOFF_MIN_MS: u64 = 200;
/// The longest wait before a reconnect, in milliseconds.
pub const BACKOFF_MAX_MS: u64 = 5_000;
/// The session's TTL before the first Welcome has said one, in milliseconds.
pub const DEFAULT_TTL_MS: u64 = 30_000;
/// Heartbeats of which the acknowledgement is awaited. Beyond, the oldest are not waited for any
/// more: a later acknowledgement proves as much.
pub const MAX_UNACKNOWLEDGED_HEARTBEATS: usize = 1_024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No stream; dial at this time.
    Down { retry_at: u64 },
    /// `Connect` was polled.
    Dialling { since: u64 },
    /// The stream stands; Hello goes out, if it hasn't at `hello_at`.
    Greeting { since: u64, hello_at: Option<u64> },
    /// Welcome came.
    Up,
}

#[derive(Debug)]
pub(crate) struct Link {
    pub phase: Phase,
    pub stream: StreamNumber,
    /// Failures in a row, since a heartbeat was acknowledged.
    failures: u32,
    chance: u64,

    ttl_ms: u64,
    interval_ms: u64,
    orphan_limit_ms: Option<u64>,

    /// The number of the last heartbeat sent.
    pub heartbeat: u64,
    /// When it was sent; before the first of a stream, when its Hello was.
    said_at: u64,
    next_heartbeat_at: u64,
    /// Number and time of sending of the heartbeats of this stream that are not acknowledged yet.
    awaited: VecDeque<(u64, u64)>,
    /// When the latest heartbeat that was acknowledged had been sent (S1). `None` while the
    /// session isn't proven to live.
    proven_at: Option<u64>,
}

impl Link {
    pub fn new(orphan_limit_ms: Option<u64>, seed: u64, now: u64) -> Self {
        Self {
            phase: Phase::Down { retry_at: now },
            stream: 0,
            failures: 0,
            chance: seed,
            ttl_ms: DEFAULT_TTL_MS,
            interval_ms: DEFAULT_TTL_MS,
            orphan_limit_ms,
            heartbeat: 0,
            said_at: now,
            next_heartbeat_at: 0,
            awaited: VecDeque::new(),
            proven_at: None,
        }
    }

    pub fn ttl_ms(&self) -> u64 {
        self.ttl_ms
    }

    fn orphan_limit_ms(&self) -> u64 {
        self.orphan_limit_ms.unwrap_or(self.ttl_ms)
    }

    /// How long the oldest heartbeat may wait for its acknowledgement before the stream is taken
    /// for dead: half a TTL, so that there is time to come back on another.
    fn silence_limit_ms(&self) -> u64 {
        (self.ttl_ms / 2).max(self.interval_ms.saturating_mul(2))
    }

    // --- the stream -------------------------------------------------------------------------

    pub fn is_current(&self, stream: StreamNumber) -> bool {
        stream == self.stream && !matches!(self.phase, Phase::Down { .. })
    }

    pub fn is_up(&self) -> bool {
        self.phase == Phase::Up
    }

    /// Starts dialling if it is time, and gives the new stream's number.
    pub fn dial(&mut self, now: u64) -> Option<StreamNumber> {
        match self.phase {
            Phase::Down { retry_at } if now >= retry_at => {
                self.stream += 1;
                self.phase = Phase::Dialling { since: now };
                Some(self.stream)
            }
            _ => None,
        }
    }

    pub fn connected(&mut self) {
        if let Phase::Dialling { since } = self.phase {
            self.phase = Phase::Greeting { since, hello_at: None };
        }
    }

    /// Leaves the stream; the next one is dialled after a backoff.
    pub fn drop_stream(&mut self, now: u64) {
        let backoff = BACKOFF_MIN_MS.saturating_mul(1 << self.failures.min(16)).min(BACKOFF_MAX_MS);
        self.failures = self.failures.saturating_add(1);
        // Half of it is fixed and half drawn, so that a region's agents don't come back as one.
        let wait = backoff / 2 + self.draw() % (backoff / 2 + 1);
        self.awaited.clear();
        self.phase = Phase::Down { retry_at: now + wait };
    }

    /// Whether the stream has to be given up: no Welcome, no acknowledgement, or no room for a
    /// heartbeat, for too long.
    pub fn is_dead(&self, now: u64) -> bool {
        self.dead_at().is_some_and(|at| now >= at)
    }

    fn dead_at(&self) -> Option<u64> {
        match self.phase {
            Phase::Down { .. } => None,
            Phase::Dialling { since } | Phase::Greeting { since, .. } => Some(since + GREETING_LIMIT_MS),
            Phase::Up => {
                let unanswered = self.awaited.front().map(|(_, at)| at.saturating_add(self.silence_limit_ms()));
                // While a large report is on its way there is no room behind it, and no answer is
                // missed. But after a TTL without a heartbeat the coordinator has ended the session.
                let unsaid = self.said_at.saturating_add(self.ttl_ms.max(self.interval_ms.saturating_mul(2)));
                Some(unanswered.map_or(unsaid, |at| at.min(unsaid)))
            }
        }
    }

    /// Whether Hello is to be sent now; if so, it counts as sent.
    pub fn greet(&mut self, now: u64) -> bool {
        match &mut self.phase {
            Phase::Greeting { hello_at, .. } if hello_at.is_none() => {
                *hello_at = Some(now);
                true
            }
            _ => false,
        }
    }

    /// Takes Welcome's times. Gives `false` if no Hello was sent: then it isn't an answer.
    pub fn welcome(&mut self, ttl_ms: u64, interval_ms: u64) -> bool {
        let Phase::Greeting { hello_at: Some(hello_at), .. } = self.phase else {
            return false;
        };
        self.phase = Phase::Up;
        self.ttl_ms = ttl_ms.max(1);
        self.interval_ms = interval_ms.max(1);
        self.next_heartbeat_at = hello_at;
        self.said_at = hello_at;
        // A session that is told of for the first time, or again after its end, lives from its
        // Hello on. One that still lives is prolonged by acknowledged heartbeats only: a Welcome
        // can be said by a coordinator that no longer leads.
        self.proven_at.get_or_insert(hello_at);
        true
    }

    // --- heartbeats -------------------------------------------------------------------------

    pub fn is_heartbeat_due(&self, now: u64) -> bool {
        self.is_up() && now >= self.next_heartbeat_at
    }

    /// Wants a heartbeat with the next poll.
    pub fn hurry_heartbeat(&mut self) {
        self.next_heartbeat_at = 0;
    }

    /// Numbers a heartbeat that is sent now.
    pub fn beat(&mut self, now: u64) -> u64 {
        self.heartbeat += 1;
        self.said_at = now;
        self.next_heartbeat_at = now + self.interval_ms;
        if self.awaited.len() == MAX_UNACKNOWLEDGED_HEARTBEATS {
            // The front stays: the silence of the coordinator is counted from it.
            self.awaited.remove(1);
        }
        self.awaited.push_back((self.heartbeat, now));
        self.heartbeat
    }

    /// Heartbeat `number` was acknowledged, and with it those before it.
    pub fn acknowledged(&mut self, number: u64) {
        let mut sent = None;
        while let Some((awaited, at)) = self.awaited.front().copied()
            && awaited <= number
        {
            self.awaited.pop_front();
            sent = Some(at);
        }
        if let Some(at) = sent {
            self.proven_at = Some(self.proven_at.map_or(at, |proven| proven.max(at)));
            self.failures = 0;
        }
    }

    // --- what is proven ---------------------------------------------------------------------

    /// Whether the session lives for certain, so that something may start (S1).
    pub fn is_session_proven(&self, now: u64) -> bool {
        let limit = self.ttl_ms.min(self.orphan_limit_ms());
        self.proven_at.is_some_and(|at| now < at.saturating_add(limit))
    }

    fn orphaned_at(&self) -> Option<u64> {
        Some(self.proven_at?.saturating_add(self.orphan_limit_ms()))
    }

    /// Whether the orphan limit has passed; gives `true` once, until the session is proven again.
    pub fn take_orphaned(&mut self, now: u64) -> bool {
        let orphaned = self.orphaned_at().is_some_and(|at| now >= at);
        if orphaned {
            self.proven_at = None;
        }
        orphaned
    }

    /// When something happens here by itself.
    pub fn next_wake(&self) -> Option<u64> {
        let own = match self.phase {
            Phase::Down { retry_at } => Some(retry_at),
            Phase::Up => Some(self.next_heartbeat_at),
            Phase::Dialling { .. } | Phase::Greeting { .. } => None,
        };
        [own, self.dead_at(), self.orphaned_at()].into_iter().flatten().min()
    }

    /// SplitMix64: well mixed from any seed, and a few lines.
    fn draw(&mut self) -> u64 {
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.chance;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
