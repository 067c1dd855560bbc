//! The shell around the core: one task owns it, feeds it events, commits its batches in groups, and
//! opens its outboxes with the proof of their commit.

mod handle;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use backon::{ExponentialBuilder, Retryable};
pub use handle::{INBOX, Leading, Limits, MAX_QUEUED_FOR_AGENT, Shell, ShellError};
pub(crate) use handle::{Input, RETRY_PAGE, Reply, RetryPage, Unanswered};
use semel_core::{
    Committed, Core,
    event::{Event, Out, Outbox, Report, Retry, ToAgent},
    id::{CallId, Epoch, Millis, Nonce, Seq, StreamId},
    log::{Log, Sealed},
    tables,
};
use tokio::{
    sync::{
        OwnedSemaphorePermit,
        mpsc::{self, error::TrySendError},
        watch,
    },
    task::JoinHandle,
    time::MissedTickBehavior,
};

use crate::{
    clock::Clock,
    refused::{Culprit, Refused},
    specs::{SpecError, Specs},
    store::{CommitError, ReadError, Store},
};

/// Events stepped in one go, before the outboxes are looked at again.
const MAX_DRAINED: usize = 1_024;
/// Sealed batches that wait for their commit; at the bound nothing more is granted.
const MAX_SEALED: usize = 4;
/// A commit that takes longer must not hold up heartbeats (rule C6).
const SLOW_COMMIT_MS: u64 = 1_000;
/// How long a stop waits for what is being committed; nothing of it has been said.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// Nonces offered to one `Assign`, and so the most grants of it.
const NONCES: usize = 16;
/// Tokens of the past looked up in one pause of the commits.
const MAX_LOOKUPS: usize = 256;
/// Time between two ticks.
const TICK: Duration = Duration::from_millis(100);

/// Why the task that owns the core came to its end.
#[derive(Debug)]
pub(crate) enum Ended {
    /// It was told to stop.
    Stopped,
    /// Memory is to be rebuilt from the tables under a new epoch.
    Rebuild(String),
    /// The database refuses a batch for good (rule C7); whose it was, if it stood alone in it.
    Refused(Option<Culprit>, String),
    /// Another coordinator leads.
    Deposed(Epoch),
}

/// What waits for a moment at which nothing is filling and nothing in flight, to read the tables (rule C10).
enum Lookup {
    Report(Report),
    Retry(RetryPage),
}

/// The task that owns the core.
pub(crate) struct Owner<'a> {
    core: Core,
    log: Log,
    clock: Clock,
    store: Arc<dyn Store>,
    specs: Arc<Specs>,
    leading: &'a watch::Sender<Leading>,
    refused: &'a Refused,
    committing: Option<JoinHandle<Result<Committed, CommitError>>>,
    committing_since: Millis,
    /// Room that is given back when the batch of that number is durable.
    rooms: VecDeque<(Seq, OwnedSemaphorePermit)>,
    sealed: VecDeque<Sealed>,
    outboxes: VecDeque<Outbox>,
    /// The proof of the last acknowledged commit.
    proof: Committed,
    /// The last commit was found by reading: only a later one proves it (rule C4).
    unproven: bool,
    streams: BTreeMap<StreamId, mpsc::Sender<ToAgent>>,
    calls: BTreeMap<CallId, Reply>,
    lookups: VecDeque<Lookup>,
    /// Whose event was taken in last: the culprit, where events are committed one by one.
    last: Option<Culprit>,
}

impl<'a> Owner<'a> {
    pub fn new(
        core: Core,
        clock: Clock,
        takeover: Committed,
        store: Arc<dyn Store>,
        specs: Arc<Specs>,
        leading: &'a watch::Sender<Leading>,
        refused: &'a Refused,
    ) -> Self {
        Self {
            log: Log::new(core.epoch()),
            core,
            clock,
            store,
            specs,
            leading,
            refused,
            committing: None,
            committing_since: Millis(0),
            rooms: VecDeque::new(),
            sealed: VecDeque::new(),
            outboxes: VecDeque::new(),
            proof: takeover,
            unproven: false,
            streams: BTreeMap::new(),
            calls: BTreeMap::new(),
            lookups: VecDeque::new(),
            last: None,
        }
    }

