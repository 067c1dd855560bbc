//! How fast the embedded store records, beside bare inserts of the same rows into the same table.
//!
//!     cargo run --release -p semel-coordinator --example bench_store -- [rows] [output bytes] [folder]
//!
//! A commit of the store moves the leadership, checks each record's lease in its grant, inserts the
//! records, deletes the grants that have ended and inserts new ones. The bare insert does none of this.
//! CPU time is this process's, and does not depend on what else the machine does.

#![allow(clippy::print_stdout)]

use std::{path::Path, sync::Arc, time::Instant};

use semel_coordinator::{
    audit::audit_file,
    jobspec,
    store::{DEFAULT_NAMESPACE, Store, sqlite::SqliteStore},
};
use semel_core::{
    batch::{Batch, GrantRow, JobRow, MAX_GRANT, Outcome, Record, ReportBody, Served, StoredSpec, Success, Timings},
    id::{AgentId, Cell, Digest, FencingToken, Incarnation, LeaseToken, Nonce, Seq, UnixMs},
    words::RegionBasis,
};
use semel_spec::{JobSpec, Model, Question, Resolved};
use sha2::{Digest as _, Sha256};
use sqlx::{Arguments, ConnectOptions, Connection, SqliteConnection, sqlite::SqliteArguments};

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
    println!("{:>6} {:>24} {:>24} {:>12}", "batch", "bare rows/s (CPU µs)", "store rows/s (CPU µs)", "share (CPU)");
    for batch in [1usize, 64, 256, 512] {
        let rows = rows.min(batch as u32 * 2_000);
        let job = Job::new(rows, output_bytes)?;
        let bare = bare(&dir.path().join(format!("bare{batch}.db")), &job, rows, batch).await?;
        let path = dir.path().join(format!("store{batch}.db"));
        let store = through_store(&path, &job, rows, batch).await?;
        let (b, s) = (bare.rate(rows), store.rate(rows));
        println!(
            "{batch:>6} {:>14.0} ({:>6.1}) {:>15.0} ({:>6.1}) {:>4.0} % ({:.0} %)",
            b.0,
            b.1,
            s.0,
            s.1,
            100.0 * s.0 / b.0,
            100.0 * b.1 / s.1
        );
        if batch == 512 {
            read_back(&path, &job).await?;
        }
    }
    Ok(())
}

/// What a run took: on the clock, and of the processor.
struct Took {
    wall_s: f64,
    cpu_s: f64,
}

impl Took {
    /// Rows a second, and microseconds of CPU a row.
    fn rate(&self, rows: u32) -> (f64, f64) {
        (f64::from(rows) / self.wall_s, 1e6 * self.cpu_s / f64::from(rows))
    }
}

struct Watch(Instant, f64);

impl Watch {
    fn start() -> Self {
        Self(Instant::now(), cpu_s())
    }
    fn took(self) -> Took {
        Took { wall_s: self.0.elapsed().as_secs_f64(), cpu_s: cpu_s() - self.1 }
    }
}

/// User and system time of this process, from proc(5): fields 14 and 15 of stat, in hundredths of a second.
fn cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    fields.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

async fn read_back(path: &Path, job: &Job) -> anyhow::Result<()> {
    let store = SqliteStore::open(path).await?;
    let epoch = store.campaign().await?;
    let watch = Watch::start();
    let loaded = store.load(epoch).await?;
    let took = watch.took();
    println!("load: {:.2} s, CPU {:.2} s, {} records", took.wall_s, took.cpu_s, loaded.jobs[0].recorded.len());
    let watch = Watch::start();
    let report = audit_file(path, DEFAULT_NAMESPACE, &job.row.id).await?.expect("the job is there");
    let took = watch.took();
    println!("audit: {:.2} s, CPU {:.2} s, {:?}", took.wall_s, took.cpu_s, report.total);
    println!("{:?}", report.violations.first());
    Ok(())
}

/// A job of as many questions in three regions as make the rows.
struct Job {
    row: JobRow,
    spec: Resolved,
    output_bytes: usize,
}

