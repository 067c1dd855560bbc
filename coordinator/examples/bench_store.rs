//! How fast the embedded store records, beside bare inserts of the same rows into the same table.
//!
//!     cargo run --release -p semel-coordinator --example bench_store -- [rows] [output bytes] [folder]
//!
//! A commit of the store moves the leadership, checks each record's lease in its grant, inserts the
//! records, deletes the grants that have ended and inserts new ones. The bare insert does none of this.

#![allow(clippy::print_stdout)]

use std::{path::Path, sync::Arc, time::Instant};

use semel_coordinator::store::{
    Store,
    sqlite::{SqliteStore, open_read_only},
};
use semel_core::{
    batch::{Batch, GrantRow, MAX_GRANT, Outcome, Record, ReportBody, Served, Success, Timings},
    id::{
        AgentId, Cell, CellKey, Digest, FencingToken, Incarnation, LeaseToken, ModelId, Nonce, QuestionId, RegionId,
        Seq, UnixMs,
    },
    words::RegionBasis,
};
use sqlx::{Arguments, ConnectOptions, Connection, Row, SqliteConnection, sqlite::SqliteArguments};

/// Rows of a statement of the bare insert.
const BARE_CHUNK: usize = 64;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let rows: u32 = args.next().map_or(Ok(100_000), |n| n.parse())?;
    let output_bytes: usize = args.next().map_or(Ok(1 << 10), |n| n.parse())?;
    let dir = match args.next() {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir()?,
    };
    println!("{rows} rows, outputs of {output_bytes} bytes, in {}", dir.path().display());
    println!("{:>6} {:>14} {:>14} {:>6}", "batch", "bare rows/s", "store rows/s", "share");
    for batch in [1usize, 64, 256, 512] {
        let rows = rows.min(batch as u32 * 2_000);
        let bare = bare(&dir.path().join(format!("bare{batch}.db")), rows, output_bytes, batch).await?;
        let path = dir.path().join(format!("store{batch}.db"));
        let store = through_store(&path, rows, output_bytes, batch).await?;
        println!("{batch:>6} {bare:>14.0} {store:>14.0} {:>5.0} %", 100.0 * store / bare);
        if batch == 512 {
            read_back(&path).await?;
        }
    }
    Ok(())
}

async fn read_back(path: &Path) -> anyhow::Result<()> {
    let store = SqliteStore::open(path).await?;
    let epoch = store.campaign().await?;
    let start = Instant::now();
    store.load(epoch).await?;
    println!("load: {:.2} s", start.elapsed().as_secs_f64());
    let mut conn = open_read_only(path).await?;
    let (rows, bytes) = sqlx::query("SELECT count(*), sum(length(output)) FROM executions")
        .fetch_one(&mut conn)
        .await
        .and_then(|row| Ok((row.try_get::<i64, _>(0)?, row.try_get::<i64, _>(1)?)))?;
    println!("{rows} records, {bytes} bytes of outputs");
    Ok(())
}

fn token(first: u64, i: u32) -> FencingToken {
    FencingToken::from_u64(first + u64::from(i)).expect("a token of epoch 1 or later")
}

fn record(first: u64, i: u32, output_bytes: usize) -> Record {
    let output: Vec<u8> = (0..output_bytes).map(|b| b'a' + ((b as u32 + i) % 26) as u8).collect();
    let mut digest = [0; 32];
    digest[..4].copy_from_slice(&i.to_be_bytes());
    let region = RegionId::new(["us-east", "eu-west", "asia-pacific"][i as usize % 3]);
    Record {
        job: "bench".into(),
        cell: Cell(i),
        key: CellKey {
            region: region.clone(),
            model: ModelId::new("mistral-7b"),
            question: QuestionId::new(format!("question-{i:07}")),
            repeat: 0,
        },
        lease: LeaseToken { fencing: token(first, i), nonce: Nonce([7; 16]) },
        grant: token(first, i - i % MAX_GRANT as u32),
        attempt: 1,
        agent: AgentId::new("agent-1"),
        body: Arc::new(ReportBody {
            digest: Digest(digest),
            input_digest: Digest(digest),
            served: Some(Served {
                region: region.as_str().into(),
                basis: RegionBasis::Reported,
                model: "mistral-7b-instruct".into(),
                request_id: format!("req-{i:010}").into(),
                endpoint: "localhost:11434".into(),
                executor: "openai".into(),
            }),
            timings: Timings { waited_ms: 3, ran_ms: 1_250, first_byte_ms: Some(200) },
            outcome: Outcome::Succeeded(Success {
                output: output.into(),
                response: Default::default(),
                finish_reason: "stop".into(),
                prompt_tokens: Some(120),
                completion_tokens: Some(250),
            }),
        }),
        recorded_at: UnixMs(1_800_000_000_000),
    }
}

