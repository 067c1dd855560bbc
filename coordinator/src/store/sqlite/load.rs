//! The takeover: a new epoch, and everything that its leader reads; and what is left of a token.

use std::sync::Arc;

use bytes::Bytes;
use roaring::RoaringBitmap;
use semel_core::{
    batch::{AgentRow, GrantRow, JobRow, StoredSpec},
    event::{Past, PastRow},
    id::{AgentId, Cell, Digest, Epoch, FencingToken, Incarnation, JobId, Nonce, RegionId, UnixMs},
    tables::{Loaded, LoadedJob, StoredAttempt, StoredGrant, StoredJob},
    words::{AttemptKind, FailureReason, JobState, ReceiptReason},
};
use sqlx::{Connection, Row, SqliteConnection, sqlite::SqliteRow};
use tokio_stream::StreamExt;

use super::rows::{Columns, epoch_of};
use crate::{
    jobspec,
    store::{EPOCHS_SINCE, ReadError},
};

/// Cells that one row of an answer carries when a job's records are read: about 600 kB of text.
const CELLS_A_ROW: i64 = 1 << 16;

/// Takes the leadership (rule L2): the epoch rises, and jumps to the database's clock.
pub async fn campaign(conn: &mut SqliteConnection, namespace: &str, holder: &str) -> Result<Epoch, ReadError> {
    let mut tx = conn.begin_with("BEGIN IMMEDIATE").await?;
    let row = sqlx::query("SELECT (SELECT epoch FROM leadership WHERE namespace = ?1), unixepoch() - ?2")
        .bind(namespace)
        .bind(EPOCHS_SINCE)
        .fetch_one(&mut *tx)
        .await?;
    let stored: Option<i64> = row.try_get(0)?;
    // A clock before 2026 makes no jump; one past the last epoch is wrong, and must not use the epochs up.
    let seconds = u32::try_from(row.try_get::<i64, _>(1)?.max(0)).unwrap_or(0);
    let epoch = Epoch::next(stored.and_then(epoch_of), seconds).ok_or(ReadError::EpochsUsedUp)?;
    sqlx::query(
        "INSERT INTO leadership (namespace, epoch, seq, holder, taken_at) \
         VALUES (?, ?, 0, ?, CAST(unixepoch('subsec') * 1000 AS INTEGER)) \
         ON CONFLICT (namespace) DO UPDATE SET epoch = excluded.epoch, seq = 0, holder = excluded.holder, \
         taken_at = excluded.taken_at",
    )
    .bind(namespace)
    .bind(epoch.get())
    .bind(holder)
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(epoch)
}

/// Reads everything that the leader of `epoch` needs, in one snapshot (rule L1).
pub async fn load(conn: &mut SqliteConnection, namespace: &str, epoch: Epoch) -> Result<Loaded, ReadError> {
    let mut tx = conn.begin().await?;
    let found: i64 = sqlx::query("SELECT epoch FROM leadership WHERE namespace = ?")
        .bind(namespace)
        .fetch_one(&mut *tx)
        .await?
        .try_get(0)?;
    if let Some(found) = epoch_of(found).filter(|found| *found != epoch) {
        return Err(ReadError::OtherEpoch { expected: epoch, found });
    }
    let numbers = sqlx::query_scalar("SELECT number FROM jobs WHERE namespace = ? ORDER BY number");
    let numbers: Vec<i64> = numbers.bind(namespace).fetch_all(&mut *tx).await?;
    let mut loaded = Loaded::default();
    // One after the other: a specification may have many megabytes.
    for number in numbers {
        let stored = stored_job(&sqlx::query(JOB).bind(number).fetch_one(&mut *tx).await?)?;
        let id = stored.row.id.clone();
        let recorded = cells(&mut tx, namespace, &id, RECORDED).await?;
        let failed = cells(&mut tx, namespace, &id, FAILED).await?;
        let attempts = attempts(&mut tx, namespace, &id).await?;
        loaded.jobs.push(LoadedJob { stored, recorded, failed, attempts });
    }
    loaded.grants = grants(&mut tx, namespace).await?;
    loaded.agents = agents(&mut tx, namespace).await?;
    tx.rollback().await?;
    Ok(loaded)
}