    /// Takes events in until it is told to stop or its leadership ends.
    pub async fn run(mut self, inbox: &mut mpsc::Receiver<Input>, stop: impl Future<Output = ()>) -> Ended {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut inputs = Vec::with_capacity(MAX_DRAINED);
        tokio::pin!(stop);
        loop {
            let takes_in = self.takes_in();
            let most = if self.refused.one_by_one() { 1 } else { MAX_DRAINED };
            let step = tokio::select! {
                biased;
                () = &mut stop => return self.finish().await,
                done = join(&mut self.committing), if self.committing.is_some() => self.committed(done),
                _ = ticks.tick() => self.step(Event::Tick).await,
                n = inbox.recv_many(&mut inputs, most), if takes_in => {
                    if n == 0 {
                        return self.finish().await;
                    }
                    self.take_in(inputs.drain(..)).await
                }
            };
            if let Err(ended) = step {
                return ended;
            }
            if let Err(ended) = self.pump().await {
                return ended;
            }
        }
    }

    /// Whether more events may come in: not while the tables are to be read at rest, unless the rest is
    /// far off because a commit is slow; heartbeats must not wait for that (rule C6).
    fn takes_in(&self) -> bool {
        if self.refused.one_by_one() {
            return self.committing.is_none() && !self.log.is_filling() && self.lookups.is_empty();
        }
        let slow = || self.clock.now().mono.since(self.committing_since) > SLOW_COMMIT_MS;
        self.lookups.is_empty() || (self.committing.is_some() && slow())
    }

    /// Commits what is left, and says it.
    async fn finish(mut self) -> Ended {
        loop {
            if let Err(ended) = self.pump_sealed() {
                return ended;
            }
            if self.committing.is_none() {
                return Ended::Stopped;
            }
            let Ok(done) = tokio::time::timeout(STOP_LIMIT, join(&mut self.committing)).await else {
                tracing::warn!("stops while a commit is under way; nothing of it was said");
                return Ended::Stopped;
            };
            if let Err(ended) = self.committed(done) {
                return ended;
            }
        }
    }

    async fn take_in(&mut self, inputs: impl Iterator<Item = Input>) -> Result<(), Ended> {
        for input in inputs {
            match input {
                Input::Event(event, room) => {
                    self.last = None;
                    self.step(event).await?;
                    self.keep(room);
                }
                Input::Call(id, event, room, reply) => {
                    self.calls.insert(id, reply);
                    self.last = Some(Culprit::Call(id));
                    self.step(event).await?;
                    self.keep(room);
                }
                Input::Retry(page, reply) => {
                    self.calls.insert(page.by.call, reply);
                    self.lookups.push_back(Lookup::Retry(page));
                }
                Input::Open(stream, to_agent) => {
                    self.streams.insert(stream, to_agent);
                }
            }
        }
        Ok(())
    }

    /// Keeps the room of an event that was stepped until what it saw is durable.
    fn keep(&mut self, room: OwnedSemaphorePermit) {
        let last = if self.log.is_filling() { self.log.sealed().next() } else { self.log.sealed() };
        if room.num_permits() > 0 && last > self.proof.seq() {
            self.rooms.push_back((last, room));
        }
    }

    async fn step(&mut self, event: Event) -> Result<(), Ended> {
        let (event, report) = self.complete(event).await?;
        if let Event::StreamClosed(stream) = &event {
            self.streams.remove(stream);
        }
        let mut decision = self.core.step(self.clock.now(), event).map_err(|broken| Ended::Rebuild(broken.0))?;
        for out in std::mem::take(&mut decision.now) {
            self.say(out);
        }
        if let (Some(_), Some(report)) = (decision.ask, report) {
            self.lookups.push_back(Lookup::Report(report));
        }
        self.sealed.extend(self.log.add(decision));
        self.outboxes.extend(self.log.take_outboxes());
        Ok(())
    }

    /// Adds to a report what the shell knows: the digest of the input that was leased. The report is
    /// returned beside its event, should the core ask for the past of its token.
    async fn complete(&mut self, event: Event) -> Result<(Event, Option<Report>), Ended> {
        let Event::Report(mut report) = event else { return Ok((event, None)) };
        self.last = Some(Culprit::Report(report.token.fencing));
        if let Some(body) = self.refused.instead_of(report.token.fencing, &report.body) {
            report.body = body;
        }
        report.leased_input = None;
        if let Some((job, cell)) = self.core.leased_cell(report.token) {
            let spec = match self.specs.cached(job) {
                Some(spec) => Some(spec),
                None => again(|| self.specs.get(job), SpecError::is_transient)
                    .await
                    .map_err(|e| Ended::Rebuild(e.to_string()))?,
            };
            report.leased_input = spec.and_then(|s| s.input_digest(cell));
        }
        let kept = report.clone();
        Ok((Event::Report(report), Some(kept)))
    }

