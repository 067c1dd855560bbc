//! What the rest of the process has of the task that owns the core: a handle to call it by.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use semel_core::{
    batch::MAX_BATCH_ROWS,
    event::{Answer, Event, JobCall, ToAgent},
    id::{CallId, Cell, Epoch, JobId, Seq, StreamId},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use crate::{
    specs::{JobInput, SpecError, Specs},
    store::{Filter, ReadError, Store},
};

/// Events that wait to be stepped; a sender beyond that waits (back pressure on its stream).
pub const INBOX: usize = 8_192;
/// Content of reports and specifications that are not durable yet, in KiB, at least 1 each: who finds no room
/// waits, an agent's stream with it. More than the largest of either, so that one always fits.
const ROOM_KIB: u32 = 256 << 10;
/// Messages that wait for one agent; at the bound its stream is closed: it does not read.
pub const MAX_QUEUED_FOR_AGENT: usize = 65_536;
/// Records that one commit of a retry moves: each may blank a slot as well.
pub(crate) const RETRY_PAGE: u32 = (MAX_BATCH_ROWS / 2) as u32;

/// Sizes that the edge holds to.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest output that is recorded, in bytes.
    pub max_output_bytes: u64,
    /// The largest error text that is recorded, in bytes.
    pub max_error_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_output_bytes: 32 << 20, max_error_bytes: 64 << 10 }
    }
}

/// Why the shell has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// It stops, or its state is being rebuilt; try again.
    #[error("the coordinator does not lead the namespace now; try again")]
    NotLeading,
    /// The tables can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A stored specification can't be read.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The database will never take what was asked for (rule C7).
    #[error("the store refuses this for good, and nothing of it was stored: {0}")]
    Refused(String),
}

/// Where the answer to a call goes.
pub(crate) type Reply = oneshot::Sender<Result<Answer, Unanswered>>;

/// Why a call that was taken in has no answer (rule C7).
pub(crate) enum Unanswered {
    /// The database refused a batch for good in which it may have been: nothing of it was stored, and alone
    /// in a batch of its own it shows whether it was the culprit.
    Again,
    /// It was.
    Refused(String),
}

/// What comes in to the task that owns the core.
pub(crate) enum Input {
    /// With the room that it takes until it is durable.
    Event(Event, OwnedSemaphorePermit),
    Call(CallId, Event, OwnedSemaphorePermit, Reply),
    Retry(RetryPage, Reply),
    Open(StreamId, mpsc::Sender<ToAgent>),
}

/// A part of a retry: at most [`RETRY_PAGE`] records.
pub(crate) struct RetryPage {
    pub by: JobCall,
    pub reopen: bool,
    pub filter: Filter,
    /// Behind this cell.
    pub after: Option<Cell>,
    /// Where the page ends, if there may be more behind it.
    pub ends: oneshot::Sender<Option<Cell>>,
}

/// Who leads, as the answering process knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Leading {
    /// The epoch and the last durable commit; `None` while this process does not lead.
    pub at: Option<(Epoch, Seq)>,
    /// Commits fail for now: the database refuses writes.
    pub stalled: bool,
}

/// A handle on the task that owns the core.
#[derive(Clone)]
pub struct Shell {
    inbox: mpsc::Sender<Input>,
    room: Arc<Semaphore>,
    ids: Arc<AtomicU64>,
    store: Arc<dyn Store>,
    specs: Arc<Specs>,
    limits: Limits,
    leading: watch::Receiver<Leading>,
}

