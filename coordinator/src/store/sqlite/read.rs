//! What services read: pages of records, of the history, of the audit log.

use semel_core::{
    id::{Cell, FencingToken, JobId, UnixMs},
    words::Status,
};
use sqlx::{QueryBuilder, Sqlite, SqliteConnection, sqlite::SqliteRow};
use tokio_stream::StreamExt;

use super::rows::{Columns, attempt, execution};
use crate::store::{Attempt, AuditEntry, Execution, Filter, JobSpecs, MAX_PAGE_BYTES, MAX_PAGE_ROWS, ReadError};

/// Columns of a record without the provider's body, which is often the widest: an empty one stands for it.
const WITHOUT_RESPONSE: &str = "SELECT job_id, region, model, question, repeat, cell, status, attempt, agent_id, \
     fencing_token, digest, input_digest, recorded_at, served_region, region_basis, served_model, request_id, endpoint, \
     executor, waited_ms, ran_ms, first_byte_ms, finish_reason, prompt_tokens, completion_tokens, failure_reason, \
     failure_stage, failure_code, failure_retryable, error_message, output, iif(response IS NULL, NULL, x'') AS response \
     FROM executions";

/// A job's specification.
pub async fn job_specs(
    conn: &mut SqliteConnection,
    namespace: &str,
    job: &JobId,
) -> Result<Option<JobSpecs>, ReadError> {
    let row = sqlx::query("SELECT job_id, sent_spec, resolved_spec FROM jobs WHERE namespace = ? AND job_id = ?")
        .bind(namespace)
        .bind(job.as_str())
        .fetch_optional(conn)
        .await?;
    row.map(|row| {
        let c = Columns::new(&row, "jobs", "job_id");
        Ok(JobSpecs { sent: c.bytes("sent_spec")?, resolved: c.bytes("resolved_spec")? })
    })
    .transpose()
}

/// A page of records.
pub async fn executions(
    conn: &mut SqliteConnection,
    namespace: &str,
    job: &JobId,
    page: Page<Cell>,
    filter: &Filter,
    with_response: bool,
) -> Result<Vec<Execution>, ReadError> {
    let head = if with_response { "SELECT * FROM executions" } else { WITHOUT_RESPONSE };
    let mut query = of_job(head, namespace, job, filter);
    if let Some(status) = filter.status {
        query.push(" AND status = ").push_bind(status.as_str());
    }
    if let Some(after) = page.after {
        query.push(" AND cell > ").push_bind(after.0);
    }
    query.push(" ORDER BY cell LIMIT ").push_bind(page.rows());
    bounded(conn, query, execution, |e| e.body.bytes()).await
}

/// One record.
pub async fn execution_of(
    conn: &mut SqliteConnection,
    namespace: &str,
    job: &JobId,
    cell: Cell,
) -> Result<Option<Execution>, ReadError> {
    let row = sqlx::query("SELECT * FROM executions WHERE namespace = ? AND job_id = ? AND cell = ?")
        .bind(namespace)
        .bind(job.as_str())
        .bind(cell.0)
        .fetch_optional(conn)
        .await?;
    row.as_ref().map(execution).transpose()
}

/// A page of the history.
pub async fn attempts(
    conn: &mut SqliteConnection,
    namespace: &str,
    job: &JobId,
    page: Page<u64>,
    filter: &Filter,
) -> Result<Vec<Attempt>, ReadError> {
    let mut query = of_job("SELECT * FROM attempts", namespace, job, filter);
    if let Some(after) = page.after {
        query.push(" AND number > ").push_bind(i64::try_from(after).unwrap_or(i64::MAX));
    }
    query.push(" ORDER BY number LIMIT ").push_bind(page.rows());
    bounded(conn, query, attempt, |a| a.row.body.as_ref().map_or(0, |body| body.bytes())).await
}

