//! Deciding: what to do and what to say, and in which order.

use crate::{AbortReason, Action, Heartbeat, Message, ModelState, ReleaseReason, Session, StopReason};

impl<T: Ord + Clone, L, R: Clone> Session<T, L, R> {
    /// What is to be done on this machine, until `None`.
    pub fn poll_action(&mut self, now: u64) -> Option<Action<T, L, R>> {
        if self.stopped {
            return None;
        }
        self.pass_time(now);
        if let Some(action) = self.actions.pop_front() {
            return Some(action);
        }
        if let Some(reason) = self.end_reached(now) {
            self.stopped = true;
            return Some(Action::Stop(reason));
        }
        if self.link.is_session_proven(now)
            && let Some((token, work)) = self.ledger.start()
        {
            assert!(self.link.is_up(), "S4: a start is announced on the current stream");
            return Some(Action::Start { token, work });
        }
        let stream = self.link.dial(now)?;
        Some(Action::Connect { stream })
    }

    /// The next message for the current stream. To be called when the stream has room for one, and
    /// after the actions were polled: what is polled counts as sent.
    pub fn poll_message(&mut self, now: u64) -> Option<Message<T, R>> {
        if self.stopped || self.superseded {
            return None;
        }
        self.pass_time(now);
        if self.link.greet(now) {
            let (held, spooled) = self.ledger.present();
            let slots = self.slots();
            return Some(Message::Hello { slots, held, spooled });
        }
        if !self.link.is_up() {
            return None;
        }
        // The order: what frees or closes work first, then signs of life, then the lists, and the
        // results, which can be large, last. A heartbeat whose time has come overtakes them all,
        // and one that is only wanted leaves every other turn to a report.
        if self.link.is_heartbeat_due(now) {
            return Some(self.heartbeat(now));
        }
        if let Some((token, reason, message)) = self.ledger.say_release() {
            return Some(Message::Release { token, reason, message });
        }
        if let Some(states) = self.model_states() {
            return Some(states);
        }
        if self.heartbeat_hurried
            && let Some(report) = self.report()
        {
            return Some(report);
        }
        if self.is_heartbeat_wanted(now) {
            let heartbeat = self.heartbeat(now);
            self.heartbeat_hurried = true;
            return Some(heartbeat);
        }
        if let Some(request) = self.held_requested
            && !self.ledger.has_unacknowledged()
        {
            self.held_requested = None;
            return Some(Message::Held { number: self.link.heartbeat, request, leases: self.ledger.held() });
        }
        self.report()
    }

    /// When to poll again if nothing happens before; `None` once the machine has ended.
    pub fn next_wake(&self) -> Option<u64> {
        if self.stopped {
            return None;
        }
        let stopping = self.stopping.map(|stopping| {
            if self.ledger.occupied() > 0 { stopping.grace_ends_at.min(stopping.ends_at) } else { stopping.ends_at }
        });
        [self.link.next_wake(), stopping].into_iter().flatten().min()
    }

    /// Lets happen what time alone brings. First in every poll: after a sleep nothing is said or
    /// started before the orphan limit was looked at (S1).
    fn pass_time(&mut self, now: u64) {
        if self.link.take_orphaned(now) {
            self.abort_running(AbortReason::Orphaned, ReleaseReason::Orphaned);
            self.hand_back_waiting(ReleaseReason::Orphaned);
        }
        if self.stopping.is_some_and(|stopping| now >= stopping.grace_ends_at) {
            self.abort_running(AbortReason::Shutdown, ReleaseReason::Draining);
        }
        if self.link.is_dead(now) {
            self.abandon_stream(now);
        }
    }

    /// Whether the machine has come to its end, and how.
    fn end_reached(&self, now: u64) -> Option<StopReason> {
        if self.superseded {
            return Some(StopReason::Superseded);
        }
        let stopping = self.stopping?;
        (self.ledger.is_idle() || now >= stopping.ends_at)
            .then(|| StopReason::Done { results_left: self.ledger.results() as u64 })
    }

    /// Whether something has arrived or can start that a heartbeat must say first (S2, S4).
    fn is_heartbeat_wanted(&self, now: u64) -> bool {
        self.ledger.has_unacknowledged() || self.can_announce(now)
    }

    fn can_announce(&self, now: u64) -> bool {
        !self.ledger.is_queue_empty() && self.ledger.occupied() < self.slots() && self.link.is_session_proven(now)
    }

    fn heartbeat(&mut self, now: u64) -> Message<T, R> {
        let acknowledged = self.ledger.acknowledge();
        let started = if self.can_announce(now) { self.ledger.announce(self.slots()) } else { Vec::new() };
        let tally = self.ledger.tally();
        Message::Heartbeat(Heartbeat {
            number: self.link.beat(now),
            slots: self.slots(),
            acknowledged,
            started,
            held_count: tally.count,
            held_xor: tally.xor,
        })
    }

    fn report(&mut self) -> Option<Message<T, R>> {
        self.heartbeat_hurried = false;
        let (token, result) = self.ledger.say_report()?;
        Some(Message::Report { token, result })
    }

    fn model_states(&mut self) -> Option<Message<T, R>> {
        if self.models_unsaid.is_empty() {
            return None;
        }
        let unsaid = std::mem::take(&mut self.models_unsaid);
        let states = unsaid.into_iter().map(|id| {
            let trouble = self.models.get(&id).cloned().flatten();
            ModelState { ready: trouble.is_none(), message: trouble.unwrap_or_default(), id }
        });
        Some(Message::ModelStates(states.collect()))
    }
}