fn grants(first: u64, from: u32, to: u32) -> Vec<GrantRow> {
    (from..to)
        .step_by(MAX_GRANT)
        .map(|start| GrantRow {
            first: token(first, start),
            nonce: Nonce([7; 16]),
            ttl_ms: 30_000,
            agent: AgentId::new("agent-1"),
            incarnation: Incarnation([1; 16]),
            job: "bench".into(),
            cells: (start..to.min(start + MAX_GRANT as u32)).map(Cell).collect(),
        })
        .collect()
}

async fn through_store(path: &Path, rows: u32, output_bytes: usize, batch_rows: usize) -> anyhow::Result<f64> {
    let store = SqliteStore::open(path).await?;
    let epoch = store.campaign().await?;
    let first = FencingToken::new(epoch, 0).get();
    let step = (batch_rows as u32).max(MAX_GRANT as u32);
    let mut batches = vec![Batch::default()];
    batches[0].grants = grants(first, 0, step.min(rows));
    for start in (0..rows).step_by(batch_rows) {
        let end = rows.min(start + batch_rows as u32);
        let mut batch = Batch::default();
        batch.records = (start..end).map(|i| record(first, i, output_bytes)).collect();
        if end.is_multiple_of(step) {
            batch.ended = grants(first, end - step, end).iter().map(|g| g.first).collect();
            batch.grants = grants(first, end, rows.min(end + step));
        }
        batches.push(batch);
    }
    let batches: Vec<_> = batches.into_iter().map(Arc::new).collect();
    let start = Instant::now();
    let mut seq = Seq(0);
    for batch in batches {
        seq = seq.next();
        store.commit(epoch, seq, batch).await?;
    }
    let rate = f64::from(rows) / start.elapsed().as_secs_f64();
    store.close().await;
    Ok(rate)
}

const COLUMNS: &str = "namespace, job_id, region, model, question, repeat, cell, attempt, agent_id, fencing_token, digest, \
     recorded_at, status, input_digest, served_region, region_basis, served_model, request_id, endpoint, executor, \
     waited_ms, ran_ms, first_byte_ms, finish_reason, prompt_tokens, completion_tokens, output, response";

async fn bare(path: &Path, rows: u32, output_bytes: usize, batch_rows: usize) -> anyhow::Result<f64> {
    SqliteStore::open(path).await?.close().await;
    let mut conn = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(path)
        .pragma("synchronous", "full")
        .pragma("wal_autocheckpoint", "16384")
        .pragma("cache_size", "-65536")
        .disable_statement_logging()
        .connect()
        .await?;
    let records: Vec<_> = (0..rows).map(|i| record(1 << 40, i, output_bytes)).collect();
    let marks = vec!["?"; COLUMNS.split(',').count()].join(", ");
    let text = |n: usize| format!("INSERT INTO executions ({COLUMNS}) VALUES {}", vec![format!("({marks})"); n].join(", "));
    let start = Instant::now();
    for batch in records.chunks(batch_rows) {
        let mut tx = conn.begin().await?;
        for chunk in batch.chunks(BARE_CHUNK) {
            insert(&mut tx, text(chunk.len()), chunk).await?;
        }
        tx.commit().await?;
    }
    let rate = f64::from(rows) / start.elapsed().as_secs_f64();
    conn.close().await?;
    Ok(rate)
}

async fn insert(conn: &mut SqliteConnection, text: String, rows: &[Record]) -> anyhow::Result<()> {
    let mut a = SqliteArguments::default();
    for r in rows {
        bind(&mut a, r).map_err(anyhow::Error::from_boxed)?;
    }
    sqlx::query_with(sqlx::AssertSqlSafe(text), a).execute(conn).await?;
    Ok(())
}

fn bind(a: &mut SqliteArguments, r: &Record) -> Result<(), sqlx::error::BoxDynError> {
    let (Some(served), Outcome::Succeeded(success)) = (&r.body.served, &r.body.outcome) else {
        return Err("the bench makes successes only".into());
    };
    for text in ["default", r.job.as_str(), r.key.region.as_str(), r.key.model.as_str(), r.key.question.as_str()] {
        a.add(text)?;
    }
    a.add(r.key.repeat)?;
    a.add(r.cell.0)?;
    a.add(r.attempt)?;
    a.add(r.agent.as_str())?;
    a.add(r.lease.fencing.get() as i64)?;
    a.add(&r.body.digest.0[..])?;
    a.add(r.recorded_at.0)?;
    a.add("succeeded")?;
    a.add(&r.body.input_digest.0[..])?;
    for text in [&served.region, &served.basis.as_str().into(), &served.model, &served.request_id, &served.endpoint] {
        a.add(text.clone())?;
    }
    a.add(served.executor.clone())?;
    a.add(r.body.timings.waited_ms as i64)?;
    a.add(r.body.timings.ran_ms as i64)?;
    a.add(r.body.timings.first_byte_ms.map(|ms| ms as i64))?;
    a.add(success.finish_reason.clone())?;
    a.add(success.prompt_tokens.map(|n| n as i64))?;
    a.add(success.completion_tokens.map(|n| n as i64))?;
    a.add(&success.output[..])?;
    a.add(&success.response[..])
}