impl Shell {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        specs: Arc<Specs>,
        limits: Limits,
        leading: watch::Receiver<Leading>,
    ) -> (Self, mpsc::Receiver<Input>) {
        let (inbox, events) = mpsc::channel(INBOX);
        let room = Arc::new(Semaphore::new(ROOM_KIB as usize));
        (Self { inbox, room, ids: Arc::new(AtomicU64::new(1)), store, specs, limits, leading }, events)
    }

    fn id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    /// Makes a call. Its answer comes after everything that it saw is durable (rule C5).
    ///
    /// # Errors
    /// [`ShellError::NotLeading`]: whether the call took effect is not known; making it again is safe.
    /// [`ShellError::Refused`]: it had no effect, and never will.
    pub async fn call(&self, event: impl FnOnce(CallId) -> Event + Send) -> Result<Answer, ShellError> {
        let id = CallId(self.id());
        let event = event(id);
        loop {
            let room = self.room(&event).await?;
            let (reply, answer) = oneshot::channel();
            self.send(Input::Call(id, event.clone(), room, reply)).await?;
            if let Some(answer) = answered(answer).await? {
                return Ok(answer);
            }
        }
    }

    /// Runs the records again that the filter and its status choose, page by page: one that is cut short has
    /// moved whole pages, and the same call again goes on.
    ///
    /// # Errors
    /// As [`Shell::call`].
    pub async fn retry(&self, actor: Arc<str>, id: JobId, reopen: bool, filter: Filter) -> Result<Answer, ShellError> {
        let (mut after, mut moved_before) = (None, 0);
        loop {
            let by = JobCall { call: CallId(self.id()), actor: actor.clone(), id: id.clone(), reason: String::new() };
            let (reply, answer) = oneshot::channel();
            let (ends, end) = oneshot::channel();
            // A job that somebody closes meanwhile stays closed: only the first page opens it.
            let reopen = reopen && after.is_none();
            self.send(Input::Retry(RetryPage { by, reopen, filter: filter.clone(), after, ends }, reply)).await?;
            let Some(answer) = answered(answer).await? else { continue };
            let Answer::Retried(view, moved) = answer else { return Ok(answer) };
            moved_before += moved;
            after = end.await.map_err(|_| ShellError::NotLeading)?;
            if after.is_none() {
                return Ok(Answer::Retried(view, moved_before));
            }
        }
    }

    /// Hands in what an agent said.
    ///
    /// # Errors
    /// [`ShellError::NotLeading`].
    pub async fn event(&self, event: Event) -> Result<(), ShellError> {
        let room = self.room(&event).await?;
        self.send(Input::Event(event, room)).await
    }

    async fn room(&self, event: &Event) -> Result<OwnedSemaphorePermit, ShellError> {
        let bytes = match event {
            Event::Report(report) => Some(report.body.bytes()),
            Event::Submit(submit) => Some(submit.spec.bytes()),
            _ => None,
        };
        let kib = bytes.map_or(0, |bytes| u32::try_from(bytes >> 10).unwrap_or(u32::MAX).clamp(1, ROOM_KIB));
        self.room.clone().acquire_many_owned(kib).await.map_err(|_| ShellError::NotLeading)
    }

    /// A new stream of an agent, and what it is to be told.
    ///
    /// # Errors
    /// [`ShellError::NotLeading`].
    pub async fn open_stream(&self) -> Result<(StreamId, mpsc::Receiver<ToAgent>), ShellError> {
        let stream = StreamId(self.id());
        let (to_agent, told) = mpsc::channel(MAX_QUEUED_FOR_AGENT);
        self.send(Input::Open(stream, to_agent)).await?;
        Ok((stream, told))
    }

    async fn send(&self, input: Input) -> Result<(), ShellError> {
        self.inbox.send(input).await.map_err(|_| ShellError::NotLeading)
    }

    /// Durable reads.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }
    /// The frozen specification of a job; `None` if there is no such job.
    ///
    /// # Errors
    /// The tables can't be read.
    pub async fn spec(&self, job: &JobId) -> Result<Option<Arc<JobInput>>, ShellError> {
        Ok(self.specs.get(job).await?)
    }
    /// Sizes that the edge holds to.
    pub fn limits(&self) -> Limits {
        self.limits
    }
    /// Who leads; changes as it does.
    pub fn leading(&self) -> watch::Receiver<Leading> {
        self.leading.clone()
    }
}

/// The answer to a call; `None` if it is to be made again.
async fn answered(answer: oneshot::Receiver<Result<Answer, Unanswered>>) -> Result<Option<Answer>, ShellError> {
    match answer.await.map_err(|_| ShellError::NotLeading)? {
        Ok(answer) => Ok(Some(answer)),
        Err(Unanswered::Again) => Ok(None),
        Err(Unanswered::Refused(why)) => Err(ShellError::Refused(why)),
    }
}
