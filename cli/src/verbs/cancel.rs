//! `semel cancel`: ends an open job.

use std::io::Write;

use anyhow::bail;
use clap::Args;
use semel_proto::v1 as pb;
use serde_json::{Value, json};

use crate::{
    arguments::{OutputArgs, Place},
    exit::{Closed, Exit},
    hint, json, picture,
    road::steer,
    terminal::Out,
    verbs::here,
};

/// End an open job; what is recorded stays, the rest will not run
///
/// Of a job that is cancelled already: the same answer. Of one that is complete there is nothing to cancel, and of one that
/// has expired neither: that is an error. `semel retry JOB --reopen` opens a cancelled or expired job again. With --output
/// json: { job: {…}, still_running }.
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
/// There is no such job, or it is complete or expired.
pub async fn run(arguments: &Arguments, place: &Place) -> anyhow::Result<Exit> {
    let request =
        pb::CancelJobRequest { job_id: arguments.job.clone(), reason: arguments.reason.clone(), ..Default::default() };
    let answer = steer(&place.target()?, &arguments.job, async |mut jobs| jobs.cancel_job(request).await).await?;
    let job = here(answer.job)?;
    let id = &arguments.job;
    match job.state() {
        pb::JobState::Complete => bail!("job {id:?} is complete: there is nothing to cancel; its records stay"),
        pb::JobState::Expired => {
            let again = hint::reopen(place, &job);
            let words = format!("job {id:?} is expired: there is nothing to cancel; to open it again: {again}");
            return Err(Closed(words).into());
        }
        _ => {}
    }
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
    out.line(format!("to open it again: {}", hint::reopen(place, &job)))?;
    out.flush()?;
    Ok(Exit::Complete)
}
