//! Finished results on disk, until their receipts come: what a restart of the agent must not lose.
//!
//! One folder, one process. Results are appended to numbered segment files by a thread of their
//! own, many with one sync. A receipt appends a tombstone; a segment of which every result is
//! forgotten is deleted. A result whose receipt comes before its turn is never written at all, so
//! beside a coordinator that answers at once the spool does next to nothing.
//!
//! A process that ends while it writes leaves a torn record at the end of its newest segment: nobody was promised that
//! result, and the next start cuts it off. Everything else that isn't what was written is damage: what can be read of
//! such a segment is written anew, and the file is set aside under a name of its own and reported in the log.
//!
//! Invariant: a result is deleted from disk only after its receipt. Tombstones may be lost in a
//! crash; the result is then reported once more, and answered ALREADY_RECORDED.

mod disk;
mod folder;
mod frame;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use semel_session::Recovered;

use crate::wire::SharedReport;
use disk::Disk;
use folder::Folder;

/// The default of the most bytes that a spool keeps on disk.
pub const DEFAULT_LIMIT_BYTES: u64 = 1 << 30;
/// How long a result waits for company before it is written and synced. Most receipts come within
/// it, and spare the write.
pub const LINGER: Duration = Duration::from_millis(20);
/// How long the spool waits after a failed write before it tries again.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The most bytes of results that are written with one sync.
pub const MAX_BATCH_BYTES: u64 = 16 << 20;
/// Once full, the spool takes results again below this share of its limit, in percent.
pub const ROOM_AGAIN_PERCENT: u64 = 90;

/// Why a spool can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Another process has it.
    #[error(
        "the spool folder {} is in use by another process; give each agent a folder of its own (--spool)",
        .0.display()
    )]
    Locked(PathBuf),
    /// The system refuses.
    #[error("the spool folder {}: {what}: {error}", .folder.display())]
    Io {
        /// The folder.
        folder: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system says.
        error: std::io::Error,
    },
}

/// A result as it comes back from the disk.
pub(crate) type RecoveredReport = Recovered<Bytes, SharedReport>;

/// The spool of a running agent. Dropping it writes what is left and ends its thread.
pub(crate) struct Spool {
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

/// What both sides of the spool see. The lock is never held across a write, so that the session's
/// thread doesn't wait for the disk.
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    has_room: AtomicBool,
}

/// A result that is not on disk yet.
struct Waiting {
    token: Bytes,
    fencing: u64,
    report: SharedReport,
    bytes: u64,
}

/// What is to be written. Bounded: results by the spool's limit (over it no lease is taken), and
/// what is forgotten by the results on disk.
struct State {
    /// By order of arrival.
    waiting: BTreeMap<u64, Waiting>,
    /// The place in `waiting` of each token.
    places: BTreeMap<Bytes, u64>,
    next_place: u64,
    waiting_bytes: u64,
    /// Receipts of results that are on disk or being written.
    forgotten: Vec<Bytes>,
    disk_bytes: u64,
    limit_bytes: u64,
    /// The last write failed.
    failing: bool,
    closed: bool,
}

impl Spool {
    /// Locks and reads `folder`, making it if need be, and starts its thread. Gives the results
    /// that wait in it.
    ///
    /// # Errors
    /// Another process has the folder, or the system refuses to make, lock or read it.
    pub fn open(folder: &Path, limit_bytes: u64) -> Result<(Self, Vec<RecoveredReport>), SpoolError> {
        let path = folder.to_owned();
        let (folder, recovered) = Folder::open(Disk::default(), folder)?;
        let state = State {
            waiting: BTreeMap::new(),
            places: BTreeMap::new(),
            next_place: 0,
            waiting_bytes: 0,
            forgotten: Vec::new(),
            disk_bytes: folder.bytes(),
            limit_bytes,
            failing: false,
            closed: false,
        };
        let shared =
            Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), has_room: AtomicBool::new(true) });
        shared.judge_room(&shared.lock());
        let writer = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("semel-spool".to_owned())
            .spawn(move || writer.write_on(folder))
            .map_err(|error| SpoolError::Io { folder: path, what: "starting its thread", error })?;
        Ok((Self { shared, thread: Some(thread) }, recovered))
    }

    /// Whether results can be taken: the limit isn't reached, and the disk takes what is written.
    pub fn has_room(&self) -> bool {
        self.shared.has_room.load(Ordering::Relaxed)
    }

    /// Keeps a result until its receipt. Written and synced soon, together with others.
    pub fn keep(&self, token: Bytes, fencing: u64, report: SharedReport) {
        let bytes = frame::result_bytes(&report);
        let mut state = self.shared.lock();
        state.put(Waiting { token, fencing, report, bytes });
        self.shared.judge_room(&state);
        // The thread waits for the first, and for the end of its linger after that.
        if state.waiting.len() == 1 || state.waiting_bytes >= MAX_BATCH_BYTES {
            self.shared.changed.notify_one();
        }
    }

    /// The receipt is here.
    pub fn forget(&self, token: Bytes) {
        let mut state = self.shared.lock();
        if !state.take_back(&token) {
            state.forgotten.push(token);
            if state.forgotten.len() == 1 {
                self.shared.changed.notify_one();
            }
        }
        self.shared.judge_room(&state);
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the spool's thread panicked; its last results may not be on disk");
        }
    }
}

