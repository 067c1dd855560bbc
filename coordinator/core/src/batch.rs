//! What one commit makes durable: rows, and how many of each kind the tables will touch.

use std::{collections::BTreeMap, collections::BTreeSet, sync::Arc};

use bytes::Bytes;

use crate::{
    id::{
        AgentId, Cell, CellKey, Digest, FencingToken, Incarnation, JobId, JobNo, LeaseToken, Nonce, RegionId, UnixMs,
    },
    job::Policy,
    matrix::Matrix,
    words::{AttemptKind, FailureReason, JobState, OnLeaseLost, ReceiptReason, RegionBasis, Stage, Status},
};

/// Leases of one grant, at most: a wide array in a row costs its decompression at every check.
pub const MAX_GRANT: usize = 64;
/// Rows at which a batch is closed; beyond about 512 a commit gains nothing.
pub const MAX_BATCH_ROWS: usize = 512;
/// Bytes of answers at which a batch is closed.
pub const MAX_BATCH_BYTES: usize = 8 << 20;
/// Bytes of an answer that the history keeps.
pub const MAX_KEPT_ANSWER: usize = 64 << 10;

/// Who served a call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Served {
    /// The region that served.
    pub region: Arc<str>,
    /// On what that rests.
    pub basis: RegionBasis,
    /// The model as the endpoint names it; empty where it doesn't say.
    pub model: Arc<str>,
    /// The provider's id of the request; empty where it gives none.
    pub request_id: Arc<str>,
    /// Host and port, or the program's name.
    pub endpoint: Arc<str>,
    /// openai, command or echo.
    pub executor: Arc<str>,
}

/// How long the parts of an attempt took, in milliseconds on the agent's clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Timings {
    /// From the lease's arrival to the start.
    pub waited_ms: u64,
    /// From the start to the end.
    pub ran_ms: u64,
    /// From the start to the answer's first byte.
    pub first_byte_ms: Option<u64>,
}

/// A successful answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Success {
    /// The answer, byte for byte.
    pub output: Bytes,
    /// The provider's body; may be empty.
    pub response: Bytes,
    /// Why the model stopped.
    pub finish_reason: Arc<str>,
    /// Tokens of the input.
    pub prompt_tokens: Option<u64>,
    /// Tokens of the answer.
    pub completion_tokens: Option<u64>,
}

/// A failed attempt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// Why.
    pub reason: FailureReason,
    /// Where in its course.
    pub stage: Stage,
    /// HTTP status or exit status; may be empty.
    pub code: Arc<str>,
    /// The error in words, byte for byte.
    pub message: Bytes,
    /// Whether another try may succeed.
    pub retryable: bool,
}

/// How an attempt ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The model answered.
    Succeeded(Success),
    /// It did not.
    Failed(Failure),
}

/// What a report says, as far as it is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReportBody {
    /// SHA-256 of the outcome: of the output, or of a failure's reason, stage, code and message.
    pub digest: Digest,
    /// SHA-256 of the input that ran.
    pub input_digest: Digest,
    /// Who served; `None` where no call was made.
    pub served: Option<Served>,
    /// How long it took.
    pub timings: Timings,
    /// How it ended.
    pub outcome: Outcome,
}

impl ReportBody {
    /// Bytes of content, as they count towards a batch's bound.
    pub fn bytes(&self) -> usize {
        match &self.outcome {
            Outcome::Succeeded(s) => s.output.len() + s.response.len(),
            Outcome::Failed(f) => f.message.len(),
        }
    }
    /// The status that it claims.
    pub fn status(&self) -> Status {
        match self.outcome {
            Outcome::Succeeded(_) => Status::Succeeded,
            Outcome::Failed(_) => Status::Failed,
        }
    }
}

impl StoredSpec {
    /// Bytes of content, as they count towards a batch's bound.
    pub fn bytes(&self) -> usize {
        self.sent.len() + self.resolved.len()
    }
    /// What memory keeps of it: nothing there has use for its content, which may be many megabytes a job.
    pub fn in_memory(&self) -> Arc<Self> {
        Arc::new(Self { sent: Bytes::new(), resolved: Bytes::new(), input_version: self.input_version })
    }
}

/// A specification as the tables keep it; the core passes it on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredSpec {
    /// As sent: RFC 8785 JSON.
    pub sent: Bytes,
    /// With the defaults written out: JSON. This is what runs (promise 8).
    pub resolved: Bytes,
    /// The version of the frozen input's format.
    pub input_version: u32,
}

