//! The agent's side of a session, as a pure state machine: no I/O, no clock, no randomness.
//!
//! The shell calls a `handle_*` for everything that happens and then polls: [`Session::poll_action`]
//! for what to do on this machine, [`Session::poll_message`] for what to send. Time comes in as
//! `now`, milliseconds of a monotonic clock that starts anywhere. `handle_*` only take note; all
//! deciding is done by the polls. One turn of the shell is:
//!
//! 1. wait for a message, the end of a run, or [`Session::next_wake`];
//! 2. handle **all** that has arrived (S3);
//! 3. poll actions until there are none; poll one message if the stream has room for it; repeat.
//!
//! `T` is the opaque lease token, `L` what a lease carries, `R` a finished report.
//!
//! # What binds
//!
//! Invariant (S1): nothing starts unless the latest acknowledged heartbeat was *sent* less than one
//! TTL ago; when that is an orphan limit ago, all that runs is aborted and all that waits is handed
//! back, before anything else is polled. So a process that slept finds this out before it speaks.
//!
//! Invariant (S2, S4): `Start` is polled after the heartbeat of the *current* stream that announces
//! it, and that heartbeat or an earlier one of the stream (or its Hello) acknowledged the lease.
//!
//! Invariant (S4): the held set, of which each heartbeat carries count and XOR, has every lease from
//! its arrival on, until the agent says its Report or Release on the stream, or handles its Revoke.
//! The coordinator takes a lease out of its own set when it handles that same Report or Release, so
//! at each heartbeat the two agree. A result or release that was said on a stream that broke is named
//! in the next Hello (results under `spooled`, releases under `held`), and so, if Welcome doesn't
//! call it lost, is held again until it is said again.
//!
//! Invariant: a result is kept until its receipt, whatever became of its lease. A run that was
//! aborted brings no result.
//!
//! Invariant (promise 5): a lease that is handed back is listed and handed back again on every new
//! stream, until its Revoke or Welcome's `lost` tells that its end is durable. An acknowledged
//! heartbeat tells nothing of that: it is said before any commit (C6).

mod ledger;
mod link;
mod poll;
mod types;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ledger::{Ended, Ledger};
use link::Link;
pub use link::{BACKOFF_MAX_MS, BACKOFF_MIN_MS, DEFAULT_TTL_MS, GREETING_LIMIT_MS, MAX_UNACKNOWLEDGED_HEARTBEATS};
pub use types::{
    AbortReason, Action, GoAway, Heartbeat, Held, Lease, Message, ModelState, Recovered, ReleaseReason, Settings,
    StopReason, StreamNumber, Welcome,
};

/// Leases beyond twice (slots + prefetch) plus this many are handed back as `Overloaded`, and while
/// as many releases wait for their Revokes none is taken at all: the bounds of what a faulty
/// coordinator can pile up here.
pub const LEASE_ALLOWANCE: u64 = 64;

/// The machine. See the crate's documentation for how it is driven.
#[derive(Debug)]
pub struct Session<T, L, R> {
    settings: Settings,
    link: Link,
    ledger: Ledger<T, L, R>,
    /// Actions decided on, in order; `Start` is not among them, it is decided when polled.
    actions: VecDeque<Action<T, L, R>>,
    /// Every model that was ever not ready, and why it still isn't.
    models: BTreeMap<String, Option<String>>,
    /// Models whose state is still to be said on this stream.
    models_unsaid: BTreeSet<String>,
    /// The newest request for the list that has no answer yet.
    held_requested: Option<u64>,
    /// The last message was a heartbeat ahead of its time: a report has the next turn.
    heartbeat_hurried: bool,
    draining: bool,
    spool_has_room: bool,
    stopping: Option<Stopping>,
    superseded: bool,
    stopped: bool,
}

/// A shutdown under way.
#[derive(Clone, Copy, Debug)]
struct Stopping {
    /// When what still runs is aborted.
    grace_ends_at: u64,
    /// When the machine ends, receipts or not.
    ends_at: u64,
}

impl<T: Ord + Clone, L, R: Clone> Session<T, L, R> {
    /// A machine that dials at its first poll. `recovered` are the results that the spool still
    /// has of earlier processes.
    pub fn new(settings: Settings, now: u64, recovered: impl IntoIterator<Item = Recovered<T, R>>) -> Self {
        let mut ledger = Ledger::new();
        for one in recovered {
            ledger.recover(one.token, one.fencing, one.result);
        }
        Self {
            link: Link::new(settings.orphan_limit_ms, settings.seed, now),
            settings,
            ledger,
            actions: VecDeque::new(),
            models: BTreeMap::new(),
            models_unsaid: BTreeSet::new(),
            held_requested: None,
            heartbeat_hurried: false,
            draining: false,
            spool_has_room: true,
            stopping: None,
            superseded: false,
            stopped: false,
        }
    }