/// The records that a retry moves.
pub async fn records_for_retry(
    conn: &mut SqliteConnection,
    namespace: &str,
    job: &JobId,
    page: Page<Cell>,
    filter: &Filter,
) -> Result<Vec<(Cell, FencingToken, u32)>, ReadError> {
    let mut query = of_job("SELECT cell, fencing_token, attempt FROM executions", namespace, job, filter);
    match filter.status {
        // In words and not bound, so that the planner sees that the index of failures serves.
        Some(Status::Failed) => _ = query.push(" AND status = 'failed'"),
        Some(Status::Succeeded) => _ = query.push(" AND status = 'succeeded'"),
        None => {}
    }
    query.push(" AND cell > ").push_bind(page.after.map_or(-1, |cell| i64::from(cell.0)));
    query.push(" ORDER BY cell LIMIT ").push_bind(page.rows());
    let mut rows = query.build().fetch(conn);
    let mut records = Vec::new();
    while let Some(row) = rows.try_next().await? {
        let c = Columns::new(&row, "executions", "fencing_token");
        records.push((Cell(c.number("cell")?), c.token("fencing_token")?, c.number("attempt")?));
    }
    Ok(records)
}

/// A page of the audit log, newest first.
pub async fn audit_log(
    conn: &mut SqliteConnection,
    namespace: &str,
    page: Page<u64>,
) -> Result<Vec<AuditEntry>, ReadError> {
    let before = page.after.map_or(i64::MAX, |n| i64::try_from(n).unwrap_or(i64::MAX));
    let rows = sqlx::query("SELECT * FROM audit_log WHERE namespace = ? AND number < ? ORDER BY number DESC LIMIT ?")
        .bind(namespace)
        .bind(before)
        .bind(page.rows())
        .fetch_all(conn)
        .await?;
    let entry = |row: &SqliteRow| {
        let c = Columns::new(row, "audit_log", "number");
        Ok(AuditEntry {
            number: c.number("number")?,
            at: UnixMs(c.get("at")?),
            actor: c.get("actor")?,
            action: c.get("action")?,
            job: c.get::<Option<&str>>("job_id")?.map(JobId::new),
            detail: c.get("detail")?,
        })
    };
    rows.iter().map(entry).collect()
}

/// A page asked for.
#[derive(Clone, Copy, Debug)]
pub struct Page<C> {
    /// Where the last page ended.
    pub after: Option<C>,
    /// Rows wanted.
    pub limit: u32,
}

impl<C> Page<C> {
    fn rows(&self) -> u32 {
        self.limit.clamp(1, MAX_PAGE_ROWS)
    }
}

/// The rows of a job's cells that a filter takes. Lists travel as JSON, so that a text depends on
/// which lists there are and not on their lengths.
fn of_job(head: &'static str, namespace: &str, job: &JobId, filter: &Filter) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new(head);
    query.push(" WHERE namespace = ").push_bind(namespace.to_owned());
    query.push(" AND job_id = ").push_bind(job.as_str().to_owned());
    let lists = [
        ("region", json(filter.regions.iter().map(|id| id.as_str()))),
        ("model", json(filter.models.iter().map(|id| id.as_str()))),
        ("question", json(filter.questions.iter().map(|id| id.as_str()))),
        ("repeat", json(filter.repeats.iter().copied())),
    ];
    for (column, list) in lists {
        if let Some(list) = list {
            // The plus keeps the planner on the job's index, whose order the page needs.
            query.push(format_args!(" AND +{column} IN (SELECT value FROM json_each("));
            query.push_bind(list).push("))");
        }
    }
    query
}

fn json<V: Into<serde_json::Value>>(values: impl Iterator<Item = V>) -> Option<String> {
    let values: Vec<serde_json::Value> = values.map(Into::into).collect();
    (!values.is_empty()).then(|| serde_json::Value::Array(values).to_string())
}

/// Reads rows until the page is full.
async fn bounded<T>(
    conn: &mut SqliteConnection,
    mut query: QueryBuilder<Sqlite>,
    read: fn(&SqliteRow) -> Result<T, ReadError>,
    bytes: fn(&T) -> usize,
) -> Result<Vec<T>, ReadError> {
    let mut rows = query.build().fetch(conn);
    let mut page = Vec::new();
    let mut held = 0usize;
    while held < MAX_PAGE_BYTES
        && let Some(row) = rows.try_next().await?
    {
        let row = read(&row)?;
        held += bytes(&row);
        page.push(row);
    }
    Ok(page)
}
