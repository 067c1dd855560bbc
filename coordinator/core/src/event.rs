//! The core's whole boundary: what comes in, what goes out.

use std::sync::Arc;

use crate::{
    batch::{Batch, ReportBody, StoredSpec},
    id::{
        AgentId, CallId, Cell, CellKey, Digest, Epoch, FencingToken, Incarnation, JobId, LeaseToken, ModelId, Nonce,
        ProviderId, RegionId, Seq, StreamId, UnixMs,
    },
    job::Policy,
    matrix::Matrix,
    words::{
        AttemptKind, GoAwayReason, JobState, LeaseStage, ReceiptKind, ReceiptReason, ReleaseReason, RevokeReason,
        WaitReason,
    },
};

/// What happens. What the core can't know of chance or of the past comes in with it.
#[derive(Clone, Debug)]
pub enum Event {
    /// A job is submitted; the edge has checked it.
    Submit(Submit),
    /// An agent's first message on a stream.
    Hello(Hello),
    /// A sign of life.
    Heartbeat(Heartbeat),
    /// The list of leases that an agent holds, after a `HeldRequest`.
    Held(Held),
    /// What became of an attempt.
    Report(Report),
    /// A lease handed back.
    Release(Release),
    /// Which models an agent can reach.
    ModelStates(ModelStates),
    /// A stream ended.
    StreamClosed(StreamId),
    /// A caller ends a job.
    Cancel(JobCall),
    /// A caller pauses a job.
    Pause(JobCall),
    /// A caller resumes a job.
    Resume(JobCall),
    /// A caller runs recorded cells again.
    Retry(Retry),
    /// A caller asks.
    Query(CallId, Query),
    /// Time passes.
    Tick,
    /// Leases may be granted: one nonce a grant, and no more grants than nonces.
    Assign(Vec<Nonce>),
    /// The leases of an outbox that has just opened: they were handed to their streams (rule S2).
    Said(Vec<FencingToken>),
}

impl Event {
    /// What the shell owes the core after it has said the items of an outbox; `None` if no lease was among them.
    pub fn said(items: &[Out]) -> Option<Self> {
        let lease = |out: &Out| match out {
            Out::Agent(_, ToAgent::Lease(lease)) => Some(lease.token.fencing),
            _ => None,
        };
        let leases: Vec<_> = items.iter().filter_map(lease).collect();
        (!leases.is_empty()).then_some(Self::Said(leases))
    }
}

/// A job to admit.
#[derive(Clone, Debug)]
pub struct Submit {
    /// The call to answer.
    pub call: CallId,
    /// Who submits.
    pub actor: Arc<str>,
    /// The job's id.
    pub id: JobId,
    /// SHA-256 of the specification as sent.
    pub digest: Digest,
    /// The matrix.
    pub matrix: Arc<Matrix>,
    /// The policy.
    pub policy: Policy,
    /// The specification, to be stored.
    pub spec: Arc<StoredSpec>,
}

/// A call about a job.
#[derive(Clone, Debug)]
pub struct JobCall {
    /// The call to answer.
    pub call: CallId,
    /// Who calls.
    pub actor: Arc<str>,
    /// The job.
    pub id: JobId,
    /// Why, in the caller's words.
    pub reason: String,
}

/// Recorded cells to run again. The records were read when every commit so far was durable and none was under way.
#[derive(Clone, Debug)]
pub struct Retry {
    /// The call.
    pub by: JobCall,
    /// Whether a closed job is opened again.
    pub reopen: bool,
    /// The records: cell, its token and attempt.
    pub records: Vec<(Cell, FencingToken, u32)>,
}

