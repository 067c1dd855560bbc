//! Agents: processes around the real session machine, with simulated executors and spools.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use semel_core::{
    batch::{Failure, Outcome, ReportBody, Served, Success, Timings},
    id::{AgentId, Cell, CellKey, Digest, FencingToken, Incarnation, JobId, LeaseToken, ModelId, RegionId, StreamId},
    words::{FailureReason, RegionBasis, Stage},
};
use semel_session::{Message, Recovered, Session, Settings};

use crate::{
    dice::{Dice, digest_of},
    network::Up,
};

/// Index of a process; never used twice.
pub type ProcNo = usize;

/// What a lease carries.
#[derive(Clone, Debug)]
pub struct Work {
    /// The job.
    pub job: JobId,
    /// The cell.
    pub cell: Cell,
    /// Its key.
    pub key: CellKey,
    /// Name of the model to ask.
    pub model_name: Arc<str>,
    /// Stands for the frozen input.
    pub input: Digest,
    /// The agent's limit of the run.
    pub timeout_ms: u64,
}

/// A finished report.
#[derive(Clone, Debug)]
pub struct Done {
    /// What it says.
    pub body: Arc<ReportBody>,
    /// The provider's Retry-After.
    pub retry_after_ms: Option<u64>,
}

/// An entry of a spool.
#[derive(Clone, Debug)]
pub struct Spooled {
    /// The lease.
    pub token: LeaseToken,
    /// The report.
    pub done: Done,
    /// Survives the end of the process.
    pub synced: bool,
}

/// A spool folder: one process at a time has it.
#[derive(Clone, Debug, Default)]
pub struct Spool {
    /// Its entries.
    pub entries: BTreeMap<LeaseToken, Spooled>,
    /// The process that holds its lock.
    pub locked_by: Option<ProcNo>,
}

/// An agent: what its configuration says, on every machine that has a copy of it.
#[derive(Debug)]
pub struct Agent {
    /// Its id.
    pub id: AgentId,
    /// Its region.
    pub region: RegionId,
    /// Its models.
    pub models: Vec<ModelId>,
    /// Its slots.
    pub slots: u32,
    /// Leases beyond them.
    pub prefetch: u32,
    /// Its orphan limit; the TTL if `None`.
    pub orphan_limit_ms: Option<u64>,
    /// The spool folders of the machines that run it: three processes at most.
    pub spools: [Spool; 3],
}

/// How a run will end.
#[derive(Clone, Debug)]
pub enum RunEnd {
    /// With a report.
    Report(Done),
    /// Without one.
    Release(semel_session::ReleaseReason, String),
    /// The process dies of it.
    Kill,
    /// As within; the agent has found that it can't reach the model.
    Misconfigured(ModelId, Box<RunEnd>),
}

/// What a process has said and heard on its current stream: the checkers' own account of it.
#[derive(Debug, Default)]
pub struct Witness {
    /// Acknowledged on this stream, by heartbeat or Hello.
    pub acknowledged: BTreeSet<u64>,
    /// Said to start on this stream.
    pub announced: BTreeSet<u64>,
    /// Heartbeats sent on this stream: number and local time.
    pub sent: VecDeque<(u64, u64)>,
    /// When Hello was sent.
    pub hello_at: u64,
    /// When the latest acknowledged heartbeat was sent, in local time.
    pub proven_at: Option<u64>,
    /// The TTL as told.
    pub ttl_ms: u64,
    /// Tokens whose end it was told.
    pub ended: BTreeSet<LeaseToken>,
    /// Leases that this process has received, on any stream.
    pub received: BTreeSet<LeaseToken>,
}

/// A process.
#[derive(Debug)]
pub struct Process {
    /// Its agent.
    pub agent: usize,
    /// Its spool folder.
    pub folder: usize,
    /// This start.
    pub incarnation: Incarnation,
    /// The machine.
    pub session: Session<LeaseToken, Work, Done>,
    /// It has ended.
    pub dead: bool,
    /// It stands still.
    pub asleep: bool,
    /// Events that wait while it stands still.
    pub waiting: VecDeque<crate::world::Ev>,
    /// Its edge has swallowed a message.
    pub swallowed: bool,
    /// Leases of which it has swallowed a word.
    pub muffled: BTreeSet<FencingToken>,
    /// The stream that it reads.
    pub stream: Option<StreamId>,
    /// Runs under way, by lease: the run's number.
    pub runs: BTreeMap<LeaseToken, u64>,
    /// When it was born, and what its clock said then.
    pub born: (u64, u64),
    /// By how many millionths its clock is fast or slow.
    pub drift_ppm: i64,
    /// The next wake that is in the queue.
    pub wake_at: Option<u64>,
    /// The checkers' account.
    pub witness: Witness,
}

