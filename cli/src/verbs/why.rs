//! `semel why`: why cells are not done.

mod failures;
mod holders;

use std::{io::Write, time::Duration};

use clap::Args;
use semel_proto::v1 as pb;
use serde_json::{Value, json};

use self::{failures::Failures, holders::Holders};
use crate::{
    arguments::{OutputArgs, Place},
    attendance::Attendance,
    exit::Exit,
    hint, json, picture,
    rate::in_words,
    road::{Road, failure, walk},
    table::table,
    terminal::{Out, one_line, shown},
    verbs::get_job_and_spec,
    words,
};

/// Characters of a group's words that are shown; `--output json` has all.
const MAX_DETAIL_CHARS: usize = 400;

/// Say why cells of a job wait, and what failed those that did; largest groups first
///
/// Speaks to the coordinator that runs on the store, so while `semel run` works it says what that waits for. Without one
/// nothing runs, and it says so. With --output json: { job, state, running: whether a coordinator runs, groups: [{ model,
/// region, reason, detail, cells, until_ms, agents: [{ agent, cells, oldest_ms }] of leased ones }], failed, failures: [{ reason,
/// code, cells, models, regions, example: {…} }], by kind; failures_read and leases_read: { complete, read }, where complete is false if
/// there are more than were read }. A reason is nothing_is_running where no_agent_in_region is so because nothing was started.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  semel why first")]
pub struct Arguments {
    /// The job's id.
    job: String,
    #[command(flatten)]
    output: OutputArgs,
}

/// What there is to say.
struct Told {
    job: pb::Job,
    policy: pb::Policy,
    groups: Vec<pb::PendingGroup>,
    holders: Holders,
    failures: Failures,
    there: Attendance,
}

/// Says it.
///
/// # Errors
/// There is no such job, or it can't be asked.
pub async fn run(arguments: &Arguments, place: &Place) -> anyhow::Result<Exit> {
    let told = walk(&place.target()?, async |road: &Road| ask(road, &arguments.job).await).await?;
    let mut out = Out::new();
    if arguments.output.is_json() {
        out.json(&told.as_json())?;
        return Ok(Exit::Complete);
    }
    for line in told.as_lines(place) {
        out.line(line)?;
    }
    out.flush()?;
    Ok(Exit::Complete)
}

async fn ask(road: &Road, job_id: &str) -> anyhow::Result<Told> {
    let mut jobs = road.jobs();
    let (job, spec) = get_job_and_spec(&mut jobs, job_id).await?;
    let request = pb::ExplainPendingRequest { job_id: job_id.to_owned(), ..Default::default() };
    let groups = jobs.explain_pending(request).await.map_err(failure)?.into_inner().groups;
    let is_leased = groups.iter().any(|group| group.reason() == pb::WaitReason::Leased);
    let has_failed = job.counts.is_some_and(|counts| counts.failed > 0);
    Ok(Told {
        holders: if is_leased { Holders::of(road.admin(), job_id).await? } else { Holders::default() },
        failures: if has_failed { Failures::of(&mut jobs, job_id).await? } else { Failures::default() },
        there: road.attendance().await,
        policy: spec.policy.unwrap_or_default(),
        job,
        groups,
    })
}

impl Told {
    fn as_json(&self) -> Value {
        let group = |group: &pb::PendingGroup| {
            let mut value = json::group(group, &self.there);
            value["agents"] = self.holders.as_json(group);
            value
        };
        json!({
            "job": self.job.job_id,
            "state": words::state(self.job.state()),
            "running": self.there.is_running(),
            "groups": self.groups.iter().map(group).collect::<Vec<_>>(),
            "failed": self.job.counts.map_or(0, |counts| counts.failed),
            "failures": self.failures.as_json(),
            "failures_read": self.failures.extent(),
            "leases_read": self.holders.extent(),
        })
    }

    fn as_lines(&self, place: &Place) -> Vec<String> {
        let mut lines = vec![picture::headline(&self.job, None)];
        lines.extend(self.there.told(&self.job));
        if self.groups.is_empty() {
            lines.push("nothing waits".to_owned());
        } else {
            let rows = self.groups.iter().map(|group| self.row(group));
            lines.extend([String::new(), table(&["cells", "model", "region", "reason", "more"], &[0], rows)]);
            lines.extend(self.holders.left_out());
            lines.extend(self.ends());
        }
        lines.extend(self.failed(place));
        lines
    }

    fn row(&self, group: &pb::PendingGroup) -> Vec<String> {
        let until = group.until_ms.map(|ms| format!("for {} more", in_words(Duration::from_millis(ms))));
        let because = self.there.because(group.reason());
        let detail = one_line(group.detail.as_bytes(), MAX_DETAIL_CHARS);
        let detail = Some(detail).filter(|detail| !detail.is_empty() && detail != because);
        let holders = self.holders.told(group, &self.there);
        let more: Vec<String> = detail.into_iter().chain(until).chain(holders).collect();
        vec![group.cells.to_string(), shown(&group.model), shown(&group.region), because.to_owned(), more.join("; ")]
    }

    /// When leases end, where any run.
    fn ends(&self) -> Option<String> {
        let is_leased = self.groups.iter().any(|group| group.reason() == pb::WaitReason::Leased);
        let (run, cold) = (self.policy.run_timeout_ms?, self.policy.cold_timeout_ms?);
        let [run, cold] = [run, cold].map(|ms| in_words(Duration::from_millis(ms)));
        (is_leased && self.there.is_running()).then(|| {
            format!(
                "a lease ends with its result, with the run timeout ({run}; {cold} on a model that is not warm yet), or soon \
                 after its agent falls silent"
            )
        })
    }

    /// What failed, and what to do about it.
    fn failed(&self, place: &Place) -> Vec<String> {
        let mut lines = self.failures.as_lines();
        if lines.is_empty() {
            return lines;
        }
        lines.insert(0, String::new());
        if let Some(key) = self.failures.example() {
            lines.push(format!("one of them whole: {}", hint::cell(place, key)));
        }
        let retry = match self.job.state() {
            pb::JobState::Cancelled | pb::JobState::Expired => hint::reopen(place, &self.job),
            _ => hint::command(place, "retry", &self.job.job_id, "--status failed"),
        };
        lines.push(format!("to run them again: {retry}, and then the same `semel run ...`"));
        lines
    }
}