    /// Grants, seals and commits, one batch at a time; opens what the proof allows.
    async fn pump(&mut self) -> Result<(), Ended> {
        let at_rest = self.committing.is_none() && self.sealed.is_empty() && !self.log.is_filling();
        if at_rest && !self.unproven && !self.lookups.is_empty() {
            self.look_up().await?;
        }
        if self.committing.is_none() && self.lookups.is_empty() {
            self.assign()?;
        }
        self.pump_sealed()
    }

    fn pump_sealed(&mut self) -> Result<(), Ended> {
        if self.committing.is_none() {
            let next = self.sealed.pop_front().or_else(|| self.log.seal());
            let next = next.or_else(|| self.unproven.then(|| self.log.seal_empty()));
            self.outboxes.extend(self.log.take_outboxes());
            if let Some(sealed) = next {
                self.committing_since = self.clock.now().mono;
                self.committing = Some(tokio::spawn(commit(self.store.clone(), sealed, self.leading.clone())));
            }
        }
        self.open_outboxes()
    }

    fn assign(&mut self) -> Result<(), Ended> {
        if self.core.needs_new_epoch() {
            return Err(Ended::Rebuild("rule C8: the fencing tokens of this epoch are used up".into()));
        }
        loop {
            let nonces = nonces().map_err(|e| Ended::Rebuild(format!("no randomness: {e}")))?;
            let decision =
                self.core.step(self.clock.now(), Event::Assign(nonces)).map_err(|broken| Ended::Rebuild(broken.0))?;
            let more = decision.more;
            self.sealed.extend(self.log.add(decision));
            self.outboxes.extend(self.log.take_outboxes());
            if !more || self.sealed.len() >= MAX_SEALED {
                return Ok(());
            }
        }
    }