/// An agent's first message on a stream.
#[derive(Clone, Debug)]
pub struct Hello {
    /// The stream.
    pub stream: StreamId,
    /// The agent.
    pub agent: AgentId,
    /// This start of its process.
    pub incarnation: Incarnation,
    /// Its region.
    pub region: RegionId,
    /// The models that it serves, the provider account behind each, and why it can't be reached now.
    pub models: Vec<(ModelId, ProviderId, Option<Arc<str>>)>,
    /// How many executions it runs at once.
    pub slots: u32,
    /// Leases wanted beyond the free slots.
    pub prefetch: u32,
    /// Leases that it holds, and whether they have started.
    pub held: Vec<(LeaseToken, bool)>,
    /// Leases whose results wait in its spool.
    pub spooled: Vec<LeaseToken>,
}

/// A sign of life.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    /// The stream on which it came.
    pub stream: StreamId,
    /// Its number.
    pub number: u64,
    /// Slots now; 0 drains.
    pub slots: u32,
    /// Leases that arrived since the last.
    pub acknowledged: Vec<FencingToken>,
    /// Leases that start with this one.
    pub started: Vec<FencingToken>,
    /// How many leases the agent holds.
    pub held_count: u32,
    /// The exclusive or of their fencing tokens.
    pub held_xor: u64,
}

/// All leases that an agent holds.
#[derive(Clone, Debug)]
pub struct Held {
    /// The stream on which it came.
    pub stream: StreamId,
    /// The number of the newest `HeldRequest` that it answers; 0 for none.
    pub request: u64,
    /// The list, and whether each has started.
    pub leases: Vec<(LeaseToken, bool)>,
}

/// What became of an attempt.
#[derive(Clone, Debug)]
pub struct Report {
    /// The stream on which it came.
    pub stream: StreamId,
    /// The lease.
    pub token: LeaseToken,
    /// What it says.
    pub body: Arc<ReportBody>,
    /// SHA-256 of the input that was leased; `None` if the token is not live.
    pub leased_input: Option<Digest>,
    /// The provider's Retry-After in milliseconds.
    pub retry_after_ms: Option<u64>,
    /// What the tables say of a token that is not live (rule C10), read when every commit so far was
    /// durable and none was under way; `None` until the core asks.
    pub past: Option<Past>,
    /// Randomness, for jitter.
    pub chance: u64,
}

/// What the tables say of a token.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Past {
    /// The row of `executions` that it recorded.
    pub record: Option<PastRow>,
    /// Its rows of `attempts`.
    pub attempts: Vec<(AttemptKind, Option<ReceiptReason>, PastRow)>,
}

/// A row of the past.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PastRow {
    /// The job.
    pub job: JobId,
    /// The cell's index.
    pub cell: Cell,
    /// The cell's key.
    pub key: CellKey,
    /// The digest of what was reported; zero if nothing was.
    pub digest: Digest,
    /// The attempt's number.
    pub attempt: u32,
    /// The agent.
    pub agent: AgentId,
    /// The nonce, where the grant still has it. Rows outlive their grants, and then it is not known.
    pub nonce: Option<Nonce>,
}

/// A lease handed back.
#[derive(Clone, Debug)]
pub struct Release {
    /// The stream on which it came.
    pub stream: StreamId,
    /// The lease.
    pub token: LeaseToken,
    /// Why.
    pub reason: ReleaseReason,
    /// In words.
    pub message: Arc<str>,
    /// The provider's Retry-After in milliseconds.
    pub retry_after_ms: Option<u64>,
    /// Randomness, for jitter.
    pub chance: u64,
}

/// Which models an agent can reach.
#[derive(Clone, Debug)]
pub struct ModelStates {
    /// The stream on which it came.
    pub stream: StreamId,
    /// Model, and if it can't be reached, why.
    pub states: Vec<(ModelId, Result<(), Arc<str>>)>,
}

/// What a caller asks.
#[derive(Clone, Debug)]
pub enum Query {
    /// One job.
    Job(JobId),
    /// Jobs, newest first, after this one.
    Jobs {
        /// The last job of the page before.
        after: Option<JobId>,
        /// At most so many.
        limit: usize,
    },
    /// Why the cells of a job are not done.
    Explain(JobId),
    /// Why one cell is not done.
    Cell(JobId, Cell),
    /// The agents.
    Agents,
    /// The live leases, by token, after this one.
    Leases {
        /// The last lease of the page before.
        after: Option<FencingToken>,
        /// At most so many.
        limit: usize,
    },
}

