//! The embedded store against the commit rule in memory, and against what can happen to its file.

// Seeds are printed, and a child talks to its parent.
#![allow(clippy::print_stdout)]

#[path = "store/audited.rs"]
mod audited;
#[path = "store/generate.rs"]
mod generate;
#[path = "store/support.rs"]
mod support;

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use semel_coordinator::store::{
    CommitError, Filter, MAX_PAGE_BYTES, ReadError, Store,
    sqlite::{SqliteStore, open_read_only},
};
use semel_core::{
    batch::{Batch, Outcome},
    id::{Cell, Epoch, FencingToken, JobId, Seq},
    tables::{Refused, Tables},
};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row, SqliteConnection, sqlite::SqliteConnectOptions};

use generate::Generator;
use support::{grant, grants, job, leadership, of_store, of_tables, record, spec, token};

/// Says to a child process of these tests which database is meant.
const CHILD: &str = "SEMEL_TEST_DATABASE";

fn database(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("semel.db")
}

/// A connection that takes no lock and checks nothing: what a person with the sqlite3 program has.
async fn by_hand(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path).foreign_keys(false).connect().await.unwrap()
}

/// The verdict of a store in the words of the tables.
fn verdict(result: Result<semel_core::Committed, CommitError>) -> Result<(), Refused> {
    match result {
        Ok(_) => Ok(()),
        Err(CommitError::Refused(refused)) => Err(refused),
        Err(other) => panic!("{other}"),
    }
}

/// The same calls, to the tables and to a store.
struct Both {
    tables: Tables,
    store: SqliteStore,
    epoch: Epoch,
    seq: Seq,
}

impl Both {
    async fn start(path: &Path) -> Self {
        let store = SqliteStore::open(path).await.unwrap();
        let mut both = Self { tables: Tables::default(), store, epoch: Epoch::MAX, seq: Seq(0) };
        both.campaign().await;
        both
    }

    async fn campaign(&mut self) {
        self.epoch = self.store.campaign().await.unwrap();
        // The store's clock is its own: the tables jump to where it jumped.
        assert_eq!(self.tables.campaign(self.epoch.get()), Some(self.epoch));
        self.seq = Seq(0);
    }

    /// Commits to both under a number; the verdicts are the same.
    async fn commit(&mut self, epoch: Epoch, seq: Seq, batch: &Batch) -> Result<(), Refused> {
        let ours = verdict(self.store.commit(epoch, seq, Arc::new(batch.clone())).await);
        let rule = self.tables.commit(epoch, seq, batch).map(|_| ());
        assert_eq!(ours, rule, "{epoch} {seq:?} {batch:#?}");
        if rule.is_ok() {
            self.seq = seq;
        }
        rule
    }

    async fn next(&mut self, batch: &Batch) -> Result<(), Refused> {
        self.commit(self.epoch, self.seq.next(), batch).await
    }

    async fn same_rows(&self) {
        assert_eq!(of_store(&self.store, self.store.path()).await, of_tables(&self.tables));
    }
}

#[tokio::test]
async fn c2_the_store_and_the_tables_give_the_same_verdicts_and_hold_the_same_rows() {
    for seed in [1, 2, 3] {
        println!("seed {seed}");
        let dir = tempfile::tempdir().unwrap();
        let mut both = Both::start(&database(&dir)).await;
        let mut make = Generator::new(seed);
        let mut spoiled = std::collections::BTreeSet::new();
        for step in 0..80 {
            let batch = make.batch(&both.tables, both.epoch);
            let mut wrong = batch.clone();
            if let Some(name) = make.spoil(&both.tables, &mut wrong) {
                make.shuffle(&mut wrong);
                assert!(matches!(both.next(&wrong).await, Err(Refused::WrongCount { .. })), "{name}");
                spoiled.insert(name);
            }
            both.next(&batch).await.unwrap();
            if step % 20 == 19 {
                both.same_rows().await;
                both.campaign().await;
            }
        }
        both.same_rows().await;
        let loaded = both.store.load(both.epoch).await.unwrap();
        let rule = both.tables.load();
        assert_eq!(grants(&loaded), grants(&rule));
        assert_eq!(loaded.agents, rule.agents);
        for (ours, rule) in loaded.jobs.iter().zip(&rule.jobs) {
            assert_eq!(ours.stored, rule.stored);
            assert_eq!((&ours.recorded, &ours.failed), (&rule.recorded, &rule.failed));
            assert_eq!(ours.attempts, rule.attempts);
        }
        assert_eq!(loaded.jobs.len(), rule.jobs.len());
        every_past_is_the_same(&both).await;
        assert!(spoiled.len() >= 8, "the seed tried only {spoiled:?}");
    }
}

