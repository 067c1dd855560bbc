//! The world: one queue of events in time, from one seed. Faults first, then peace, in which all must end.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
};

use semel_core::{
    Committed, Config,
    event::Event,
    id::{AgentId, CallId, Digest, FencingToken, LeaseToken, RegionId, StreamId},
    log::Sealed,
};

use crate::{
    agent::{Agent, ProcNo, Process, RunEnd, Spool},
    checkers::{Books, Check, Surroundings, Violation, broken, hold},
    client::{Call, Clients, MODELS, REGIONS},
    coordinator::{Coordinator, Fate},
    dice::Dice,
    faults::{Fault, Faults},
    network::{Down, Network, Up},
    store::Store,
    told::Told,
};

/// Every seed has at least so many events before its faults stop.
pub const MIN_EVENTS: u64 = 1_000;
/// After the faults stop, every job must have ended within this time.
const PEACE_MS: u64 = 2 * 3_600_000;
/// No world goes on for longer than this many events: one that does is not making progress.
const MAX_EVENTS: u64 = 2_000_000;

/// What happens next.
#[derive(Debug)]
pub enum Ev {
    /// A message arrives at the coordinator.
    ToCoordinator(StreamId, Up),
    /// A forged report arrives at the coordinator.
    Forged(StreamId, LeaseToken, crate::agent::Done),
    /// A message arrives at a process.
    ToProcess(StreamId, Down),
    /// Dialling came to an end.
    Dialled(ProcNo, u64, Option<StreamId>),
    /// A process hears that its stream broke.
    ProcessHears(StreamId),
    /// The coordinator hears that a stream broke.
    CoordinatorHears(StreamId),
    /// A process's session wants to be polled.
    Wake(ProcNo),
    /// A run ends.
    RunEnds(ProcNo, LeaseToken, u64, RunEnd),
    /// An entry of a spool is synced.
    Synced(ProcNo, LeaseToken),
    /// A process of an agent starts, with one of its spool folders.
    Starts(usize, usize),
    /// A process goes on after it stood still.
    GoesOn(ProcNo),
    /// A model can be reached again.
    ModelReady(ProcNo, usize),
    /// A spool has room again.
    SpoolRoom(ProcNo),
    /// The coordinator's clock ticks.
    Tick(u64),
    /// A commit reaches the tables, or not.
    Applies(u64, Sealed, Fate),
    /// The coordinator has the answer.
    CommitAnswered(u64, CommitAnswer),
    /// A server that has not all that was written takes over from the one that has (rule C4).
    FailsOver,
    /// The coordinator starts: it takes the leadership.
    Campaigns(u64),
    /// And then it reads the tables.
    Loads(u64, semel_core::id::Epoch),
    /// The coordinator goes on after it stood still.
    CoordinatorGoesOn(u64),
    /// A call arrives.
    Called(CallId, Call),
    /// A caller acts.
    Acts,
    /// A caller submits, until it is answered.
    Submits(usize),
    /// A fault strikes.
    Strikes(usize),
    /// A lease that ended long ago must not run any more.
    MustBeOver(FencingToken),
    /// A copy of the tables is put away.
    BacksUp,
    /// The faults stop.
    Peace,
    /// Paused jobs are resumed.
    Resumes,
}

/// What became of a commit, as the coordinator learns it.
#[derive(Debug)]
pub enum CommitAnswer {
    /// Acknowledged.
    Proof(Committed),
    /// Found by reading (rule C4).
    Found,
    /// Not known: to be sent again.
    Lost(Sealed),
    /// The tables lost writes that were acknowledged.
    LostWrites,
}