/// What an event comes to. The batch is committed before the outbox opens; `now` goes at once (rule C6).
#[derive(Debug, Default)]
pub struct Decision {
    /// What must be durable.
    pub batch: Batch,
    /// What may be said after it is.
    pub outbox: Vec<Out>,
    /// What asserts no new fact.
    pub now: Vec<Out>,
    /// The core needs the tables' word on this token: the report comes again with its `past`.
    pub ask: Option<FencingToken>,
    /// There is more to grant: `Assign` again, with new nonces.
    pub more: bool,
}

/// Something to say to somebody.
#[derive(Clone, PartialEq, Debug)]
pub enum Out {
    /// To an agent, on its stream.
    Agent(StreamId, ToAgent),
    /// The answer to a call.
    Answer(CallId, Answer),
}

/// What an agent is told.
#[derive(Clone, PartialEq, Debug)]
pub enum ToAgent {
    /// The greeting.
    Welcome {
        /// The incarnation's number.
        number: u64,
        /// The session's TTL in milliseconds.
        ttl_ms: u64,
        /// Time between heartbeats in milliseconds.
        heartbeat_ms: u64,
        /// Tokens of Hello that are not live.
        lost: Vec<LeaseToken>,
    },
    /// A heartbeat arrived.
    HeartbeatAck(u64),
    /// An execution to run.
    Lease(LeaseOut),
    /// The answer to a report.
    Receipt(Receipt),
    /// A lease has ended.
    Revoke(LeaseToken, RevokeReason),
    /// Say what you hold: the number of this request, which the answer repeats.
    HeldRequest(u64),
    /// Leave this stream.
    GoAway(GoAwayReason),
}

/// A lease as it is sent; the shell adds the frozen input.
#[derive(Clone, PartialEq, Debug)]
pub struct LeaseOut {
    /// The token.
    pub token: LeaseToken,
    /// The job.
    pub job: JobId,
    /// The cell.
    pub cell: Cell,
    /// The attempt's number, from 1.
    pub attempt: u32,
    /// On a warm model, in milliseconds.
    pub run_timeout_ms: u64,
    /// On a cold one, in milliseconds.
    pub cold_timeout_ms: u64,
}

/// The answer to a report.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Receipt {
    /// The report's token.
    pub token: LeaseToken,
    /// What became of it.
    pub kind: ReceiptKind,
    /// Why.
    pub reason: Option<ReceiptReason>,
    /// The digest that is stored under this token.
    pub stored: Option<Digest>,
}

/// The answer to a call.
#[derive(Clone, PartialEq, Debug)]
pub enum Answer {
    /// The job, and whether this call created it.
    Submitted(JobView, bool),
    /// The id names another specification (promise 6).
    OtherSpec,
    /// There is no such job.
    NoSuchJob,
    /// The call does not fit the job's state; in words that say what to do.
    Refused(String),
    /// The job, after the call.
    Job(JobView),
    /// The job, and how many calls are not yet known to have stopped.
    Cancelled(JobView, u64),
    /// The job, and how many records moved.
    Retried(JobView, u64),
    /// Jobs, without their lanes.
    Jobs(Vec<JobView>),
    /// Why cells are not done, the largest group first.
    Pending(JobView, Vec<PendingGroup>),
    /// Why one cell is not done; `None` if it is recorded.
    Cell(Option<Wait>),
    /// The agents.
    Agents(Vec<AgentView>),
    /// Live leases.
    Leases(Vec<LeaseView>),
}

/// Conservation (promise 4): expected = recorded + leased + pending + not_run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Cells of the matrix.
    pub expected: u32,
    /// With a record.
    pub recorded: u32,
    /// Of those, failed.
    pub failed: u32,
    /// Under a live lease.
    pub leased: u32,
    /// Waiting.
    pub pending: u32,
    /// Of a closed job: will not run.
    pub not_run: u32,
}

