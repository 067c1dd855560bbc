//! The audit catches each fault that is planted behind the constraints' backs.

use std::{path::Path, sync::Arc};

use semel_coordinator::{
    audit::{AuditReport, audit_file},
    store::{DEFAULT_NAMESPACE, Store, sqlite::SqliteStore},
};
use semel_core::{
    batch::{Batch, JobChange},
    id::{Cell, JobId, Seq, UnixMs},
};
use sqlx::{AssertSqlSafe, Connection};

use crate::{
    by_hand, database,
    support::{grant, job, record, spec, token},
};

/// Cells of the job: 3 lanes, 2 questions, 2 samples.
const CELLS: u32 = 12;

async fn job_with(path: &Path, recorded: u32, complete: bool) {
    let store = SqliteStore::open(path).await.unwrap();
    let epoch = store.campaign().await.unwrap();
    let job = job("audited", &spec(2, 2));
    let leases = grant(&job, token(epoch, 0), 1, (0..CELLS.min(recorded + 3)).map(Cell).collect());
    let mut first = Batch::default();
    first.jobs.push(job.clone());
    first.grants.push(leases.clone());
    store.commit(epoch, Seq(1), Arc::new(first)).await.unwrap();
    let mut second = Batch::default();
    second.records =
        (0..recorded).map(|slot| record(&job, &leases, slot, format!("answer {slot}").as_bytes())).collect();
    if complete {
        let change = JobChange { completed_at: Some(Some(UnixMs(9))), ..JobChange::default() };
        second.job_changes.insert(job.id.clone(), change);
    } else {
        second.blanks.insert(leases.first, 1 << (recorded + 2));
    }
    store.commit(epoch, Seq(2), Arc::new(second)).await.unwrap();
    store.close().await;
}

/// A job of which every cell is recorded.
pub async fn complete_job(path: &Path) {
    job_with(path, CELLS, true).await;
}

/// A job of which two cells are recorded, two leased, one was handed back, and the others wait.
pub async fn open_job(path: &Path) {
    job_with(path, 2, false).await;
}

async fn audit(path: &Path) -> AuditReport {
    audit_file(path, DEFAULT_NAMESPACE, &JobId::new("audited")).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_job_that_is_right_is_exact_complete_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let (complete, open) = (database(&dir), dir.path().join("open.db"));
    complete_job(&complete).await;
    let report = audit(&complete).await;
    assert!(report.exact, "{:#?}", report.violations);
    assert_eq!((report.total.expected, report.total.recorded, report.total.missing), (12, 12, 0));
    let axes: Vec<_> = report.by_axis.iter().map(|a| (&*a.model, &*a.region, a.counts.recorded)).collect();
    assert_eq!(axes, [("mistral-7b", "us-east", 4), ("mistral-7b", "eu-west", 4), ("llama3.2-1b", "us-east", 4)]);
    assert!(audit_file(&complete, DEFAULT_NAMESPACE, &JobId::new("none")).await.unwrap().is_none());

    open_job(&open).await;
    let report = audit(&open).await;
    assert!(report.exact, "missing cells of an open job are no violation: {:#?}", report.violations);
    assert_eq!((report.total.recorded, report.leased, report.pending, report.not_run), (2, 2, 8, 0));
    assert_eq!(report.total.missing, 10);
}

/// Takes every constraint off `executions`, as a faulty migration might.
const WITHOUT_CONSTRAINTS: &str = "DROP VIEW leases; DROP VIEW answers; \
     CREATE TABLE plain AS SELECT * FROM executions; DROP TABLE executions; ALTER TABLE plain RENAME TO executions;";

/// A row more, like one that is there but for what is said.
fn another(changes: &str) -> String {
    format!(
        "CREATE TEMP TABLE c AS SELECT * FROM executions WHERE cell = 5; UPDATE c SET {changes}; INSERT INTO executions SELECT * FROM c"
    )
}

