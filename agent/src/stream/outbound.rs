//! The way out of a stream: a queue bounded in bytes.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use semel_proto::v1 as pb;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};
use tokio_stream::Stream;

/// How many bytes may wait for the connection. Beyond it the session's thread polls no messages, so
/// a heartbeat waits for this much and for one report at most.
const MAX_QUEUED_BYTES: usize = 256 * 1024;
/// What a message counts beyond the bytes of its result.
const MESSAGE_BYTES: usize = 128;

/// How many messages may wait: each weighs at least [`MESSAGE_BYTES`], so the bytes run out first.
const MAX_QUEUED_MESSAGES: usize = MAX_QUEUED_BYTES / MESSAGE_BYTES + 1;

/// The sending side.
pub(crate) struct Outbound {
    queue: mpsc::Sender<pb::SessionRequest>,
    queued: Arc<Queued>,
}

/// The receiving side, which the connection reads.
pub(crate) struct Outgoing {
    queue: mpsc::Receiver<pb::SessionRequest>,
    queued: Arc<Queued>,
}

#[derive(Default)]
struct Queued {
    bytes: AtomicUsize,
    room: Notify,
}

/// Both sides of a new queue.
pub(crate) fn outbound() -> (Outbound, Outgoing) {
    let (sender, receiver) = mpsc::channel(MAX_QUEUED_MESSAGES);
    let queued = Arc::new(Queued::default());
    let outbound = Outbound { queue: sender, queued: Arc::clone(&queued) };
    let outgoing = Outgoing { queue: receiver, queued };
    (outbound, outgoing)
}

impl Outbound {
    pub fn has_room(&self) -> bool {
        self.queued.bytes.load(Ordering::Acquire) < MAX_QUEUED_BYTES
    }

    /// Waits until there is room again after there was none.
    pub async fn room(&self) {
        self.queued.room.notified().await;
    }

    /// Queues a message; to be called after `has_room` only.
    pub fn send(&self, message: pb::SessionRequest) {
        self.queued.bytes.fetch_add(weight(&message), Ordering::AcqRel);
        // A connection that is gone is told of by its own event.
        let sent = self.queue.try_send(message);
        assert!(!matches!(sent, Err(TrySendError::Full(_))), "more messages than bytes");
    }
}

impl fmt::Debug for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queued = self.queued.bytes.load(Ordering::Relaxed);
        f.debug_struct("Outbound").field("queued_bytes", &queued).finish_non_exhaustive()
    }
}

impl Stream for Outgoing {
    type Item = pb::SessionRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<pb::SessionRequest>> {
        let message = std::task::ready!(self.queue.poll_recv(cx));
        if let Some(message) = &message {
            let weight = weight(message);
            let before = self.queued.bytes.fetch_sub(weight, Ordering::AcqRel);
            if before >= MAX_QUEUED_BYTES && before - weight < MAX_QUEUED_BYTES {
                self.queued.room.notify_one();
            }
        }
        Poll::Ready(message)
    }
}

/// About how many bytes a message takes. Only results can be large, and they are not measured
/// exactly: that would cost as much as encoding them.
fn weight(message: &pb::SessionRequest) -> usize {
    let Some(pb::session_request::Body::Report(report)) = &message.body else {
        return MESSAGE_BYTES;
    };
    let result = match &report.outcome {
        Some(pb::report::Outcome::Success(success)) => success.output.len() + success.response.len(),
        Some(pb::report::Outcome::Failure(failure)) => failure.message.len(),
        None => 0,
    };
    MESSAGE_BYTES + result
}
