//! `semel run`: a job from start to end, coordinator and agents in this process.

mod agents;
pub mod drive;
pub mod neighbours;
pub mod screen;
mod watch;

use std::{path::PathBuf, time::Duration};

use clap::Args;
use semel_proto::v1 as pb;
use serde_json::{Value, json};

use self::{
    agents::HowArgs,
    drive::{Ended, Plan},
    neighbours::Neighbours,
    screen::Screen,
};
use crate::{
    arguments::{OutputArgs, Place, duration},
    clock::Heard,
    exit::{Exit, Refused},
    hint, json, picture,
    road::{Road, Target},
    signals::{self, Signals},
    terminal::shown,
};

/// Run a job: every cell that has no record yet
///
/// Starts a coordinator on the store, and the agents, in this process; they speak over real gRPC on loopback. The job is
/// submitted once: the same command again goes on where it stopped and runs only what is missing, and a job file that has changed
/// under the same job id is refused with the difference. On a terminal the picture is redrawn in place; elsewhere a line comes
/// when something has changed, at most every 5 seconds. The first Ctrl-C (or SIGTERM) stops cleanly, the second at once. With
/// --coordinator the agents run here and serve the coordinator there; --agents gives them ids that are unique there.
/// Agents take cells of every open job that they serve: a store with another such job is refused, before anything is stored.
/// With --output json: progress on stderr, and at the end { outcome: complete, failures, closed or interrupted; ran, store, job:
/// {…}, last_heard_at: null, or when the coordinator that is gone said so } on stdout.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  semel run examples/first.yaml --openai http://127.0.0.1:11434/v1\n  semel run examples/incident.yaml --agents examples/agents-ollama.yaml --store incident.db"
)]
pub struct Arguments {
    /// The job file: YAML, or JSON if its name ends in .json.
    job: PathBuf,
    #[command(flatten)]
    how: HowArgs,
    /// How long running cells may finish after Ctrl-C; what doesn't is handed back and runs again later.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10s")]
    grace: Duration,
    /// How long a coordinator that doesn't answer any more is asked again, with growing waits, before the run ends.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "5min")]
    patience: Duration,
    /// Run although other jobs of the store are open whose cells these agents would run as well. With --coordinator that is
    /// only warned of.
    #[arg(long)]
    with_open_jobs: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs it.
///
/// # Errors
/// The job or agents file is refused, another process has the store, or something fails on the way.
pub async fn run(arguments: Arguments, place: &Place) -> anyhow::Result<Exit> {
    let signals = signals::watch()?;
    let file = semel_spec::read::job(&arguments.job).map_err(|faults| Refused(faults.to_string()))?;
    let target = place.target()?;
    let is_alone = matches!(target, Target::Store(_));
    let agents = arguments.how.agents(&file.checked.resolved, is_alone)?;
    let mut road = match target {
        Target::Store(store) => Road::lead(&store).await?,
        Target::Remote { .. } if arguments.how.is_short() => {
            let words = "--coordinator wants --agents FILE, so that each agent has an id that is unique there";
            return Err(Refused(words.to_owned()).into());
        }
        target @ Target::Remote { .. } => Road::open(&target).await?,
    };
    let mut screen = Screen::new(arguments.output.is_json());
    for lane in agents::unserved(&file.checked.resolved, &agents) {
        screen.warn(&lane);
    }
    let plan = Plan {
        job_id: file.job.clone(),
        spec: semel_spec::wire::to_wire(&file.checked.spec),
        agents,
        spools: spools(place),
        grace: arguments.grace,
        patience: arguments.patience,
    };
    let apart = (is_alone && !arguments.with_open_jobs).then_some(place);
    let ended = beside_others(&mut road, plan, apart, &signals, &mut screen).await;
    if signals.now.is_cancelled() {
        // What was acknowledged is durable; the rest the next start finds as after a kill.
        drop(road);
    } else {
        road.close().await?;
    }
    let ended = ended?;
    let story = Story { ended: &ended, place, is_echo: arguments.how.is_echo() };
    if arguments.output.is_json() {
        screen.json(&story.as_json());
    } else {
        story.tell(&mut screen);
    }
    Ok(story.exit())
}

/// Runs a job where others may be open too; with a place in `apart` only where no other would get these agents' answers.
async fn beside_others(
    road: &mut Road,
    plan: Plan,
    apart: Option<&Place>,
    signals: &Signals,
    screen: &mut Screen,
) -> anyhow::Result<Ended> {
    let neighbours = Neighbours::of(&road.jobs(), &plan.job_id, &plan.agents).await?;
    if let Some(place) = apart {
        neighbours.refuse(place)?;
    }
    neighbours.warn(screen);
    let ended = drive::drive(road, plan, signals, screen).await?;
    if !signals.now.is_cancelled() {
        neighbours.tell(&mut road.jobs(), screen).await;
    }
    Ok(ended)
}

/// The folder of the agents' spools: beside the store.
fn spools(place: &Place) -> PathBuf {
    let mut name = place.store().as_os_str().to_owned();
    name.push(".spool");
    name.into()
}

/// How it ended, as it is told.
struct Story<'r> {
    ended: &'r Ended,
    place: &'r Place,
    is_echo: bool,
}

