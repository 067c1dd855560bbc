//! The recount of a job from the tables alone: by key, never by totals, and without the coordinator's memory.
//!
//! It trusts neither a record's cell index nor any constraint. It derives each record's place from the
//! text of its key and the specification, so that what a broken constraint let in is seen. A million
//! records pass in bounded memory: of each, a bit by its place and its token.

mod recount;

use semel_core::{
    id::{Epoch, JobId, UnixMs},
    matrix::Matrix,
    words::JobState,
};
use semel_spec::Resolved;
use sqlx::{
    Connection, Sqlite, SqliteConnection,
    query::Query,
    sqlite::{SqliteArguments, SqliteRow},
};
use tokio_stream::StreamExt;

use self::recount::{AttemptSeen, GrantSeen, RecordSeen, Recount};
use crate::{
    jobspec,
    store::{
        ReadError,
        sqlite::{
            OpenError, open_read_only,
            rows::{Columns, epoch_of},
        },
    },
};

/// Violations that a report spells out; more are only counted.
pub const MAX_VIOLATIONS: usize = 100;
/// Pairs of model and region outside the specification that a report lists; rows of more are in the total alone.
pub const MAX_FOREIGN_AXES: usize = 100;

/// Counts of cells and records.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AuditCounts {
    /// Cells that the specification asks for.
    pub expected: u64,
    /// Distinct keys of the specification that have a record.
    pub recorded: u64,
    /// Keys of the specification without a record.
    pub missing: u64,
    /// Records whose key the specification doesn't have.
    pub extra: u64,
    /// Records beyond the first of a key.
    pub duplicate: u64,
    /// Of those recorded, how many failed.
    pub failed: u64,
}

/// The recount of one model in one region.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AuditAxis {
    /// The model's id.
    pub model: String,
    /// The region's id.
    pub region: String,
    /// The counts.
    pub counts: AuditCounts,
}

/// What the tables say of a job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AuditReport {
    /// The whole job.
    pub total: AuditCounts,
    /// By model and region, in the specification's order; those that the specification doesn't have come last.
    pub by_axis: Vec<AuditAxis>,
    /// The job's state, as stored.
    pub state: JobState,
    /// Cells under a live lease.
    pub leased: u64,
    /// Cells that wait: of an open job, those without a record or a live lease.
    pub pending: u64,
    /// Cells that will not run: of a closed job, those without a record or a live lease.
    pub not_run: u64,
    /// Whether nothing is extra, duplicate or otherwise wrong. Missing cells are no violation of themselves.
    pub exact: bool,
    /// What is wrong, each with its promise's number and the key; at most [`MAX_VIOLATIONS`].
    pub violations: Vec<String>,
    /// How many violations were found in all.
    pub violations_found: u64,
}

/// Why a job can't be audited.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// There is no store to read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The tables can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl From<sqlx::Error> for AuditError {
    fn from(error: sqlx::Error) -> Self {
        Self::Read(error.into())
    }
}

/// Audits a job of a database file, whether a coordinator runs on it or not. `None` if there is no such job.
///
/// # Errors
/// The file is no store of this version, or can't be read.
pub async fn audit_file(
    path: &std::path::Path,
    namespace: &str,
    job: &JobId,
) -> Result<Option<AuditReport>, AuditError> {
    let mut conn = open_read_only(path).await?;
    let report = audit(&mut conn, namespace, job).await;
    conn.close().await.ok();
    report
}

/// Audits a job, in one snapshot. `None` if there is no such job.
///
/// # Errors
/// The tables can't be read, or the stored specification is of another version.
pub async fn audit(
    conn: &mut SqliteConnection,
    namespace: &str,
    job: &JobId,
) -> Result<Option<AuditReport>, AuditError> {
    let mut tx = conn.begin().await?;
    let Some(subject) = subject(&mut tx, namespace, job).await? else { return Ok(None) };
    let mut recount = Recount::new(&subject);
    let rows = |query: &'static str| sqlx::query(query).bind(namespace).bind(job.as_str());
    each(&mut tx, rows(RECORDS), |row| RecordSeen::of(row).map(|seen| recount.record(&seen))).await?;
    each(&mut tx, rows(ATTEMPTS), |row| AttemptSeen::of(row).map(|seen| recount.attempt(&seen))).await?;
    each(&mut tx, rows(GRANTS), |row| GrantSeen::of(row).map(|seen| recount.grant(&seen))).await?;
    tx.rollback().await?;
    Ok(Some(recount.finish()))
}