/// A row of `jobs`, inserted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JobRow {
    /// Its id.
    pub id: JobId,
    /// SHA-256 of the specification as sent.
    pub digest: Digest,
    /// The specification; without its content where the row was loaded.
    pub spec: Arc<StoredSpec>,
    /// Its matrix. Stored within the resolved specification.
    pub matrix: Arc<Matrix>,
    /// Its policy. Stored within the resolved specification.
    pub policy: Policy,
    /// When it was accepted.
    pub submitted_at: UnixMs,
    /// When it expires.
    pub deadline_at: UnixMs,
}

/// A change of a row of `jobs`: `None` leaves a column as it is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct JobChange {
    /// The new state.
    pub state: Option<JobState>,
    /// Whether it is paused.
    pub paused: Option<bool>,
    /// When it was closed; `Some(None)` clears it.
    pub closed_at: Option<Option<UnixMs>>,
    /// When its last cell was recorded; `Some(None)` clears it.
    pub completed_at: Option<Option<UnixMs>>,
    /// When it expires.
    pub deadline_at: Option<UnixMs>,
}

/// A row of `lease_grants`, inserted: the leases that one commit gives to one agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GrantRow {
    /// The fencing token of its first lease; the i-th lease has `first + i`.
    pub first: FencingToken,
    /// The secret part of its lease tokens.
    pub nonce: Nonce,
    /// The session TTL under which it was made, in milliseconds (rule L1).
    pub ttl_ms: u64,
    /// Whose leases they are.
    pub agent: AgentId,
    /// The incarnation to which they were sent.
    pub incarnation: Incarnation,
    /// Of which job.
    pub job: JobId,
    /// The cells: at most [`MAX_GRANT`].
    pub cells: Vec<Cell>,
}

/// A row of `executions`, inserted on condition that its lease is in its grant's slot (promise 3).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The job.
    pub job: JobId,
    /// The cell's index.
    pub cell: Cell,
    /// The cell's key.
    pub key: CellKey,
    /// The lease under which it is recorded.
    pub lease: LeaseToken,
    /// The first token of that lease's grant; the slot is `lease.fencing − grant`.
    pub grant: FencingToken,
    /// The attempt's number, from 1.
    pub attempt: u32,
    /// The agent.
    pub agent: AgentId,
    /// The report.
    pub body: Arc<ReportBody>,
    /// When.
    pub recorded_at: UnixMs,
}

/// A record that a retry moves, whole, to `attempts`, as kind `replaced`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Replaced {
    /// The job.
    pub job: JobId,
    /// The cell.
    pub cell: Cell,
    /// The token under which it was recorded.
    pub token: FencingToken,
    /// When.
    pub at: UnixMs,
}

/// A row of `attempts`, inserted: what did not go well.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttemptRow {
    /// The job.
    pub job: JobId,
    /// The cell's index.
    pub cell: Cell,
    /// The cell's key.
    pub key: CellKey,
    /// The token of the lease.
    pub token: FencingToken,
    /// What the entry is.
    pub kind: AttemptKind,
    /// The attempt's number; 0 where it isn't known.
    pub attempt: u32,
    /// Whether it used up one of the job's attempts.
    pub counted: bool,
    /// Whether the lease died together with others (rule S7).
    pub in_company: bool,
    /// The agent.
    pub agent: AgentId,
    /// Why, where nothing was reported.
    pub reason: Option<FailureReason>,
    /// Why a report was refused.
    pub fenced: Option<ReceiptReason>,
    /// What was reported; the store keeps at most [`MAX_KEPT_ANSWER`] bytes of it.
    pub body: Option<Arc<ReportBody>>,
    /// Not to be leased again before.
    pub retry_at: Option<UnixMs>,
    /// When.
    pub ended_at: UnixMs,
}

impl AttemptRow {
    /// The digest in the row's key (namespace, token, kind, digest); zero where nothing was reported.
    pub fn digest(&self) -> Digest {
        self.body.as_ref().map_or_else(Digest::default, |b| b.digest)
    }
}

/// A row of `agents`, inserted: an incarnation is admitted, and every earlier one refused for good (rule S5).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AgentRow {
    /// The agent.
    pub agent: AgentId,
    /// The incarnation.
    pub incarnation: Incarnation,
    /// Its number, from 1.
    pub number: u64,
    /// Its region.
    pub region: RegionId,
    /// When.
    pub admitted_at: UnixMs,
}

/// A row of `audit_log`, inserted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AuditRow {
    /// When.
    pub at: UnixMs,
    /// Who.
    pub actor: Arc<str>,
    /// What.
    pub action: &'static str,
    /// The job.
    pub job: Option<JobId>,
    /// More words.
    pub detail: String,
}

