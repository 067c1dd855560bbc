//! `semel cancel`: ends an open job.

use std::io::Write;

use clap::Args;
use semel_proto::v1 as pb;
use serde_json::{Value, json};

use crate::{
    arguments::{OutputArgs, Place},
    exit::Exit,
    hint, json, picture,
    road::steer,
    terminal::Out,
    verbs::here,
};

/// End an open job; what is recorded stays, the rest will not run
///
/// Again: the same answer. `semel retry JOB --status failed --reopen` opens it again. With --output json: { job: {…},
/// still_running }.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  semel cancel first --reason 'wrong prompts'")]
pub struct Arguments {
    /// The job's id.
    job: String,
    /// Why, for the audit log.
    #[arg(long, default_value = "")]
    reason: String,
    #[command(flatten)]
    output: OutputArgs,
}

/// Cancels it.
///
/// # Errors
/// There is no such job, or it is complete.
pub async fn run(arguments: &Arguments, place: &Place) -> anyhow::Result<Exit> {
    let request =
        pb::CancelJobRequest { job_id: arguments.job.clone(), reason: arguments.reason.clone(), ..Default::default() };
    let answer = steer(&place.target()?, &arguments.job, async |mut jobs| jobs.cancel_job(request).await).await?;
    let job = here(answer.job)?;
    let mut out = Out::new();
    if arguments.output.is_json() {
        out.json(&json!({ "job": Value::Object(json::job(&job)), "still_running": answer.still_running }))?;
        return Ok(Exit::Complete);
    }
    out.line(picture::headline(&job, None))?;
    if answer.still_running > 0 {
        out.line(format!(
            "{} calls are not yet known to have stopped; none of them will be recorded",
            answer.still_running
        ))?;
    }
    if job.state() == pb::JobState::Cancelled {
        out.line(format!(
            "to open it again: {}",
            hint::command(place, "retry", &arguments.job, "--status failed --reopen")
        ))?;
    }
    out.flush()?;
    Ok(Exit::Complete)
}
