//! The commit rule in SQL: `semel_core::tables::Tables::commit` over rows.
//!
//! Every part counts the rows that it touches, and any number but the predicted one rolls the whole
//! transaction back (rule C2). The parts stand in an order in which none sees what another one of the
//! same batch wrote, as the rule counts against the tables before the batch: records before the grants
//! that are inserted, blanked or deleted; changes of jobs before new jobs.

use std::sync::LazyLock;

use semel_core::{
    batch::{AgentRow, AttemptRow, AuditRow, Batch, GrantRow, JobChange, JobRow, Outcome, Record, ReportBody},
    id::{Epoch, JobId, Seq},
    tables::Refused,
    words::{AttemptKind, JobState},
};
use serde_json::json;
use sqlx::{Connection, Row, SqliteConnection};

use super::{
    binds::{Kept, bind_body, bind_key},
    insert::{Binds, Insert},
    rows::epoch_of,
};
use crate::store::CommitError;

/// The columns of a report, in `executions` and `attempts` alike.
const BODY: &str = "status, input_digest, served_region, region_basis, served_model, request_id, endpoint, executor, \
     waited_ms, ran_ms, first_byte_ms, finish_reason, prompt_tokens, completion_tokens, failure_reason, \
     failure_stage, failure_code, failure_retryable, error_message, output, response";
/// The columns of `executions` before those of the report, without the namespace.
const RECORD: &str =
    "job_id, region, model, question, repeat, cell, attempt, agent_id, fencing_token, digest, recorded_at";
/// The columns of `attempts` before those of the report, with the namespace.
const ATTEMPT: &str = "namespace, job_id, region, model, question, repeat, cell, fencing_token, kind, digest, attempt, \
     counted, in_company, agent_id, reason, fenced, retry_at, ended_at, output_bytes";

/// Promises 1 and 3: a record goes in only if its token and nonce are in its grant's slot and its key has none.
static RECORDS: LazyLock<Insert> = LazyLock::new(|| {
    let columns = format!("grant_token, nonce, slot, {RECORD}, {BODY}");
    let select = format!("{RECORD}, {BODY}").replace(", ", ", v.");
    Insert::new(
        &format!("WITH v ({columns}) AS ("),
        &columns,
        &format!(
            ") INSERT INTO executions (namespace, {RECORD}, {BODY}) SELECT g.namespace, v.{select} \
             FROM v CROSS JOIN lease_grants AS g WHERE g.namespace = ? AND g.first_token = v.grant_token \
             AND g.nonce = v.nonce AND g.job_id = v.job_id AND g.cells ->> v.slot = v.cell ON CONFLICT DO NOTHING"
        ),
    )
});
static JOBS: LazyLock<Insert> = LazyLock::new(|| {
    plain(
        "jobs",
        "namespace, job_id, digest, state, paused, input_version, submitted_at, deadline_at, sent_spec, resolved_spec",
    )
});
static GRANTS: LazyLock<Insert> = LazyLock::new(|| {
    plain("lease_grants", "namespace, first_token, nonce, ttl_ms, agent_id, incarnation, job_id, cells")
});
static ATTEMPTS: LazyLock<Insert> = LazyLock::new(|| plain("attempts", &format!("{ATTEMPT}, {BODY}")));
static AGENTS: LazyLock<Insert> =
    LazyLock::new(|| plain("agents", "namespace, agent_id, incarnation, number, region, admitted_at"));
static AUDIT: LazyLock<Insert> = LazyLock::new(|| plain("audit_log", "namespace, at, actor, action, job_id, detail"));

/// What a retry moves: the record's token is the condition (rule C9).
static REPLACED_INSERT: LazyLock<String> = LazyLock::new(|| {
    let body = BODY.replace(", ", ", e.");
    format!(
        "INSERT INTO attempts ({ATTEMPT}, {BODY}) \
         SELECT e.namespace, e.job_id, e.region, e.model, e.question, e.repeat, e.cell, e.fencing_token, 'replaced', \
         e.digest, e.attempt, 0, 0, e.agent_id, NULL, NULL, NULL, r.value ->> 3, length(e.output), e.{body} \
         FROM json_each(?) AS r CROSS JOIN executions AS e \
         WHERE e.namespace = ? AND e.fencing_token = r.value ->> 2 AND e.job_id = r.value ->> 0 AND e.cell = r.value ->> 1 \
         ON CONFLICT DO NOTHING"
    )
});
const REPLACED_DELETE: &str = "DELETE FROM executions WHERE rowid IN (SELECT e.rowid \
     FROM json_each(?) AS r CROSS JOIN executions AS e \
     WHERE e.namespace = ? AND e.fencing_token = r.value ->> 2 AND e.job_id = r.value ->> 0 AND e.cell = r.value ->> 1)";
