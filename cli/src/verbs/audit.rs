//! `semel audit`: is every number right? Recounted by key, from the tables alone.

mod report;

use std::{io::Write, path::Path};

use clap::Args;
use semel_coordinator::{
    audit::{audit_file, jobs_of_file},
    store::DEFAULT_NAMESPACE,
};
use semel_core::id::JobId;
use semel_proto::v1 as pb;

pub use self::report::Report;
use crate::{
    arguments::{OutputArgs, Place},
    exit::Exit,
    road::{Jobs, Target, ask, existing, failure},
    terminal::Out,
    unknown::NoSuchJob,
    verbs::{get_job, list},
};

/// Recount a job from the tables alone, by key: expected, recorded, missing, extra, duplicate
///
/// Reads the store's file and nothing else, whether a coordinator runs on it or not, and changes nothing. It asks whether the
/// tables agree with themselves and with the job's state, not whether the job is done: the exit code is 0 where they do, also
/// where cells are missing because the job is open, cancelled or expired, or where some failed (for that look at the numbers);
/// and 5 where any number is wrong: a record that no cell asks for, two of one cell, a complete job with a cell missing, or
/// whatever else breaks a promise. With --coordinator, that coordinator recounts from its tables. With --output json: an array with an object
/// for each job: { job, state, exact, expected, recorded, missing, extra, duplicate, failed, by_axis: [{ model, region,
/// expected, … }], violations: [text], violations_found }.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  semel audit first\n  semel audit --all --output json")]
pub struct Arguments {
    /// The job's id; every job of the store without it.
    #[arg(conflicts_with = "all")]
    job: Option<String>,
    /// Every job of the store.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Audits.
///
/// # Errors
/// There is no such store or job, or it can't be read.
pub async fn run(arguments: &Arguments, place: &Place) -> anyhow::Result<Exit> {
    let reports = match place.target()? {
        Target::Store(store) => {
            let ids = match &arguments.job {
                Some(job) => vec![job.clone()],
                None => {
                    let jobs = jobs_of_file(existing(&store)?, DEFAULT_NAMESPACE).await?;
                    jobs.iter().map(|job| job.as_str().to_owned()).collect()
                }
            };
            let mut reports = Vec::new();
            for id in ids {
                reports.push(of_store(&store, &id).await?);
            }
            reports
        }
        target @ Target::Remote { .. } => {
            ask(&target, async |mut jobs| {
                let ids = match &arguments.job {
                    Some(job) => vec![job.clone()],
                    None => list::all(jobs.clone()).await?.into_iter().map(|job| job.job_id).collect(),
                };
                let mut reports = Vec::new();
                for id in ids {
                    reports.push(of_coordinator(&mut jobs, &id).await?);
                }
                Ok(reports)
            })
            .await?
        }
    };
    say(&reports, arguments.output)?;
    Ok(if reports.iter().all(Report::is_right) { Exit::Complete } else { Exit::Difference })
}

fn say(reports: &[Report], output: OutputArgs) -> anyhow::Result<()> {
    let mut out = Out::new();
    if output.is_json() {
        return out.json(&reports.iter().map(Report::as_json).collect::<Vec<_>>());
    }
    if reports.is_empty() {
        out.line("no jobs to audit")?;
    }
    for (index, report) in reports.iter().enumerate() {
        if index > 0 {
            out.line("")?;
        }
        out.line(report.as_text())?;
    }
    Ok(out.flush()?)
}

/// Audits a job of a store's file.
///
/// # Errors
/// There is no such store or job, or it can't be read.
pub async fn of_store(store: &Path, job: &str) -> anyhow::Result<Report> {
    let store = existing(store)?;
    if let Some(report) = audit_file(store, DEFAULT_NAMESPACE, &JobId::new(job)).await? {
        return Ok(Report::of_tables(job, &report));
    }
    let jobs = jobs_of_file(store, DEFAULT_NAMESPACE).await?;
    Err(NoSuchJob(job.to_owned()).beside(jobs.iter().map(JobId::as_str)))
}

/// Has a coordinator audit a job from its tables.
///
/// # Errors
/// There is no such job, or it can't be asked.
pub async fn of_coordinator(jobs: &mut Jobs, job: &str) -> anyhow::Result<Report> {
    // The state first: what is recorded after it can't make a complete job look as if it missed a cell.
    let state = get_job(jobs, job).await?.state();
    let request = pb::AuditJobRequest { job_id: job.to_owned(), ..Default::default() };
    let response = jobs.audit_job(request).await.map_err(failure)?.into_inner();
    Ok(Report::of_response(job, state, response))
}