/// One world.
pub struct World {
    /// Its seed.
    pub seed: u64,
    /// Milliseconds since its beginning.
    pub now: u64,
    /// Events so far.
    pub events: u64,
    /// Events that the core has stepped.
    pub steps: u64,
    pub(crate) queue: BinaryHeap<Reverse<Queued>>,
    order: u64,
    pub(crate) dice: Dice,
    pub(crate) faults: Faults,
    /// How often each kind of fault struck.
    pub struck: [u64; Fault::ALL.len()],
    pub(crate) peace: bool,
    pub(crate) config: Config,
    pub(crate) net: Network,
    pub(crate) coordinator: Coordinator,
    pub(crate) store: Store,
    pub(crate) agents: Vec<Agent>,
    pub(crate) processes: Vec<Process>,
    pub(crate) clients: Clients,
    pub(crate) books: Books,
    pub(crate) told: Told,
    /// Digests of forged reports, and the tokens that they present.
    pub(crate) forged: BTreeSet<Digest>,
    pub(crate) forgeries: BTreeMap<LeaseToken, Digest>,
    pub(crate) regions: BTreeMap<AgentId, RegionId>,
    /// Runs that go on: by lease, the process.
    pub(crate) running: BTreeMap<FencingToken, ProcNo>,
    /// Leases that killed the process that had them, while they were live.
    pub(crate) killers: BTreeSet<FencingToken>,
    /// Every lease whose run began, and the process in which it did.
    pub(crate) began: BTreeMap<FencingToken, ProcNo>,
    /// What this life of the coordinator was told of: leases acknowledged, and started.
    pub(crate) heard_acknowledged: BTreeSet<FencingToken>,
    pub(crate) heard_started: BTreeSet<FencingToken>,
    /// What this life of the coordinator has decided on waits.
    pub(crate) waits: crate::turns::Waits,
    /// Cells that kill the process that gets them; by job id and cell.
    pub(crate) poison_seed: u64,
    pub(crate) numbers: u64,
    /// The readable trace, if it is wanted.
    pub trace: Option<Vec<String>>,
}

/// An event in the queue.
pub(crate) struct Queued {
    at: u64,
    order: u64,
    ev: Ev,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// Writes a line of the trace, if there is one.
macro_rules! trace {
    ($world:expr, $($words:tt)*) => {
        if $world.trace.is_some() {
            let line = format!($($words)*);
            $world.note(line);
        }
    };
}
pub(crate) use trace;

impl World {
    /// The world of a seed.
    pub fn new(seed: u64, traced: bool) -> Self {
        let mut dice = Dice::new(seed);
        let faults = Faults::draw(&mut dice);
        let ttl_ms = [6_000, 12_000, 30_000][dice.between(0, 2) as usize];
        let config = Config {
            ttl_ms,
            heartbeat_ms: ttl_ms / 6,
            margin_ms: ttl_ms / 6,
            ack_ms: ttl_ms / dice.between(4, 12),
            sleep_ms: 1_000,
            embedded: dice.one_in(6),
        };
        let clients = Clients::draw(&mut dice);
        let mut world = Self {
            seed,
            now: 0,
            events: 0,
            steps: 0,
            queue: BinaryHeap::new(),
            order: 0,
            faults,
            struck: [0; Fault::ALL.len()],
            peace: false,
            config,
            net: Network::default(),
            coordinator: Coordinator::default(),
            store: Store::default(),
            agents: Vec::new(),
            processes: Vec::new(),
            clients,
            books: Books::default(),
            told: Told::default(),
            forged: BTreeSet::new(),
            forgeries: BTreeMap::new(),
            regions: BTreeMap::new(),
            running: BTreeMap::new(),
            killers: BTreeSet::new(),
            began: BTreeMap::new(),
            heard_acknowledged: BTreeSet::new(),
            heard_started: BTreeSet::new(),
            waits: crate::turns::Waits::default(),
            poison_seed: dice.draw(),
            numbers: 0,
            trace: traced.then(Vec::new),
            dice,
        };
        world.people();
        world
    }

    /// Agents, callers and the first of everything.
    fn people(&mut self) {
        for (at, region) in REGIONS.iter().enumerate() {
            for twin in 0..self.dice.between(1, 2) {
                let extra = twin > 0;
                let id = AgentId::new(format!("a{at}{twin}"));
                self.regions.insert(id.clone(), (*region).into());
                let models = MODELS.iter().filter(|_| !extra || self.dice.one_in(2)).map(|m| (*m).into());
                let agent = Agent {
                    id,
                    region: (*region).into(),
                    models: models.collect(),
                    slots: self.dice.between(1, 4) as u32,
                    prefetch: self.dice.between(0, 3) as u32,
                    orphan_limit_ms: self.dice.one_in(5).then(|| self.dice.between(1_000, 60_000)),
                    spools: [Spool::default(), Spool::default(), Spool::default()],
                };
                self.agents.push(agent);
                let at = self.dice.between(0, 3_000);
                self.at(at, Ev::Starts(self.agents.len() - 1, 0));
            }
        }
        self.at(0, Ev::Campaigns(1));
        self.coordinator.life = 1;
        for plan in 0..self.clients.plans.len() {
            let at = self.dice.between(0, 20_000);
            self.at(at, Ev::Submits(plan));
        }
        self.at(500, Ev::Acts);
        for kind in 0..Fault::ALL.len() {
            let at = self.faults.next_in(kind, &mut self.dice);
            self.at(at, Ev::Strikes(kind));
        }
        let backup = self.dice.between(5_000, 60_000);
        self.at(backup, Ev::BacksUp);
        let peace = self.dice.between(40_000, 200_000);
        self.at(peace, Ev::Peace);
    }