/// Blanks the slots of a mask, on condition that none of them is missing or blank (rule C9).
const BLANKS: &str = "UPDATE lease_grants AS g SET cells = (\
         SELECT json_group_array(CASE WHEN (b.value ->> 1) >> s.key & 1 THEN NULL ELSE s.atom END ORDER BY s.key) \
         FROM json_each(g.cells) AS s) \
     FROM json_each(?) AS b \
     WHERE g.namespace = ? AND g.first_token = b.value ->> 0 AND b.value ->> 2 = (\
         SELECT count(*) FROM json_each(g.cells) AS s WHERE s.atom IS NOT NULL AND (b.value ->> 1) >> s.key & 1)";
const ENDED: &str =
    "DELETE FROM lease_grants WHERE namespace = ?2 AND first_token IN (SELECT value FROM json_each(?1))";
const CHANGE: &str = "UPDATE jobs SET state = coalesce(?, state), paused = coalesce(?, paused), \
     closed_at = iif(?, ?, closed_at), completed_at = iif(?, ?, completed_at), deadline_at = coalesce(?, deadline_at) \
     WHERE namespace = ? AND job_id = ?";

fn plain(table: &str, columns: &str) -> Insert {
    Insert::new(&format!("INSERT INTO {table} ({columns})"), columns, " ON CONFLICT DO NOTHING")
}

/// Commits a batch. After any error but `Refused` the connection's state is not known: it must be closed.
pub async fn commit(
    conn: &mut SqliteConnection,
    namespace: &str,
    epoch: Epoch,
    seq: Seq,
    batch: &Batch,
) -> Result<(), CommitError> {
    let mut tx = conn.begin_with("BEGIN IMMEDIATE").await?;
    let write = Write { conn: &mut tx, namespace };
    match write.all(epoch, seq, batch).await {
        Ok(()) => Ok(tx.commit().await?),
        Err(error) => match (tx.rollback().await, error) {
            (Err(failed), CommitError::Refused(_)) => Err(failed.into()),
            // SQLite rolls back by itself when the disk is full; what came first says more.
            (_, error) => Err(error),
        },
    }
}

struct Write<'a> {
    conn: &'a mut SqliteConnection,
    namespace: &'a str,
}