#[tokio::test]
async fn every_planted_fault_is_seen_and_named_by_its_promise() {
    let fresh = "fencing_token = fencing_token + 100";
    let grant = "SELECT namespace, first_token + 500, nonce, ttl_ms, agent_id, incarnation, job_id,";
    let faults = [
        ("an extra row", "promise 4", "q99", another(&format!("question = 'q99', {fresh}"))),
        ("a row of no lane", "promise 4", "mars", another(&format!("region = 'mars', {fresh}"))),
        ("a repeat too many", "promise 4", "repeat 2", another(&format!("repeat = 2, {fresh}"))),
        ("a missing row", "promise 4", "11 of 12", "DELETE FROM executions WHERE cell = 5".into()),
        ("a duplicate", "promise 1", "more than one record", another(fresh)),
        ("a token recorded twice", "promise 3", "recorded more than once", another("question = 'q99'")),
        ("a wrong cell", "promise 4", "has cell 77", "UPDATE executions SET cell = 77 WHERE cell = 5".into()),
        ("another input", "promise 8", "frozen", "UPDATE executions SET input_digest = randomblob(32) WHERE cell = 5".into()),
        ("another region", "promise 8", "served by region", "UPDATE executions SET served_region = 'mars' WHERE cell = 5".into()),
        ("a token of no epoch", "promise 7", "never led", "UPDATE executions SET fencing_token = 9223372036854775807 WHERE cell = 5".into()),
        (
            "two live leases",
            "promise 2",
            "more than one live lease",
            format!("DELETE FROM executions WHERE cell = 5; INSERT INTO lease_grants {grant} '[5]' FROM lease_grants"),
        ),
        (
            "grants that overlap",
            "promise 7",
            "tokens of the grant before",
            "INSERT INTO lease_grants SELECT namespace, first_token + 3, nonce, ttl_ms, agent_id, incarnation, job_id, '[5]' FROM lease_grants".into(),
        ),
        (
            "a live lease of a closed job",
            "promise 4 (J1)",
            "cancelled",
            "DELETE FROM executions WHERE cell = 5; UPDATE jobs SET state = 'cancelled'".into(),
        ),
        ("complete before it is", "promise 4", "stored as complete", "DELETE FROM executions WHERE cell = 11".into()),
        ("not complete when it is", "promise 4", "not complete", "UPDATE jobs SET completed_at = NULL".into()),
        (
            "a lease that was lost and recorded",
            "promise 3",
            "ended as lost",
            "INSERT INTO attempts (namespace, job_id, region, model, question, repeat, cell, fencing_token, kind, digest, attempt, \
             counted, in_company, agent_id, ended_at) SELECT namespace, job_id, region, model, question, repeat, cell, fencing_token, \
             'lost', zeroblob(32), 1, 1, 0, agent_id, 1 FROM executions WHERE cell = 5"
                .into(),
        ),
    ];
    for (fault, promise, words, sql) in faults {
        let dir = tempfile::tempdir().unwrap();
        let path = database(&dir);
        complete_job(&path).await;
        let mut conn = by_hand(&path).await;
        sqlx::raw_sql(WITHOUT_CONSTRAINTS).execute(&mut conn).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut conn).await.unwrap();
        conn.close().await.unwrap();
        let report = audit(&path).await;
        let named = report.violations.iter().any(|v| v.starts_with(promise) && v.contains(words));
        assert!(!report.exact && named, "{fault}: {:#?}", report.violations);
    }
}

#[tokio::test]
async fn four_doubles_and_four_gaps_are_not_eight_rows_for_eight_questions() {
    let dir = tempfile::tempdir().unwrap();
    let path = database(&dir);
    complete_job(&path).await;
    let mut conn = by_hand(&path).await;
    sqlx::raw_sql(WITHOUT_CONSTRAINTS).execute(&mut conn).await.unwrap();
    let swap = "UPDATE executions SET question = 'q0' WHERE question = 'q1'";
    sqlx::raw_sql(swap).execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    let report = audit(&path).await;
    assert_eq!((report.total.expected, report.total.recorded), (12, 6));
    assert_eq!((report.total.missing, report.total.duplicate, report.total.extra), (6, 6, 0));
    assert!(report.by_axis.iter().all(|a| (a.counts.missing, a.counts.duplicate) == (2, 2)));
}
