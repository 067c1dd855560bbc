//! The coordinator's decisions: a pure state machine of one namespace under one epoch.
//!
//! [`Core::step`] takes what happened and says what must be durable (`Decision::batch`), what may be
//! said once it is (`outbox`), and what may be said at once (`now`). No I/O, no clock, no randomness,
//! no logging: the same events give the same decisions, so a failing run replays from its seed.

mod admit;
pub mod batch;
pub mod event;
mod explain;
mod gate;
pub mod id;
pub mod job;
mod lease;
pub mod log;
mod loss;
pub mod matrix;
mod report;
mod schedule;
mod session;
pub mod tables;
pub mod words;

use std::collections::{BTreeMap, BTreeSet};

pub use event::Committed;
use event::{Decision, Event};
use id::{
    AgentId, Cell, Epoch, FencingToken, Incarnation, JobId, JobNo, LeaseToken, Millis, ModelId, Now, RegionId,
    StreamId, UnixMs,
};
use job::Job;
use lease::{Grant, Lease};
use session::Session;
use tables::{Loaded, StoredGrant};
use words::LeaseStage;

/// Times of the core, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How long a session lives after a heartbeat.
    pub ttl_ms: u64,
    /// How often agents send one.
    pub heartbeat_ms: u64,
    /// What the coordinator waits beyond the TTL (rule S1).
    pub margin_ms: u64,
    /// How long a lease may go unacknowledged by an agent that beats (rule S2).
    pub ack_ms: u64,
    /// A longer gap between two events is this process's own sleep (rule L6); ticks come more often.
    pub sleep_ms: u64,
    /// Coordinator and agents live in one process and die together (rule S7).
    pub embedded: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { ttl_ms: 30_000, heartbeat_ms: 5_000, margin_ms: 5_000, ack_ms: 5_000, sleep_ms: 1_000, embedded: false }
    }
}

/// A promise or rule that does not hold: memory is wrong, and must be rebuilt from the tables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Broken(pub String);

/// The state machine.
#[derive(Debug)]
pub struct Core {
    pub(crate) config: Config,
    pub(crate) epoch: Epoch,
    /// The next fencing token's lower half; a grant never wraps (rule C8).
    pub(crate) counter: u32,
    pub(crate) jobs: BTreeMap<JobNo, Job>,
    job_nos: BTreeMap<JobId, JobNo>,
    /// Open jobs by their deadline; an entry that no longer fits its job is skipped.
    pub(crate) deadlines: BTreeSet<(UnixMs, JobNo)>,
    /// Lanes that may have cells for the agents of a region that serve a model.
    pub(crate) places: BTreeMap<(RegionId, ModelId), BTreeSet<(JobNo, usize)>>,
    /// Invariant: a session's `leases` are exactly the leases of `leases` whose agent it is.
    pub(crate) sessions: BTreeMap<AgentId, Session>,
    pub(crate) streams: BTreeMap<StreamId, AgentId>,
    /// Invariant (rule C9): a token that left this map never comes back into it.
    pub(crate) leases: BTreeMap<FencingToken, Lease>,
    pub(crate) grants: BTreeMap<FencingToken, Grant>,
    /// Every incarnation ever admitted, and the newest of each agent (rule S5).
    pub(crate) incarnations: BTreeMap<(AgentId, Incarnation), u64>,
    pub(crate) latest: BTreeMap<AgentId, (u64, Incarnation)>,
    pub(crate) gates: gate::Gates,
    /// Runs by the time of their revocation.
    pub(crate) timeouts: BTreeSet<(Millis, FencingToken)>,
    touched: BTreeSet<JobNo>,
    stepped_at: Millis,
    slept_ms: u64,
}

impl Core {
    /// The core of a new leader, from what it read in its epoch (rule L1). Every stored lease has one
    /// full TTL from `now`: the longest that any grant was made under.
    pub fn load(config: Config, epoch: Epoch, now: Now, loaded: Loaded) -> Result<Self, Broken> {
        let mut core = Self {
            config,
            epoch,
            counter: 1,
            jobs: BTreeMap::new(),
            job_nos: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            places: BTreeMap::new(),
            sessions: BTreeMap::new(),
            streams: BTreeMap::new(),
            leases: BTreeMap::new(),
            grants: BTreeMap::new(),
            incarnations: BTreeMap::new(),
            latest: BTreeMap::new(),
            gates: gate::Gates::default(),
            timeouts: BTreeSet::new(),
            touched: BTreeSet::new(),
            stepped_at: now.mono,
            slept_ms: 0,
        };
        let mut regions = BTreeMap::new();
        for row in loaded.agents {
            let newest = core.latest.entry(row.agent.clone()).or_insert((0, row.incarnation));
            if row.number > newest.0 {
                *newest = (row.number, row.incarnation);
                regions.insert(row.agent.clone(), row.region);
            }
            core.incarnations.insert((row.agent, row.incarnation), row.number);
        }
        let mut retry_at = BTreeMap::new();
        for job in loaded.jobs {
            let no = core.next_job_no();
            retry_at.insert(no, waits(now, &job));
            core.insert_job(Job::load(no, job));
        }
        core.restore_grants(now, &loaded.grants, &regions)?;
        for (no, waits) in &retry_at {
            if let Some(job) = core.jobs.get_mut(no) {
                job.restore_pending(now.mono, waits);
            }
        }
        core.recount()?;
        Ok(core)
    }

