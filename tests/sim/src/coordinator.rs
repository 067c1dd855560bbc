//! The shell around the real core: one inbox, group commit with one batch in flight, outboxes that open
//! with the proof of their commit, and a look into the tables only while nothing is in flight.

use std::collections::{BTreeSet, VecDeque};

use semel_core::{
    Committed, Core,
    event::{Answer, Decision, Event, JobCall, Out, Outbox, Query, Report, Retry},
    id::{CallId, Epoch, Millis, Nonce, Now, StreamId, UnixMs},
    log::{Log, Sealed},
    words::AttemptKind,
};

use crate::{
    checkers::{Check, Violation, broken, hold},
    client::Clients,
    world::{CommitAnswer, Ev, World, trace},
};

/// Sealed batches that wait; at the bound no more events are taken in.
const MAX_SEALED: usize = 4;
/// Time between two ticks.
pub(crate) const TICK_MS: u64 = 500;
/// Steps between two full recounts of the core's memory.
const RECOUNT_EVERY: u64 = 128;

/// What will become of a commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Applied and acknowledged.
    Succeeds,
    /// Not applied.
    Fails,
    /// Applied; the answer is lost.
    AnswerLost,
    /// Applied on a server that may be replaced by one without it; the answer is lost.
    LocalOnly,
}

/// What comes in.
#[derive(Debug)]
pub enum Input {
    /// An event.
    Event(Box<Event>),
    /// A retry, whose records are to be read first.
    Retry(JobCall, bool, bool),
}

/// What waits for a moment at which nothing is filling and nothing in flight (rule C10).
#[derive(Debug)]
pub enum Lookup {
    /// The past of a report's token.
    Report(Box<Report>),
    /// The records of a retry: of a closed job too, only the failed.
    Retry(JobCall, bool, bool),
}

/// One life's memory.
#[derive(Debug)]
pub struct Brain {
    /// The real core.
    pub core: Core,
    log: Log,
    booted_at: u64,
    mono_base: u64,
    wall_base: i64,
    inbox: VecDeque<Input>,
    sealed: VecDeque<Sealed>,
    committing: bool,
    outboxes: VecDeque<Outbox>,
    proof: Committed,
    unproven: bool,
    lookups: VecDeque<Lookup>,
    /// It stood still, and its clock has not ticked since (rule L6).
    slept: bool,
}

impl Brain {
    fn now(&self, now: u64) -> Now {
        Now {
            mono: Millis(self.mono_base + now - self.booted_at),
            wall: UnixMs(1_800_000_000_000 + now as i64 + self.wall_base),
        }
    }
    /// Nothing is filling, nothing in flight, and nothing that was found by reading is still to be proven.
    pub fn is_quiet(&self) -> bool {
        !self.committing && !self.unproven && self.sealed.is_empty() && !self.log.is_filling()
    }
}

/// The coordinator.
#[derive(Debug, Default)]
pub struct Coordinator {
    /// Which start of it this is.
    pub life: u64,
    /// Its memory; `None` while it is down.
    pub brain: Option<Brain>,
    /// It stands still until then.
    pub asleep_until: u64,
    /// Commits take long until then.
    pub slow_until: u64,
}

impl Coordinator {
    pub(crate) fn inbox(&mut self, input: Input) {
        if let Some(brain) = &mut self.brain {
            brain.inbox.push_back(input);
        }
    }
    /// Nothing is to be done or said any more.
    pub fn is_at_rest(&self) -> bool {
        self.brain
            .as_ref()
            .is_some_and(|b| b.is_quiet() && b.inbox.is_empty() && b.lookups.is_empty() && b.outboxes.is_empty())
    }
    /// Why cells wait, in words: for a world that is stuck.
    pub fn explain(&mut self, now: u64, clients: &Clients) -> String {
        let Some(brain) = &mut self.brain else { return "the coordinator is down".into() };
        let at = brain.now(now);
        let mut words = String::new();
        for plan in &clients.plans {
            let query = Event::Query(CallId(u64::MAX), Query::Explain(plan.id.clone()));
            if let Ok(Decision { outbox, .. }) = brain.core.step(at, query) {
                for out in outbox {
                    if let Out::Answer(_, Answer::Pending(view, groups)) = out {
                        words.push_str(&format!("{} {:?} {:?} {groups:?}; ", view.id, view.state, view.counts));
                    }
                }
            }
        }
        if let Ok(Decision { outbox, .. }) =
            brain.core.step(at, Event::Query(CallId(u64::MAX), Query::Leases { after: None, limit: 9 }))
        {
            words.push_str(&format!("{outbox:?}"));
        }
        words
    }
}