const JOB: &str = "SELECT job_id, digest, state, paused, input_version, submitted_at, deadline_at, closed_at, completed_at, \
     resolved_spec FROM jobs WHERE number = ?";

fn stored_job(row: &SqliteRow) -> Result<StoredJob, ReadError> {
    let c = Columns::new(row, "jobs", "job_id");
    let spec = jobspec::read(c.get("resolved_spec")?).map_err(|e| c.bad("resolved_spec", e))?;
    let matrix = jobspec::matrix(&spec).map_err(|e| c.bad("resolved_spec", e))?;
    Ok(StoredJob {
        row: JobRow {
            id: JobId::new(c.text("job_id")?),
            digest: Digest(c.array("digest")?),
            spec: Arc::new(StoredSpec {
                sent: Bytes::new(),
                resolved: Bytes::new(),
                input_version: c.number("input_version")?,
            }),
            matrix: Arc::new(matrix),
            policy: jobspec::policy(&spec),
            submitted_at: UnixMs(c.get("submitted_at")?),
            deadline_at: UnixMs(c.get("deadline_at")?),
        },
        state: c.some("state", c.word("state", JobState::parse)?)?,
        paused: c.get("paused")?,
        closed_at: c.time("closed_at")?,
        completed_at: c.time("completed_at")?,
    })
}

/// Cells with a record, from an index alone: the next [`CELLS_A_ROW`] as one text. A million rows of
/// one number each would cost the driver several times what SQLite needs to read them.
const RECORDED: &str = "SELECT max(cell), group_concat(cell) FROM (SELECT cell FROM executions \
     WHERE namespace = ? AND job_id = ? AND cell > ? ORDER BY cell LIMIT ?)";
/// The same of those recorded as failed.
const FAILED: &str = "SELECT max(cell), group_concat(cell) FROM (SELECT cell FROM executions \
     WHERE namespace = ? AND job_id = ? AND cell > ? AND status = 'failed' ORDER BY cell LIMIT ?)";

async fn cells(
    conn: &mut SqliteConnection,
    namespace: &str,
    job: &JobId,
    sql: &'static str,
) -> Result<RoaringBitmap, ReadError> {
    let mut cells = RoaringBitmap::new();
    let mut after = -1i64;
    loop {
        let row = sqlx::query(sql)
            .bind(namespace)
            .bind(job.as_str())
            .bind(after)
            .bind(CELLS_A_ROW)
            .fetch_one(&mut *conn)
            .await?;
        let (Some(last), Some(list)) = (row.try_get::<Option<i64>, _>(0)?, row.try_get::<Option<&str>, _>(1)?) else {
            return Ok(cells);
        };
        cells.extend(list.split(',').filter_map(|cell| cell.parse::<u32>().ok()));
        after = last;
    }
}

/// The history in the order of tokens; of one token in the order of `AttemptKind`, then of digests.
async fn attempts(conn: &mut SqliteConnection, namespace: &str, job: &JobId) -> Result<Vec<StoredAttempt>, ReadError> {
    let mut rows = sqlx::query(
        "SELECT number, cell, fencing_token, kind, attempt, counted, in_company, reason, retry_at FROM attempts \
         WHERE namespace = ? AND job_id = ? AND kind <> 'fenced' ORDER BY fencing_token, digest",
    )
    .bind(namespace)
    .bind(job.as_str())
    .fetch(conn);
    let mut attempts = Vec::new();
    while let Some(row) = rows.try_next().await? {
        let c = Columns::new(&row, "attempts", "number");
        attempts.push(StoredAttempt {
            cell: Cell(c.number("cell")?),
            token: c.token("fencing_token")?,
            kind: c.some("kind", c.word("kind", AttemptKind::parse)?)?,
            attempt: c.number("attempt")?,
            counted: c.get("counted")?,
            in_company: c.get("in_company")?,
            reason: c.word("reason", FailureReason::parse)?,
            retry_at: c.time("retry_at")?,
        });
    }
    attempts.sort_by_key(|a| (a.token, a.kind));
    Ok(attempts)
}