/// A job as it stands.
#[derive(Clone, PartialEq, Debug)]
pub struct JobView {
    /// Its id.
    pub id: JobId,
    /// SHA-256 of the specification as sent.
    pub digest: Digest,
    /// Its state; complete is `recorded == expected` (rule J1).
    pub state: JobState,
    /// Whether it is paused.
    pub paused: bool,
    /// Its counts.
    pub counts: Counts,
    /// The counts of each lane: model, region, counts.
    pub lanes: Vec<(ModelId, RegionId, Counts)>,
    /// When it was accepted.
    pub submitted_at: UnixMs,
    /// When it expires.
    pub deadline_at: UnixMs,
    /// When its last cell was recorded.
    pub completed_at: Option<UnixMs>,
    /// When it was cancelled or expired.
    pub closed_at: Option<UnixMs>,
}

/// Why a cell waits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Wait {
    /// Why.
    pub reason: WaitReason,
    /// In words: an agent, a provider's message, a cap.
    pub detail: String,
    /// In how many milliseconds the reason ends by itself.
    pub until_ms: Option<u64>,
}

/// Cells of one lane that wait for one reason.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PendingGroup {
    /// The model.
    pub model: ModelId,
    /// The region.
    pub region: RegionId,
    /// Why.
    pub wait: Wait,
    /// How many.
    pub cells: u32,
}

/// An agent with a live session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AgentView {
    /// Its id.
    pub agent: AgentId,
    /// Its region.
    pub region: RegionId,
    /// Its incarnation's number.
    pub number: u64,
    /// Its slots.
    pub slots: u32,
    /// Leases that it holds.
    pub leased: u32,
    /// Of those, how many run.
    pub running: u32,
    /// Whether it has a stream.
    pub connected: bool,
    /// Milliseconds since its last heartbeat.
    pub last_heard_ms: u64,
    /// Whether it takes no more leases.
    pub draining: bool,
    /// Its models: id, provider, and why it can't be reached.
    pub models: Vec<(ModelId, ProviderId, Option<Arc<str>>)>,
}

/// A live lease, without its secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseView {
    /// The job.
    pub job: JobId,
    /// The cell's key.
    pub key: CellKey,
    /// The fencing token.
    pub token: FencingToken,
    /// The agent.
    pub agent: AgentId,
    /// The attempt's number.
    pub attempt: u32,
    /// How far it is.
    pub stage: LeaseStage,
    /// Milliseconds since it was granted, or since this coordinator took over.
    pub age_ms: u64,
}

/// The proof that everything up to and including (epoch, seq) is durable. Only a commit makes one.
#[derive(Debug)]
pub struct Committed {
    epoch: Epoch,
    seq: Seq,
}

impl Committed {
    /// A store that has just had (epoch, seq) acknowledged says so. A commit that was found by
    /// reading makes none (rule C4).
    pub fn by_store(epoch: Epoch, seq: Seq) -> Self {
        Self { epoch, seq }
    }
    /// The epoch.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
    /// The last commit of that epoch that is durable.
    pub fn seq(&self) -> Seq {
        self.seq
    }
}

/// What may be said once everything that its events saw is durable (promise 5, rule C5).
#[derive(Debug)]
pub struct Outbox {
    pub(crate) epoch: Epoch,
    pub(crate) after: Seq,
    pub(crate) items: Vec<Out>,
}

impl Outbox {
    /// The commit that it waits for.
    pub fn after(&self) -> Seq {
        self.after
    }
    /// What it holds, once `proof` reaches as far as its events saw; otherwise itself again.
    pub fn open(self, proof: &Committed) -> Result<Vec<Out>, Self> {
        if proof.epoch == self.epoch && proof.seq >= self.after { Ok(self.items) } else { Err(self) }
    }
}