impl World {
    /// Rule L1, first: the higher epoch.
    pub(crate) fn campaigns(&mut self, life: u64) -> Check {
        if life != self.coordinator.life {
            return Ok(());
        }
        let epoch = self.take_leadership()?;
        trace!(self, "coordinator {life} takes epoch {epoch}");
        let reading = self.dice.skewed(1, 3_000);
        self.later(reading, Ev::Loads(life, epoch));
        Ok(())
    }

    /// Then the tables.
    pub(crate) fn loads(&mut self, life: u64, epoch: Epoch) -> Check {
        if life != self.coordinator.life {
            return Ok(());
        }
        let mono_base = self.dice.between(0, 1 << 40);
        let wall_base = self.dice.between(0, 10_000) as i64 - 5_000;
        let now = Now { mono: Millis(mono_base), wall: UnixMs(1_800_000_000_000 + self.now as i64 + wall_base) };
        let core = Core::load(self.config, epoch, now, self.store.tables.load()).map_err(rule_of)?;
        trace!(self, "coordinator {life} leads");
        self.coordinator.brain = Some(Brain {
            core,
            log: Log::new(epoch),
            booted_at: self.now,
            mono_base,
            wall_base,
            inbox: VecDeque::new(),
            sealed: VecDeque::new(),
            committing: false,
            outboxes: VecDeque::new(),
            proof: crate::store::takeover(epoch),
            unproven: false,
            lookups: VecDeque::new(),
            slept: false,
        });
        self.coordinator.asleep_until = 0;
        self.waits.restore(&self.books);
        self.recount()?;
        self.later(0, Ev::Tick(life));
        Ok(())
    }

    /// The process ends: its memory is gone, its streams break, what it sent to the database may still arrive.
    pub(crate) fn coordinator_dies(&mut self, down_ms: u64) -> Check {
        trace!(self, "coordinator {} ends", self.coordinator.life);
        self.coordinator.brain = None;
        self.coordinator.life += 1;
        self.clients.calls.clear();
        self.heard_acknowledged.clear();
        self.heard_started.clear();
        self.waits = crate::turns::Waits::default();
        let ids: Vec<StreamId> = self.net.streams.keys().copied().collect();
        for id in ids {
            let Some(stream) = self.net.streams.get_mut(&id) else { continue };
            stream.coordinator_open = false;
            let heard = !stream.down.lost;
            let delay = self.delay();
            if heard {
                self.later(delay, Ev::ProcessHears(id));
            }
        }
        self.told.still_true(&self.books)?;
        self.later(down_ms, Ev::Campaigns(self.coordinator.life));
        Ok(())
    }

    pub(crate) fn tick(&mut self, life: u64) -> Check {
        if life != self.coordinator.life {
            return Ok(());
        }
        if self.coordinator.asleep_until > self.now {
            // The tick comes when the process goes on.
            return Ok(());
        }
        self.later(TICK_MS, Ev::Tick(life));
        self.step(Event::Tick)?;
        self.pump()
    }

    pub(crate) fn coordinator_goes_on(&mut self, life: u64) -> Check {
        if life != self.coordinator.life {
            return Ok(());
        }
        trace!(self, "the coordinator goes on");
        self.coordinator.asleep_until = 0;
        if let Some(brain) = &mut self.coordinator.brain {
            brain.slept = true;
        }
        // Whether its clock or its inbox has the first word is chance.
        if self.dice.one_in(3) {
            self.pump()?;
        }
        self.tick(life)
    }

    /// Takes in what has arrived; grants; seals; commits; says what may be said.
    pub(crate) fn pump(&mut self) -> Check {
        if self.coordinator.asleep_until > self.now {
            return Ok(());
        }
        loop {
            let Some(brain) = &mut self.coordinator.brain else { return Ok(()) };
            if !brain.lookups.is_empty() || brain.sealed.len() >= MAX_SEALED {
                break;
            }
            match brain.inbox.pop_front() {
                Some(Input::Event(event)) => self.step(*event)?,
                Some(Input::Retry(call, reopen, failed)) => {
                    brain.lookups.push_back(Lookup::Retry(call, reopen, failed));
                }
                None => break,
            }
        }
        if self.coordinator.brain.as_ref().is_some_and(|b| b.is_quiet() && !b.lookups.is_empty()) {
            self.look_up()?;
        }
        if self.coordinator.brain.as_ref().is_some_and(|b| b.lookups.is_empty() && !b.committing) {
            self.assign()?;
        }
        self.commit_next();
        self.open_outboxes()
    }