impl State {
    fn put(&mut self, result: Waiting) {
        self.waiting_bytes += result.bytes;
        self.places.insert(result.token.clone(), self.next_place);
        self.waiting.insert(self.next_place, result);
        self.next_place += 1;
    }

    /// Takes a result out that is not being written yet.
    fn take_back(&mut self, token: &Bytes) -> bool {
        let result = self.places.remove(token).and_then(|place| self.waiting.remove(&place));
        if let Some(result) = &result {
            self.waiting_bytes -= result.bytes;
        }
        result.is_some()
    }

    /// Takes the next results to write: the oldest, up to the bytes of a batch.
    fn next_batch(&mut self) -> Vec<Waiting> {
        let mut batch = Vec::new();
        let mut batch_bytes = 0;
        while batch_bytes < MAX_BATCH_BYTES
            && let Some((_, result)) = self.waiting.pop_first()
        {
            self.places.remove(&result.token);
            self.waiting_bytes -= result.bytes;
            batch_bytes += result.bytes;
            batch.push(result);
        }
        batch
    }

    fn has_work(&self) -> bool {
        !self.waiting.is_empty() || !self.forgotten.is_empty() || self.failing
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic happens under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks whether there is room, after something changed.
    fn judge_room(&self, state: &State) {
        let had_room = self.has_room.load(Ordering::Relaxed);
        let share = if had_room { 100 } else { ROOM_AGAIN_PERCENT };
        let used_bytes = state.disk_bytes + state.waiting_bytes;
        let has_room = !state.failing && used_bytes < state.limit_bytes / 100 * share;
        if has_room != had_room {
            self.has_room.store(has_room, Ordering::Relaxed);
            tracing::warn!(used_bytes, limit_bytes = state.limit_bytes, has_room, "the spool's room changed");
        }
    }

    /// The spool's thread.
    fn write_on(&self, mut folder: Folder) {
        loop {
            let mut state = self.wait();
            let last = state.closed;
            let batch = state.next_batch();
            let forgotten = std::mem::take(&mut state.forgotten);
            drop(state);
            for token in &forgotten {
                folder.forget(token);
            }
            let results = batch.iter().map(|one| (&one.token, one.fencing, &one.report));
            let written = folder.append(results);
            let mut state = self.lock();
            state.disk_bytes = folder.bytes();
            match written {
                Ok(()) => state.failing = false,
                Err(error) => self.has_failed(&mut state, batch, &error, last),
            }
            self.judge_room(&state);
            if last && (state.failing || state.waiting.is_empty()) {
                return;
            }
        }
    }

    /// Waits until there is something to write, and a linger longer for its company.
    fn wait(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        while !state.has_work() && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let pause = if state.failing { RETRY_AFTER } else { LINGER };
        let until = Instant::now() + pause;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let is_full = state.waiting_bytes >= MAX_BATCH_BYTES && !state.failing;
            if left.is_zero() || is_full || state.closed {
                return state;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Puts back what could not be written, without what was forgotten meanwhile.
    fn has_failed(&self, state: &mut State, batch: Vec<Waiting>, error: &std::io::Error, last: bool) {
        let results = batch.len() + state.waiting.len();
        if last {
            tracing::error!(%error, results, "the spool can't be written; results are lost unless they were recorded");
        } else if !state.failing {
            tracing::error!(%error, results, "the spool can't be written; no lease is taken until it can");
        }
        state.failing = true;
        for result in batch {
            let forgotten = state.forgotten.iter().position(|token| *token == result.token);
            match forgotten {
                Some(at) => drop(state.forgotten.swap_remove(at)),
                None => state.put(result),
            }
        }
    }
}

#[cfg(test)]
mod tests;