impl Job {
    fn new(rows: u32, output_bytes: usize) -> anyhow::Result<Self> {
        let question = |n| Question {
            id: format!("question-{n:07}"),
            prompt: Some(format!("What is {n}?")),
            ..Question::default()
        };
        let model = Model {
            id: "mistral-7b".into(),
            regions: ["us-east", "eu-west", "asia-pacific"].map(String::from).to_vec(),
            ..Model::default()
        };
        let spec = JobSpec {
            questions: (0..rows.div_ceil(3)).map(question).collect(),
            models: vec![model],
            ..JobSpec::default()
        };
        let checked = semel_spec::check(spec).map_err(|faults| anyhow::anyhow!("{faults:?}"))?;
        let row = JobRow {
            id: "bench".into(),
            digest: Digest(checked.digest),
            spec: Arc::new(StoredSpec {
                sent: checked.spec.canonical().into(),
                resolved: checked.resolved.to_json().into(),
                input_version: checked.resolved.input_version,
            }),
            matrix: Arc::new(jobspec::matrix(&checked.resolved)?),
            policy: jobspec::policy(&checked.resolved),
            submitted_at: UnixMs(0),
            deadline_at: UnixMs(0),
        };
        Ok(Self { row, spec: checked.resolved, output_bytes })
    }

    fn record(&self, first: u64, i: u32) -> Record {
        let output: Vec<u8> = (0..self.output_bytes).map(|b| b'a' + ((b as u32 + i) % 26) as u8).collect();
        let key = self.row.matrix.key(Cell(i)).expect("a cell of the job");
        let input = jobspec::input(&self.spec, &self.row.matrix, Cell(i)).expect("a cell of the job");
        Record {
            job: self.row.id.clone(),
            cell: Cell(i),
            lease: LeaseToken { fencing: token(first, i), nonce: Nonce([7; 16]) },
            grant: token(first, i - i % MAX_GRANT as u32),
            attempt: 1,
            agent: AgentId::new("agent-1"),
            body: Arc::new(ReportBody {
                digest: Digest(Sha256::digest(&output).into()),
                input_digest: Digest(Sha256::digest(&input).into()),
                served: Some(Served {
                    region: key.region.as_str().into(),
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
            key,
            recorded_at: UnixMs(1_800_000_000_000),
        }
    }
}

fn token(first: u64, i: u32) -> FencingToken {
    FencingToken::from_u64(first + u64::from(i)).expect("a token of epoch 1 or later")
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

async fn through_store(path: &Path, job: &Job, rows: u32, batch_rows: usize) -> anyhow::Result<Took> {
    let store = SqliteStore::open(path).await?;
    let epoch = store.campaign().await?;
    let first = FencingToken::new(epoch, 0).get();
    let step = (batch_rows as u32).max(MAX_GRANT as u32);
    let mut batches = vec![Batch::default()];
    batches[0].jobs.push(job.row.clone());
    batches[0].grants = grants(first, 0, step.min(rows));
    for start in (0..rows).step_by(batch_rows) {
        let end = rows.min(start + batch_rows as u32);
        let mut batch = Batch::default();
        batch.records = (start..end).map(|i| job.record(first, i)).collect();
        if end.is_multiple_of(step) {
            batch.ended = grants(first, end - step, end).iter().map(|g| g.first).collect();
            batch.grants = grants(first, end, rows.min(end + step));
        }
        batches.push(batch);
    }
    let batches: Vec<_> = batches.into_iter().map(Arc::new).collect();
    let watch = Watch::start();
    let mut seq = Seq(0);
    for batch in batches {
        seq = seq.next();
        store.commit(epoch, seq, batch).await?;
    }
    let took = watch.took();
    store.close().await;
    Ok(took)
}

const COLUMNS: &str = "namespace, job_id, region, model, question, repeat, cell, attempt, agent_id, fencing_token, digest, \
     recorded_at, status, input_digest, served_region, region_basis, served_model, request_id, endpoint, executor, \
     waited_ms, ran_ms, first_byte_ms, finish_reason, prompt_tokens, completion_tokens, output, response";

async fn bare(path: &Path, job: &Job, rows: u32, batch_rows: usize) -> anyhow::Result<Took> {
    SqliteStore::open(path).await?.close().await;
    let mut conn = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(path)
        .pragma("synchronous", "full")
        .pragma("wal_autocheckpoint", "16384")
        .pragma("cache_size", "-65536")
        .disable_statement_logging()
        .connect()
        .await?;
    let records: Vec<_> = (0..rows).map(|i| job.record(1 << 40, i)).collect();
    let marks = vec!["?"; COLUMNS.split(',').count()].join(", ");
    let text =
        |n: usize| format!("INSERT INTO executions ({COLUMNS}) VALUES {}", vec![format!("({marks})"); n].join(", "));
    let full = text(BARE_CHUNK);
    let watch = Watch::start();
    for batch in records.chunks(batch_rows) {
        let mut tx = conn.begin().await?;
        for chunk in batch.chunks(BARE_CHUNK) {
            let text = if chunk.len() == BARE_CHUNK { full.clone() } else { text(chunk.len()) };
            insert(&mut tx, text, chunk).await?;
        }
        tx.commit().await?;
    }
    let took = watch.took();
    conn.close().await?;
    Ok(took)
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
