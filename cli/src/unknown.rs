//! Names that a verb is given and that are not there: told with the nearest that is.

use std::collections::BTreeSet;

use semel_files::nearest;
use semel_proto::v1 as pb;
use tonic::{Code, Status};

use crate::{
    exit::Refused,
    road::{Jobs, failure},
    terminal::shown,
    verbs::list,
};

/// Known ids that are listed where none is near.
const MAX_LISTED: usize = 12;

/// There is no such job.
#[derive(Debug, thiserror::Error)]
#[error("there is no job {0:?}; `semel list` lists those that are")]
pub struct NoSuchJob(pub String);

impl NoSuchJob {
    /// With the nearest of the jobs that are there, if any is near.
    pub fn beside<'j>(self, known: impl IntoIterator<Item = &'j str>) -> anyhow::Error {
        match nearest(&self.0, known) {
            Some(near) => anyhow::anyhow!("there is no job {:?}; did you mean {near:?}?", self.0),
            None => self.into(),
        }
    }
}

/// An error as it is, or with the job that was meant where it says that there is no such one.
pub async fn with_nearest_job(error: anyhow::Error, jobs: Jobs) -> anyhow::Error {
    match error.downcast::<NoSuchJob>() {
        Ok(absent) => {
            // Only a help: without the list the error says enough.
            let known = list::all(jobs).await.unwrap_or_default();
            absent.beside(known.iter().map(|job| job.job_id.as_str()))
        }
        Err(other) => other,
    }
}

/// As [`failure`], of a call that chooses cells: ids that the job doesn't have are refused one by one, by the options
/// that named them, each with the nearest that it has.
pub async fn choice_failure(jobs: &mut Jobs, job_id: &str, chosen: &pb::CellFilter, status: Status) -> anyhow::Error {
    if !matches!(status.code(), Code::NotFound | Code::InvalidArgument) {
        return failure(status);
    }
    let request = pb::GetJobRequest { job_id: job_id.to_owned(), ..Default::default() };
    let answer = jobs.get_job(request).await.map(tonic::Response::into_inner);
    let lines = match answer {
        Ok(pb::GetJobResponse { spec: Some(spec), .. }) => refusals(job_id, &spec, chosen),
        _ => Vec::new(),
    };
    if lines.is_empty() { failure(status) } else { Refused(lines.join("\n")).into() }
}

/// A line for each part of a choice that the job doesn't have.
fn refusals(job_id: &str, spec: &pb::JobSpec, chosen: &pb::CellFilter) -> Vec<String> {
    let regions = ids(spec.models.iter().flat_map(|model| &model.regions));
    let models = ids(spec.models.iter().map(|model| &model.id));
    let questions = ids(spec.questions.iter().map(|question| &question.id));
    let axes = [
        ("region", &chosen.regions, regions),
        ("model", &chosen.models, models),
        ("question", &chosen.questions, questions),
    ];
    let mut lines = Vec::new();
    for (axis, asked, known) in axes {
        let set: BTreeSet<&str> = known.iter().copied().collect();
        for id in asked.iter().filter(|id| !set.contains(id.as_str())) {
            let help = match nearest(id, known.iter().copied()) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("it has {}", listed(&known)),
            };
            lines.push(format!("--{axis} {id:?} is no {axis} of the job {job_id:?}; {help}"));
        }
    }
    let samples = spec.repeat.unwrap_or(1);
    for repeat in chosen.repeats.iter().filter(|repeat| **repeat >= samples) {
        let most = samples.saturating_sub(1);
        lines.push(format!("--repeat {repeat} is no sample of the job {job_id:?}; write 0 to {most}"));
    }
    lines
}

/// Ids, each once, in their order.
fn ids<'s>(all: impl Iterator<Item = &'s String>) -> Vec<&'s str> {
    let mut seen = BTreeSet::new();
    all.map(String::as_str).filter(|id| seen.insert(*id)).collect()
}

fn listed(known: &[&str]) -> String {
    let mut words: Vec<String> = known.iter().take(MAX_LISTED).map(|id| shown(id)).collect();
    if known.len() > MAX_LISTED {
        words.push(format!("{} more", known.len() - MAX_LISTED));
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> pb::JobSpec {
        let model =
            |id: &str| pb::Model { id: id.to_owned(), regions: vec!["us-east".to_owned()], ..Default::default() };
        let question = |n: usize| pb::Question { id: format!("question-{n}"), ..Default::default() };
        pb::JobSpec {
            models: vec![model("small"), model("large")],
            questions: (0..20).map(question).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn each_unknown_id_is_told_with_the_nearest_or_with_those_that_are() {
        let owned = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        let chosen = pb::CellFilter {
            regions: owned(&["us-east", "us-eats"]),
            models: owned(&["huge"]),
            questions: owned(&["x"]),
            repeats: vec![0, 1],
        };
        let lines = refusals("j", &spec(), &chosen);
        assert_eq!(lines[0], r#"--region "us-eats" is no region of the job "j"; did you mean "us-east"?"#);
        assert_eq!(lines[1], r#"--model "huge" is no model of the job "j"; it has small, large"#);
        assert!(lines[2].ends_with("question-11, 8 more"), "{lines:?}");
        assert_eq!(lines[3], r#"--repeat 1 is no sample of the job "j"; write 0 to 0"#);
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn a_job_that_is_not_there_is_told_with_the_nearest() {
        let absent = || NoSuchJob("firts".to_owned());
        assert!(absent().beside(["other", "first"]).to_string().ends_with("did you mean \"first\"?"));
        assert!(absent().beside(["other"]).is::<NoSuchJob>());
    }
}