    fn restore_grants(
        &mut self,
        now: Now,
        grants: &[StoredGrant],
        regions: &BTreeMap<AgentId, RegionId>,
    ) -> Result<(), Broken> {
        let ttl = grants.iter().map(|g| g.row.ttl_ms).max().unwrap_or(0).max(self.config.ttl_ms);
        let expires_at = now.mono.after(ttl + self.config.margin_ms);
        for grant in grants {
            let row = &grant.row;
            let Some(&no) = self.job_nos.get(&row.job) else {
                return Err(Broken(format!("grant {} is of job {:?}, which is not there", row.first, row.job)));
            };
            let mut memory = Grant { live: 0, full: 0, len: grant.slots.len() as u32 };
            for (slot, cell) in (0..).zip(&grant.slots) {
                let (Some(cell), Some(job)) = (*cell, self.jobs.get_mut(&no)) else {
                    continue;
                };
                memory.full |= 1 << slot;
                let token = row.first.offset(slot);
                if job.recorded.contains(cell.0) {
                    continue;
                }
                if let Some(other) = job.leased.get(&cell) {
                    return Err(Broken(format!(
                        "promise 2: leases {other} and {token} of job {:?} cell {}",
                        row.job, cell.0
                    )));
                }
                memory.live |= 1 << slot;
                job.restore_lease(cell, token);
                self.restore_lease(now, grant, token, no, cell, regions, expires_at);
            }
            self.grants.insert(row.first, memory);
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "one restored lease, all of whose parts the caller has at hand")]
    fn restore_lease(
        &mut self,
        now: Now,
        grant: &StoredGrant,
        token: FencingToken,
        no: JobNo,
        cell: Cell,
        regions: &BTreeMap<AgentId, RegionId>,
        expires_at: Millis,
    ) {
        let agent = &grant.row.agent;
        let job = self.jobs.get(&no);
        let history = job.and_then(|j| j.history.get(&cell));
        let attempt = history.map_or(1, |h| h.last + 1);
        // Rule S7: a takeover does not bring company to a cell that runs alone.
        let alone = job.zip(history).is_some_and(|(j, h)| h.must_run_alone(&j.row.policy));
        let (number, incarnation) = self.latest.get(agent).copied().unwrap_or((0, grant.row.incarnation));
        let region = regions.get(agent).cloned().unwrap_or_else(|| RegionId::new(""));
        let session = self
            .sessions
            .entry(agent.clone())
            .or_insert_with(|| Session::absent(agent.clone(), incarnation, number, region, expires_at));
        session.leases.insert(token);
        session.alone |= alone;
        let lease = Lease {
            token: LeaseToken { fencing: token, nonce: grant.row.nonce },
            job: no,
            cell,
            grant: grant.row.first,
            agent: agent.clone(),
            granted_to: grant.row.incarnation,
            attempt,
            stage: LeaseStage::Restored,
            since: now.mono,
            said_at: None,
            timeout_at: None,
            gate: None,
        };
        self.leases.insert(token, lease);
    }

    /// One event: a table of contents. Bodies live with their nouns.
    pub fn step(&mut self, now: Now, event: Event) -> Result<Decision, Broken> {
        let at = self.awake(now);
        let mut out = Decision::default();
        let to = &mut out;
        match event {
            Event::Submit(submit) => self.submit(at, submit, to),
            Event::Hello(hello) => self.hello(at, hello, to),
            Event::Heartbeat(beat) => self.heartbeat(at, beat, to),
            Event::Held(held) => self.held(at, held, to),
            Event::Report(report) => self.report(at, report, to),
            Event::Release(release) => self.handed_back(at, release, to),
            Event::ModelStates(states) => self.model_states(states),
            Event::StreamClosed(stream) => self.stream_closed(stream),
            Event::Cancel(call) => self.cancel(at, call, to),
            Event::Pause(call) => self.pause(at, call, true, to),
            Event::Resume(call) => self.pause(at, call, false, to),
            Event::Retry(retry) => self.retry(at, retry, to),
            Event::Query(call, query) => self.query(at, call, query, to),
            Event::Tick => self.tick(at, to),
            Event::Assign(nonces) => self.assign(at, nonces, to),
            Event::Said(tokens) => self.said(at, &tokens),
        }
        self.invariants()?;
        Ok(out)
    }

    fn tick(&mut self, at: Now, out: &mut Decision) {
        self.expire_sessions(at, out);
        self.time_out_runs(at, out);
        self.expire_jobs(at, out);
    }

