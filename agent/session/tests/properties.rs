//! Random histories against a small model of the coordinator. What must hold is checked after
//! every poll; proptest prints the shrunken history that breaks it.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use semel_session::{
    Action, GoAway, Heartbeat, LEASE_ALLOWANCE, Lease, Message, Recovered, ReleaseReason, Session, Settings,
    StopReason, Welcome,
};

const TTL: u64 = 1_000;
const INTERVAL: u64 = 200;
/// Far more than a machine has to do and to say at one time: a test that loops fails, and does not hang.
const ENDLESS: usize = 100_000;

/// Something that happens. Numbers choose among what is there, modulo its count.
#[derive(Clone, Debug)]
enum Event {
    Pass(u64),
    Connected,
    Broken { handled: usize },
    Welcome { lost: u8 },
    Ack { skip: usize },
    Leases(u8),
    Repeat(usize),
    Stale(usize),
    Revoke(usize),
    Receipt(usize),
    Released(usize),
    AskHeld,
    Finish(usize),
    Release(usize),
    SpoolRoom(bool),
    Drain,
    Shutdown(u64),
    GoAway,
    Poll { messages: usize },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0u64..300).prop_map(Event::Pass),
        1 => (900u64..3_000).prop_map(Event::Pass),
        4 => Just(Event::Connected),
        1 => (0usize..8).prop_map(|handled| Event::Broken { handled }),
        4 => any::<u8>().prop_map(|lost| Event::Welcome { lost }),
        6 => (0usize..3).prop_map(|skip| Event::Ack { skip }),
        6 => (1u8..6).prop_map(Event::Leases),
        1 => any::<usize>().prop_map(Event::Repeat),
        1 => any::<usize>().prop_map(Event::Stale),
        2 => any::<usize>().prop_map(Event::Revoke),
        3 => any::<usize>().prop_map(Event::Receipt),
        3 => any::<usize>().prop_map(Event::Released),
        1 => Just(Event::AskHeld),
        5 => any::<usize>().prop_map(Event::Finish),
        2 => any::<usize>().prop_map(Event::Release),
        1 => any::<bool>().prop_map(Event::SpoolRoom),
        12 => (0usize..6).prop_map(|messages| Event::Poll { messages }),
    ]
}

/// A history: mostly of the common events, with at most a few of the rare ones.
fn history() -> impl Strategy<Value = Vec<Event>> {
    let rare = prop_oneof![
        3 => Just(Event::Poll { messages: 9 }),
        1 => Just(Event::Drain),
        1 => (0u64..2_000).prop_map(Event::Shutdown),
        1 => Just(Event::GoAway),
    ];
    (prop::collection::vec(event(), 1..400), prop::collection::vec((any::<prop::sample::Index>(), rare), 0..3))
        .prop_map(|(mut events, rare)| {
            for (at, event) in rare {
                let at = at.index(events.len());
                events.insert(at, event);
            }
            events
        })
}

type Machine = Session<u64, u64, u64>;

/// The shell, the executors and the coordinator in one, with what each has seen.
struct World {
    machine: Machine,
    slots: u32,
    orphan_limit: u64,
    now: u64,
    next_token: u64,
    dialled: bool,
    connected: bool,
    hello: Option<(u64, BTreeSet<u64>)>,
    welcomed: bool,

    /// Live at the coordinator.
    live: BTreeSet<u64>,
    /// Said on this stream, and not handled by the coordinator yet.
    pipe: Vec<Message<u64, u64>>,
    /// Heartbeats of this stream that wait for their answers: number, sent at.
    beats: Vec<(u64, u64)>,
    last_beat: u64,
    proven_at: Option<u64>,