/// What one commit makes durable. Built by the core one decision at a time; within a batch a key is
/// touched once, and a job's or agent's row once (rule C3), so the order of its parts makes no difference.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Batch {
    /// Jobs inserted.
    pub jobs: Vec<JobRow>,
    /// Jobs changed.
    pub job_changes: BTreeMap<JobId, JobChange>,
    /// Grants inserted.
    pub grants: Vec<GrantRow>,
    /// Slots blanked: a bit a slot, by the grant's first token.
    pub blanks: BTreeMap<FencingToken, u64>,
    /// Grants whose last lease ended: deleted.
    pub ended: BTreeSet<FencingToken>,
    /// Records inserted.
    pub records: Vec<Record>,
    /// Records moved to the history.
    pub replaced: Vec<Replaced>,
    /// History inserted.
    pub attempts: Vec<AttemptRow>,
    /// Incarnations inserted.
    pub agents: Vec<AgentRow>,
    /// Audit rows inserted.
    pub audit: Vec<AuditRow>,
    touched: BTreeSet<(JobNo, Cell)>,
    bytes: usize,
}

impl Batch {
    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.rows() == 0
    }
    /// How many rows it touches.
    pub fn rows(&self) -> usize {
        self.jobs.len()
            + self.job_changes.len()
            + self.grants.len()
            + self.blanks.len()
            + self.ended.len()
            + self.records.len()
            + self.replaced.len()
            + self.attempts.len()
            + self.agents.len()
            + self.audit.len()
    }
    /// Bytes of content in it.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn job(&mut self, row: JobRow) {
        self.bytes += row.spec.bytes();
        self.jobs.push(row);
    }
    pub(crate) fn record(&mut self, no: JobNo, record: Record) {
        self.touch(no, record.cell);
        self.bytes += record.body.bytes();
        self.records.push(record);
    }
    pub(crate) fn grant(&mut self, no: JobNo, grant: GrantRow) {
        for &cell in &grant.cells {
            self.touch(no, cell);
        }
        self.grants.push(grant);
    }
    pub(crate) fn blank(&mut self, no: JobNo, cell: Cell, grant: FencingToken, slot: u32) {
        self.touch(no, cell);
        *self.blanks.entry(grant).or_default() |= 1 << slot;
    }
    pub(crate) fn end(&mut self, grant: FencingToken) {
        self.blanks.remove(&grant);
        self.ended.insert(grant);
    }
    pub(crate) fn replace(&mut self, no: JobNo, replaced: Replaced) {
        self.touch(no, replaced.cell);
        self.replaced.push(replaced);
    }
    pub(crate) fn attempt(&mut self, row: AttemptRow) {
        self.bytes += row.body.as_ref().map_or(0, |b| b.bytes().min(MAX_KEPT_ANSWER));
        self.attempts.push(row);
    }
    pub(crate) fn change(&mut self, job: &JobId) -> &mut JobChange {
        self.job_changes.entry(job.clone()).or_default()
    }
    /// One decision touches a key once, but for the blank of a retried record's slot.
    fn touch(&mut self, no: JobNo, cell: Cell) {
        self.touched.insert((no, cell));
    }

    /// Whether `next` may not join this batch: it touches what this one touches (rule C3).
    pub(crate) fn conflicts(&self, next: &Self) -> bool {
        let (small, large) = if self.touched.len() < next.touched.len() { (self, next) } else { (next, self) };
        small.touched.iter().any(|t| large.touched.contains(t))
            || next.job_ids().any(|id| self.job_ids().any(|own| own == id))
            || next.agents.iter().any(|a| self.agents.iter().any(|own| own.agent == a.agent))
            || next.attempts.iter().any(|a| {
                a.kind == AttemptKind::Fenced
                    && self.attempts.iter().any(|own| own.token == a.token && own.kind == a.kind)
            })
    }
    fn job_ids(&self) -> impl Iterator<Item = &JobId> {
        self.jobs.iter().map(|j| &j.id).chain(self.job_changes.keys())
    }
    /// Joins a decision that does not conflict.
    pub(crate) fn merge(&mut self, next: Self) {
        self.jobs.extend(next.jobs);
        self.job_changes.extend(next.job_changes);
        self.grants.extend(next.grants);
        for (grant, mask) in next.blanks {
            *self.blanks.entry(grant).or_default() |= mask;
        }
        for grant in next.ended {
            self.end(grant);
        }
        self.records.extend(next.records);
        self.replaced.extend(next.replaced);
        self.attempts.extend(next.attempts);
        self.agents.extend(next.agents);
        self.audit.extend(next.audit);
        self.touched.extend(next.touched);
        self.bytes += next.bytes;
    }
}

/// Whether a lost lease is the end of its cell.
impl OnLeaseLost {
    /// Whether a cell whose lease was lost may run again.
    pub fn may_run_again(self) -> bool {
        self == Self::Retry
    }
}
