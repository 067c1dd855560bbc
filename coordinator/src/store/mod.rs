//! The store: a database that holds the tables, and the one write path into it.
//!
//! `semel_core::tables` says what each operation means; a store is its twin in SQL.

pub mod sqlite;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use semel_core::{
    Committed,
    batch::{AttemptRow, Batch, ReportBody},
    event::Past,
    id::{AgentId, Cell, CellKey, Epoch, FencingToken, JobId, ModelId, QuestionId, RegionId, Seq, UnixMs},
    tables::{Loaded, Refused},
    words::Status,
};

use crate::audit::{AuditError, AuditReport};

/// Content of a page of records, in bytes: a page ends at the row that reaches it.
pub const MAX_PAGE_BYTES: usize = 2 << 20;
/// Rows of a page, at most; a larger limit is lowered to it.
pub const MAX_PAGE_ROWS: u32 = 1_000;
/// The only namespace of an embedded store.
pub const DEFAULT_NAMESPACE: &str = "default";
/// 2026-01-01T00:00:00Z in seconds since the Unix epoch: where the clock of epochs begins (rule L2).
pub const EPOCHS_SINCE: i64 = 1_767_225_600;

/// Why a commit did not happen (rule C7).
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The tables refuse it: the rules of [`semel_core::tables::Tables::commit`].
    #[error("the store refused the commit: {}", refusal(.0))]
    Refused(Refused),
    /// The same batch may succeed later. Its outcome may be unknown: a retry finds out.
    #[error("the store can't commit now{}: {source}", if *.disk_full { " (the disk is full)" } else { "" })]
    Transient {
        /// The disk is full: stop leasing.
        disk_full: bool,
        /// What the database said.
        source: sqlx::Error,
    },
    /// The database will never take this batch.
    #[error("the store refuses this batch for good: {0}")]
    Lasting(sqlx::Error),
}

impl From<sqlx::Error> for CommitError {
    fn from(source: sqlx::Error) -> Self {
        match source.as_database_error().and_then(sqlite::fault) {
            Some(sqlite::Fault::DiskFull) => Self::Transient { disk_full: true, source },
            Some(sqlite::Fault::Lasting) => Self::Lasting(source),
            _ if matches!(source, sqlx::Error::Encode(_)) => Self::Lasting(source),
            _ => Self::Transient { disk_full: false, source },
        }
    }
}

fn refusal(refused: &Refused) -> String {
    match refused {
        Refused::Deposed(epoch) => format!("epoch {epoch} has taken over; this coordinator is deposed"),
        Refused::AlreadyApplied => "an earlier try was applied".into(),
        Refused::LostWrites => "the database lost acknowledged writes".into(),
        Refused::WrongCount { part, predicted, found } => {
            format!("{part} would touch {found} rows where {predicted} were predicted")
        }
    }
}

/// Why a takeover or a read of the tables did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The database failed.
    #[error("the store can't be read: {0}")]
    Database(#[from] sqlx::Error),
    /// Another epoch leads.
    #[error("epoch {found} leads the namespace, not {expected}")]
    OtherEpoch {
        /// The epoch of the caller.
        expected: Epoch,
        /// The epoch in the table.
        found: Epoch,
    },
    /// There is no epoch after the last.
    #[error("the epochs are used up at {}", Epoch::MAX)]
    EpochsUsedUp,
    /// A row holds what this version can't have written.
    #[error("table {table}, {row}: {what}")]
    Row {
        /// The table.
        table: &'static str,
        /// Which row.
        row: String,
        /// What is wrong with it.
        what: String,
    },
}

impl ReadError {
    /// Whether the same read may succeed in a moment.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Database(_))
    }
}

/// Chooses cells by their axes; an empty list takes all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Regions.
    pub regions: Vec<RegionId>,
    /// Models.
    pub models: Vec<ModelId>,
    /// Questions.
    pub questions: Vec<QuestionId>,
    /// Samples.
    pub repeats: Vec<u32>,
    /// Only records of this status. The history has no use for it.
    pub status: Option<Status>,
}

