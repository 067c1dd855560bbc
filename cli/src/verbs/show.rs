//! `semel show`: a job, or one cell whole.

mod cell;

use std::io::Write;

use clap::Args;
use semel_proto::v1 as pb;
use serde_json::Value;

use crate::{
    arguments::{OutputArgs, Place},
    attendance::Attendance,
    exit::Exit,
    json, picture,
    road::{Road, walk},
    terminal::Out,
    unknown::choice_failure,
    verbs::{get_job, get_job_and_spec},
    words,
};

/// Show a job: its counts and its matrix; or one cell of it whole
///
/// With --region, --model and --question one cell: its input, its answer, who served it, usage, times, and every attempt
/// that did not go well, or why it waits. With --output json: the job as in `list`, with by_axis: [{ model, region, expected,
/// recorded, failed, leased, pending, not_run }]; of a cell: { repeat, samples, input, input_digest, execution: {…} or null, wait_reason,
/// wait_detail, attempts: [{…}] }.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  semel show first\n  semel show first --region us-east --model smollm2-hot --question capital"
)]
pub struct Arguments {
    /// The job's id.
    job: String,
    /// Of one cell: its region.
    #[arg(long, value_name = "ID", requires_all = ["model", "question"])]
    region: Option<String>,
    /// Of one cell: its model.
    #[arg(long, value_name = "ID", requires_all = ["region", "question"])]
    model: Option<String>,
    /// Of one cell: its question.
    #[arg(long, value_name = "ID", requires_all = ["region", "model"])]
    question: Option<String>,
    /// Of one cell: its sample, from 0 to one less than the job's repeat. [default: 0]
    #[arg(long, value_name = "N", requires = "question")]
    repeat: Option<u32>,
    #[command(flatten)]
    output: OutputArgs,
}

impl Arguments {
    fn key(&self) -> Option<pb::ExecutionKey> {
        Some(pb::ExecutionKey {
            job_id: self.job.clone(),
            region: self.region.clone()?,
            model: self.model.clone()?,
            question: self.question.clone()?,
            repeat: self.repeat.unwrap_or_default(),
            ..Default::default()
        })
    }
}

/// Shows it.
///
/// # Errors
/// There is no such job or cell, or it can't be asked.
pub async fn run(arguments: &Arguments, place: &Place) -> anyhow::Result<Exit> {
    let target = place.target()?;
    let mut out = Out::new();
    if let Some(key) = arguments.key() {
        let request = pb::GetExecutionRequest { key: Some(key.clone()) };
        let (answer, samples, there) = walk(&target, async |road: &Road| {
            let mut jobs = road.jobs();
            let answer = match jobs.get_execution(request).await {
                Ok(response) => response.into_inner(),
                Err(status) => return Err(choice_failure(&mut jobs, &arguments.job, &choice(&key), status).await),
            };
            let (_, spec) = get_job_and_spec(&mut jobs, &arguments.job).await?;
            Ok((answer, spec.repeat.unwrap_or(1), road.attendance().await))
        })
        .await?;
        if arguments.output.is_json() {
            out.json(&cell::as_json(&key, samples, &answer, &there))?;
        } else {
            out.line(cell::as_text(&key, samples, &answer, &there))?;
        }
    } else {
        let (job, there) = walk(&target, async |road: &Road| {
            Ok((get_job(&mut road.jobs(), &arguments.job).await?, road.attendance().await))
        })
        .await?;
        if arguments.output.is_json() {
            out.json(&Value::Object(json::job(&job)))?;
        } else {
            out.line(as_text(&job, &there))?;
        }
    }
    out.flush()?;
    Ok(Exit::Complete)
}

/// The parts of a key, as options chose them.
fn choice(key: &pb::ExecutionKey) -> pb::CellFilter {
    pb::CellFilter {
        regions: vec![key.region.clone()],
        models: vec![key.model.clone()],
        questions: vec![key.question.clone()],
        repeats: vec![key.repeat],
    }
}

fn as_text(job: &pb::Job, there: &Attendance) -> String {
    let mut lines = picture::lines(job, &[], None, None);
    lines.extend(there.told(job));
    let times = [
        ("submitted", &job.submitted_at),
        ("deadline", &job.deadline_at),
        ("completed", &job.completed_at),
        ("closed", &job.closed_at),
    ];
    for (what, time) in times {
        if let Some(time) = time.as_ref().and_then(words::time) {
            lines.push(format!("{what:<9}  {time}"));
        }
    }
    lines.push(format!("digest     {}", words::hex(&job.spec_digest)));
    lines.join("\n")
}
