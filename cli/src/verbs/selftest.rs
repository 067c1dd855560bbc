//! `semel selftest`: the 72 cells on echo, and their audit.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::bail;
use clap::Args;
use semel_agent::config::{AgentSpec, DEFAULT_SLOTS};
use semel_spec::{JobSpec, Model, Question};

use super::{
    audit::{self, Report},
    run::{
        drive::{Ended, Plan, drive},
        neighbours::Neighbours,
        screen::Screen,
    },
};
use crate::{
    arguments::{OutputArgs, Place},
    exit::Exit,
    hint,
    road::{Road, Target},
    signals::{self, Signals},
    terminal::shown,
    words,
};

/// The axes of the job: 8 × 3 × 3 = 72.
const QUESTIONS: usize = 8;
const MODELS: [&str; 3] = ["selftest-a", "selftest-b", "selftest-c"];
const REGIONS: [&str; 3] = ["us-east", "eu-west", "asia-pacific"];
/// How long running cells may finish after Ctrl-C: they take no time.
const GRACE: Duration = Duration::from_secs(1);
/// How long a coordinator that doesn't answer any more is asked again.
const PATIENCE: Duration = Duration::from_secs(30);

/// Run the 72-cell job on the built-in echo, then audit it: a step of every install and upgrade
///
/// Takes no model and no network beyond loopback. With --store (or SEMEL_STORE) it goes through the coordinator that runs on that
/// store, else through one that it starts there, and makes the store if it isn't there; with --coordinator through that
/// coordinator. Its job then stays there, under a name of its own, and its agents and models are nobody else's. With neither it
/// uses a store of its own, which is gone afterwards. The exit code is 0 if 72 of 72 cells are recorded, each once, by the audit.
/// With --output json: the audit's object, as in `audit`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  semel selftest\n  semel selftest --store ./semel.db\n  semel selftest --coordinator 127.0.0.1:7601 --token-file token"
)]
pub struct Arguments {
    #[command(flatten)]
    output: OutputArgs,
}

/// Tests itself.
///
/// # Errors
/// Something fails on the way.
pub async fn run(arguments: &Arguments, place: &Place) -> anyhow::Result<Exit> {
    let signals = signals::watch()?;
    let mut screen = Screen::new(arguments.output.is_json());
    let folder = tempfile::Builder::new().prefix("semel-selftest-").tempdir()?;
    let name = format!("selftest-{}", random()?);
    let subject = Subject::of(place, folder.path())?;
    let road = subject.road().await?;
    let report = subject.test(road, plan(&name, folder.path())?, &signals, &mut screen).await?;
    let Some(report) = report else {
        if !subject.is_own() {
            screen.say("interrupted. Its job stays open; to end it:");
            screen.say(&format!("  {}", hint::command(place, "cancel", &name, "")));
        }
        return Ok(Exit::Interrupted);
    };
    if arguments.output.is_json() {
        screen.json(&report.as_json());
    } else {
        screen.say(&report.as_text());
    }
    let (recorded, expected) = report.recorded_of_expected();
    let is_whole = report.is_right() && recorded == expected;
    let verdict = if is_whole { "passed" } else { "FAILED" };
    let stays = subject.told().map(|there| format!("; its job {name} stays {there}")).unwrap_or_default();
    screen.say(&format!("selftest {verdict}: {recorded} of {expected} recorded{stays}"));
    Ok(if is_whole { Exit::Complete } else { Exit::Difference })
}

/// What is tested.
enum Subject {
    /// This binary alone, on a store that goes with the test.
    Own(PathBuf),
    /// A store that was named, and whatever coordinator runs on it.
    Store(PathBuf),
    /// A coordinator elsewhere.
    Remote(Target),
}

impl Subject {
    fn of(place: &Place, folder: &Path) -> anyhow::Result<Self> {
        Ok(match place.target()? {
            Target::Store(store) if place.is_store_named() => Self::Store(store),
            Target::Store(_) => Self::Own(folder.join("selftest.db")),
            target => Self::Remote(target),
        })
    }

    fn is_own(&self) -> bool {
        matches!(self, Self::Own(_))
    }

    async fn road(&self) -> anyhow::Result<Road> {
        match self {
            Self::Store(store) if store.exists() => Road::open(&Target::Store(store.clone())).await,
            Self::Own(store) | Self::Store(store) => Road::lead(store).await,
            Self::Remote(target) => Road::open(target).await,
        }
    }

    /// Where the job stays, in words.
    fn told(&self) -> Option<String> {
        match self {
            Self::Own(_) => None,
            Self::Store(store) => Some(format!("in {}", shown(&store.display().to_string()))),
            Self::Remote(_) => Some("at that coordinator".to_owned()),
        }
    }

    /// Runs the job over the road and audits it: from the tables alone where they are at hand. `None` where a signal came.
    async fn test(
        &self,
        mut road: Road,
        plan: Plan,
        signals: &Signals,
        screen: &mut Screen,
    ) -> anyhow::Result<Option<Report>> {
        let name = plan.job_id.clone();
        // Another self-test's, that was interrupted: nobody else's jobs have these models.
        Neighbours::of(&road.jobs(), &name, &plan.agents).await?.warn(screen);
        let ended = drive(&mut road, plan, signals, screen).await;
        let report = match (&ended, self) {
            (Err(_) | Ok(Ended::Interrupted(..)), _) => Ok(None),
            (Ok(_), Self::Own(store) | Self::Store(store)) => audit::of_store(store, &name).await.map(Some),
            (Ok(_), Self::Remote(_)) => audit::of_coordinator(&mut road.jobs(), &name).await.map(Some),
        };
        road.close().await?;
        ended?;
        report
    }
}

/// The job, and agents that nobody else's cells come to: their models are of this job only.
fn plan(name: &str, folder: &Path) -> anyhow::Result<Plan> {
    let (regions, models) = (REGIONS.map(str::to_owned), MODELS.map(str::to_owned));
    let mut agents = AgentSpec::echo_everywhere(&regions, &models, DEFAULT_SLOTS);
    for agent in &mut agents {
        agent.id = format!("{name}-{}", agent.region);
    }
    let checked = match semel_spec::check(spec()) {
        Ok(checked) => checked,
        Err(faults) => bail!("the self-test's own job is refused: {faults}"),
    };
    Ok(Plan {
        job_id: name.to_owned(),
        spec: semel_spec::wire::to_wire(&checked.spec),
        agents,
        spools: folder.join("spools"),
        grace: GRACE,
        patience: PATIENCE,
    })
}

fn spec() -> JobSpec {
    let question = |number: usize| Question {
        id: format!("q{number}"),
        prompt: Some(format!("Question {number} of the self-test: are you there?")),
        ..Question::default()
    };
    let model = |id: &str| Model { id: id.to_owned(), regions: REGIONS.map(str::to_owned).into(), ..Model::default() };
    JobSpec {
        questions: (1..=QUESTIONS).map(question).collect(),
        models: MODELS.map(model).into(),
        ..JobSpec::default()
    }
}

fn random() -> anyhow::Result<String> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("the system gives no random bytes: {error}"))?;
    Ok(words::hex(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_job_has_72_cells() {
        assert_eq!(semel_spec::check(spec()).expect("a sound job").cells, 72);
    }
}