    /// Rule L6: time in which this process itself slept does not pass for its sessions. It is ticked several
    /// times in `sleep_ms`: a longer time without any event is one in which it did not run.
    fn awake(&mut self, now: Now) -> Now {
        let gap = now.mono.since(self.stepped_at);
        if gap > self.config.sleep_ms {
            self.slept_ms += gap;
        }
        self.stepped_at = now.mono;
        Now { mono: Millis(now.mono.0.saturating_sub(self.slept_ms)), wall: now.wall }
    }

    /// What each step must leave true, of what it touched: cheap enough to stay on in production.
    fn invariants(&mut self) -> Result<(), Broken> {
        for no in std::mem::take(&mut self.touched) {
            if let Some(job) = self.jobs.get(&no) {
                job.check().map_err(Broken)?;
            }
        }
        Ok(())
    }

    /// Every promise that memory can be held to, recounted in full: in the simulator, and after a load.
    pub fn recount(&self) -> Result<(), Broken> {
        for job in self.jobs.values() {
            // A job of millions is recounted by its sums: its cells are counted by an audit.
            if job.row.matrix.expected() <= 100_000 { job.recount() } else { job.check() }.map_err(Broken)?;
            for (cell, token) in &job.leased {
                let lease = self.leases.get(token).filter(|l| l.job == job.no && l.cell == *cell);
                if lease.is_none() {
                    return Err(Broken(format!(
                        "promise 2: job {:?} cell {}: lease {token} is not known",
                        job.row.id, cell.0
                    )));
                }
            }
        }
        let held: usize = self.sessions.values().map(|s| s.leases.len()).sum();
        let leased: usize = self.jobs.values().map(|j| j.leased.len()).sum();
        if held != self.leases.len() || leased != self.leases.len() {
            return Err(Broken(format!(
                "promise 2: {} leases, sessions hold {held}, jobs {leased}",
                self.leases.len()
            )));
        }
        for session in self.sessions.values() {
            let held = session.leases.iter().filter(|t| self.leases.get(t).is_some_and(|l| session::is_held(l.stage)));
            let (count, xor) = held.fold((0, 0), |(n, x), t| (n + 1, x ^ t.get()));
            if (count, xor) != (session.held_count, session.held_xor) {
                return Err(Broken(format!(
                    "rule S4: agent {}: count or exclusive or of its leases is wrong",
                    session.agent
                )));
            }
        }
        for (first, grant) in &self.grants {
            let live = (0..grant.len).filter(|slot| self.leases.contains_key(&first.offset(*slot)));
            let live = live.fold(0u64, |m, slot| m | 1 << slot);
            if live != grant.live || live & !grant.full != 0 || live == 0 {
                return Err(Broken(format!("rule C9: grant {first}: its slots do not say what its leases say")));
            }
        }
        Ok(())
    }

    /// The cell of a live lease, for the frozen input that the shell digests.
    pub fn leased_cell(&self, token: LeaseToken) -> Option<(&JobId, Cell)> {
        let lease = self.leases.get(&token.fencing).filter(|l| l.token == token)?;
        self.jobs.get(&lease.job).map(|job| (&job.row.id, lease.cell))
    }
    /// The jobs' live leases, as (job, cell, token): for checkers.
    pub fn live_leases(&self) -> impl Iterator<Item = (&JobId, Cell, FencingToken)> {
        self.leases.values().filter_map(|l| Some((&self.jobs.get(&l.job)?.row.id, l.cell, l.token.fencing)))
    }
    /// Rule C8: the counter is nearly spent; a new epoch must be taken before more is granted.
    pub fn needs_new_epoch(&self) -> bool {
        self.counter > u32::MAX - batch::MAX_GRANT as u32
    }
    /// The epoch.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub(crate) fn touch(&mut self, no: JobNo) {
        self.touched.insert(no);
    }
    pub(crate) fn job_no(&self, id: &JobId) -> Option<JobNo> {
        self.job_nos.get(id).copied()
    }
    pub(crate) fn job(&self, id: &JobId) -> Option<&Job> {
        self.jobs.get(&self.job_no(id)?)
    }
    pub(crate) fn next_job_no(&self) -> JobNo {
        JobNo(self.jobs.last_key_value().map_or(0, |(no, _)| no.0 + 1))
    }
    pub(crate) fn insert_job(&mut self, job: Job) {
        let no = job.no;
        self.job_nos.insert(job.row.id.clone(), no);
        let open = job.state == words::JobState::Open;
        if open {
            self.deadlines.insert((job.row.deadline_at, no));
        }
        self.jobs.insert(no, job);
        if open {
            self.list_places(no, true);
        }
    }
}

/// When the cells of a loaded job may be leased again, as points of this core's clock. A wait is
/// believed up to the job's longest: the wall clock may have been set back.
fn waits(now: Now, job: &tables::LoadedJob) -> BTreeMap<Cell, Millis> {
    let longest = job.stored.row.policy.max_backoff_ms.max(gate::MAX_RETRY_AFTER_MS);
    let until = |at: UnixMs| now.mono.after(at.since(now.wall).min(longest));
    job.attempts.iter().filter_map(|a| Some((a.cell, until(a.retry_at?)))).collect()
}
