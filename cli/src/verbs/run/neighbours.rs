//! Other jobs of the store: agents take cells of every open job that they serve, whichever they were started for.

use std::time::Duration;

use semel_agent::config::AgentSpec;
use semel_proto::v1 as pb;

use super::{agents::serves, screen::Screen};
use crate::{
    arguments::Place,
    exit::Refused,
    hint, picture,
    road::Jobs,
    terminal::shown,
    verbs::{get_job, list},
};

/// Jobs that are named one by one.
const MAX_NAMED: usize = 8;
/// How long the coordinator may take to say how one of them stands at the end.
const LAST_WORD: Duration = Duration::from_secs(3);

/// The other open jobs whose cells the agents of a run would take as well, by id.
pub struct Neighbours(Vec<String>);

impl Neighbours {
    /// Of a job and its agents. Of one that has ended there are none: no agent is started for it.
    ///
    /// # Errors
    /// The coordinator can't be asked.
    pub async fn of(jobs: &Jobs, job_id: &str, agents: &[AgentSpec]) -> anyhow::Result<Self> {
        let all = list::all(jobs.clone()).await?;
        if all.iter().any(|job| job.job_id == job_id && job.state() != pb::JobState::Open) {
            return Ok(Self(Vec::new()));
        }
        let mut shared = Vec::new();
        for other in all {
            if other.job_id == job_id || other.state() != pb::JobState::Open || other.paused {
                continue;
            }
            let other = get_job(&mut jobs.clone(), &other.job_id).await?;
            let is_shared = other.by_axis.iter().any(|axis| {
                let waits = axis.counts.is_some_and(|counts| counts.pending + counts.leased > 0);
                waits && agents.iter().any(|agent| serves(agent, &axis.model, &axis.region))
            });
            if is_shared {
                shared.push(other.job_id);
            }
        }
        Ok(Self(shared))
    }

    /// Refuses to run beside them: what these agents answer would stand as the other jobs' results.
    ///
    /// # Errors
    /// There are any.
    pub fn refuse(&self, place: &Place) -> Result<(), Refused> {
        if self.0.is_empty() {
            return Ok(());
        }
        let line = |id: &String| {
            let verb = |verb| hint::command(place, verb, id, "");
            format!(
                "job {} is open in this store too, and these agents would run its cells as well: run it to its end, `{}`, \
                 `{}`, name another store with --store, or say --with-open-jobs",
                shown(id),
                verb("pause"),
                verb("cancel")
            )
        };
        let mut lines: Vec<String> = self.0.iter().take(MAX_NAMED).map(line).collect();
        if self.0.len() > MAX_NAMED {
            lines.push(format!("and {} more jobs; `semel list` has them", self.0.len() - MAX_NAMED));
        }
        Err(Refused(lines.join("\n")))
    }

    /// Warns of them.
    pub fn warn(&self, screen: &mut Screen) {
        for id in self.0.iter().take(MAX_NAMED) {
            let id = shown(id);
            screen.warn(&format!("job {id} is open in this store too, and these agents run its cells as well; `semel pause` holds it back"));
        }
        if self.0.len() > MAX_NAMED {
            screen.warn(&format!("and so are {} more jobs; `semel list` has them", self.0.len() - MAX_NAMED));
        }
    }

    /// Says how they stand at the end, as far as the coordinator can be asked.
    pub async fn tell(&self, jobs: &mut Jobs, screen: &mut Screen) {
        for id in self.0.iter().take(MAX_NAMED) {
            let Ok(Ok(job)) = tokio::time::timeout(LAST_WORD, get_job(jobs, id)).await else { return };
            screen.say(&format!("another job of these agents: {}", picture::headline(&job, None)));
        }
    }
}