    fn assign(&mut self) -> Check {
        loop {
            let nonces = (0..self.dice.between(1, 4)).map(|_| Nonce(self.dice.bytes16())).collect();
            let more = self.step_and_add(Event::Assign(nonces))?;
            let full = self.coordinator.brain.as_ref().is_none_or(|b| b.sealed.len() >= MAX_SEALED);
            if !more || full {
                return Ok(());
            }
        }
    }

    /// Steps an event that the shell has completed.
    pub(crate) fn step(&mut self, event: Event) -> Check {
        let Some(brain) = &mut self.coordinator.brain else { return Ok(()) };
        let limited = crate::turns::limited(&event).filter(|(token, _)| brain.core.leased_cell(*token).is_some());
        let mut report = None;
        let event = match event {
            Event::Report(mut r) => {
                let leased = brain.core.leased_cell(r.token);
                r.leased_input = leased.and_then(|(job, cell)| {
                    let stored = self.store.tables.jobs.get(job)?;
                    Some(crate::agent::input_of(stored.row.digest, cell))
                });
                report = Some(r.clone());
                Event::Report(r)
            }
            other => other,
        };
        self.step_with(event, report)?;
        if let Some((token, wait_ms)) = limited {
            self.gate_closes(token, wait_ms);
        }
        Ok(())
    }

    fn step_and_add(&mut self, event: Event) -> Result<bool, Violation> {
        self.step_with(event, None)
    }

    fn step_with(&mut self, event: Event, report: Option<Report>) -> Result<bool, Violation> {
        let Some(brain) = &mut self.coordinator.brain else { return Ok(false) };
        let now = brain.now(self.now);
        self.steps += 1;
        self.waits.hears(&event);
        let first_tick = matches!(event, Event::Tick) && std::mem::take(&mut brain.slept);
        let mut decision = brain.core.step(now, event).map_err(rule_of)?;
        let lost = decision.batch.attempts.iter().filter(|a| a.kind == AttemptKind::Lost).count();
        hold(!first_tick || lost == 0, "L6", || format!("{lost} leases are lost by the coordinator's own sleep"))?;
        let ticked = !brain.slept;
        self.keeps_waits(now, &decision, ticked)?;
        let Some(brain) = &mut self.coordinator.brain else { return Ok(false) };
        let at_once = std::mem::take(&mut decision.now);
        let more = decision.more;
        if let (Some(_), Some(report)) = (decision.ask, report) {
            brain.lookups.push_back(Lookup::Report(Box::new(report)));
        }
        brain.sealed.extend(brain.log.add(decision));
        brain.outboxes.extend(brain.log.take_outboxes());
        for out in at_once {
            self.say(out, false)?;
        }
        if self.steps.is_multiple_of(RECOUNT_EVERY) {
            self.recount()?;
        }
        Ok(more)
    }

