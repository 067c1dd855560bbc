//! A job over a road: submitted, run by agents of this process, watched to its end.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, anyhow};
use semel_agent::{AgentConfig, config::AgentSpec};
use semel_proto::v1 as pb;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    screen::Screen,
    watch::{GivenUp, Outage, Seen, Watch},
};
use crate::{
    clock::Heard,
    hint,
    rate::in_words,
    road::{Jobs, Road, failure},
    signals::Signals,
    verbs::{get_job, here},
};

/// How long an agent may take to write what finished at the end of its grace.
const SPOOLING: Duration = Duration::from_secs(1);
/// How long the coordinator may take to say how the job stands at the end.
const LAST_WORD: Duration = Duration::from_secs(3);
/// Bytes of a spool folder's name, at most; file systems take 255.
const MAX_FOLDER_BYTES: usize = 200;
/// Hex digits of the digest that tells two shortened names apart.
const DIGEST_DIGITS: usize = 16;

/// What is run.
pub struct Plan {
    /// The job's id.
    pub job_id: String,
    /// What it asks.
    pub spec: pb::JobSpec,
    /// Who runs it.
    pub agents: Vec<AgentSpec>,
    /// Where their spools are, a folder each.
    pub spools: PathBuf,
    /// How long running cells may finish after a signal.
    pub grace: Duration,
    /// How long a coordinator that doesn't answer is asked again.
    pub patience: Duration,
}

/// How it ended.
pub enum Ended {
    /// Every cell had its record before.
    Already(pb::Job),
    /// The job was cancelled or expired before.
    Closed(pb::Job),
    /// It ended while it ran.
    Done(pb::Job),
    /// A signal came first. Where the coordinator could not be asked any more, with the time of its last word.
    Interrupted(pb::Job, Option<Heard>),
}

impl Ended {
    /// The job as it stood then.
    pub fn job(&self) -> &pb::Job {
        let (Self::Already(job) | Self::Closed(job) | Self::Done(job) | Self::Interrupted(job, _)) = self;
        job
    }
}

/// Submits and runs a job until it has ended or a signal comes. All agents have stopped then.
///
/// # Errors
/// The submission is refused, an agent can't run, or the coordinator fails.
pub async fn drive(road: &mut Road, plan: Plan, signals: &Signals, screen: &mut Screen) -> anyhow::Result<Ended> {
    let mut jobs = road.jobs();
    let request =
        pb::SubmitJobRequest { job_id: plan.job_id.clone(), spec: Some(plan.spec.clone()), ..Default::default() };
    let job = here(jobs.submit_job(request).await.map_err(failure)?.into_inner().job)?;
    match job.state() {
        pb::JobState::Complete => {
            screen.last(&job, None);
            return Ok(Ended::Already(job));
        }
        pb::JobState::Cancelled | pb::JobState::Expired => return Ok(Ended::Closed(job)),
        pb::JobState::Open | pb::JobState::Unspecified => {}
    }
    if job.paused {
        screen.warn("the job is paused: its cells wait until `semel resume`");
    }
    let mut fleet = Fleet::start(road, &plan);
    let mut last = Last { job, heard: Heard::now(), is_outage: false };
    let watched = watch(road, &plan, &mut last, &mut fleet, signals, screen).await;
    let grace = humantime::format_duration(plan.grace);
    match &watched {
        Ok(Watched::End) => {}
        Ok(Watched::Signal) => {
            screen.note(&format!("stopping: what runs may finish within {grace}; Ctrl-C once more stops at once"));
        }
        Err(error) => {
            let why = error.to_string();
            let why = why.lines().next().unwrap_or_default();
            screen.note(&format!("stopping: {why}; what runs may finish within {grace}, Ctrl-C stops at once"));
        }
    }
    // Where nobody is there to take back what agents hold, they must not wait for that.
    let limit = (last.is_outage || watched.is_err()).then(|| plan.grace + SPOOLING);
    let at_once = if watched.is_err() { &signals.stop } else { &signals.now };
    let stopped = fleet.stop(at_once, limit).await;
    let (job, heard) = last_word(&mut jobs, last).await;
    screen.last(&job, heard);
    let watched = watched?;
    stopped?;
    Ok(match watched {
        Watched::End => Ended::Done(job),
        Watched::Signal => Ended::Interrupted(job, heard),
    })
}