impl Process {
    /// Its edge swallows a message: it goes nowhere, and the machine does not learn of it.
    pub fn swallows(&mut self, message: &Up) {
        self.swallowed = true;
        match message {
            Message::Heartbeat(beat) => {
                let named = beat.acknowledged.iter().chain(&beat.started);
                self.muffled.extend(named.filter_map(|n| FencingToken::from_u64(*n)));
            }
            Message::Report { token, .. } | Message::Release { token, .. } => {
                self.muffled.insert(token.fencing);
            }
            Message::Hello { .. } | Message::Held { .. } | Message::ModelStates(_) => {}
        }
    }
    /// Its monotonic clock.
    pub fn local(&self, now: u64) -> u64 {
        let passed = (now - self.born.0) as i64;
        self.born.1 + (passed + passed * self.drift_ppm / 1_000_000) as u64
    }
    /// The first time at which its clock shows `local` or later.
    pub fn global(&self, local: u64) -> u64 {
        let passed = local.saturating_sub(self.born.1) as i64;
        let mut at = self.born.0 + (passed * 1_000_000 / (1_000_000 + self.drift_ppm)) as u64;
        while self.local(at) < local {
            at += 1;
        }
        at
    }
}

/// A new process of an agent on one of its machines.
pub fn process(agent: &Agent, number: usize, folder: usize, now: u64, dice: &mut Dice) -> Process {
    let entries = agent.spools[folder].entries.values();
    let recovered: Vec<_> =
        entries.map(|e| Recovered { token: e.token, fencing: e.token.fencing.get(), result: e.done.clone() }).collect();
    let settings = Settings {
        slots: agent.slots,
        prefetch: agent.prefetch,
        orphan_limit_ms: agent.orphan_limit_ms,
        seed: dice.draw(),
    };
    let born = (now, dice.between(0, 1 << 40));
    Process {
        agent: number,
        folder,
        incarnation: Incarnation(dice.bytes16()),
        session: Session::new(settings, born.1, recovered),
        dead: false,
        asleep: false,
        waiting: VecDeque::new(),
        swallowed: false,
        muffled: BTreeSet::new(),
        stream: None,
        runs: BTreeMap::new(),
        born,
        drift_ppm: dice.between(0, 40_000) as i64 - 20_000,
        wake_at: None,
        witness: Witness { ttl_ms: semel_session::DEFAULT_TTL_MS, ..Witness::default() },
    }
}

/// A report of a run: `number` makes its digest, `served` the region and model that it names.
pub fn success(work: &Work, number: u64, input: Digest, served: (Arc<str>, Arc<str>)) -> Done {
    let body = ReportBody {
        digest: Digest(digest_of(number, 1)),
        input_digest: input,
        served: Some(Served {
            region: served.0,
            basis: RegionBasis::Reported,
            model: served.1,
            request_id: "".into(),
            endpoint: "sim".into(),
            executor: "echo".into(),
        }),
        timings: Timings::default(),
        outcome: Outcome::Succeeded(Success {
            output: Bytes::copy_from_slice(&work.input.0),
            response: Bytes::new(),
            finish_reason: "stop".into(),
            prompt_tokens: None,
            completion_tokens: None,
        }),
    };
    Done { body: Arc::new(body), retry_after_ms: None }
}

/// A report of a run that failed.
pub fn failure(work: &Work, number: u64, reason: FailureReason, retryable: bool) -> Done {
    let body = ReportBody {
        digest: Digest(digest_of(number, 2)),
        input_digest: work.input,
        served: None,
        timings: Timings::default(),
        outcome: Outcome::Failed(Failure {
            reason,
            stage: Stage::Run,
            code: "500".into(),
            message: Bytes::from_static(b"no"),
            retryable,
        }),
    };
    Done { body: Arc::new(body), retry_after_ms: None }
}

/// Stands for the frozen input of a cell of a job with this digest.
pub fn input_of(job: Digest, cell: Cell) -> Digest {
    let seed = job.0.first_chunk::<8>().map_or(0, |b| u64::from_be_bytes(*b));
    Digest(digest_of(seed, u64::from(cell.0)))
}