    acknowledged: BTreeSet<u64>,
    announced: BTreeSet<u64>,
    revoked: BTreeSet<u64>,
    ever: BTreeSet<u64>,
    started: BTreeMap<u64, u32>,
    running: BTreeSet<u64>,
    /// Runs that ended by themselves; an abort may still be on its way to them.
    ended: BTreeSet<u64>,
    spooled: BTreeSet<u64>,
    reported_here: BTreeSet<u64>,
    /// Releases that the coordinator has handled on this stream, and not answered yet.
    released_here: BTreeSet<u64>,
    /// Arrived at the machine, and not told of its end.
    known: BTreeSet<u64>,
    stopped: Option<StopReason>,
}

impl World {
    fn new(slots: u32, orphan_limit: Option<u64>, recovered: u64) -> Self {
        let settings = Settings { slots, prefetch: 4, orphan_limit_ms: orphan_limit, seed: 7 };
        // Tokens of an earlier process; the even ones are still live.
        let old: BTreeSet<u64> = (1..=recovered).collect();
        let machine =
            Session::new(settings, 0, old.iter().map(|&token| Recovered { token, fencing: token, result: token }));
        Self {
            machine,
            slots,
            orphan_limit: orphan_limit.unwrap_or(TTL),
            now: 0,
            next_token: 1_000,
            dialled: false,
            connected: false,
            hello: None,
            welcomed: false,
            live: old.iter().copied().filter(|token| token % 2 == 0).collect(),
            pipe: Vec::new(),
            beats: Vec::new(),
            last_beat: 0,
            proven_at: None,
            acknowledged: BTreeSet::new(),
            announced: BTreeSet::new(),
            revoked: BTreeSet::new(),
            ever: BTreeSet::new(),
            started: BTreeMap::new(),
            running: BTreeSet::new(),
            ended: BTreeSet::new(),
            spooled: old,
            reported_here: BTreeSet::new(),
            released_here: BTreeSet::new(),
            known: BTreeSet::new(),
            stopped: None,
        }
    }

    fn stream(&self) -> u64 {
        self.machine.stream()
    }

    fn happen(&mut self, event: &Event) {
        let stream = self.stream();
        match *event {
            Event::Pass(ms) => self.now += ms,
            Event::Connected if self.dialled && !self.connected => {
                self.connected = true;
                self.machine.handle_connected(stream);
            }
            Event::Broken { handled } if self.dialled => self.break_off(handled),
            Event::Welcome { lost } if !self.welcomed => self.welcome(lost),
            Event::Ack { skip } if self.beats.len() > skip => {
                let (number, sent_at) = self.beats[skip];
                self.beats.drain(..=skip);
                self.proven_at = self.proven_at.max(Some(sent_at));
                self.machine.handle_heartbeat_ack(stream, number);
            }
            Event::Stale(n) if stream > 1 => self.come_late(stream - 1, n),
            Event::Finish(n) => {
                if let Some(token) = self.end_run(n) {
                    self.machine.handle_finished(&token, token);
                }
            }
            Event::Release(n) => {
                if let Some(token) = self.end_run(n) {
                    let reason = ReleaseReason::RateLimited { retry_after_ms: None };
                    self.machine.handle_released(&token, reason, String::new());
                }
            }
            Event::SpoolRoom(room) => self.machine.handle_spool_room(room),
            Event::Shutdown(grace) => self.machine.handle_shutdown(self.now, grace),
            Event::Poll { messages } => self.poll(messages),
            _ if self.welcomed => self.be_told(event),
            _ => {}
        }
        self.machine.check();
    }

