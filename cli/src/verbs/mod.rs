//! A file per verb.

pub mod audit;
pub mod cancel;
pub mod check;
pub mod completions;
pub mod export;
pub mod list;
pub mod pause;
pub mod retry;
pub mod run;
pub mod schema;
pub mod selftest;
pub mod show;
pub mod why;

use semel_proto::v1 as pb;

use crate::{
    arguments::{Arguments, Verb},
    exit::Exit,
    road::{Jobs, failure},
};

/// Does what the command line asks.
///
/// # Errors
/// It can't be done; [`crate::exit::report`] says why.
pub async fn run(arguments: Arguments) -> anyhow::Result<Exit> {
    let place = arguments.place;
    match arguments.verb {
        Verb::Run(arguments) => run::run(arguments, &place).await,
        Verb::Check(arguments) => check::run(&arguments, &place).await,
        Verb::Audit(arguments) => audit::run(&arguments, &place).await,
        Verb::List(arguments) => list::run(&arguments, &place.target()?).await,
        Verb::Show(arguments) => show::run(&arguments, &place).await,
        Verb::Why(arguments) => why::run(&arguments, &place).await,
        Verb::Retry(arguments) => retry::run(&arguments, &place.target()?).await,
        Verb::Cancel(arguments) => cancel::run(&arguments, &place).await,
        Verb::Pause(arguments) => pause::pause(&arguments, &place.target()?).await,
        Verb::Resume(arguments) => pause::resume(&arguments, &place.target()?).await,
        Verb::Export(arguments) => export::run(arguments, &place.target()?).await,
        Verb::Selftest(arguments) => selftest::run(&arguments, &place).await,
        Verb::Completions(arguments) => completions::run(&arguments),
        Verb::Schema(_) => schema::run(),
    }
}

/// A job as it stands.
///
/// # Errors
/// There is none of this id, or it can't be asked.
async fn get_job(jobs: &mut Jobs, job_id: &str) -> anyhow::Result<pb::Job> {
    Ok(get_job_and_spec(jobs, job_id).await?.0)
}

/// A job as it stands, and its specification with the defaults written out.
///
/// # Errors
/// As of [`get_job`].
async fn get_job_and_spec(jobs: &mut Jobs, job_id: &str) -> anyhow::Result<(pb::Job, pb::JobSpec)> {
    let request = pb::GetJobRequest { job_id: job_id.to_owned(), ..Default::default() };
    let response = jobs.get_job(request).await.map_err(failure)?.into_inner();
    Ok((here(response.job)?, here(response.spec)?))
}

/// What every answer about a job has.
///
/// # Errors
/// A coordinator that keeps to another contract left it out.
fn here<T>(part: Option<T>) -> anyhow::Result<T> {
    part.ok_or_else(|| anyhow::anyhow!("the coordinator's answer lacks a part: it is of another version"))
}