/// Rule C10, for every token that was ever granted, and for some that never were.
async fn every_past_is_the_same(both: &Both) {
    let records = both.tables.executions.values().map(|r| r.lease.fencing);
    let attempts = both.tables.attempts.keys().map(|(token, ..)| *token);
    let never = [FencingToken::new(Epoch::MAX, 0), token(Epoch::new(1).unwrap(), 0)];
    let tokens: std::collections::BTreeSet<_> = records.chain(attempts).chain(never).collect();
    for token in tokens {
        assert_eq!(both.store.past(token).await.unwrap(), both.tables.past(token), "{token}");
    }
}

#[tokio::test]
async fn c1_only_the_next_number_of_the_leading_epoch_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let mut both = Both::start(&database(&dir)).await;
    let empty = Batch::default();
    both.next(&empty).await.unwrap();
    both.next(&empty).await.unwrap();
    let (epoch, seq) = (both.epoch, both.seq);
    assert_eq!(both.commit(epoch, seq, &empty).await, Err(Refused::AlreadyApplied));
    assert_eq!(both.commit(epoch, Seq(1), &empty).await, Err(Refused::LostWrites));
    assert_eq!(both.commit(epoch, Seq(4), &empty).await, Err(Refused::LostWrites));
    both.campaign().await;
    assert!(both.epoch > epoch, "promise 7: the epoch rises at each takeover");
    assert_eq!(both.commit(epoch, seq.next(), &empty).await, Err(Refused::Deposed(both.epoch)));
    assert!(matches!(both.store.load(epoch).await, Err(ReadError::OtherEpoch { .. })));
    let later = Epoch::new(both.epoch.get() + 9).unwrap();
    assert_eq!(both.commit(later, Seq(1), &empty).await, Err(Refused::LostWrites));
    both.same_rows().await;
}

#[tokio::test]
async fn l2_an_epoch_jumps_to_the_databases_clock() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&database(&dir)).await.unwrap();
    let before = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() - 1_767_225_600;
    let epoch = store.campaign().await.unwrap();
    assert!(u64::from(epoch.get()) >= before, "{epoch} is before {before}");
}

#[tokio::test]
async fn answers_come_back_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let mut both = Both::start(&database(&dir)).await;
    let outputs: [&[u8]; 6] = [b"", b"\0", b"a\0b\0", b"\xff\xfe half \xe2\x82", "naïve €".as_bytes(), &[0x80; 5000]];
    let job = job("bytes", &spec(6, 1));
    let leases = grant(&job, token(both.epoch, 0), 1, (0..6).map(Cell).collect());
    let mut first = Batch::default();
    first.jobs.push(job.clone());
    first.grants.push(leases.clone());
    both.next(&first).await.unwrap();
    let mut records = Batch::default();
    records.records = (0..).zip(outputs).map(|(slot, output)| record(&job, &leases, slot, output)).collect();
    both.next(&records).await.unwrap();
    both.same_rows().await;
    for (cell, output) in (0..).map(Cell).zip(outputs) {
        let stored = both.store.execution(&job.id, cell).await.unwrap().unwrap();
        let Outcome::Succeeded(success) = stored.body.outcome else { panic!("{cell:?}") };
        assert_eq!((&success.output[..], &success.response[..]), (output, &output.repeat(2)[..]));
        assert_eq!(stored.key, job.matrix.key(cell).unwrap());
    }
    let page = both.store.executions(&job.id, None, 9, &Filter::default(), false).await.unwrap();
    for row in page {
        let Outcome::Succeeded(success) = row.body.outcome else { panic!("{row:?}") };
        assert!(success.response.is_empty(), "the provider's body was not asked for");
    }
}