/// The job as it stands, or as it was seen last where the coordinator can't be asked any more: with the time of its last
/// word then, but for a job whose end was seen, which nothing comes after.
async fn last_word(jobs: &mut Jobs, last: Last) -> (pb::Job, Option<Heard>) {
    let asked = tokio::time::timeout(LAST_WORD, get_job(jobs, &last.job.job_id)).await;
    match asked.ok().and_then(Result::ok) {
        Some(job) => (job, None),
        None if last.job.state() != pb::JobState::Open => (last.job, None),
        None => (last.job, Some(last.heard)),
    }
}

/// A picture is shown again after so long without another: a line that was not due yet, the time that is left.
const SHOW_AGAIN: Duration = Duration::from_secs(1);

/// Why watching ended.
enum Watched {
    /// The job has ended.
    End,
    /// A signal came.
    Signal,
}

/// How things stood when they were seen last.
struct Last {
    job: pb::Job,
    heard: Heard,
    /// Whether the coordinator didn't answer.
    is_outage: bool,
}

/// Shows the job until it has ended or a signal comes.
async fn watch(
    road: &mut Road,
    plan: &Plan,
    last: &mut Last,
    fleet: &mut Fleet,
    signals: &Signals,
    screen: &mut Screen,
) -> anyhow::Result<Watched> {
    let mut watch = Watch::start(road.jobs(), plan.job_id.clone(), plan.patience);
    // Empty until the first picture, and while the coordinator doesn't answer: nothing is shown as if it were so now.
    let mut waiting: Option<Vec<pb::PendingGroup>> = None;
    loop {
        let seen = tokio::select! {
            biased;
            () = signals.stop.cancelled() => return Ok(Watched::Signal),
            error = road.failed() => return Err(error),
            error = fleet.ended() => return Err(error),
            seen = watch.next() => Some(seen.map_err(|error| given_up(road, error))?),
            () = tokio::time::sleep(SHOW_AGAIN) => None,
        };
        match seen {
            Some(Seen::Picture(picture)) => {
                if std::mem::take(&mut last.is_outage) {
                    screen.note(&format!("the coordinator at {} answers again", road.address()));
                }
                (last.job, last.heard) = (here(picture.job)?, Heard::now());
                waiting = Some(picture.pending);
            }
            Some(Seen::Outage(outage)) => {
                last.is_outage = true;
                waiting = None;
                screen.warn(&no_answer(road, &outage));
                screen.show_heard(&last.job, last.heard);
            }
            None => {}
        }
        let Some(waiting) = &waiting else { continue };
        screen.show(&last.job, waiting);
        if last.job.state() != pb::JobState::Open {
            return Ok(Watched::End);
        }
    }
}

/// An outage in words.
fn no_answer(road: &Road, outage: &Outage) -> String {
    let Outage { why, lasted, again_in } = outage;
    let again = match again_in.as_secs() {
        0 => "at once".to_owned(),
        _ => format!("in {}", in_words(*again_in)),
    };
    let lasted = in_words(*lasted);
    format!("no answer from the coordinator at {} for {lasted}: {why}; it is asked again {again}", road.address())
}

/// The end of an outage that lasted too long, with what can be done; any other error as it is.
fn given_up(road: &Road, error: anyhow::Error) -> anyhow::Error {
    let Some(GivenUp(outage)) = error.downcast_ref() else { return error };
    anyhow!(
        "no answer from the coordinator at {} for {}: {}\nWhat it accepted it keeps: the job goes on once it runs again, and \
         the same command goes on with it:\n  {}",
        road.address(),
        in_words(outage.lasted),
        outage.why,
        hint::same_command()
    )
}