    /// What only a coordinator that has greeted says.
    fn be_told(&mut self, event: &Event) {
        let stream = self.stream();
        match *event {
            Event::Leases(count) => {
                for _ in 0..count {
                    self.next_token += 1;
                    self.ever.insert(self.next_token);
                    self.live.insert(self.next_token);
                    self.known.insert(self.next_token);
                    self.lease(stream, self.next_token);
                    self.look_whether_taken(self.next_token);
                }
            }
            Event::Repeat(n) => {
                // A lease that is still live may come twice; one that ended never does (C9).
                let held: Vec<u64> = self.machine.held().iter().map(|held| held.token).collect();
                if let Some(token) = pick(held.iter(), n) {
                    self.lease(stream, token);
                }
            }
            Event::Revoke(n) => {
                if let Some(token) = pick(self.live.iter(), n) {
                    self.live.remove(&token);
                    self.revoked.insert(token);
                    self.known.remove(&token);
                    self.machine.handle_revoke(stream, &token);
                }
            }
            Event::Receipt(n) => {
                if let Some(token) = pick(self.reported_here.iter(), n) {
                    self.flush_pipe();
                    self.machine.handle_receipt(stream, &token);
                }
            }
            Event::Released(n) => {
                self.flush_pipe();
                if let Some(token) = pick(self.released_here.iter(), n) {
                    self.answer_release(token);
                }
            }
            Event::AskHeld => self.machine.handle_held_request(stream, 1),
            Event::Drain => self.machine.handle_drain(stream),
            Event::GoAway => self.machine.handle_go_away(self.now, stream, GoAway::Superseded),
            _ => {}
        }
    }

    /// The stream breaks; the coordinator has handled some of what was on it.
    fn break_off(&mut self, handled: usize) {
        let handled = handled.min(self.pipe.len());
        for message in self.pipe.drain(..handled).collect::<Vec<_>>() {
            self.coordinate(&message);
        }
        self.machine.handle_disconnected(self.now, self.stream());
        self.stream_is_gone();
    }

    /// What a replaced stream still delivers.
    fn come_late(&mut self, old: u64, n: usize) {
        self.next_token += 1;
        self.lease(old, self.next_token);
        if let Some(token) = pick(self.running.iter(), n) {
            self.machine.handle_revoke(old, &token);
        }
        if let Some(token) = pick(self.spooled.iter(), n) {
            self.machine.handle_receipt(old, &token);
        }
        self.machine.handle_heartbeat_ack(old, self.last_beat);
    }

    /// A run comes to its end.
    fn end_run(&mut self, n: usize) -> Option<u64> {
        let token = pick(self.running.iter(), n)?;
        self.running.remove(&token);
        self.ended.insert(token);
        Some(token)
    }

    /// A lease is taken or, while very many releases have no answer, not at all: the coordinator finds
    /// that by the count of the next heartbeat.
    fn look_whether_taken(&mut self, token: u64) {
        if self.machine.is_up() && self.machine.held().iter().all(|held| held.token != token) {
            let known = self.known.len() as u64;
            assert!(known > LEASE_ALLOWANCE, "a lease is not taken, and only {known} have no durable end");
            self.live.remove(&token);
            self.known.remove(&token);
        }
    }

    fn lease(&mut self, stream: u64, token: u64) {
        let lease = Lease { token, fencing: token, work: token };
        self.machine.handle_lease(stream, lease);
    }

    fn welcome(&mut self, lose: u8) {
        let Some((hello_at, listed)) = self.hello.clone() else {
            return;
        };
        // What the Hello didn't list is lost; and the coordinator may have ended more meanwhile.
        self.live.retain(|token| listed.contains(token));
        if lose > 200 {
            let ended = self.live.iter().copied().find(|token| token % 3 == 0);
            if let Some(token) = ended {
                self.live.remove(&token);
                self.revoked.insert(token);
            }
        }
        let lost: Vec<u64> = listed.difference(&self.live).copied().collect();
        lost.iter().for_each(|token| _ = self.known.remove(token));
        self.welcomed = true;
        self.proven_at.get_or_insert(hello_at);
        let stream = self.stream();
        self.machine.handle_welcome(stream, Welcome { ttl_ms: TTL, heartbeat_interval_ms: INTERVAL, lost });
    }

    fn stream_is_gone(&mut self) {
        self.dialled = false;
        self.connected = false;
        self.hello = None;
        self.welcomed = false;
        self.pipe.clear();
        self.beats.clear();
        self.acknowledged.clear();
        self.announced.clear();
        self.reported_here.clear();
        self.released_here.clear();
    }