#[tokio::test]
async fn a_page_is_bounded_in_bytes_and_filtered_by_every_axis() {
    let dir = tempfile::tempdir().unwrap();
    let mut both = Both::start(&database(&dir)).await;
    let job = job("pages", &spec(4, 2));
    let leases = grant(&job, token(both.epoch, 0), 1, (0..24).map(Cell).collect());
    let mut batch = Batch::default();
    batch.jobs.push(job.clone());
    batch.grants.push(leases.clone());
    both.next(&batch).await.unwrap();
    let mut batch = Batch::default();
    let output = vec![b'x'; MAX_PAGE_BYTES / 8];
    batch.records = (0..24).map(|slot| record(&job, &leases, slot, &output)).collect();
    both.next(&batch).await.unwrap();
    let page = |after, filter| {
        let (store, id) = (both.store.clone(), job.id.clone());
        async move { store.executions(&id, after, 1_000, &filter, true).await.unwrap() }
    };
    // Each row holds its output once, and twice as the provider's body.
    assert_eq!(page(None, Filter::default()).await.len(), 3);
    let filter = Filter {
        regions: vec!["us-east".into(), "mars".into()],
        models: vec!["llama3.2-1b".into()],
        questions: vec!["q1".into(), "q3".into()],
        repeats: vec![1],
        status: Some(semel_core::words::Status::Succeeded),
    };
    let cells: Vec<_> = page(None, filter.clone()).await.iter().map(|e| e.cell.0).collect();
    assert_eq!(cells, [19, 23]);
    assert_eq!(page(Some(Cell(19)), filter.clone()).await.len(), 1);
    let retry = both.store.records_for_retry(&job.id, None, 9, &filter).await.unwrap();
    assert_eq!(retry, [19, 23].map(|c| (Cell(c), leases.first.offset(c), 1)));
    let second = both.store.records_for_retry(&job.id, Some(Cell(19)), 1, &filter).await.unwrap();
    assert_eq!(second, retry[1..]);
    let none = Filter { status: Some(semel_core::words::Status::Failed), ..filter };
    assert!(both.store.records_for_retry(&job.id, None, 9, &none).await.unwrap().is_empty());
}

#[tokio::test]
async fn c4_a_commit_goes_on_when_its_caller_goes_away() {
    let dir = tempfile::tempdir().unwrap();
    let mut both = Both::start(&database(&dir)).await;
    let batch = Arc::new(Batch::default());
    let call = both.store.commit(both.epoch, Seq(1), batch.clone());
    let mut call = Box::pin(call);
    assert!(poll_once(call.as_mut()).await.is_none(), "a commit takes a sync of the disk");
    drop(call);
    // The next one waits for it, and finds it applied.
    assert_eq!(verdict(both.store.commit(both.epoch, Seq(1), batch).await), Err(Refused::AlreadyApplied));
    assert!(both.tables.commit(both.epoch, Seq(1), &Batch::default()).is_ok());
    both.seq = Seq(1);
    both.next(&Batch::default()).await.unwrap();
}

#[tokio::test]
async fn c7_what_the_database_refuses_for_good_is_told_from_what_may_pass_and_the_store_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut both = Both::start(&database(&dir)).await;
    let job = job("refused", &spec(2, 1));
    let leases = grant(&job, token(both.epoch, 0), 1, vec![Cell(0), Cell(1)]);
    let mut batch = Batch::default();
    batch.jobs.push(job.clone());
    batch.grants.push(leases.clone());
    both.next(&batch).await.unwrap();
    let good = record(&job, &leases, 0, b"good");
    let mut bad = record(&job, &leases, 1, b"bad");
    let body = Arc::make_mut(&mut bad.body);
    body.served.as_mut().unwrap().region = "elsewhere".into();
    let mut batch = Batch::default();
    batch.records = vec![good.clone(), bad];
    let result = both.store.commit(both.epoch, both.seq.next(), Arc::new(batch)).await;
    assert!(matches!(result, Err(CommitError::Lasting(_))), "{result:?}");
    let mut batch = Batch::default();
    batch.records = vec![good];
    both.next(&batch).await.unwrap();
    both.same_rows().await;
    // A database that can't be written now may be written later: the same batch goes in then.
    let path = both.store.path().to_owned();
    let mut other = by_hand(&path).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let result = both.store.commit(both.epoch, both.seq.next(), Arc::default()).await;
    assert!(matches!(result, Err(CommitError::Transient { disk_full: false, .. })), "{result:?}");
    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    both.next(&Batch::default()).await.unwrap();
}