    /// Lives through it all. The error is the first promise that did not hold.
    ///
    /// # Errors
    /// The first violation.
    pub fn run(&mut self) -> Check {
        let mut ends_by = u64::MAX;
        while let Some(Reverse(Queued { at, ev, .. })) = self.queue.pop() {
            self.now = at;
            self.events += 1;
            self.happens(ev)?;
            if !self.peace {
                continue;
            }
            if ends_by == u64::MAX {
                ends_by = self.now + PEACE_MS;
            }
            if self.is_over() {
                return self.last_look();
            }
            if self.now > ends_by || self.events > MAX_EVENTS {
                return self.stuck();
            }
        }
        broken("liveness", "nothing happens any more")
    }

    fn happens(&mut self, ev: Ev) -> Check {
        match ev {
            Ev::ToCoordinator(stream, up) => self.reaches_coordinator(stream, up),
            Ev::Forged(stream, token, done) => self.forged_arrives(stream, token, done),
            Ev::ToProcess(stream, down) => self.reaches_process(stream, down),
            Ev::Dialled(process, number, stream) => self.dialled(process, number, stream),
            Ev::ProcessHears(stream) => self.process_hears(stream),
            Ev::CoordinatorHears(stream) => self.coordinator_hears(stream),
            Ev::Wake(process) => self.wakes(process),
            Ev::RunEnds(process, token, run, end) => self.run_ends(process, token, run, end),
            Ev::Synced(process, token) => self.synced(process, token),
            Ev::Starts(agent, folder) => self.process_starts(agent, folder),
            Ev::GoesOn(process) => self.process_goes_on(process),
            Ev::ModelReady(process, model) => self.model_ready(process, model),
            Ev::SpoolRoom(process) => self.spool_room(process),
            Ev::Tick(life) => self.tick(life),
            Ev::Applies(life, sealed, fate) => self.applies(life, sealed, fate),
            Ev::CommitAnswered(life, answer) => self.commit_answered(life, answer),
            Ev::FailsOver => self.fails_over(),
            Ev::Campaigns(life) => self.campaigns(life),
            Ev::Loads(life, epoch) => self.loads(life, epoch),
            Ev::CoordinatorGoesOn(life) => self.coordinator_goes_on(life),
            Ev::Called(id, call) => self.called(id, call),
            Ev::Acts => self.acts(),
            Ev::Submits(plan) => self.submits(plan),
            Ev::Strikes(kind) => self.strikes(kind),
            Ev::MustBeOver(token) => self.must_be_over(token),
            Ev::BacksUp => {
                self.store.back_up(&self.books);
                Ok(())
            }
            Ev::Peace => self.peace(),
            Ev::Resumes => self.resumes(),
        }
    }