    /// The release is durable: its Revoke says so.
    fn answer_release(&mut self, token: u64) {
        self.released_here.remove(&token);
        self.known.remove(&token);
        let stream = self.stream();
        self.machine.handle_revoke(stream, &token);
    }

    /// The coordinator handles a message.
    fn coordinate(&mut self, message: &Message<u64, u64>) {
        if let Message::Report { token, .. } | Message::Release { token, .. } = message {
            self.live.remove(token);
        }
        if let Message::Release { token, .. } = message {
            self.released_here.insert(*token);
        }
    }

    fn flush_pipe(&mut self) {
        for message in std::mem::take(&mut self.pipe) {
            self.coordinate(&message);
        }
    }

    fn poll(&mut self, mut messages: usize) {
        // Told once, the end of the session's proof is forgotten by the machine, too.
        if self.proven_at.is_some_and(|at| self.now >= at + self.orphan_limit) {
            self.proven_at = None;
        }
        let mut turns = 0..ENDLESS;
        loop {
            while let Some(action) = self.machine.poll_action(self.now) {
                assert!(turns.next().is_some(), "at {} there is no end of actions: {action:?}", self.now);
                self.act(action);
                self.machine.check();
            }
            assert!(self.proven_at.is_some() || self.running.is_empty(), "S1: nothing runs beyond the orphan limit");
            if messages == 0 || !self.connected {
                break;
            }
            messages -= 1;
            let Some(message) = self.machine.poll_message(self.now) else {
                break;
            };
            assert!(turns.next().is_some(), "at {} there is no end of messages: {message:?}", self.now);
            self.hear(message);
            self.machine.check();
        }
        assert_eq!(self.machine.results(), self.spooled.len(), "a result is kept until its receipt");
    }

    fn act(&mut self, action: Action<u64, u64, u64>) {
        assert_eq!(self.stopped, None, "nothing follows the end");
        match action {
            Action::Connect { stream } => {
                assert!(!self.dialled, "one stream at a time");
                assert_eq!(stream, self.stream());
                self.dialled = true;
            }
            Action::Disconnect { stream } => {
                assert_eq!(stream, self.stream(), "streams are left before the next");
                self.flush_pipe();
                self.stream_is_gone();
            }
            Action::Start { token, work } => {
                assert_eq!(token, work);
                assert!(self.acknowledged.contains(&token), "S2: acknowledged first");
                assert!(self.announced.contains(&token), "S4: said first");
                assert!(!self.revoked.contains(&token), "S3: never a revoked one");
                assert!(self.ever.contains(&token), "S3: never of an old stream");
                let proven = self.proven_at.is_some_and(|at| self.now < at + TTL);
                assert!(proven, "S1: nothing starts without a proof of life");
                *self.started.entry(token).or_default() += 1;
                assert_eq!(self.started[&token], 1, "a lease starts once");
                self.running.insert(token);
                assert!(self.running.len() <= self.slots as usize, "slots");
            }
            Action::Abort { token, .. } => {
                let ran = self.running.remove(&token);
                assert!(ran || self.ended.contains(&token), "only runs are aborted");
            }
            Action::Spool { token, .. } => assert!(self.spooled.insert(token)),
            Action::Forget { token } => {
                self.known.remove(&token);
                assert!(self.spooled.remove(&token));
                self.reported_here.remove(&token);
            }
            Action::Stop(reason) => {
                assert!(self.running.is_empty(), "nothing runs on after the end");
                self.stopped = Some(reason);
            }
        }
    }

