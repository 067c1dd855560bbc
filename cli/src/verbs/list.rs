//! `semel list`: the jobs of a store.

use std::io::Write;

use clap::Args;
use semel_proto::v1 as pb;
use serde_json::Value;

use crate::{
    arguments::OutputArgs,
    exit::Exit,
    json, picture,
    road::{Jobs, Target, ask, failure},
    table::table,
    terminal::{Out, shown},
    words,
};

/// Jobs a page.
const PAGE: u32 = 1_000;

/// List the jobs, newest first
///
/// With --output json: an array of jobs, each with namespace, job, state, paused, expected, recorded, failed, leased,
/// pending, not_run, spec_digest, submitted_at, deadline_at, completed_at, closed_at.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  semel list\n  semel list --output json | jq -r '.[] | select(.state == \"open\") | .job'"
)]
pub struct Arguments {
    #[command(flatten)]
    output: OutputArgs,
}

/// Lists them.
///
/// # Errors
/// They can't be read or written.
pub async fn run(arguments: &Arguments, target: &Target) -> anyhow::Result<Exit> {
    let jobs = ask(target, all).await?;
    let mut out = Out::new();
    if arguments.output.is_json() {
        out.json(&jobs.iter().map(json::job).map(Value::Object).collect::<Vec<_>>())?;
        return Ok(Exit::Complete);
    }
    if jobs.is_empty() {
        out.line("no jobs; `semel run JOB` runs the first")?;
    } else {
        let headers = ["job", "state", "expected", "recorded", "failed", "submitted"];
        out.line(table(&headers, &[2, 3, 4], jobs.iter().map(row)))?;
    }
    out.flush()?;
    Ok(Exit::Complete)
}

/// Every job, page by page.
///
/// # Errors
/// They can't be read.
pub async fn all(mut jobs: Jobs) -> anyhow::Result<Vec<pb::Job>> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = pb::ListJobsRequest { page_size: PAGE, page_token, ..Default::default() };
        let page = jobs.list_jobs(request).await.map_err(failure)?.into_inner();
        all.extend(page.jobs);
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        page_token = page.next_page_token;
    }
}

fn row(job: &pb::Job) -> Vec<String> {
    let counts = job.counts.unwrap_or_default();
    let paused = if job.paused && picture::is_pausable(job.state()) { ", paused" } else { "" };
    vec![
        shown(&job.job_id),
        format!("{}{paused}", words::state(job.state())),
        counts.expected.to_string(),
        counts.recorded.to_string(),
        counts.failed.to_string(),
        job.submitted_at.as_ref().and_then(words::time).unwrap_or_default(),
    ]
}