/// The agents of this process.
struct Fleet {
    agents: JoinSet<(String, anyhow::Result<semel_agent::Ended>)>,
    shutdown: CancellationToken,
}

impl Fleet {
    fn start(road: &Road, plan: &Plan) -> Self {
        let shutdown = CancellationToken::new();
        let mut agents = JoinSet::new();
        for spec in &plan.agents {
            let id = spec.id.clone();
            let spool = plan.spools.join(folder(&id));
            let config = AgentConfig {
                grace: plan.grace,
                ..AgentConfig::new(road.address(), road.token(), spec.clone(), spool)
            };
            let agent = semel_agent::run(config, shutdown.clone());
            agents.spawn(async move { (id, Box::pin(agent).await) });
        }
        Self { agents, shutdown }
    }

    /// Waits for an agent that ends of itself, which none should; for ever where there is none.
    async fn ended(&mut self) -> anyhow::Error {
        match self.agents.join_next().await {
            Some(ended) => why_ended(ended).err().unwrap_or_else(|| anyhow!("an agent ended before the job")),
            None => std::future::pending().await,
        }
    }

    /// Stops them: cleanly, until they are to end at once or for so long. Finished results are in their spools.
    async fn stop(mut self, at_once: &CancellationToken, limit: Option<Duration>) -> anyhow::Result<()> {
        self.shutdown.cancel();
        let over = async {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = at_once.cancelled() => return Ok(()),
                () = &mut over => return Ok(()),
                ended = self.agents.join_next() => match ended {
                    Some(ended) => why_ended(ended)?,
                    None => return Ok(()),
                },
            }
        }
    }
}

type Joined = Result<(String, anyhow::Result<semel_agent::Ended>), tokio::task::JoinError>;

fn why_ended(ended: Joined) -> anyhow::Result<()> {
    let (id, ended) = ended.context("an agent's task failed")?;
    match ended {
        Ok(semel_agent::Ended::Done { .. }) => Ok(()),
        Ok(semel_agent::Ended::Superseded) => {
            Err(anyhow!("agent {id}: another process runs under this id and took over"))
        }
        Err(error) => Err(error.context(format!("agent {id}"))),
    }
}

/// The name of an agent's spool folder: its id, with what file systems don't take written out.
fn folder(id: &str) -> PathBuf {
    let mut name = String::with_capacity(id.len());
    for byte in id.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => name.push(byte.into()),
            // A dot in front would be a hidden folder, or none of its own.
            b'.' if !name.is_empty() => name.push('.'),
            byte => name.push_str(&format!("%{byte:02X}")),
        }
    }
    if name.len() > MAX_FOLDER_BYTES {
        let digest = crate::words::hex(&semel_spec::digest(id.as_bytes()));
        name.truncate(MAX_FOLDER_BYTES - DIGEST_DIGITS - 1);
        name.push('-');
        name.extend(digest.chars().take(DIGEST_DIGITS));
    }
    Path::new(&name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_agent_has_a_spool_folder_of_its_own_inside_the_spools() {
        let long = "é".repeat(127);
        let ids = ["us-east", "..", ".", "a/b", "a%2Fb", "llama3.2", &long, &format!("{long}x")];
        let folders: Vec<PathBuf> = ids.iter().map(|id| folder(id)).collect();
        for (index, folder) in folders.iter().enumerate() {
            assert_eq!(folder.components().count(), 1, "{folder:?}");
            assert!(matches!(folder.components().next(), Some(std::path::Component::Normal(_))), "{folder:?}");
            assert!(folder.as_os_str().len() <= MAX_FOLDER_BYTES);
            assert!(!folders[..index].contains(folder), "{folder:?} twice");
        }
        assert_eq!(folder("llama3.2"), Path::new("llama3.2"));
    }
}