async fn grants(conn: &mut SqliteConnection, namespace: &str) -> Result<Vec<StoredGrant>, ReadError> {
    let mut rows =
        sqlx::query("SELECT * FROM lease_grants WHERE namespace = ? ORDER BY first_token").bind(namespace).fetch(conn);
    let mut grants = Vec::new();
    while let Some(row) = rows.try_next().await? {
        let c = Columns::new(&row, "lease_grants", "first_token");
        let slots: Vec<Option<u32>> = serde_json::from_str(c.get("cells")?).map_err(|e| c.bad("cells", e))?;
        let slots: Vec<_> = slots.into_iter().map(|slot| slot.map(Cell)).collect();
        let row = GrantRow {
            first: c.token("first_token")?,
            nonce: Nonce(c.array("nonce")?),
            ttl_ms: c.number("ttl_ms")?,
            agent: AgentId::new(c.text("agent_id")?),
            incarnation: Incarnation(c.array("incarnation")?),
            job: JobId::new(c.text("job_id")?),
            // What stood in a blank slot is gone: of the cells as they were inserted, those that are left.
            cells: slots.iter().copied().flatten().collect(),
        };
        grants.push(StoredGrant { row, slots });
    }
    Ok(grants)
}

async fn agents(conn: &mut SqliteConnection, namespace: &str) -> Result<Vec<AgentRow>, ReadError> {
    let rows = sqlx::query("SELECT * FROM agents WHERE namespace = ? ORDER BY agent_id, incarnation")
        .bind(namespace)
        .fetch_all(conn)
        .await?;
    let agent = |row: &SqliteRow| {
        let c = Columns::new(row, "agents", "agent_id");
        Ok(AgentRow {
            agent: AgentId::new(c.text("agent_id")?),
            incarnation: Incarnation(c.array("incarnation")?),
            number: c.number("number")?,
            region: RegionId::new(c.text("region")?),
            admitted_at: UnixMs(c.get("admitted_at")?),
        })
    };
    rows.iter().map(agent).collect()
}

/// What the tables say of a token (rule C10), in one snapshot.
pub async fn past(conn: &mut SqliteConnection, namespace: &str, token: FencingToken) -> Result<Past, ReadError> {
    let number = i64::try_from(token.get()).unwrap_or(i64::MAX);
    let mut tx = conn.begin().await?;
    let nonce = sqlx::query(
        "SELECT first_token, nonce FROM (SELECT * FROM lease_grants WHERE namespace = ?1 AND first_token <= ?2 \
         ORDER BY first_token DESC LIMIT 1) WHERE ?2 - first_token < json_array_length(cells)",
    )
    .bind(namespace)
    .bind(number)
    .fetch_optional(&mut *tx)
    .await?;
    let nonce = match &nonce {
        Some(row) => Some(Nonce(Columns::new(row, "lease_grants", "first_token").array("nonce")?)),
        None => None,
    };
    let past_row = |c: &Columns<'_>| -> Result<PastRow, ReadError> {
        let (cell, key) = c.key()?;
        Ok(PastRow {
            job: JobId::new(c.text("job_id")?),
            cell,
            key,
            digest: Digest(c.array("digest")?),
            attempt: c.number("attempt")?,
            agent: AgentId::new(c.text("agent_id")?),
            nonce,
        })
    };
    let record = sqlx::query(
        "SELECT job_id, region, model, question, repeat, cell, digest, attempt, agent_id, fencing_token \
         FROM executions WHERE namespace = ? AND fencing_token = ?",
    )
    .bind(namespace)
    .bind(number)
    .fetch_optional(&mut *tx)
    .await?;
    let record = record.map(|row| past_row(&Columns::new(&row, "executions", "fencing_token"))).transpose()?;
    let rows = sqlx::query(
        "SELECT number, job_id, region, model, question, repeat, cell, digest, attempt, agent_id, kind, fenced \
         FROM attempts WHERE namespace = ? AND fencing_token = ? ORDER BY digest",
    )
    .bind(namespace)
    .bind(number)
    .fetch_all(&mut *tx)
    .await?;
    tx.rollback().await?;
    let mut attempts = Vec::with_capacity(rows.len());
    for row in &rows {
        let c = Columns::new(row, "attempts", "number");
        let kind = c.some("kind", c.word("kind", AttemptKind::parse)?)?;
        attempts.push((kind, c.word("fenced", ReceiptReason::parse)?, past_row(&c)?));
    }
    attempts.sort_by_key(|(kind, ..)| *kind);
    Ok(Past { record, attempts })
}