/// Polls a future once; its answer if it is ready.
async fn poll_once<F: Future + Unpin>(mut future: F) -> Option<F::Output> {
    std::future::poll_fn(|cx| {
        std::task::Poll::Ready(match std::pin::Pin::new(&mut future).poll(cx) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

fn child(test: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// The database of a parent that runs this test again as its child; `None` in the parent.
fn child_database() -> Option<PathBuf> {
    std::env::var_os(CHILD).map(PathBuf::from)
}

/// As a child.
async fn commit_without_end(path: &Path) {
    let store = SqliteStore::open(path).await.unwrap();
    let epoch = store.campaign().await.unwrap();
    let job = job("crash", &spec(100, 1_000));
    let mut last = None;
    for n in 1.. {
        let mut batch = Batch::default();
        if n == 1 {
            batch.jobs.push(job.clone());
        }
        let lease = grant(&job, token(epoch, n), 1, vec![Cell(n)]);
        if let Some(last) = last.replace(lease.clone()) {
            batch.records.push(record(&job, &last, 0, b"answer"));
        }
        batch.grants.push(lease);
        store.commit(epoch, Seq(n.into()), Arc::new(batch)).await.unwrap();
        println!("acknowledged {n}");
    }
}

/// The number of the last commit that a child was seen to have had acknowledged.
fn acknowledged(child: &mut Child, at_least: u64) -> u64 {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let numbers = lines.filter_map(|line| line.unwrap().rsplit_once("acknowledged ")?.1.parse().ok());
    numbers.into_iter().find(|n| *n >= at_least).expect("the child ended early")
}

#[tokio::test]
async fn p5_what_was_acknowledged_survives_kill_9_and_nothing_is_half_there() {
    if let Some(path) = child_database() {
        return commit_without_end(&path).await;
    }
    let dir = tempfile::tempdir().unwrap();
    for round in 1..=3u64 {
        let path = dir.path().join(format!("{round}.db"));
        let mut process = child("p5_what_was_acknowledged_survives_kill_9_and_nothing_is_half_there", &path);
        let seen = acknowledged(&mut process, 40 * round);
        process.kill().unwrap();
        process.wait().unwrap();
        // First as an audit sees it: no coordinator runs, and the log was never folded in.
        let (epoch, seq) = leadership(&path).await;
        assert!(seq.0 >= seen, "{seq:?} was acknowledged as {seen}");
        let store = SqliteStore::open(&path).await.unwrap();
        let loaded = store.load(epoch).await.unwrap();
        assert_eq!(loaded.grants.len() as u64, seq.0);
        assert_eq!(loaded.jobs[0].recorded.len(), seq.0 - 1);
        assert_eq!(loaded.jobs[0].recorded.max().map(u64::from), Some(seq.0 - 1));
        assert!(store.campaign().await.unwrap() > epoch);
    }
}

/// As a child.
async fn open_and_say(path: &Path) {
    match SqliteStore::open(path).await {
        Ok(_) => println!("opened"),
        Err(error) => println!("refused: {error}"),
    }
}

#[tokio::test]
async fn l5_a_second_process_is_refused_and_told_who_holds_the_store() {
    if let Some(path) = child_database() {
        return open_and_say(&path).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = database(&dir);
    let says = || {
        let output =
            child("l5_a_second_process_is_refused_and_told_who_holds_the_store", &path).wait_with_output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let store = SqliteStore::open(&path).await.unwrap();
    let refused = says();
    assert!(refused.contains(&format!("in use by process {}", std::process::id())), "{refused}");
    assert!(open_read_only(&path).await.is_ok(), "an audit reads beside a coordinator");
    store.close().await;
    drop(store);
    assert!(says().contains("opened"));
    assert!(open_read_only(&path).await.is_ok(), "an audit reads without a coordinator");
}

#[tokio::test]
async fn a_database_of_a_later_version_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = database(&dir);
    SqliteStore::open(&path).await.unwrap().close().await;
    let mut conn = by_hand(&path).await;
    let later = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (99, 'later', 1, x'00', 0)";
    sqlx::query(later).execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    let error = SqliteStore::open(&path).await.err().unwrap().to_string();
    assert!(error.contains("99") && error.contains("newer"), "{error}");
    assert!(open_read_only(&path).await.is_err());
    let nothing = open_read_only(&dir.path().join("none.db")).await.err().unwrap().to_string();
    assert!(nothing.contains("none.db"), "{nothing}");
}

#[tokio::test]
async fn each_constraint_holds_its_promise_against_sql_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    let path = database(&dir);
    audited::complete_job(&path).await;
    let mut conn = by_hand(&path).await;
    let token = "(SELECT max(fencing_token) FROM executions)";
    let copy = |changed: &str| {
        format!(
            "CREATE TEMP TABLE c AS SELECT * FROM executions LIMIT 1; UPDATE c SET {changed}; INSERT INTO executions SELECT * FROM c"
        )
    };
    let lost = "INSERT INTO attempts (namespace, job_id, region, model, question, repeat, cell, fencing_token, kind, digest, \
         attempt, counted, in_company, agent_id, ended_at) SELECT namespace, job_id, region, model, question, repeat, cell, \
         fencing_token, 'lost', digest, 1, 1, 0, agent_id, 1 FROM executions WHERE cell = 5;";
    let twice = "INSERT INTO jobs SELECT number + 9, namespace, job_id, digest, state, paused, input_version, submitted_at, \
         deadline_at, closed_at, completed_at, sent_spec, resolved_spec FROM jobs";
    let faults = [
        ("P1", copy(&format!("cell = 99, fencing_token = {token} + 1")), "UNIQUE constraint failed: executions.namespace, executions.job_id, executions.region"),
        ("P1 by cell", copy(&format!("question = 'new', fencing_token = {token} + 1")), "executions.cell"),
        ("P3", copy("question = 'new', cell = 99"), "UNIQUE constraint failed: executions.namespace, executions.fencing_token"),
        ("P8", "UPDATE executions SET served_region = 'elsewhere'".into(), "served_region = region"),
        ("P7", "UPDATE executions SET fencing_token = 7".into(), "fencing_token >= 4294967296"),
        ("status", "UPDATE executions SET status = 'done'".into(), "status IN"),
        ("a success has an answer", "UPDATE executions SET output = NULL".into(), "(status = 'succeeded') ="),
        ("a success has no failure", "UPDATE executions SET error_message = x'00', failure_reason = 'program', failure_stage = 'run', failure_code = '', failure_retryable = 0".into(), "(status = 'failed') ="),
        ("P6", twice.into(), "jobs.job_id"),
        ("J1", "UPDATE jobs SET state = 'complete'".into(), "state IN"),
        ("J1 closed", "UPDATE jobs SET closed_at = 1".into(), "closed_at IS NULL"),
        ("C8", "UPDATE leadership SET epoch = 2147483648".into(), "epoch BETWEEN"),
        ("C9", "UPDATE lease_grants SET cells = 'all of them'".into(), "json_valid(cells)"),
        ("C10", format!("{lost} {lost}"), "attempts.fencing_token, attempts.kind, attempts.digest"),
        ("digest", "UPDATE executions SET digest = x'00'".into(), "length(digest) = 32"),
        ("strict types", "UPDATE executions SET cell = 'first'".into(), "cannot store TEXT value in INTEGER column"),
    ];
    for (promise, sql, words) in faults {
        sqlx::query("DROP TABLE IF EXISTS temp.c").execute(&mut conn).await.unwrap();
        let result = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut conn).await;
        let error = result.err().unwrap_or_else(|| panic!("{promise}: nothing holds it")).to_string();
        assert!(error.contains(words), "{promise}: {error}");
    }
}

#[tokio::test]
async fn people_read_answers_and_leases_and_never_a_nonce() {
    let dir = tempfile::tempdir().unwrap();
    let path = database(&dir);
    audited::open_job(&path).await;
    let mut conn = open_read_only(&path).await.unwrap();
    let row = sqlx::query("SELECT output, status FROM answers ORDER BY cell").fetch_one(&mut conn).await.unwrap();
    assert_eq!((row.get::<&str, _>(0), row.get::<&str, _>(1)), ("answer 0", "succeeded"));
    let leases = sqlx::query("SELECT * FROM leases ORDER BY cell").fetch_all(&mut conn).await.unwrap();
    let cells: Vec<i64> = leases.iter().map(|l| l.get("cell")).collect();
    assert_eq!(cells, [2, 3], "the first two are recorded, and one slot is blank");
    assert!(leases[0].try_get::<Vec<u8>, _>("nonce").is_err());
    assert_eq!(leases[0].get::<&str, _>("job_id"), JobId::new("audited").as_str());
}
