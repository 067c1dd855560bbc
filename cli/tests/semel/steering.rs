//! Retry, cancel, pause, audit: what they do and how they end.

use super::support::Folder;

/// Programs that fail for good where the question is q2.
const FAILS_Q2: &str = r#"case "$SEMEL_QUESTION" in q2) echo "no such luck" >&2; exit 3;; esac; printf fine"#;

#[test]
fn a_job_with_failures_ends_with_a_code_of_its_own_and_they_can_be_retried() {
    let folder = Folder::new();
    folder.write("job.yaml", &format!("{}policy: {{ attempts: 1 }}\n", super::support::JOB));
    folder.shell_agents(FAILS_Q2);
    let run = ["run", "job.yaml", "--agents", "agents.json"];
    folder.semel(&run).exits(3).says("4 failed").says("semel retry small --status failed");
    folder.semel(&run).exits(3).says("nothing to run");
    folder.semel(&["audit", "small"]).exits(0).says("8 recorded, 0 missing, 0 extra, 4 failed");
    let cell = ["show", "small", "--region", "us-east", "--model", "a", "--question", "q2"];
    folder.semel(&cell).exits(0).says("no such luck");

    folder
        .semel(&["retry", "small", "--status", "failed", "--region", "us-east"])
        .exits(0)
        .says("2 cells run again")
        .says("nothing is running on this store; the same `semel run ...` runs them");
    folder.semel(&["audit", "small"]).exits(0).says("6 recorded, 2 missing");
    folder.shell_agents("printf better");
    folder.semel(&run).exits(3).says("2 failed");
    let answer = folder.json(&cell);
    assert_eq!(answer["execution"]["output"], "better");
    assert!(
        answer["attempts"].as_array().is_some_and(|all| all.iter().any(|entry| entry["kind"] == "replaced")),
        "{answer}"
    );
    folder.semel(&["retry", "small", "--status", "failed"]).exits(0).says("2 cells run again");
    folder.semel(&run).exits(0).says("8 of 8 recorded");
}

#[test]
fn a_paused_job_says_so_and_goes_on_when_it_is_resumed() {
    let folder = Folder::new();
    folder.gated_agents();
    let run = folder.start(&["run", "job.yaml", "--agents", "agents.json"]);
    folder.wait_until_leased();
    folder.semel(&["pause", "small"]).exits(0).says("open (paused)");
    assert_eq!(folder.json(&["list"])[0]["paused"], true);
    folder.semel(&["resume", "small"]).exits(0).says("small: open,");
    folder.write("gate", "");
    run.end().exits(0);
}

#[test]
fn a_closed_job_is_steered_no_more() {
    let folder = Folder::new();
    folder.semel(&["run", "job.yaml", "--echo"]).exits(0);
    folder.semel(&["retry", "small", "--status", "succeeded", "--question", "q1"]).exits(0).says("4 cells run again");
    folder.semel(&["cancel", "small"]).exits(0).says("4 of 8 recorded, 4 will not run");
    folder.semel(&["cancel", "small"]).exits(0);
    folder.semel(&["retry", "small", "--status", "succeeded"]).exits(3).complains("reopen");
    let answer = folder.json(&["run", "job.yaml", "--echo"]);
    assert_eq!(answer["outcome"], "closed", "{answer}");
}

#[test]
fn a_retry_of_nothing_says_what_it_looked_for_and_what_waits_all_the_same() {
    let folder = Folder::new();
    folder.semel(&["run", "job.yaml", "--echo"]).exits(0);
    let retry = ["retry", "small", "--status", "failed"];
    let nothing =
        folder.semel(&retry).exits(0).says("none of these cells has a record that failed: nothing runs again");
    assert!(!nothing.stdout.contains("semel run"), "{nothing:?}");
    folder.semel(&["retry", "small", "--status", "succeeded", "--question", "q1"]).exits(0);
    folder.semel(&["cancel", "small"]).exits(0);
    folder
        .semel(&[&retry[..], &["--reopen"]].concat())
        .exits(0)
        .says("none of these cells has a record that failed; the job is open, and its 4 without one wait");
}

#[test]
fn the_command_that_opens_a_cancelled_job_again_names_the_store_that_was_named() {
    let folder = Folder::new();
    folder.semel(&["run", "job.yaml", "--echo", "--store", "my store.db"]).exits(0);
    let store = ["--store", "my store.db"];
    folder.semel(&[&["retry", "small", "--status", "succeeded"][..], &store].concat()).exits(0);
    folder
        .semel(&[&["cancel", "small"][..], &store].concat())
        .exits(0)
        .says("to open it again: semel retry small --store 'my store.db' --reopen");
}

#[test]
fn what_is_not_there_is_an_error_that_names_it() {
    let folder = Folder::new();
    folder.semel(&["run", "job.yaml", "--echo"]).exits(0);
    for arguments in
        [&["show", "nojob"][..], &["why", "nojob"], &["cancel", "nojob"], &["export", "nojob"], &["audit", "nojob"]]
    {
        folder.semel(arguments).exits(1).complains("nojob");
    }
    folder.semel(&["show", "small", "--region", "mars", "--model", "a", "--question", "q1"]).exits(2).complains("mars");
}

#[test]
fn an_audit_of_a_table_that_was_changed_by_hand_finds_the_key() {
    let folder = Folder::new();
    folder.semel(&["run", "job.yaml", "--echo"]).exits(0);
    let store = folder.path("semel.db");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        use sqlx::{Connection, SqliteConnection};
        let mut tables = SqliteConnection::connect(&format!("sqlite:{}", store.display())).await.expect("open");
        let gone = sqlx::query("DELETE FROM executions WHERE region = 'us-east' AND model = 'a' AND question = 'q1'");
        assert_eq!(gone.execute(&mut tables).await.expect("deleted").rows_affected(), 1);
        tables.close().await.expect("closed");
    });
    folder.semel(&["audit", "small"]).exits(5).says("7 recorded, 1 missing").says("NOT EXACT");
    let answer = folder.json(&["audit", "--all"]);
    assert_eq!((&answer[0]["exact"], &answer[0]["missing"]), (&false.into(), &1.into()), "{answer}");
}

#[test]
fn an_audit_of_all_has_every_job_oldest_first_and_needs_no_coordinator() {
    let folder = Folder::new();
    folder.semel(&["run", "job.yaml", "--echo"]).exits(0);
    folder.write("other.yaml", &super::support::JOB.replace("job: small", "job: another"));
    folder.semel(&["run", "other.yaml", "--echo"]).exits(0);
    let before = folder.semel(&["list"]).exits(0).stdout;
    let lock = std::fs::metadata(folder.path("semel.db.lock")).and_then(|lock| lock.modified()).expect("a lock file");
    for arguments in [&["audit"][..], &["audit", "--all"]] {
        let jobs = folder.json(arguments);
        let names: Vec<&str> = jobs.as_array().expect("jobs").iter().filter_map(|job| job["job"].as_str()).collect();
        assert_eq!(names, ["small", "another"]);
        assert!(jobs.as_array().expect("jobs").iter().all(|job| job["exact"] == true), "{jobs}");
    }
    let after = std::fs::metadata(folder.path("semel.db.lock")).and_then(|lock| lock.modified()).expect("a lock file");
    assert_eq!(lock, after, "nobody took the lock");
    assert_eq!(folder.semel(&["list"]).exits(0).stdout, before);
}
