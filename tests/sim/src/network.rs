//! Streams between processes and the coordinator: ordered within a direction, delayed, cut one way or both.

use std::collections::BTreeMap;

use semel_core::{event::ToAgent, id::LeaseToken, id::StreamId};
use semel_session::{Lease, Message};

use crate::agent::{Done, ProcNo, Work};

/// What an agent says.
pub type Up = Message<LeaseToken, Done>;

/// What the coordinator says.
#[derive(Clone, Debug)]
pub enum Down {
    /// A lease, with the frozen input that the shell adds.
    Lease(Lease<LeaseToken, Work>),
    /// Anything else.
    Other(ToAgent),
}

/// One direction of a stream.
#[derive(Clone, Debug, Default)]
pub struct Direction {
    /// When the last message arrives: the next one does not overtake it.
    pub last_at: u64,
    /// Everything said from now on is lost.
    pub lost: bool,
    /// Messages take this much longer.
    pub slower_ms: u64,
    /// What is on its way is lost too: its sender's machine ended before it was sent out.
    pub severed: bool,
}

/// A stream.
#[derive(Clone, Debug)]
pub struct Stream {
    /// The process that dialled it.
    pub process: ProcNo,
    /// Its number in that process's session.
    pub number: u64,
    /// The life of the coordinator that accepted it.
    pub life: u64,
    /// Agent to coordinator.
    pub up: Direction,
    /// Coordinator to agent.
    pub down: Direction,
    /// The coordinator reads it.
    pub coordinator_open: bool,
    /// The process reads it.
    pub process_open: bool,
}

/// All streams that are open at one end at least.
#[derive(Debug, Default)]
pub struct Network {
    /// The streams.
    pub streams: BTreeMap<StreamId, Stream>,
    last: u64,
}

impl Network {
    /// A new stream. Numbers are never used twice.
    pub fn open(&mut self, process: ProcNo, number: u64, life: u64) -> StreamId {
        self.last += 1;
        let stream = Stream {
            process,
            number,
            life,
            up: Direction::default(),
            down: Direction::default(),
            coordinator_open: true,
            process_open: true,
        };
        self.streams.insert(StreamId(self.last), stream);
        StreamId(self.last)
    }
    /// The process closes its end.
    pub fn close_process_end(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.process_open = false;
        }
        self.forget(id);
    }
    /// The coordinator closes its end.
    pub fn close_coordinator_end(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.coordinator_open = false;
        }
        self.forget(id);
    }
    fn forget(&mut self, id: StreamId) {
        if self.streams.get(&id).is_some_and(|s| !s.process_open && !s.coordinator_open) {
            self.streams.remove(&id);
        }
    }
    /// Streams that are open at both ends, in order.
    pub fn open_streams(&self) -> Vec<StreamId> {
        self.streams.iter().filter(|(_, s)| s.process_open && s.coordinator_open).map(|(id, _)| *id).collect()
    }
}

impl Direction {
    /// When something said now arrives; `None` if it is lost.
    pub fn arrival(&mut self, now: u64, delay: u64) -> Option<u64> {
        if self.lost {
            return None;
        }
        self.last_at = self.last_at.max(now + delay + self.slower_ms);
        Some(self.last_at)
    }
}