    /// Reads the tables while nothing is in flight, and steps at once what waited for that.
    async fn look_up(&mut self) -> Result<(), Ended> {
        let mut seen = BTreeSet::new();
        for _ in 0..self.lookups.len().min(MAX_LOOKUPS) {
            let Some(lookup) = self.lookups.pop_front() else { break };
            match lookup {
                Lookup::Report(report) if !seen.insert(report.token.fencing) => {
                    // The same token again: what its first report adds must be durable before the tables are read.
                    self.lookups.push_back(Lookup::Report(report));
                }
                Lookup::Report(mut report) => {
                    let past = again(|| self.store.past(report.token.fencing), ReadError::is_transient).await;
                    report.past = Some(past.map_err(|e| Ended::Rebuild(e.to_string()))?);
                    self.step(Event::Report(report)).await?;
                }
                Lookup::Retry(RetryPage { by, reopen, filter, after, ends }) => {
                    let read = || self.store.records_for_retry(&by.id, after, RETRY_PAGE, &filter);
                    let records = again(read, ReadError::is_transient).await;
                    let records = records.map_err(|e| Ended::Rebuild(e.to_string()))?;
                    let full = records.len() == RETRY_PAGE as usize;
                    // A caller that has gone away wants no further page.
                    let _gone = ends.send(records.last().filter(|_| full).map(|(cell, _, _)| *cell));
                    self.last = Some(Culprit::Call(by.call));
                    self.step(Event::Retry(Retry { by, reopen, records })).await?;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn committed(&mut self, done: Result<Committed, CommitError>) -> Result<(), Ended> {
        match done {
            Ok(proof) => {
                self.leading.send_replace(Leading { at: Some((proof.epoch(), proof.seq())), stalled: false });
                while self.rooms.front().is_some_and(|(seq, _)| *seq <= proof.seq()) {
                    self.rooms.pop_front();
                }
                self.proof = proof;
                self.unproven = false;
                self.last = None;
                self.refused.committed();
                Ok(())
            }
            Err(CommitError::Refused(tables::Refused::AlreadyApplied)) => {
                self.unproven = true;
                Ok(())
            }
            Err(CommitError::Refused(tables::Refused::Deposed(epoch))) => Err(Ended::Deposed(epoch)),
            Err(CommitError::Lasting(source)) => {
                let culprit = self.last.take().filter(|_| self.refused.one_by_one());
                let why = source.to_string();
                for (id, reply) in std::mem::take(&mut self.calls) {
                    let is_culprit = culprit == Some(Culprit::Call(id));
                    let _gone =
                        reply.send(Err(if is_culprit { Unanswered::Refused(why.clone()) } else { Unanswered::Again }));
                }
                Err(Ended::Refused(culprit, why))
            }
            Err(error) => Err(Ended::Rebuild(error.to_string())),
        }
    }

    fn open_outboxes(&mut self) -> Result<(), Ended> {
        while let Some(outbox) = self.outboxes.pop_front() {
            match outbox.open(&self.proof) {
                Ok(items) => {
                    let said = Event::said(&items);
                    items.into_iter().for_each(|out| self.say(out));
                    if let Some(said) = said {
                        // It only tells the time from: there is no batch and no outbox to take on.
                        self.core.step(self.clock.now(), said).map_err(|broken| Ended::Rebuild(broken.0))?;
                    }
                }
                Err(closed) => {
                    self.outboxes.push_front(closed);
                    break;
                }
            }
        }
        Ok(())
    }

    fn say(&mut self, out: Out) {
        match out {
            Out::Answer(call, answer) => {
                if let Some(reply) = self.calls.remove(&call) {
                    // A caller that has gone away needs no answer.
                    let _gone = reply.send(Ok(answer));
                }
            }
            Out::Agent(stream, message) => {
                let told = self.streams.get(&stream).map_or(Ok(()), |to| to.try_send(message));
                if let Err(refused) = told {
                    if matches!(refused, TrySendError::Full(_)) {
                        tracing::warn!(stream = stream.0, "an agent does not read its stream: the stream is closed");
                    }
                    self.streams.remove(&stream);
                }
            }
        }
    }
}

async fn join(task: &mut Option<JoinHandle<Result<Committed, CommitError>>>) -> Result<Committed, CommitError> {
    let Some(handle) = task else { return std::future::pending().await };
    let done = handle.await;
    *task = None;
    done.unwrap_or_else(|panic| {
        Err(CommitError::Transient { disk_full: false, source: sqlx::Error::Protocol(panic.to_string()) })
    })
}

/// Commits a batch in a task of its own, which no dropped call cancels; what is transient is tried again with jitter (rule C7).
async fn commit(
    store: Arc<dyn Store>,
    sealed: Sealed,
    leading: watch::Sender<Leading>,
) -> Result<Committed, CommitError> {
    let backoff = ExponentialBuilder::default()
        .with_jitter()
        .with_min_delay(Duration::from_millis(20))
        .with_max_delay(Duration::from_secs(2))
        .without_max_times();
    (|| store.commit(sealed.epoch, sealed.seq, sealed.batch.clone()))
        .retry(backoff)
        .when(|error| matches!(error, CommitError::Transient { .. }))
        .notify(|error, wait| {
            tracing::warn!(epoch = sealed.epoch.get(), seq = sealed.seq.0, %error, ?wait, "a commit is tried again");
            leading.send_modify(|l| l.stalled = true);
        })
        .await
}

/// A read that the whole coordinator waits for: tried again for some seconds, within the time of a session.
async fn again<T, E: std::fmt::Display, F: Future<Output = Result<T, E>>>(
    read: impl FnMut() -> F,
    is_transient: impl FnMut(&E) -> bool,
) -> Result<T, E> {
    let backoff = ExponentialBuilder::default()
        .with_jitter()
        .with_min_delay(Duration::from_millis(20))
        .with_max_delay(Duration::from_secs(1))
        .with_max_times(6);
    read.retry(backoff)
        .when(is_transient)
        .notify(|error, wait| tracing::warn!(%error, ?wait, "a read is tried again"))
        .await
}

fn nonces() -> Result<Vec<Nonce>, getrandom::Error> {
    let mut bytes = [0; 16 * NONCES];
    getrandom::fill(&mut bytes)?;
    let (nonces, _) = bytes.as_chunks::<16>();
    Ok(nonces.iter().map(|n| Nonce(*n)).collect())
}
