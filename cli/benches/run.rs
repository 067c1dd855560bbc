//! The rate of 100,000 cells of an instant executor through `semel run`, beside its ceiling: bare
//! inserts of the same rows into the same tables, in the same run. Medians of a few rounds, and their ratio. Ends with an
//! error where that is less than a third, or where the process had more memory than it may have.

#![expect(clippy::print_stdout, reason = "a bench prints what it measured")]

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, SqliteConnection, sqlite::SqliteConnectOptions};

const CELLS: u32 = 100_000;
const ROUNDS: usize = 3;
/// What must be reached of the ceiling, and what the whole process may have of memory.
const LEAST_SHARE: f64 = 1.0 / 3.0;
const MAX_RESIDENT_MIB: u64 = 150;
/// Rows of one transaction of the ceiling: as many as a full batch of the coordinator.
const BATCH: u32 = 512;

fn main() -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut runs, mut ceilings, mut peak) = (Vec::new(), Vec::new(), None);
    for round in 1..=ROUNDS {
        let folder = tempfile::tempdir()?;
        let (took, resident) = run(folder.path())?;
        let bare = runtime.block_on(bare_inserts(folder.path()))?;
        println!(
            "round {round}: semel run {:>8.0} cells/s, {} at most; bare inserts {:>8.0} rows/s",
            rate(took),
            mib(resident),
            rate(bare)
        );
        runs.push(rate(took));
        ceilings.push(rate(bare));
        peak = peak.max(resident);
    }
    let (run, ceiling) = (median(runs), median(ceilings));
    println!(
        "median: semel run {run:.0} cells/s, bare inserts {ceiling:.0} rows/s: {:.0} % of the ceiling; {} at most",
        100.0 * run / ceiling,
        mib(peak)
    );
    let is_fast = run >= LEAST_SHARE * ceiling;
    let is_small = peak.map(|peak| peak < MAX_RESIDENT_MIB);
    println!("at least a third: {}", yes_or_no(is_fast));
    println!("under {MAX_RESIDENT_MIB} MiB: {}", is_small.map_or("not measured: there is no /proc", yes_or_no));
    Ok(if is_fast && is_small != Some(false) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn yes_or_no(is_so: bool) -> &'static str {
    if is_so { "yes" } else { "no" }
}

fn mib(resident: Option<u64>) -> String {
    resident.map_or("? MiB".to_owned(), |resident| format!("{resident} MiB"))
}

fn rate(took: Duration) -> f64 {
    f64::from(CELLS) / took.as_secs_f64()
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// A job of 1 KiB prompts, which `echo` answers with themselves. Returns the time of the whole
/// process, start and end included, and its peak of resident memory in MiB, where that can be read.
fn run(folder: &Path) -> anyhow::Result<(Duration, Option<u64>)> {
    let mut job = String::from(
        "job: bench\nregions: [us-east, eu-west, asia-pacific, sa-east]\nrepeat: 100\nmodels: [{ id: m }]\nquestions:\n",
    );
    let filler = "x".repeat(1_000);
    for question in 0..CELLS / 400 {
        job += &format!("  - {{ id: q{question}, prompt: \"question {question:06} {filler}\" }}\n");
    }
    fs::write(folder.join("job.yaml"), job)?;
    let start = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_semel"))
        .args(["run", "job.yaml", "--echo", "--slots", "256", "--store", "s.db"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    let mut resident = None;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        resident = peak_of(child.id()).or(resident);
        // between two looks at the condition
        std::thread::sleep(Duration::from_millis(5));
    };
    ensure!(status.success(), "semel run ended with {status}");
    Ok((start.elapsed(), resident))
}

/// The peak of a process's resident memory in MiB, as Linux tells it.
fn peak_of(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.div_ceil(1024))
}

/// The same rows into the same table of a new store, with the same durability, and nothing else.
async fn bare_inserts(folder: &Path) -> anyhow::Result<Duration> {
    let empty = folder.join("bare.db");
    semel_coordinator::store::sqlite::SqliteStore::open(&empty).await?.close().await;
    let mut connection = SqliteConnectOptions::new().filename(&empty).connect().await?;
    for pragma in ["journal_mode = wal", "synchronous = full", "foreign_keys = off"] {
        execute(&mut connection, format!("pragma {pragma}")).await?;
    }
    execute(&mut connection, format!("attach '{}' as full_store", folder.join("s.db").display())).await?;
    let (rows, first): (i64, i64) =
        sqlx::query_as("select count(*), min(rowid) from full_store.executions").fetch_one(&mut connection).await?;
    ensure!(rows == i64::from(CELLS), "{rows} rows were recorded");
    // Read once, so that the ceiling does not wait for the disk.
    execute(&mut connection, "select sum(length(output)) from full_store.executions".into()).await?;
    let start = Instant::now();
    for batch in 0..i64::from(CELLS.div_ceil(BATCH)) {
        let from = first + batch * i64::from(BATCH);
        let sql = format!(
            "insert into main.executions select * from full_store.executions where rowid >= {from} and rowid < {}",
            from + i64::from(BATCH)
        );
        execute(&mut connection, sql).await?;
    }
    let took = start.elapsed();
    let copied: i64 = sqlx::query_scalar("select count(*) from main.executions").fetch_one(&mut connection).await?;
    ensure!(copied == rows, "{copied} of {rows} rows were inserted");
    connection.close().await?;
    Ok(took)
}

async fn execute(connection: &mut SqliteConnection, sql: String) -> anyhow::Result<()> {
    sqlx::raw_sql(AssertSqlSafe(sql.clone())).execute(connection).await.context(sql)?;
    Ok(())
}
