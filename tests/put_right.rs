//! A fault of the configuration burns no cell: the endpoint down, or its key wrong, and put right later.

#![allow(clippy::print_stdout, reason = "a test that fails shows what was seen")]

mod common;

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::Stdio,
    sync::mpsc,
    time::Duration,
};

use common::{
    Started, incident,
    provider::{Behaviour, Provider},
    semel,
};
use sqlx::{ConnectOptions, Connection, Row, sqlite::SqliteConnectOptions};

const LIMIT: Duration = Duration::from_secs(90);

/// Runs the incident's job against a URL; calls `put_right` once the screen has shown the reason.
fn run_until_put_right(folder: &Path, url: &str, reason: &str, put_right: impl FnOnce()) {
    std::fs::write(folder.join("job.yaml"), incident("incident", "")).expect("writes");
    let mut child = semel(folder, &["run", "job.yaml", "--openai", url, "--store", "s.db"]);
    let mut child = child.stdout(Stdio::piped()).spawn().expect("starts");
    let screen = child.stdout.take().expect("piped");
    let mut child = Started(child);
    let (line, lines) = mpsc::sync_channel(64);
    std::thread::spawn(move || {
        for text in BufReader::new(screen).lines().map_while(Result::ok) {
            println!("{text}");
            if line.send(text).is_err() {
                return;
            }
        }
    });
    let mut put_right = Some(put_right);
    while let Ok(text) = lines.recv_timeout(LIMIT) {
        if text.contains(reason)
            && let Some(put_right) = put_right.take()
        {
            put_right();
        }
    }
    assert!(put_right.is_none(), "the screen never showed {reason:?}");
    assert!(child.0.wait().expect("a child of ours").success(), "72 of 72 in the end");
}

async fn check_rows(store: &Path) {
    let mut connection = SqliteConnectOptions::new().filename(store).read_only(true).connect().await.expect("opens");
    let good = "select count(*) as n from executions where status = 'succeeded'";
    let good = sqlx::query(good).fetch_one(&mut connection).await.expect("reads");
    assert_eq!(good.get::<i64, _>("n"), 72, "72 succeeded");
    let counted = "select count(*) as n from attempts where counted";
    let counted = sqlx::query(counted).fetch_one(&mut connection).await.expect("reads");
    assert_eq!(counted.get::<i64, _>("n"), 0, "no attempt was used");
    connection.close().await.expect("closes");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_down_uses_no_attempt_and_its_reason_is_on_the_screen() {
    let folder = tempfile::tempdir().expect("a folder");
    // A port that was free a moment ago, and where nobody listens.
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
    let url = format!("http://127.0.0.1:{port}/v1");
    let mut provider = None;
    run_until_put_right(folder.path(), &url, "refused", || {
        provider = Some(Provider::start_on(port, Behaviour::default()));
    });
    assert_eq!(provider.expect("started").calls(), 72, "one call a cell");
    check_rows(&folder.path().join("s.db")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_uses_no_attempt_and_the_providers_words_are_on_the_screen() {
    let folder = tempfile::tempdir().expect("a folder");
    let provider = Provider::start(Behaviour { status: 401, ..Behaviour::default() });
    run_until_put_right(folder.path(), &provider.url(), "the provider says 401", || {
        provider.behave(Behaviour::default());
    });
    check_rows(&folder.path().join("s.db")).await;
}
