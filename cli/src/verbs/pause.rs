//! `semel pause` and `semel resume`: whether a job's cells are handed out.

use std::io::Write;

use clap::Args;
use semel_proto::v1 as pb;

use crate::{
    arguments::OutputArgs,
    exit::Exit,
    json, picture,
    road::{Target, steer},
    terminal::Out,
    verbs::here,
};

/// Hand out no more cells of a job; those that run go on
///
/// With --output json: the job, as in `list`, with by_axis.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  semel pause first")]
pub struct Arguments {
    /// The job's id.
    job: String,
    #[command(flatten)]
    output: OutputArgs,
}

/// Hand out cells of a paused job again
///
/// With --output json: the job, as in `list`, with by_axis.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  semel resume first")]
pub struct ResumeArguments {
    /// The job's id.
    job: String,
    #[command(flatten)]
    output: OutputArgs,
}

/// Pauses it.
///
/// # Errors
/// There is no such job, or it isn't open.
pub async fn pause(arguments: &Arguments, target: &Target) -> anyhow::Result<Exit> {
    let request = pb::PauseJobRequest { job_id: arguments.job.clone(), ..Default::default() };
    let answer = steer(target, &arguments.job, async |mut jobs| jobs.pause_job(request).await).await?;
    say(&here(answer.job)?, arguments.output)
}

/// Resumes it.
///
/// # Errors
/// There is no such job, or it isn't open.
pub async fn resume(arguments: &ResumeArguments, target: &Target) -> anyhow::Result<Exit> {
    let request = pb::ResumeJobRequest { job_id: arguments.job.clone(), ..Default::default() };
    let answer = steer(target, &arguments.job, async |mut jobs| jobs.resume_job(request).await).await?;
    say(&here(answer.job)?, arguments.output)
}

fn say(job: &pb::Job, output: OutputArgs) -> anyhow::Result<Exit> {
    let mut out = Out::new();
    if output.is_json() {
        out.json(&json::job(job))?;
    } else {
        out.line(picture::headline(job, None))?;
        out.flush()?;
    }
    Ok(Exit::Complete)
}