impl Story<'_> {
    fn exit(&self) -> Exit {
        match self.ended {
            Ended::Interrupted(job, _) if job.state() == pb::JobState::Open => Exit::Interrupted,
            Ended::Interrupted(job, _) | Ended::Already(job) | Ended::Done(job) => verdict(job),
            Ended::Closed(_) => Exit::Failures,
        }
    }

    fn tell(&self, screen: &mut Screen) {
        let job = self.ended.job();
        let counts = job.counts.unwrap_or_default();
        match self.ended {
            Ended::Already(_) if counts.failed == 0 => {
                screen.say(&format!("{} of {} recorded already; nothing to run", counts.recorded, counts.expected));
            }
            Ended::Already(_) => screen.say(&format!(
                "{} of {} recorded already, {} failed; nothing to run",
                counts.recorded, counts.expected, counts.failed
            )),
            Ended::Closed(_) => screen.say(&format!("{}; nothing runs", picture::headline(job, None))),
            Ended::Done(_) | Ended::Interrupted(..) => {}
        }
        if matches!(job.state(), pb::JobState::Cancelled | pb::JobState::Expired) {
            let too = if counts.failed > 0 { " (what failed runs again too)" } else { "" };
            screen.say(&format!("to open it again{too}, this, and then the same command as now:"));
            screen.say(&format!("  {}", hint::reopen(self.place, job)));
            return;
        }
        if self.exit() == Exit::Interrupted {
            let heard = self.heard().map(|heard| format!(", {heard}")).unwrap_or_default();
            screen.say(&format!(
                "interrupted: {} of {} recorded{heard}. The same command goes on:",
                counts.recorded, counts.expected
            ));
            screen.say(&format!("  {}", hint::same_command()));
            return;
        }
        let place = match &self.place.coordinator {
            Some(address) => format!("at the coordinator {address}"),
            None => format!("in {}", self.place.store().display()),
        };
        if self.is_echo {
            screen.say("--echo: no model was asked. For a real run of this job name another --store");
        }
        screen.say(&format!("the results are {}:", shown(&place)));
        screen.say(&format!("  {}", self.command("export", "--format csv")));
        screen.say(&format!("  {}", self.command("audit", "")));
        if counts.failed > 0 {
            screen
                .say(&format!("{} failed; to run them again, this, and then the same command as now:", counts.failed));
            screen.say(&format!("  {}", self.command("retry", "--status failed")));
        }
    }

    /// When the coordinator was last heard, where it could not say how the job stands now.
    fn heard(&self) -> Option<Heard> {
        match self.ended {
            Ended::Interrupted(_, heard) => *heard,
            _ => None,
        }
    }

    /// A command about this job, as it is to be typed.
    fn command(&self, verb: &str, options: &str) -> String {
        hint::command(self.place, verb, &self.ended.job().job_id, options)
    }

    fn as_json(&self) -> Value {
        let outcome = match self.exit() {
            Exit::Interrupted => "interrupted",
            Exit::Complete => "complete",
            _ if matches!(self.ended.job().state(), pb::JobState::Complete) => "failures",
            _ => "closed",
        };
        json!({
            "outcome": outcome,
            "ran": !matches!(self.ended, Ended::Already(_) | Ended::Closed(_)),
            "store": self.place.store().display().to_string(),
            "job": Value::Object(json::job(self.ended.job())),
            "last_heard_at": self.heard().map(Heard::as_time),
        })
    }
}

/// The exit code of a job that has ended.
fn verdict(job: &pb::Job) -> Exit {
    let is_clean = job.state() == pb::JobState::Complete && job.counts.is_some_and(|counts| counts.failed == 0);
    if is_clean { Exit::Complete } else { Exit::Failures }
}