impl Write<'_> {
    async fn all(mut self, epoch: Epoch, seq: Seq, batch: &Batch) -> Result<(), CommitError> {
        self.move_leadership(epoch, seq).await?;
        let changed = self.changes(batch).await?;
        count("job_changes", batch.job_changes.len(), changed)?;
        let jobs = self.jobs(&batch.jobs).await?;
        count("jobs", batch.jobs.len(), jobs)?;
        let records = self.records(&batch.records).await?;
        count("records", batch.records.len(), records)?;
        self.replaced(batch).await?;
        self.blanks(batch).await?;
        self.ended(batch).await?;
        let grants = self.grants(&batch.grants).await?;
        count("grants", batch.grants.len(), grants)?;
        let attempts = self.attempts(&batch.attempts).await?;
        count("attempts", batch.attempts.len(), attempts)?;
        let agents = self.agents(&batch.agents).await?;
        count("agents", batch.agents.len(), agents)?;
        self.audit(&batch.audit).await?;
        Ok(())
    }

    /// Rule C1: the first act, on which all the others depend.
    async fn move_leadership(&mut self, epoch: Epoch, seq: Seq) -> Result<(), CommitError> {
        let number = i64::try_from(seq.0).unwrap_or(i64::MAX);
        let moved = sqlx::query("UPDATE leadership SET seq = ?3 WHERE namespace = ?1 AND epoch = ?2 AND seq + 1 = ?3")
            .bind(self.namespace)
            .bind(epoch.get())
            .bind(number)
            .execute(&mut *self.conn)
            .await?;
        if moved.rows_affected() == 1 {
            return Ok(());
        }
        let row = sqlx::query("SELECT epoch, seq FROM leadership WHERE namespace = ?")
            .bind(self.namespace)
            .fetch_optional(&mut *self.conn)
            .await?;
        let stored = match row {
            Some(row) => epoch_of(row.try_get(0)?).zip(Some(row.try_get::<i64, _>(1)?)),
            None => None,
        };
        Err(CommitError::Refused(match stored {
            Some((e, s)) if e == epoch && s == number => Refused::AlreadyApplied,
            Some((e, _)) if e > epoch => Refused::Deposed(e),
            _ => Refused::LostWrites,
        }))
    }

    async fn changes(&mut self, batch: &Batch) -> Result<u64, sqlx::Error> {
        let mut changed = 0;
        for (id, change) in &batch.job_changes {
            changed += self.change(id, change).await?;
        }
        Ok(changed)
    }

    async fn change(&mut self, id: &JobId, change: &JobChange) -> Result<u64, sqlx::Error> {
        let done = sqlx::query(CHANGE)
            .bind(change.state.map(JobState::as_str))
            .bind(change.paused)
            .bind(change.closed_at.is_some())
            .bind(change.closed_at.flatten().map(|t| t.0))
            .bind(change.completed_at.is_some())
            .bind(change.completed_at.flatten().map(|t| t.0))
            .bind(change.deadline_at.map(|t| t.0))
            .bind(self.namespace)
            .bind(id.as_str())
            .execute(&mut *self.conn)
            .await?;
        Ok(done.rows_affected())
    }

    async fn jobs(&mut self, rows: &[JobRow]) -> Result<u64, sqlx::Error> {
        let bind = |b: &mut Binds, row: &JobRow| {
            b.push(self.namespace);
            b.push(row.id.as_str());
            b.push(&row.digest.0[..]);
            b.push(JobState::Open.as_str());
            b.push(false);
            b.push(row.spec.input_version);
            b.push(row.submitted_at.0);
            b.push(row.deadline_at.0);
            b.push(&row.spec.sent[..]);
            b.push(&row.spec.resolved[..]);
        };
        JOBS.run(self.conn, rows, bind, |_| {}).await
    }

    async fn records(&mut self, rows: &[Record]) -> Result<u64, sqlx::Error> {
        let bind = |b: &mut Binds, row: &Record| {
            // A slot before the grant would count from the array's end: NULL finds no slot.
            let slot = row.lease.fencing.get().checked_sub(row.grant.get());
            b.number(row.grant.get());
            b.push(&row.lease.nonce.0[..]);
            b.push(slot.and_then(|s| i64::try_from(s).ok()));
            b.push(row.job.as_str());
            bind_key(b, &row.key, row.cell);
            b.push(row.attempt);
            b.push(row.agent.as_str());
            b.number(row.lease.fencing.get());
            b.push(&row.body.digest.0[..]);
            b.push(row.recorded_at.0);
            bind_body(b, Some(&row.body), Kept::Whole);
        };
        let namespace = self.namespace;
        RECORDS.run(self.conn, rows, bind, |b| b.push(namespace)).await
    }

    async fn replaced(&mut self, batch: &Batch) -> Result<(), CommitError> {
        if batch.replaced.is_empty() {
            return Ok(());
        }
        let rows: Vec<_> =
            batch.replaced.iter().map(|r| json!([r.job.as_str(), r.cell.0, r.token.get(), r.at.0])).collect();
        let rows = json!(rows).to_string();
        let noted = self.execute(REPLACED_INSERT.as_str(), &rows).await?;
        count("replaced", batch.replaced.len(), noted)?;
        let moved = self.execute(REPLACED_DELETE, &rows).await?;
        count("replaced", batch.replaced.len(), moved)
    }

    async fn blanks(&mut self, batch: &Batch) -> Result<(), CommitError> {
        if batch.blanks.is_empty() {
            return Ok(());
        }
        // SQLite's integers are signed: the 64th slot is the sign bit, which its shifts carry along.
        let blanks =
            batch.blanks.iter().map(|(first, mask)| json!([first.get(), mask.cast_signed(), mask.count_ones()]));
        let blanks = json!(blanks.collect::<Vec<_>>()).to_string();
        let blanked = self.execute(BLANKS, &blanks).await?;
        count("blanks", batch.blanks.len(), blanked)
    }

    async fn ended(&mut self, batch: &Batch) -> Result<(), CommitError> {
        if batch.ended.is_empty() {
            return Ok(());
        }
        let ended = json!(batch.ended.iter().map(|first| first.get()).collect::<Vec<_>>()).to_string();
        let deleted = self.execute(ENDED, &ended).await?;
        count("ended", batch.ended.len(), deleted)
    }

    /// Runs a statement on rows given as JSON.
    async fn execute(&mut self, sql: &'static str, rows: &str) -> Result<u64, sqlx::Error> {
        let done = sqlx::query(sql).bind(rows).bind(self.namespace).execute(&mut *self.conn).await?;
        Ok(done.rows_affected())
    }

    async fn grants(&mut self, rows: &[GrantRow]) -> Result<u64, sqlx::Error> {
        let bind = |b: &mut Binds, row: &GrantRow| {
            b.push(self.namespace);
            b.number(row.first.get());
            b.push(&row.nonce.0[..]);
            b.number(row.ttl_ms);
            b.push(row.agent.as_str());
            b.push(&row.incarnation.0[..]);
            b.push(row.job.as_str());
            b.push(json!(row.cells.iter().map(|c| c.0).collect::<Vec<_>>()).to_string());
        };
        GRANTS.run(self.conn, rows, bind, |_| {}).await
    }

    async fn attempts(&mut self, rows: &[AttemptRow]) -> Result<u64, sqlx::Error> {
        let bind = |b: &mut Binds, row: &AttemptRow| {
            let kept = if row.kind == AttemptKind::Replaced { Kept::Whole } else { Kept::Bounded };
            b.push(self.namespace);
            b.push(row.job.as_str());
            bind_key(b, &row.key, row.cell);
            b.number(row.token.get());
            b.push(row.kind.as_str());
            b.push(&row.digest().0[..]);
            b.push(row.attempt);
            b.push(row.counted);
            b.push(row.in_company);
            b.push(row.agent.as_str());
            b.push(row.reason.map(|r| r.as_str()));
            b.push(row.fenced.map(|r| r.as_str()));
            b.push(row.retry_at.map(|t| t.0));
            b.push(row.ended_at.0);
            b.push(row.body.as_ref().and_then(|body| output_bytes(body)));
            bind_body(b, row.body.as_deref(), kept);
        };
        ATTEMPTS.run(self.conn, rows, bind, |_| {}).await
    }

    async fn agents(&mut self, rows: &[AgentRow]) -> Result<u64, sqlx::Error> {
        let bind = |b: &mut Binds, row: &AgentRow| {
            b.push(self.namespace);
            b.push(row.agent.as_str());
            b.push(&row.incarnation.0[..]);
            b.number(row.number);
            b.push(row.region.as_str());
            b.push(row.admitted_at.0);
        };
        AGENTS.run(self.conn, rows, bind, |_| {}).await
    }

    async fn audit(&mut self, rows: &[AuditRow]) -> Result<u64, sqlx::Error> {
        let bind = |b: &mut Binds, row: &AuditRow| {
            b.push(self.namespace);
            b.push(row.at.0);
            b.push(row.actor.clone());
            b.push(row.action);
            b.push(row.job.as_ref().map(JobId::as_str));
            b.push(row.detail.as_str());
        };
        AUDIT.run(self.conn, rows, bind, |_| {}).await
    }
}

fn output_bytes(body: &ReportBody) -> Option<i64> {
    match &body.outcome {
        Outcome::Succeeded(s) => i64::try_from(s.output.len()).ok(),
        Outcome::Failed(_) => None,
    }
}

fn count(part: &'static str, predicted: usize, found: u64) -> Result<(), CommitError> {
    let found = usize::try_from(found).unwrap_or(usize::MAX);
    if predicted == found { Ok(()) } else { Err(CommitError::Refused(Refused::WrongCount { part, predicted, found })) }
}
