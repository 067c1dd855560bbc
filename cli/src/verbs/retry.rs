//! `semel retry`: recorded cells run again.

use std::io::Write;

use clap::{Args, ValueEnum};
use semel_proto::v1 as pb;
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    arguments::OutputArgs,
    attendance::NOTHING_RUNS,
    exit::Exit,
    json, picture,
    road::{Road, Target, steering_failure, walk},
    terminal::Out,
    unknown::choice_failure,
    verbs::here,
};

/// Run recorded cells again, with the same frozen input
///
/// Their records move, whole, to the history. An axis that isn't named takes all; one may be named several times. The
/// cells wait for agents: `semel run` with the same job file runs them. --reopen opens a cancelled or expired job again, so that
/// its cells without a record run; those that failed run again with them. With --output json: { job: {…}, retried }.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  semel retry first --status failed\n  semel retry first --status succeeded --model smollm2-hot --region us-east\n  semel retry first --reopen"
)]
pub struct Arguments {
    /// The job's id.
    job: String,
    /// Which records; those that failed if --reopen stands without it.
    #[arg(long, value_enum, required_unless_present = "reopen")]
    status: Option<Status>,
    #[command(flatten)]
    cells: CellArgs,
    /// Open a cancelled or expired job again: cells without a record run as well.
    #[arg(long)]
    reopen: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// The status of records.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Status {
    /// Those that failed.
    Failed,
    /// Those that succeeded.
    Succeeded,
}

/// Chooses cells by their axes.
#[derive(Clone, Debug, Default, Args)]
pub struct CellArgs {
    /// Only cells of this model.
    #[arg(long = "model", value_name = "ID")]
    models: Vec<String>,
    /// Only cells of this region.
    #[arg(long = "region", value_name = "ID")]
    regions: Vec<String>,
    /// Only cells of this question.
    #[arg(long = "question", value_name = "ID")]
    questions: Vec<String>,
    /// Only this sample, from 0.
    #[arg(long = "repeat", value_name = "N")]
    repeats: Vec<u32>,
}

impl From<CellArgs> for pb::CellFilter {
    fn from(cells: CellArgs) -> Self {
        let CellArgs { models, regions, questions, repeats } = cells;
        Self { regions, models, questions, repeats }
    }
}

/// Sends them back.
///
/// # Errors
/// There is no such job, it is closed, or an axis has no such id.
pub async fn run(arguments: &Arguments, target: &Target) -> anyhow::Result<Exit> {
    let (status, which) = match arguments.status.unwrap_or(Status::Failed) {
        Status::Failed => (pb::ExecutionStatus::Failed, "failed"),
        Status::Succeeded => (pb::ExecutionStatus::Succeeded, "succeeded"),
    };
    let (answer, there) = walk(target, async |road: &Road| {
        let mut jobs = road.jobs();
        let chosen = pb::CellFilter::from(arguments.cells.clone());
        let request = pb::RetryJobRequest {
            job_id: arguments.job.clone(),
            status: status.into(),
            filter: Some(chosen.clone()),
            reopen: arguments.reopen,
            ..Default::default()
        };
        match jobs.retry_job(request).await {
            Ok(response) => Ok((response.into_inner(), road.attendance().await)),
            Err(status) if status.code() == Code::InvalidArgument => {
                Err(choice_failure(&mut jobs, &arguments.job, &chosen, status).await)
            }
            Err(status) => Err(steering_failure(jobs, &arguments.job, status).await),
        }
    })
    .await?;
    let job = here(answer.job)?;
    let mut out = Out::new();
    if arguments.output.is_json() {
        out.json(&json!({ "job": Value::Object(json::job(&job)), "retried": answer.retried }))?;
        return Ok(Exit::Complete);
    }
    let without = job.counts.map_or(0, |counts| counts.pending);
    out.line(match answer.retried {
        0 if arguments.reopen && without > 0 && arguments.status.is_none() => {
            format!("the job is open, and its {without} without a record wait")
        }
        0 if arguments.reopen && without > 0 => {
            format!(
                "none of these cells has a record that {which}; the job is open, and its {without} without one wait"
            )
        }
        0 => format!("none of these cells has a record that {which}: nothing runs again"),
        1 => "1 cell runs again; the old record is in the history".to_owned(),
        more => format!("{more} cells run again; the old records are in the history"),
    })?;
    out.line(picture::headline(&job, None))?;
    if without > 0 && !there.is_running() {
        out.line(format!("{NOTHING_RUNS}; the same `semel run ...` runs them"))?;
    }
    out.flush()?;
    Ok(Exit::Complete)
}