    // --- streams ----------------------------------------------------------------------------

    /// The stream stands; Hello is the next message.
    pub fn handle_connected(&mut self, stream: StreamNumber) {
        if self.link.is_current(stream) {
            self.link.connected();
        }
    }

    /// The stream broke, or could not be dialled.
    pub fn handle_disconnected(&mut self, now: u64, stream: StreamNumber) {
        if self.link.is_current(stream) {
            self.leave_stream(now);
        }
    }

    /// The coordinator greets. One that answers no Hello is dropped.
    pub fn handle_welcome(&mut self, stream: StreamNumber, welcome: Welcome<T>) {
        if !self.link.is_current(stream) || !self.link.welcome(welcome.ttl_ms, welcome.heartbeat_interval_ms) {
            return;
        }
        for token in &welcome.lost {
            self.end(token, AbortReason::Lost);
        }
        self.models_unsaid = self.models.keys().cloned().collect();
    }

    /// Heartbeat `number` arrived at a coordinator that leads.
    pub fn handle_heartbeat_ack(&mut self, stream: StreamNumber, number: u64) {
        if self.link.is_current(stream) {
            self.link.acknowledged(number);
        }
    }

    /// A lease arrived. A token that is known already is a repeat and changes nothing.
    pub fn handle_lease(&mut self, stream: StreamNumber, lease: Lease<T, L>) {
        if !self.link.is_current(stream) || self.ledger.knows(&lease.token) {
            return;
        }
        if self.ledger.releases() as u64 >= self.lease_limit() {
            // Not taken and never acknowledged: the list that it is asked for shows that it has not got it (S2).
            return;
        }
        let token = lease.token.clone();
        let full = self.ledger.leases() as u64 >= self.lease_limit();
        self.ledger.arrive(lease);
        if self.draining {
            self.hand_back(&token, ReleaseReason::Draining);
        } else if !self.spool_has_room {
            self.hand_back(&token, ReleaseReason::SpoolFull);
        } else if full {
            self.hand_back(&token, ReleaseReason::Overloaded);
        }
    }

    /// A lease has ended: it will not start, and is aborted if it runs. It is also the answer to its
    /// release: the coordinator has made it durable.
    pub fn handle_revoke(&mut self, stream: StreamNumber, token: &T) {
        if self.link.is_current(stream) {
            self.end(token, AbortReason::Revoked);
        }
    }

    /// A report was answered; whatever the answer is, it is final for the token.
    pub fn handle_receipt(&mut self, stream: StreamNumber, token: &T) {
        // After the end nobody would forget the result on disk: its receipt comes again with the next start.
        if !self.stopped && self.link.is_current(stream) && self.ledger.receipt(token) {
            self.actions.push_back(Action::Forget { token: token.clone() });
        }
    }

    /// The coordinator asks for the list of what is held; the newest of its requests is answered.
    pub fn handle_held_request(&mut self, stream: StreamNumber, request: u64) {
        if self.link.is_current(stream) {
            self.held_requested = Some(request);
        }
    }

    /// The coordinator drains this agent: what runs is finished, what waits is handed back, and
    /// nothing is taken any more, for the life of this process.
    pub fn handle_drain(&mut self, stream: StreamNumber) {
        if self.link.is_current(stream) {
            self.drain();
        }
    }

    /// The coordinator ends the stream.
    pub fn handle_go_away(&mut self, now: u64, stream: StreamNumber, reason: GoAway) {
        if !self.link.is_current(stream) {
            return;
        }
        match reason {
            GoAway::ComeBack => self.abandon_stream(now),
            GoAway::Superseded => {
                for token in self.ledger.tokens(true) {
                    self.end(&token, AbortReason::Superseded);
                }
                self.actions.push_back(Action::Disconnect { stream });
                self.leave_stream(now);
                self.superseded = true;
            }
        }
    }

    // --- this machine -----------------------------------------------------------------------

    /// A run ended with a result. One whose run was aborted or revoked before is dropped.
    pub fn handle_finished(&mut self, token: &T, result: R) {
        if let Some(fencing) = self.ledger.finish(token, result.clone()) {
            self.actions.push_back(Action::Spool { token: token.clone(), fencing, result });
        }
    }

    /// A run ended without a result: the lease goes back. `message` says more, for people.
    pub fn handle_released(&mut self, token: &T, reason: ReleaseReason, message: String) {
        self.ledger.hand_back(token, reason, message);
    }

