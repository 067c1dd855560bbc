//! The live picture of a job.

use std::time::Duration;

use semel_core::{
    event::{Answer, Event, JobView, PendingGroup, Query},
    id::JobId,
};
use semel_proto::v1 as pb;
use tokio::time::Instant;
use tonic::Status;

use super::pull::{Pull, pull};
use crate::{
    services::{convert, errors},
    shell::Shell,
};

/// Groups of waiting cells in a picture, at most.
const MAX_GROUPS: usize = 20;

/// A picture as it is compared: the time that a wait still has goes down by itself and is no change.
type Picture = (JobView, Vec<PendingGroup>);

/// A client's view of a job. The picture is taken when the client is ready for one, so the newest
/// always wins, and what a slow client missed was never kept.
struct Watch {
    shell: Shell,
    job: JobId,
    interval: Duration,
    last: Option<Picture>,
    /// No picture before.
    due: Instant,
    ended: bool,
}

/// The pictures of a job: one at once, one at each change, and the last when the job has ended.
pub fn watch(shell: Shell, job: JobId, interval: Duration) -> Pull<pb::WatchJobResponse> {
    let watch = Watch { shell, job, interval, last: None, due: Instant::now(), ended: false };
    pull(watch, Watch::next)
}

impl Watch {
    async fn next(mut self) -> Result<Option<(pb::WatchJobResponse, Self)>, Status> {
        if self.ended {
            return Ok(None);
        }
        loop {
            tokio::time::sleep_until(self.due).await;
            let (view, groups) = self.picture().await?;
            self.due = Instant::now() + self.interval;
            let compared = (view, groups.iter().cloned().map(timeless).collect());
            if self.last.as_ref() == Some(&compared) {
                continue;
            }
            self.ended = convert::has_ended(&compared.0);
            let picture = pb::WatchJobResponse {
                job: Some(convert::job(&compared.0)),
                pending: groups.into_iter().map(convert::pending_group).collect(),
            };
            self.last = Some(compared);
            return Ok(Some((picture, self)));
        }
    }

    async fn picture(&self) -> Result<Picture, Status> {
        match self.shell.call(|call| Event::Query(call, Query::Explain(self.job.clone()))).await? {
            Answer::Pending(view, mut groups) => {
                groups.truncate(MAX_GROUPS);
                Ok((view, groups))
            }
            Answer::NoSuchJob => Err(errors::no_job(&self.job)),
            other => Err(errors::unexpected(&other)),
        }
    }
}

fn timeless(mut group: PendingGroup) -> PendingGroup {
    group.wait.until_ms = None;
    group
}