/// The jobs of a database file, in the order of their submission.
///
/// # Errors
/// The file is no store of this version, or can't be read.
pub async fn jobs_of_file(path: &std::path::Path, namespace: &str) -> Result<Vec<JobId>, AuditError> {
    let mut conn = open_read_only(path).await?;
    let ids = sqlx::query_scalar::<_, String>("SELECT job_id FROM jobs WHERE namespace = ? ORDER BY number")
        .bind(namespace)
        .fetch_all(&mut conn)
        .await;
    conn.close().await.ok();
    Ok(ids?.into_iter().map(JobId::new).collect())
}

/// What is audited.
pub(crate) struct Subject {
    pub(crate) spec: Resolved,
    pub(crate) matrix: Matrix,
    pub(crate) state: JobState,
    pub(crate) completed_at: Option<UnixMs>,
    /// The last epoch that led; `None` if none ever did.
    pub(crate) epoch: Option<Epoch>,
}

async fn subject(conn: &mut SqliteConnection, namespace: &str, job: &JobId) -> Result<Option<Subject>, AuditError> {
    let row = sqlx::query(
        "SELECT job_id, state, completed_at, resolved_spec, \
         (SELECT max(epoch) FROM leadership AS l WHERE l.namespace = jobs.namespace) AS epoch \
         FROM jobs WHERE namespace = ? AND job_id = ?",
    )
    .bind(namespace)
    .bind(job.as_str())
    .fetch_optional(conn)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let c = Columns::new(&row, "jobs", "job_id");
    let spec = jobspec::read(c.get("resolved_spec")?).map_err(|e| c.bad("resolved_spec", e))?;
    let matrix = jobspec::matrix(&spec).map_err(|e| c.bad("resolved_spec", e))?;
    Ok(Some(Subject {
        spec,
        matrix,
        state: c.some("state", c.word("state", JobState::parse)?)?,
        completed_at: c.time("completed_at")?,
        epoch: c.get::<Option<i64>>("epoch")?.and_then(epoch_of),
    }))
}

/// In the order of cells only so that the repeats of a question come together, whose input is one.
/// Each column costs the driver a copy, so what is asked of a record is asked in few.
const RECORDS: &str = "SELECT region, model, question, repeat, cell, fencing_token, \
         CASE WHEN status <> 'failed' THEN 0 WHEN failure_reason IS 'wrong_input' THEN 2 \
              WHEN failure_reason IN ('wrong_region', 'wrong_model', 'region_unreported') THEN 3 ELSE 1 END, \
         iif(failure_reason IS 'wrong_region', NULL, nullif(served_region, region)), input_digest \
     FROM executions WHERE namespace = ? AND job_id = ? ORDER BY cell";

const ATTEMPTS: &str = "SELECT region, model, question, repeat, cell, fencing_token, kind FROM attempts \
     WHERE namespace = ? AND job_id = ? ORDER BY number";

const GRANTS: &str =
    "SELECT first_token, cells FROM lease_grants WHERE namespace = ? AND job_id = ? ORDER BY first_token";

/// Shows each row as it is read: there may be millions.
async fn each(
    conn: &mut SqliteConnection,
    query: Query<'_, Sqlite, SqliteArguments>,
    mut see: impl FnMut(&SqliteRow) -> Result<(), sqlx::Error>,
) -> Result<(), AuditError> {
    let mut rows = query.fetch(conn);
    while let Some(row) = rows.try_next().await? {
        see(&row)?;
    }
    Ok(())
}
