//! `semel why`: why cells are not done.

use std::{io::Write, time::Duration};

use clap::Args;
use semel_proto::v1 as pb;
use serde_json::json;

use crate::{
    arguments::OutputArgs,
    exit::Exit,
    json, picture,
    rate::in_words,
    road::{Target, ask, failure},
    table::table,
    terminal::{Out, shown},
    verbs::get_job,
    words,
};

/// Say why cells of a job wait, largest groups first
///
/// Speaks to the coordinator that runs on the store, so while `semel run` works it says what that waits for. Without one
/// there are no agents, and it says so of every region. With --output json: { job, state, groups: [{ model, region, reason,
/// detail, cells, until_ms }] }.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  semel why first")]
pub struct Arguments {
    /// The job's id.
    job: String,
    #[command(flatten)]
    output: OutputArgs,
}

/// Says it.
///
/// # Errors
/// There is no such job, or it can't be asked.
pub async fn run(arguments: &Arguments, target: &Target) -> anyhow::Result<Exit> {
    let (job, groups) = ask(target, async |mut jobs| {
        let job = get_job(&mut jobs, &arguments.job).await?;
        let request = pb::ExplainPendingRequest { job_id: arguments.job.clone(), ..Default::default() };
        Ok((job, jobs.explain_pending(request).await.map_err(failure)?.into_inner().groups))
    })
    .await?;
    let mut out = Out::new();
    if arguments.output.is_json() {
        let groups: Vec<_> = groups.iter().map(json::group).collect();
        out.json(&json!({ "job": job.job_id, "state": words::state(job.state()), "groups": groups }))?;
        return Ok(Exit::Complete);
    }
    out.line(picture::headline(&job, None))?;
    if groups.is_empty() {
        out.line("nothing waits")?;
    } else {
        out.line("")?;
        out.line(table(&["cells", "model", "region", "reason", "more"], &[0], groups.iter().map(row)))?;
    }
    out.flush()?;
    Ok(Exit::Complete)
}

fn row(group: &pb::PendingGroup) -> Vec<String> {
    let until = group.until_ms.map(|ms| format!("for {} more", in_words(Duration::from_millis(ms))));
    let because = words::waits_because(group.reason());
    let detail = json::some(&group.detail).filter(|detail| *detail != because).map(shown);
    let more: Vec<String> = [detail, until].into_iter().flatten().collect();
    vec![group.cells.to_string(), shown(&group.model), shown(&group.region), because.to_owned(), more.join("; ")]
}
