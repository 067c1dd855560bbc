//! Watching a job: its pictures as they come, and word of it where the coordinator doesn't answer.

use std::time::Duration;

use semel_proto::v1 as pb;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status};

use crate::{
    clock::Stopwatch,
    road::{Jobs, failure, root_cause},
};

/// Between two pictures.
const INTERVAL_MS: u32 = 500;
/// The wait after the first try that failed; each further one waits twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// The longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// An outage that is over sooner is not told.
const TOLD_AFTER: Duration = Duration::from_secs(1);
/// What is seen and not yet taken: the newest picture is all that anybody wants, so the watch waits for its reader.
const MAX_SEEN: usize = 1;

/// What a watch sees.
pub enum Seen {
    /// How the job stands. One that was seen before may come again.
    Picture(Box<pb::WatchJobResponse>),
    /// The coordinator doesn't answer; it is asked again.
    Outage(Outage),
}

/// The coordinator doesn't answer.
#[derive(Clone, Debug)]
pub struct Outage {
    /// Why, as far as it can be told from here.
    pub why: String,
    /// For how long now.
    pub lasted: Duration,
    /// How long until it is asked again.
    pub again_in: Duration,
}

/// The coordinator did not answer for as long as it was waited for.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.why)]
pub struct GivenUp(pub Outage);

/// A job that is watched by a task of its own, so that no try is cut short by what else its reader does.
pub struct Watch {
    seen: mpsc::Receiver<anyhow::Result<Seen>>,
    _task: AbortOnDropHandle<()>,
}

impl Watch {
    /// Watches a job; a coordinator that doesn't answer is asked again for as long as `patience`.
    pub fn start(jobs: Jobs, job_id: String, patience: Duration) -> Self {
        let (sender, seen) = mpsc::channel(MAX_SEEN);
        let task = tokio::spawn(async move {
            let error = Watcher { jobs, job_id, patience, seen: sender.clone(), outage: None }.run().await;
            if let Some(error) = error {
                // Without a reader there is nobody to tell.
                let _ = sender.send(Err(error)).await;
            }
        });
        Self { seen, _task: AbortOnDropHandle::new(task) }
    }

    /// What is seen next. Nothing is lost where the wait for it is dropped.
    ///
    /// # Errors
    /// The job can't be watched, or [`GivenUp`].
    pub async fn next(&mut self) -> anyhow::Result<Seen> {
        self.seen.recv().await.unwrap_or_else(|| Err(anyhow::anyhow!("the watch of the job has ended")))
    }
}

struct Watcher {
    jobs: Jobs,
    job_id: String,
    patience: Duration,
    seen: mpsc::Sender<anyhow::Result<Seen>>,
    /// Since when the coordinator doesn't answer, and the last wait.
    outage: Option<(Stopwatch, Duration)>,
}

impl Watcher {
    /// Watches until that is of no use: `None` where nobody reads any more.
    async fn run(mut self) -> Option<anyhow::Error> {
        loop {
            let status = self.pictures().await?;
            if !matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled) {
                return Some(failure(status));
            }
            let outage = self.outage(&status);
            if outage.lasted >= self.patience {
                return Some(GivenUp(outage).into());
            }
            let wait = outage.again_in;
            if outage.lasted >= TOLD_AFTER {
                self.seen.send(Ok(Seen::Outage(outage))).await.ok()?;
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// Passes pictures on until there are no more, and says why; `None` where nobody reads any more.
    async fn pictures(&mut self) -> Option<Status> {
        let request =
            pb::WatchJobRequest { job_id: self.job_id.clone(), interval_ms: INTERVAL_MS, ..Default::default() };
        let mut stream = match self.jobs.watch_job(request).await {
            Ok(response) => response.into_inner(),
            Err(status) => return Some(status),
        };
        loop {
            match stream.message().await {
                Ok(Some(picture)) => {
                    self.outage = None;
                    self.seen.send(Ok(Seen::Picture(Box::new(picture)))).await.ok()?;
                }
                Ok(None) => return Some(Status::unavailable("it ended the watch")),
                Err(status) => return Some(status),
            }
        }
    }

    /// How an outage stands after a further try that failed. The last wait ends with the patience.
    fn outage(&mut self, status: &Status) -> Outage {
        let (since, wait) = match self.outage {
            None => (Stopwatch::start(), FIRST_WAIT),
            Some((since, wait)) => (since, LONGEST_WAIT.min(wait * 2)),
        };
        self.outage = Some((since, wait));
        let lasted = since.reading();
        Outage { why: root_cause(status), lasted, again_in: wait.min(self.patience.saturating_sub(lasted)) }
    }
}