    /// Whether a model can be reached; `message` says why not.
    pub fn handle_model_state(&mut self, id: &str, ready: bool, message: &str) {
        let trouble = (!ready).then(|| message.to_owned());
        let before = self.models.get(id).cloned().flatten();
        if trouble != before {
            self.models.insert(id.to_owned(), trouble);
            self.models_unsaid.insert(id.to_owned());
        }
    }

    /// Whether the spool can take results. Without room nothing starts, and what waits is handed
    /// back.
    pub fn handle_spool_room(&mut self, has_room: bool) {
        if self.spool_has_room == has_room {
            return;
        }
        self.spool_has_room = has_room;
        self.link.hurry_heartbeat();
        if !has_room {
            self.hand_back_waiting(ReleaseReason::SpoolFull);
        }
    }

    /// The process is to end. What runs has `grace_ms` to finish and is then aborted and handed
    /// back; the machine stops once all is answered, at the latest one TTL after the grace. Said
    /// again, the earlier end holds.
    pub fn handle_shutdown(&mut self, now: u64, grace_ms: u64) {
        let grace_ends_at = now.saturating_add(grace_ms);
        let ends_at = grace_ends_at.saturating_add(self.link.ttl_ms());
        self.stopping = Some(match self.stopping {
            Some(before) => Stopping {
                grace_ends_at: before.grace_ends_at.min(grace_ends_at),
                ends_at: before.ends_at.min(ends_at),
            },
            None => Stopping { grace_ends_at, ends_at },
        });
        self.drain();
    }

    // --- what there is ----------------------------------------------------------------------

    /// The number of the current stream, or of the last one; 0 before the first.
    pub fn stream(&self) -> StreamNumber {
        self.link.stream
    }

    /// Whether Welcome came on the current stream, and it still stands.
    pub fn is_up(&self) -> bool {
        self.link.is_up()
    }

    /// How many executions run or are about to.
    pub fn running(&self) -> u32 {
        self.ledger.occupied()
    }

    /// Tokens of all leases held, as the next heartbeat counts them.
    pub fn held(&self) -> Vec<Held<T>> {
        self.ledger.held()
    }

    /// Results that wait for their receipts.
    pub fn results(&self) -> usize {
        self.ledger.results()
    }

    /// Whether the machine has ended.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Slots as a heartbeat says them: 0 while nothing is taken.
    pub fn slots(&self) -> u32 {
        if self.draining || !self.spool_has_room { 0 } else { self.settings.slots }
    }

    /// Recounts everything that is counted along the way, and panics on a difference. Slow: for
    /// tests and the simulator. Cheap assertions are always on.
    pub fn check(&self) {
        self.ledger.recount();
        assert!(self.ledger.occupied() <= self.settings.slots, "never more runs than slots");
    }

    // --- shared by the above ----------------------------------------------------------------

    fn lease_limit(&self) -> u64 {
        2 * (u64::from(self.settings.slots) + u64::from(self.settings.prefetch)) + LEASE_ALLOWANCE
    }

    /// The lease is over, by the coordinator's word.
    fn end(&mut self, token: &T, reason: AbortReason) {
        if self.ledger.end(token) == Ended::Running {
            self.actions.push_back(Action::Abort { token: token.clone(), reason });
        }
    }

    fn hand_back(&mut self, token: &T, reason: ReleaseReason) {
        self.ledger.hand_back(token, reason, String::new());
    }

    /// Hands back all that doesn't run yet.
    fn hand_back_waiting(&mut self, reason: ReleaseReason) {
        for token in self.ledger.tokens(false) {
            self.hand_back(&token, reason);
        }
    }

    /// Aborts all that runs and hands it back.
    fn abort_running(&mut self, abort: AbortReason, release: ReleaseReason) {
        for token in self.ledger.tokens(true) {
            self.hand_back(&token, release);
            self.actions.push_back(Action::Abort { token, reason: abort });
        }
    }

    fn drain(&mut self) {
        self.draining = true;
        self.link.hurry_heartbeat();
        self.hand_back_waiting(ReleaseReason::Draining);
    }

    /// Gives up a stream that the shell still has.
    fn abandon_stream(&mut self, now: u64) {
        self.actions.push_back(Action::Disconnect { stream: self.link.stream });
        self.leave_stream(now);
    }

    fn leave_stream(&mut self, now: u64) {
        self.link.drop_stream(now);
        self.ledger.unannounce();
        self.held_requested = None;
        self.heartbeat_hurried = false;
    }
}