    fn hear(&mut self, message: Message<u64, u64>) {
        match &message {
            Message::Hello { held, spooled, .. } => {
                assert!(self.hello.is_none(), "one Hello a stream");
                let listed: BTreeSet<u64> = held.iter().map(|held| held.token).chain(spooled.iter().copied()).collect();
                for held in held {
                    self.acknowledged.insert(held.token);
                }
                assert!(self.running.is_subset(&listed), "a Hello has all that runs");
                assert!(self.known.is_subset(&listed), "P5: a lease is listed until its end is told to be durable");
                let all = self.spooled.iter().all(|token| spooled.contains(token));
                assert!(all, "a Hello has all results");
                self.hello = Some((self.now, listed));
                return;
            }
            Message::Heartbeat(heartbeat) => self.heartbeat(heartbeat),
            Message::Held { number, leases, .. } => {
                assert_eq!(*number, self.last_beat);
                self.flush_pipe();
                let listed: BTreeSet<u64> = leases.iter().map(|held| held.token).collect();
                assert_eq!(listed, self.live, "S4: the list is the coordinator's set");
            }
            Message::Report { token, result } => {
                assert_eq!(token, result);
                assert!(self.spooled.contains(token));
                assert!(self.reported_here.insert(*token), "said once a stream");
            }
            Message::Release { token, .. } => assert!(!self.running.contains(token)),
            Message::ModelStates(_) => {}
        }
        assert!(self.welcomed, "only Hello goes before Welcome");
        self.pipe.push(message);
    }

    fn heartbeat(&mut self, heartbeat: &Heartbeat) {
        assert_eq!(heartbeat.number, self.last_beat + 1, "numbers count up");
        self.last_beat = heartbeat.number;
        self.beats.push((heartbeat.number, self.now));
        self.acknowledged.extend(&heartbeat.acknowledged);
        self.announced.extend(&heartbeat.started);
        self.flush_pipe();
        let xor = self.live.iter().fold(0, |xor, token| xor ^ token);
        assert_eq!(
            (heartbeat.held_count as usize, heartbeat.held_xor),
            (self.live.len(), xor),
            "S4: both sides hold the same set"
        );
    }

    /// Faults stop; everything must come to a good end.
    fn settle(&mut self) {
        self.machine.handle_spool_room(true);
        for _ in 0..400 {
            self.happen(&Event::Connected);
            self.poll(usize::MAX);
            self.happen(&Event::Welcome { lost: 0 });
            self.poll(usize::MAX);
            if let Some(skip) = self.beats.len().checked_sub(1) {
                self.happen(&Event::Ack { skip });
            }
            self.poll(usize::MAX);
            for token in std::mem::take(&mut self.running) {
                self.machine.handle_finished(&token, token);
            }
            self.poll(usize::MAX);
            // One receipt a report, whatever the machine makes of it: one that has ended hears none.
            for token in std::mem::take(&mut self.reported_here) {
                self.flush_pipe();
                let stream = self.stream();
                self.machine.handle_receipt(stream, &token);
                self.poll(usize::MAX);
            }
            self.flush_pipe();
            for token in std::mem::take(&mut self.released_here) {
                self.answer_release(token);
            }
            self.poll(usize::MAX);
            self.now += 100;
        }
        match self.stopped {
            None => {
                assert_eq!(self.spooled, BTreeSet::new(), "every result got its receipt");
                self.flush_pipe();
                assert_eq!(self.live, BTreeSet::new(), "no lease is left over");
            }
            // A shutdown may reach its hard limit first; the spool then keeps what is left.
            Some(StopReason::Done { results_left }) => {
                assert_eq!(results_left, self.spooled.len() as u64);
            }
            Some(StopReason::Superseded) => {}
        }
    }
}

fn pick<'a>(mut from: impl Iterator<Item = &'a u64> + Clone, n: usize) -> Option<u64> {
    let count = from.clone().count();
    from.nth(n.checked_rem(count)?).copied()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_history_keeps_the_rules(
        events in history(),
        slots in 0u32..5,
        orphan_limit in prop_oneof![Just(None), (300u64..3_000).prop_map(Some)],
        recovered in 0u64..4,
    ) {
        let mut world = World::new(slots, orphan_limit, recovered);
        for event in &events {
            world.happen(event);
        }
        if slots > 0 && world.stopped.is_none() {
            world.settle();
        }
    }
}
