//! The machine's words and the contract's words for the same things.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use semel_proto::v1 as pb;
use semel_session as session;

use pb::session_request::Body as Said;

/// The longest message of a release or a model's state, in bytes, as in the contract.
pub(crate) const MAX_MESSAGE_BYTES: usize = 1024;

/// A report, shared by the machine, the spool and the stream.
pub(crate) type SharedReport = Arc<pb::Report>;

/// What a lease carries, and when it arrived.
#[derive(Debug)]
pub(crate) struct Work {
    pub lease: pb::Lease,
    pub arrived: Instant,
}

/// The session machine with the contract's payloads.
pub(crate) type Machine = session::Session<Bytes, Work, SharedReport>;
pub(crate) type Action = session::Action<Bytes, Work, SharedReport>;
pub(crate) type Message = session::Message<Bytes, SharedReport>;

/// Cuts a text to at most `limit` bytes, at a character's end.
pub(crate) fn cut(text: &str, limit: usize) -> &str {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A message for the wire. `hello` is the frame of a Hello, without what the machine knows.
pub(crate) fn say(message: Message, hello: &pb::Hello) -> pb::SessionRequest {
    let body = match message {
        Message::Hello { slots, held, spooled } => Said::Hello(pb::Hello {
            slots,
            held: held.into_iter().map(held_lease).collect(),
            spooled: spooled.into_iter().map(|token| pb::HeldLease { lease_token: token, started: true }).collect(),
            ..hello.clone()
        }),
        Message::Heartbeat(heartbeat) => Said::Heartbeat(pb::Heartbeat {
            number: heartbeat.number,
            slots: heartbeat.slots,
            acknowledged: heartbeat.acknowledged,
            started: heartbeat.started,
            held_count: heartbeat.held_count,
            held_xor: heartbeat.held_xor,
        }),
        Message::Report { result, .. } => Said::Report(Arc::unwrap_or_clone(result)),
        Message::Release { token, reason, message } => Said::Release(release(token, reason, &message)),
        Message::Held { number, request, leases } => {
            Said::Held(pb::Held { number, request, leases: leases.into_iter().map(held_lease).collect() })
        }
        Message::ModelStates(states) => {
            Said::ModelStates(pb::ModelStates { states: states.into_iter().map(model_state).collect() })
        }
    };
    pb::SessionRequest { body: Some(body) }
}

fn held_lease(held: session::Held<Bytes>) -> pb::HeldLease {
    pb::HeldLease { lease_token: held.token, started: held.started }
}

fn model_state(state: session::ModelState) -> pb::ModelState {
    pb::ModelState { message: cut(&state.message, MAX_MESSAGE_BYTES).to_owned(), id: state.id, ready: state.ready }
}

fn release(token: Bytes, reason: session::ReleaseReason, message: &str) -> pb::Release {
    let mut retry_after = None;
    let reason = match reason {
        session::ReleaseReason::Draining => pb::ReleaseReason::Draining,
        session::ReleaseReason::RateLimited { retry_after_ms } => {
            retry_after = retry_after_ms;
            pb::ReleaseReason::RateLimited
        }
        session::ReleaseReason::Misconfigured => pb::ReleaseReason::Misconfigured,
        session::ReleaseReason::Overloaded => pb::ReleaseReason::Overloaded,
        session::ReleaseReason::SpoolFull => pb::ReleaseReason::SpoolFull,
        session::ReleaseReason::Orphaned => pb::ReleaseReason::Orphaned,
    };
    pb::Release {
        lease_token: token,
        reason: reason.into(),
        message: cut(message, MAX_MESSAGE_BYTES).to_owned(),
        retry_after_ms: retry_after,
    }
}