    /// Reads the tables while nothing is in flight.
    fn look_up(&mut self) -> Check {
        let mut seen = BTreeSet::new();
        let waiting = self.coordinator.brain.as_ref().map_or(0, |b| b.lookups.len());
        for _ in 0..waiting {
            let Some(brain) = &mut self.coordinator.brain else { return Ok(()) };
            let Some(lookup) = brain.lookups.pop_front() else { return Ok(()) };
            match lookup {
                Lookup::Report(report) if !seen.insert(report.token.fencing) => {
                    brain.lookups.push_back(Lookup::Report(report));
                }
                Lookup::Report(mut report) => {
                    report.past = Some(self.store.tables.past(report.token.fencing));
                    self.step(Event::Report(*report))?;
                }
                Lookup::Retry(by, reopen, failed) => {
                    let rows = self.store.tables.executions.values();
                    let rows = rows.filter(|r| {
                        r.job == by.id && (!failed || r.body.status() == semel_core::words::Status::Failed)
                    });
                    let records = rows.map(|r| (r.cell, r.lease.fencing, r.attempt)).collect();
                    self.step(Event::Retry(Retry { by, reopen, records }))?;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn commit_next(&mut self) {
        let Some(brain) = &mut self.coordinator.brain else { return };
        if brain.committing {
            return;
        }
        let next = brain.sealed.pop_front().or_else(|| brain.log.seal());
        // Rule C4: what was found by reading is proven by a later commit, an empty one if need be.
        let next = next.or_else(|| brain.unproven.then(|| brain.log.seal_empty()));
        brain.outboxes.extend(brain.log.take_outboxes());
        let Some(sealed) = next else { return };
        brain.committing = true;
        self.send_commit(sealed);
    }

    fn send_commit(&mut self, sealed: Sealed) {
        let f = &self.faults;
        let dice = &mut self.dice;
        let fate = if dice.permille(f.commit_fails) {
            Fate::Fails
        } else if dice.permille(f.answer_lost) {
            Fate::AnswerLost
        } else if dice.permille(f.local_only) {
            Fate::LocalOnly
        } else {
            Fate::Succeeds
        };
        let slow = self.coordinator.slow_until > self.now;
        let delay = if slow { dice.between(1_000, 20_000) } else { dice.skewed(1, f.commit_ms) };
        self.later(delay, Ev::Applies(self.coordinator.life, sealed, fate));
    }

    pub(crate) fn commit_answered(&mut self, life: u64, answer: CommitAnswer) -> Check {
        if life != self.coordinator.life {
            return Ok(());
        }
        if self.coordinator.asleep_until > self.now {
            self.at(self.coordinator.asleep_until, Ev::CommitAnswered(life, answer));
            return Ok(());
        }
        let Some(brain) = &mut self.coordinator.brain else { return Ok(()) };
        match answer {
            CommitAnswer::Proof(proof) => {
                brain.committing = false;
                brain.unproven = false;
                brain.proof = proof;
                self.open_outboxes()?;
            }
            CommitAnswer::Found => {
                brain.committing = false;
                brain.unproven = true;
            }
            CommitAnswer::Lost(sealed) => {
                let pause = self.dice.between(1, 200);
                let again = self.dice.skewed(1, self.faults.commit_ms);
                trace!(self, "commit {} is sent again", sealed.seq.0);
                self.later_commit(pause + again, sealed);
                return Ok(());
            }
            CommitAnswer::LostWrites => {
                let down = self.dice.between(1_000, 5_000);
                return self.coordinator_dies(down);
            }
        }
        self.pump()
    }

    fn later_commit(&mut self, delay: u64, sealed: Sealed) {
        let fails = self.dice.permille(self.faults.commit_fails);
        let fate = if fails { Fate::Fails } else { Fate::Succeeds };
        self.later(delay, Ev::Applies(self.coordinator.life, sealed, fate));
    }

    /// Every outbox is tried, not only the first: each must keep itself closed until its own proof (rule C5).
    fn open_outboxes(&mut self) -> Check {
        let Some(brain) = &mut self.coordinator.brain else { return Ok(()) };
        let mut open = Vec::new();
        for outbox in std::mem::take(&mut brain.outboxes) {
            match outbox.open(&brain.proof) {
                Ok(items) => open.extend(items),
                Err(closed) => brain.outboxes.push_back(closed),
            }
        }
        let said = Event::said(&open);
        open.into_iter().try_for_each(|out| self.say(out, true))?;
        said.map_or(Ok(()), |said| self.step(said))
    }

    /// What the core answers must be what the tables say, where nothing is in between (promise 4).
    pub(crate) fn compare_counts(&mut self) -> Check {
        let Some(brain) = &mut self.coordinator.brain else { return Ok(()) };
        let now = brain.now(self.now);
        for (id, book) in &self.books.jobs {
            let decision =
                brain.core.step(now, Event::Query(CallId(u64::MAX), Query::Job(id.clone()))).map_err(rule_of)?;
            let Some(Out::Answer(_, Answer::Job(view))) = decision.outbox.first() else {
                return broken("P4", format!("job {id} is in the tables and not in memory"));
            };
            let stored = book.counts();
            let same = view.counts == stored && (view.state, view.paused) == (book.state, book.paused);
            hold(same, "P4", || format!("job {id}: memory says {view:?}, the tables {stored:?}"))?;
        }
        Ok(())
    }
}

/// The rule that an assertion of the core names.
fn rule_of(broken: semel_core::Broken) -> Violation {
    Violation { rule: crate::rule_in(&broken.0), what: broken.0 }
}