/// A job's specification, as stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JobSpecs {
    /// As sent: RFC 8785 JSON.
    pub sent: Bytes,
    /// With the defaults written out: JSON.
    pub resolved: Bytes,
}

/// A row of `executions`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Execution {
    /// The cell's index.
    pub cell: Cell,
    /// Its key.
    pub key: CellKey,
    /// The token under which it was recorded.
    pub token: FencingToken,
    /// The attempt's number, from 1.
    pub attempt: u32,
    /// The agent that ran it.
    pub agent: AgentId,
    /// What was reported; without the provider's body where that was not asked for.
    pub body: ReportBody,
    /// When.
    pub recorded_at: UnixMs,
}

/// A row of `attempts`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attempt {
    /// Its place in the order in which entries were made: the cursor of the next page.
    pub number: u64,
    /// The entry; of an answer, as much as was kept.
    pub row: AttemptRow,
    /// Bytes of the whole output, as it was reported; `None` where there was none.
    pub output_bytes: Option<u64>,
}

/// A row of `audit_log`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AuditEntry {
    /// Its place in the order: the cursor of the next page.
    pub number: u64,
    /// When.
    pub at: UnixMs,
    /// Who.
    pub actor: String,
    /// What.
    pub action: String,
    /// The job.
    pub job: Option<JobId>,
    /// More words.
    pub detail: String,
}

/// The tables of one namespace in a database.
///
/// `campaign` and `commit` are the only writes. Neither is ever cut short: a caller that drops its
/// future gives up the answer, not the write (rule C4). Reads see what is durable.
#[async_trait]
pub trait Store: Send + Sync {
    /// Takes the leadership under a new epoch (rule L2).
    async fn campaign(&self) -> Result<Epoch, ReadError>;

    /// Everything that a new leader needs, in one snapshot begun after its epoch was committed (rule L1).
    async fn load(&self, epoch: Epoch) -> Result<Loaded, ReadError>;

    /// Commits a batch under (epoch, seq): whole, or not at all (rules C1, C2).
    async fn commit(&self, epoch: Epoch, seq: Seq, batch: Arc<Batch>) -> Result<Committed, CommitError>;

    /// What the tables say of a token that is not live (rule C10).
    async fn past(&self, token: FencingToken) -> Result<Past, ReadError>;

    /// A job's specification; `None` if there is no such job.
    async fn job_specs(&self, job: &JobId) -> Result<Option<JobSpecs>, ReadError>;

    /// Records of a job in the order of its cells, after a cell: at most `limit`, and no more once
    /// they hold [`MAX_PAGE_BYTES`]. An empty page is the end.
    async fn executions(
        &self,
        job: &JobId,
        after: Option<Cell>,
        limit: u32,
        filter: &Filter,
        with_response: bool,
    ) -> Result<Vec<Execution>, ReadError>;

    /// One record, with the provider's body.
    async fn execution(&self, job: &JobId, cell: Cell) -> Result<Option<Execution>, ReadError>;

    /// The history of a job in the order in which its entries were made, after one; bounded as a page of records.
    async fn attempts(
        &self,
        job: &JobId,
        after: Option<u64>,
        limit: u32,
        filter: &Filter,
    ) -> Result<Vec<Attempt>, ReadError>;

    /// The records that a retry moves: cell, token, attempt; in the order of cells, after a cell, at most `limit`.
    async fn records_for_retry(
        &self,
        job: &JobId,
        after: Option<Cell>,
        limit: u32,
        filter: &Filter,
    ) -> Result<Vec<(Cell, FencingToken, u32)>, ReadError>;

    /// Recounts a job from the tables alone; `None` if there is no such job.
    async fn audit(&self, job: &JobId) -> Result<Option<AuditReport>, AuditError>;

    /// The audit log, newest first, before an entry.
    async fn audit_log(&self, before: Option<u64>, limit: u32) -> Result<Vec<AuditEntry>, ReadError>;
}