    /// Puts an event into the queue.
    pub(crate) fn at(&mut self, at: u64, ev: Ev) {
        self.order += 1;
        self.queue.push(Reverse(Queued { at, order: self.order, ev }));
    }
    /// Puts an event into the queue, so much later than now.
    pub(crate) fn later(&mut self, ms: u64, ev: Ev) {
        self.at(self.now + ms, ev);
    }
    /// Whether the next event comes in this very millisecond and for this process.
    pub(crate) fn more_for(&mut self, process: ProcNo) -> Option<(StreamId, Down)> {
        let next = self.queue.peek().filter(|Reverse(q)| q.at == self.now)?;
        let Ev::ToProcess(stream, _) = &next.0.ev else { return None };
        let mine = self.net.streams.get(stream).is_some_and(|s| s.process == process);
        let Reverse(Queued { ev: Ev::ToProcess(stream, down), .. }) = mine.then(|| self.queue.pop()).flatten()? else {
            return None;
        };
        self.events += 1;
        Some((stream, down))
    }
    pub(crate) fn delay(&mut self) -> u64 {
        let most = self.faults.delay_ms;
        self.dice.skewed(1, most)
    }
    pub(crate) fn note(&mut self, line: String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>9} {line}", self.now));
        }
    }
    pub(crate) fn number(&mut self) -> u64 {
        self.numbers += 1;
        crate::dice::mix(self.seed) ^ self.numbers
    }

    fn peace(&mut self) -> Check {
        if self.events < MIN_EVENTS {
            self.later(20_000, Ev::Peace);
            return Ok(());
        }
        trace!(self, "the faults stop");
        self.peace = true;
        self.faults.heal();
        for stream in self.net.streams.values_mut() {
            stream.up.slower_ms = 0;
            stream.down.slower_ms = 0;
        }
        self.coordinator.slow_until = 0;
        for agent in 0..self.agents.len() {
            let alive = self.processes.iter().any(|p| p.agent == agent && !p.dead);
            if !alive && !self.config.embedded {
                self.later(10, Ev::Starts(agent, 0));
            }
        }
        self.later(60_000, Ev::Resumes);
        Ok(())
    }

    /// In peace somebody resumes what is left paused.
    fn resumes(&mut self) -> Check {
        self.later(60_000, Ev::Resumes);
        let paused: Vec<_> =
            self.store.tables.jobs.iter().filter(|(_, j)| j.paused).map(|(id, _)| id.clone()).collect();
        for id in paused {
            let call = self.clients.number(Call::Resume(id.clone()));
            self.later(1, Ev::Called(call, Call::Resume(id)));
        }
        Ok(())
    }

    /// Every job has ended, and every result has its receipt, but for a report that its agent's edge has
    /// swallowed: it is said again on the next stream.
    fn is_over(&self) -> bool {
        self.clients.answered.iter().all(|a| *a)
            && self.books.jobs.values().all(|b| b.ended())
            && self.processes.iter().all(|p| p.dead || p.asleep || p.swallowed || p.session.results() == 0)
            && self.coordinator.is_at_rest()
    }

    fn stuck(&mut self) -> Check {
        let jobs: Vec<String> = self
            .books
            .jobs
            .iter()
            .filter(|(_, b)| !b.ended())
            .map(|(id, b)| format!("job {id}: {} recorded, {} leased of {}", b.recorded, b.leased, b.expected()))
            .collect();
        let results: usize = self.processes.iter().filter(|p| !p.dead).map(|p| p.session.results()).sum();
        let reasons = self.coordinator.explain(self.now, &self.clients);
        broken("liveness", format!("after {} events: {jobs:?}, {results} results wait; {reasons}", self.events))
    }

    /// The end: everything is compared with everything once more.
    fn last_look(&mut self) -> Check {
        self.books.compare(&self.store.tables)?;
        self.told.still_true(&self.books)?;
        self.recount()?;
        for process in self.processes.iter().filter(|p| !p.dead) {
            process.session.check();
        }
        Ok(())
    }

    pub(crate) fn surroundings(&self) -> Surroundings<'_> {
        Surroundings { plans: &self.clients.plans, regions: &self.regions, forged: &self.forged }
    }

    /// A lease that ended must not be running long after.
    fn must_be_over(&mut self, token: FencingToken) -> Check {
        let Some(&process) = self.running.get(&token) else { return Ok(()) };
        let agent = &self.agents[self.processes[process].agent];
        if self.processes[process].asleep {
            self.later(self.patience_ms(), Ev::MustBeOver(token));
            return Ok(());
        }
        broken("S3", format!("agent {} still runs {token}, which ended long ago", agent.id))
    }

    /// How long an agent may take to learn that a lease has ended, whatever goes wrong.
    pub(crate) fn patience_ms(&self) -> u64 {
        2 * self.config.ttl_ms.max(60_000) + 180_000
    }

    /// Compares the core's memory with itself and with the books.
    pub(crate) fn recount(&mut self) -> Check {
        let Some(brain) = &self.coordinator.brain else { return Ok(()) };
        brain.core.recount().map_err(|b| Violation { rule: crate::rule_in(&b.0), what: b.0 })?;
        if !brain.is_quiet() {
            return Ok(());
        }
        // Nothing is filling and nothing in flight: memory and tables must agree (promise 4).
        let leases = brain.core.live_leases().count();
        let leased: u32 = self.books.jobs.values().map(|b| b.leased).sum();
        hold(leases == leased as usize, "P4", || format!("{leases} leases in memory, {leased} in the tables"))?;
        self.compare_counts()
    }

    pub(crate) fn event(&mut self, event: Event) -> Check {
        self.coordinator.inbox(crate::coordinator::Input::Event(Box::new(event)));
        self.pump()
    }
}
