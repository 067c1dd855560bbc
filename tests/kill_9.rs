//! `semel run` killed with -9 in the middle, over and over: nothing is lost, doubled or stuck.

#![allow(clippy::print_stdout, reason = "a test that fails shows what was seen")]

mod common;

use std::{
    collections::BTreeMap,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use common::{
    Started, incident,
    provider::{Behaviour, Provider},
    run, semel, wait_until,
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use sqlx::{ConnectOptions, Connection, Row, sqlite::SqliteConnectOptions};

const KILLS: usize = 20;
const SLOTS: usize = 1;
/// A call is in flight until its result is durable: answered, it still takes a commit, or a sync of the spool.
const UNTIL_DURABLE: Duration = Duration::from_millis(500);

/// Every column of every record, by key.
async fn records(store: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut connection = SqliteConnectOptions::new().filename(store).read_only(true).connect().await.expect("opens");
    let made = sqlx::query("select 1 from sqlite_master where name = 'executions'").fetch_optional(&mut connection);
    if made.await.expect("reads").is_none() {
        // Killed before its tables were there.
        return BTreeMap::new();
    }
    let query = "select region || '/' || model || '/' || question || '/' || repeat, status, * from executions";
    let rows = sqlx::query(query).fetch_all(&mut connection).await.expect("reads");
    connection.close().await.expect("closes");
    let row = |row: &sqlx::sqlite::SqliteRow| {
        let mut bytes = Vec::new();
        for column in 1..row.columns().len() {
            // As SQLite turns it into bytes, whatever its type is.
            let value: Option<Vec<u8>> = row.try_get_unchecked(column).expect("a value");
            bytes.push(u8::from(value.is_some()));
            bytes.extend(value.unwrap_or_default());
        }
        (row.get::<String, _>(0), bytes)
    };
    rows.iter().map(row).collect()
}

/// 72 rows, all succeeded at the default attempts, each key once; rows
/// that were there before a kill unchanged to the byte; at most 72 calls and what was in flight at the kills.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_killed_twenty_times_ends_with_72_rows_each_once() {
    let seed: u64 = std::env::var("SEMEL_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(common::fresh_seed);
    println!("repeat with SEMEL_SEED={seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("job.yaml"), incident("incident", "")).expect("writes");
    let provider = Provider::start(Behaviour { delay: Duration::from_millis(150), ..Behaviour::default() });
    let url = provider.url();
    let slots = SLOTS.to_string();
    let arguments = ["run", "job.yaml", "--openai", &url, "--slots", &slots, "--store", "s.db"];
    let store = folder.path().join("s.db");

    let mut before = BTreeMap::new();
    let (mut running, mut in_flight) = (0, 0);
    for kill in 0..KILLS {
        let calls = provider.calls();
        let mut child = semel(folder.path(), &arguments);
        let child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
        let mut child = Started(child);
        // Half of the kills hit the start, the others the work.
        let moment = Duration::from_millis(random.random_range(0..700));
        let begun = Instant::now();
        let early = kill % 2 == 0;
        wait_until("the moment of the kill", Duration::from_secs(30), || {
            (begun.elapsed() >= moment && (early || provider.calls() > calls)) || ended(&mut child)
        });
        running += provider.running();
        in_flight += provider.running() + provider.answered_within(UNTIL_DURABLE);
        child.kill();
        wait_until("the provider to notice", Duration::from_secs(30), || provider.running() == 0);
        if store.exists() {
            let now = records(&store).await;
            for (key, row) in &before {
                assert_eq!(now.get(key), Some(row), "kill {kill}: the record of {key} changed");
            }
            before = now;
        }
    }

    let output = run(folder.path(), &arguments);
    assert_eq!(output.status.code(), Some(0));
    let after = records(&store).await;
    assert_eq!(after.len(), 72, "72 rows, each key once");
    for (key, row) in &before {
        assert_eq!(after.get(key), Some(row), "the record of {key} changed");
    }
    assert!(after.values().all(|row| row.starts_with(b"\x01succeeded")), "all succeeded");
    let (calls, bound) = (provider.calls(), 72 + in_flight);
    println!(
        "{KILLS} kills: {calls} calls; {running} ran at the kills, {in_flight} ran or were just answered; {} records before the last run",
        before.len()
    );
    assert!(calls <= bound, "{calls} calls, where at most {bound} can be explained");
    assert_eq!(run(folder.path(), &["audit", "incident", "--store", "s.db"]).status.code(), Some(0));
    let again = run(folder.path(), &arguments);
    assert_eq!((again.status.code(), provider.calls()), (Some(0), calls), "the same command again runs nothing");
}

fn ended(child: &mut Started) -> bool {
    child.0.try_wait().expect("a child of ours").is_some()
}
