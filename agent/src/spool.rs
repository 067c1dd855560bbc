//! Finished results on disk, until their receipts come: what a restart of the agent must not lose.
//!
//! One folder, one process. Results are appended to numbered segment files by a thread of their
//! own, many with one sync. A receipt appends a tombstone; a segment of which every result is
//! forgotten is deleted. A result whose receipt comes before its turn is never written at all, so
//! beside a coordinator that answers at once the spool does next to nothing.
//!
//! Invariant: a result is deleted from disk only after its receipt. Tombstones may be lost in a
//! crash; the result is then reported once more, and answered ALREADY_RECORDED.

mod folder;
mod frame;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use semel_session::Recovered;

use crate::wire::SharedReport;
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
    commands: Option<mpsc::Sender<Command>>,
    thread: Option<thread::JoinHandle<()>>,
}

enum Command {
    Keep { token: Bytes, fencing: u64, report: SharedReport },
    Forget { token: Bytes },
}

impl Spool {
    /// Locks and reads `folder`, making it if need be, and starts its thread. Gives the results
    /// that wait in it. `on_room` is called, from that thread, when the room for results ends or
    /// is back.
    ///
    /// # Errors
    /// Another process has the folder, or the system refuses to make, lock or read it.
    pub fn open(
        folder: &Path,
        limit_bytes: u64,
        on_room: impl Fn(bool) + Send + 'static,
    ) -> Result<(Self, Vec<RecoveredReport>), SpoolError> {
        let (folder, recovered) = Folder::open(folder)?;
        let (commands, inbox) = mpsc::channel();
        let writer = Writer {
            folder,
            waiting: VecDeque::new(),
            first_waiting: 0,
            waiting_by_token: BTreeMap::new(),
            waiting_bytes: 0,
            limit_bytes,
            has_room: true,
            failing: false,
            on_room: Box::new(on_room),
        };
        let thread = thread::Builder::new()
            .name("semel-spool".to_owned())
            .spawn(move || writer.run(&inbox))
            .map_err(|error| SpoolError::Io { folder: PathBuf::new(), what: "starting its thread", error })?;
        let spool = Self { commands: Some(commands), thread: Some(thread) };
        Ok((spool, recovered))
    }

    /// Keeps a result until its receipt. Written and synced soon, together with others.
    pub fn keep(&self, token: Bytes, fencing: u64, report: SharedReport) {
        self.send(Command::Keep { token, fencing, report });
    }

    /// The receipt is here.
    pub fn forget(&self, token: Bytes) {
        self.send(Command::Forget { token });
    }

    fn send(&self, command: Command) {
        let sent = self.commands.as_ref().is_some_and(|commands| commands.send(command).is_ok());
        // The thread ends with the sender only; anything else is a panic there, already logged.
        assert!(sent, "the spool's thread has ended");
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the spool's thread panicked; its last results may not be on disk");
        }
    }
}

/// A result that is not on disk yet.
struct Waiting {
    token: Bytes,
    fencing: u64,
    report: SharedReport,
    bytes: u64,
}

/// The spool's thread.
struct Writer {
    folder: Folder,
    /// By order of arrival; `None` was forgotten before it was written.
    waiting: VecDeque<Option<Waiting>>,
    /// How many left `waiting` so far: the place of its front among all that ever waited.
    first_waiting: u64,
    /// The place of each waiting result among all that ever waited.
    waiting_by_token: BTreeMap<Bytes, u64>,
    waiting_bytes: u64,
    limit_bytes: u64,
    has_room: bool,
    failing: bool,
    on_room: Box<dyn Fn(bool) + Send>,
}

impl Writer {
    fn run(mut self, inbox: &mpsc::Receiver<Command>) {
        self.judge_room();
        loop {
            // What could not be written is tried again, whether or not anything new comes.
            if self.waiting.is_empty() && !self.failing {
                match inbox.recv() {
                    Ok(command) => self.take(command),
                    Err(mpsc::RecvError) => return,
                }
            }
            let more = self.linger(inbox);
            self.write(!more);
            if !more {
                return;
            }
        }
    }

    /// Takes commands for the length of the linger, or until enough waits. Gives `false` once the
    /// other side is gone.
    fn linger(&mut self, inbox: &mpsc::Receiver<Command>) -> bool {
        let pause = if self.failing { RETRY_AFTER } else { LINGER };
        let until = Instant::now() + pause;
        while self.waiting_bytes < MAX_BATCH_BYTES || self.failing {
            let left = until.saturating_duration_since(Instant::now());
            match inbox.recv_timeout(left) {
                Ok(command) => self.take(command),
                Err(mpsc::RecvTimeoutError::Timeout) => return true,
                Err(mpsc::RecvTimeoutError::Disconnected) => return false,
            }
        }
        true
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Keep { token, fencing, report } => {
                let bytes = frame::result_bytes(&report);
                self.waiting_bytes += bytes;
                let place = self.first_waiting + self.waiting.len() as u64;
                self.waiting_by_token.insert(token.clone(), place);
                self.waiting.push_back(Some(Waiting { token, fencing, report, bytes }));
            }
            Command::Forget { token } => {
                let Some(place) = self.waiting_by_token.remove(&token) else {
                    self.folder.forget(&token);
                    return;
                };
                let index = usize::try_from(place - self.first_waiting).unwrap_or(usize::MAX);
                if let Some(waiting) = self.waiting.get_mut(index).and_then(Option::take) {
                    self.waiting_bytes -= waiting.bytes;
                }
            }
        }
    }

    /// Writes and syncs what waits, in batches. What can't be written stays.
    fn write(&mut self, last: bool) {
        loop {
            let mut batch_bytes = 0;
            let mut taken = 0;
            for waiting in &self.waiting {
                if batch_bytes >= MAX_BATCH_BYTES {
                    break;
                }
                taken += 1;
                batch_bytes += waiting.as_ref().map_or(0, |waiting| waiting.bytes);
            }
            let batch = self.waiting.iter().take(taken).flatten();
            let results = batch.map(|one| (&one.token, one.fencing, &one.report));
            if let Err(error) = self.folder.append(results) {
                self.has_failed(&error, last);
                break;
            }
            self.failing = false;
            self.first_waiting += taken as u64;
            for waiting in self.waiting.drain(..taken).flatten() {
                self.waiting_by_token.remove(&waiting.token);
                self.waiting_bytes -= waiting.bytes;
            }
            if self.waiting.is_empty() {
                break;
            }
        }
        self.judge_room();
    }

    fn has_failed(&mut self, error: &std::io::Error, last: bool) {
        let results = self.waiting_by_token.len();
        if last {
            tracing::error!(%error, results, "the spool can't be written; these results are lost if they were not recorded");
        } else if !self.failing {
            tracing::error!(%error, results, "the spool can't be written; no lease is taken until it can");
        }
        self.failing = true;
    }

    /// Tells when the room ends or is back.
    fn judge_room(&mut self) {
        let used = self.folder.bytes() + self.waiting_bytes;
        let limit = if self.has_room { self.limit_bytes } else { self.limit_bytes / 100 * ROOM_AGAIN_PERCENT };
        let has_room = !self.failing && used < limit;
        if has_room != self.has_room {
            self.has_room = has_room;
            tracing::warn!(used_bytes = used, limit_bytes = self.limit_bytes, has_room, "the spool's room changed");
            (self.on_room)(has_room);
        }
    }
}

#[cfg(test)]
mod tests;
