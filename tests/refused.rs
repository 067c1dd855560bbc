//! Rule C7: what the database refuses for good is found, told, and takes nothing down with it. The database
//! is a real one that refuses: by triggers.

mod common;

use std::{path::Path, process::Output};

use common::{incident, run};
use semel_coordinator::store::sqlite::open_read_only;
use sqlx::{ConnectOptions, Connection, Row, SqliteConnection, sqlite::SqliteConnectOptions};

const REFUSES_A_RESULT: &str = "CREATE TRIGGER refuses_a_result BEFORE INSERT ON executions \
     WHEN NEW.question = 'taiwan_status' AND NEW.region = 'eu-west' AND NEW.status = 'succeeded' \
     BEGIN SELECT RAISE(ABORT, 'this text can not be kept'); END";
const REFUSES_A_JOB: &str = "CREATE TRIGGER refuses_a_job BEFORE INSERT ON jobs WHEN NEW.job_id = 'unwanted' \
     BEGIN SELECT RAISE(ABORT, 'this job can not be kept'); END";

/// Runs the incident's job under an id of its own.
fn run_job(folder: &Path, job: &str) -> Output {
    std::fs::write(folder.join("job.yaml"), incident(job, "")).expect("writes");
    run(folder, &["run", "job.yaml", "--echo", "--store", "s.db"])
}

/// A store with these triggers, made by a first run.
async fn store_that_refuses(folder: &Path, triggers: &[&'static str]) {
    assert!(run_job(folder, "first").status.success());
    let options = SqliteConnectOptions::new().filename(folder.join("s.db"));
    let mut connection = options.connect().await.expect("opens");
    for trigger in triggers {
        sqlx::query(*trigger).execute(&mut connection).await.expect("a trigger");
    }
    connection.close().await.expect("closes");
}

async fn count(connection: &mut SqliteConnection, query: &'static str) -> i64 {
    sqlx::query(query).fetch_one(connection).await.expect("reads").get(0)
}

#[tokio::test]
async fn c7_a_result_that_the_database_refuses_fails_its_cell_and_nothing_beside_it() {
    let folder = tempfile::tempdir().expect("a folder");
    store_that_refuses(folder.path(), &[REFUSES_A_RESULT]).await;
    let output = run_job(folder.path(), "second");
    assert_eq!(output.status.code(), Some(3), "complete with failures");
    let mut store = open_read_only(&folder.path().join("s.db")).await.expect("opens");
    let good = "SELECT count(*) FROM executions WHERE job_id = 'second' AND status = 'succeeded'";
    assert_eq!(count(&mut store, good).await, 69);
    let refused = "SELECT count(*) FROM executions WHERE job_id = 'second' AND question = 'taiwan_status' \
         AND region = 'eu-west' AND failure_reason = 'store_refused' AND output IS NULL";
    assert_eq!(count(&mut store, refused).await, 3, "one a model");
    let again = "SELECT count(*) FROM attempts WHERE job_id = 'second' AND counted";
    assert_eq!(count(&mut store, again).await, 0, "nothing ran twice for it");
}

#[tokio::test]
async fn c7_a_job_that_the_database_refuses_is_told_so_and_the_next_one_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    store_that_refuses(folder.path(), &[REFUSES_A_JOB]).await;
    let output = run_job(folder.path(), "unwanted");
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.contains("refuses this for good") && words.contains("this job can not be kept"), "{words}");
    assert!(run_job(folder.path(), "wanted").status.success());
}
