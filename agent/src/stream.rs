//! Drives the session machine: one thread of its own, on which nothing else runs, so that no work
//! can starve the heartbeats.
//!
//! A turn: wait until something happens, hand all that has arrived to the machine, then do and send
//! what it says. The machine decides; here is only the carrying.
//!
//! Work and heartbeats share one stream, so a heartbeat waits for the report that is on its way, and
//! for one at most that the connection has taken ahead. The link is taken to carry these within the
//! session's TTL: two of 32 MiB within 30 s, or 18 Mbit/s. On a slower one the session ends under such
//! a report and the stream is dialled again; then that report comes after all others, until
//! `max_output_bytes` is lowered.

mod dial;
mod outbound;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use semel_proto::v1 as pb;
use semel_session as session;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use crate::clock;
use crate::slots::Slots;
use crate::spool::Spool;
use crate::wire::{self, Action, Machine, SharedReport, Work};
pub(crate) use dial::Coordinator;
use outbound::Outbound;

use pb::session_response::Body as Heard;

/// The longest wait between two turns: a machine that wakes from a suspension, in which timers stand
/// still, finds out within this time.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// The most messages handled in one turn, so that a flood can't hold back heartbeats.
const MAX_MESSAGES_PER_TURN: usize = 4_096;

/// What happens on this machine, told to the session's thread.
#[derive(Debug)]
pub(crate) enum Event {
    /// A dialled connection stands; messages may be sent.
    Connected { stream: u64, outbound: Outbound },
    /// The coordinator answered; messages may come.
    Opened { stream: u64, incoming: Box<Streaming<pb::SessionResponse>> },
    /// The stream broke or could not be opened.
    Closed { stream: u64, status: Box<Status> },
    /// An execution ended with a result.
    Finished { token: Bytes, report: SharedReport },
    /// An execution ended without a result.
    Released { token: Bytes, reason: session::ReleaseReason, message: String },
    /// A model can be reached, or can't.
    ModelState { id: String, ready: bool, message: String },
}

/// How a session ended.
#[derive(Debug)]
pub(crate) enum End {
    Stopped(session::StopReason),
    /// The coordinator refuses this agent, and did so from the start.
    Refused(Box<Status>),
    /// The caller went away.
    Abandoned,
}

/// What the driver is made of.
pub(crate) struct Parts {
    pub machine: Machine,
    pub coordinator: Coordinator,
    pub hello: pb::Hello,
    pub slots: Slots,
    pub spool: Arc<Spool>,
    pub events: mpsc::Receiver<Event>,
    pub tell: mpsc::Sender<Event>,
    pub grace: Duration,
    pub shutdown: CancellationToken,
    pub abandoned: CancellationToken,
}

/// The session's thread, from its first stream to its end.
pub(crate) struct Driver {
    parts: Parts,
    outbound: Option<Outbound>,
    incoming: Option<Box<Streaming<pb::SessionResponse>>>,
    /// The task that dials the current stream; dropping it gives the stream up.
    dialling: Option<dial::Dialling>,
    shutting_down: bool,
    was_welcomed: bool,
    end: Option<End>,
}

/// What ended a wait.
enum Woken {
    Event(Option<Event>),
    Message(Result<Option<pb::SessionResponse>, Status>),
    Shutdown,
    Abandoned,
    Turn,
}

impl Driver {
    pub fn new(parts: Parts) -> Self {
        Self {
            parts,
            outbound: None,
            incoming: None,
            dialling: None,
            shutting_down: false,
            was_welcomed: false,
            end: None,
        }
    }

    /// Runs until the machine stops.
    pub async fn run(mut self) -> End {
        loop {
            self.act();
            if let Some(end) = self.end.take() {
                return end;
            }
            match self.wait().await {
                Woken::Event(Some(event)) => self.handle(event),
                Woken::Message(message) => self.hear(message),
                Woken::Shutdown => {
                    self.shutting_down = true;
                    let grace_ms = u64::try_from(self.parts.grace.as_millis()).unwrap_or(u64::MAX);
                    self.parts.machine.handle_shutdown(clock::now_ms(), grace_ms);
                }
                Woken::Abandoned => return End::Abandoned,
                Woken::Turn | Woken::Event(None) => {}
            }
            self.drain().await;
        }
    }

    /// Waits until something happens or the machine has something to do.
    async fn wait(&mut self) -> Woken {
        let wake = self.parts.machine.next_wake();
        let pause =
            wake.map_or(MAX_PAUSE, |at| Duration::from_millis(at.saturating_sub(clock::now_ms())).min(MAX_PAUSE));
        let room = async {
            match &self.outbound {
                Some(outbound) => outbound.room().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.parts.abandoned.cancelled() => Woken::Abandoned,
            () = self.parts.shutdown.cancelled(), if !self.shutting_down => Woken::Shutdown,
            message = next(&mut self.incoming) => Woken::Message(message),
            event = self.parts.events.recv() => Woken::Event(event),
            () = room => Woken::Turn,
            () = tokio::time::sleep(pause) => Woken::Turn,
        }
    }

    /// Handles all else that has arrived (S3).
    async fn drain(&mut self) {
        for _ in 0..MAX_MESSAGES_PER_TURN {
            let Some(incoming) = self.incoming.as_mut() else { break };
            let message = poll_fn(|cx| match Pin::new(&mut **incoming).poll_next(cx) {
                Poll::Ready(message) => Poll::Ready(Some(message.transpose())),
                Poll::Pending => Poll::Ready(None),
            })
            .await;
            let Some(message) = message else { break };
            self.hear(message);
        }
        while let Ok(event) = self.parts.events.try_recv() {
            self.handle(event);
        }
    }

    /// Does and sends what the machine says.
    fn act(&mut self) {
        let now = clock::now_ms();
        self.parts.machine.handle_spool_room(self.parts.spool.has_room());
        loop {
            while let Some(action) = self.parts.machine.poll_action(now) {
                self.perform(action);
            }
            let Some(outbound) = self.outbound.as_ref().filter(|outbound| outbound.has_room()) else {
                return;
            };
            let Some(message) = self.parts.machine.poll_message(now) else {
                return;
            };
            outbound.send(wire::say(message, &self.parts.hello));
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Connect { stream } => {
                self.leave();
                let dialling = self.parts.coordinator.dial(stream, self.parts.tell.clone());
                self.dialling = Some(dialling);
            }
            Action::Disconnect { stream } => {
                tracing::info!(stream, "the stream is given up");
                self.leave();
            }
            Action::Start { token, work } => self.parts.slots.start(token, work),
            Action::Abort { token, reason } => {
                tracing::info!(?reason, "an execution is aborted");
                self.parts.slots.abort(&token);
            }
            Action::Spool { token, fencing, result } => self.parts.spool.keep(token, fencing, result),
            Action::Forget { token } => self.parts.spool.forget(token),
            Action::Stop(reason) => self.end = Some(End::Stopped(reason)),
        }
    }

    fn leave(&mut self) {
        self.outbound = None;
        self.incoming = None;
        self.dialling = None;
    }

    fn handle(&mut self, event: Event) {
        let machine = &mut self.parts.machine;
        let current = machine.stream();
        match event {
            Event::Connected { stream, outbound } if stream == current => {
                self.outbound = Some(outbound);
                machine.handle_connected(stream);
            }
            Event::Opened { stream, incoming } if stream == current => {
                self.incoming = Some(incoming);
            }
            Event::Closed { stream, status } if stream == current => self.broken(*status),
            Event::Connected { .. } | Event::Opened { .. } | Event::Closed { .. } => {}
            Event::Finished { token, report } => {
                self.parts.slots.ended(&token);
                machine.handle_finished(&token, report);
            }
            Event::Released { token, reason, message } => {
                self.parts.slots.ended(&token);
                machine.handle_released(&token, reason, message);
            }
            Event::ModelState { id, ready, message } => {
                machine.handle_model_state(&id, ready, &message);
                if let Some(model) = self.parts.hello.models.iter_mut().find(|model| model.id == id) {
                    model.unready = (!ready).then(|| wire::cut(&message, wire::MAX_MESSAGE_BYTES).to_owned());
                }
            }
        }
    }

    fn hear(&mut self, message: Result<Option<pb::SessionResponse>, Status>) {
        match message {
            Ok(Some(response)) => {
                if let Some(body) = response.body {
                    self.hear_body(body);
                }
            }
            Ok(None) => self.broken(Status::unavailable("the coordinator closed the stream")),
            Err(status) => self.broken(status),
        }
    }

    fn hear_body(&mut self, body: Heard) {
        let machine = &mut self.parts.machine;
        let stream = machine.stream();
        match body {
            Heard::Welcome(welcome) => {
                tracing::info!(
                    session = welcome.session,
                    incarnation = welcome.incarnation_number,
                    epoch = welcome.epoch,
                    ttl_ms = welcome.ttl_ms,
                    lost = welcome.lost.len(),
                    "welcome"
                );
                self.was_welcomed = true;
                self.parts.slots.limit(welcome.max_output_bytes, welcome.max_error_bytes);
                let welcome = session::Welcome {
                    ttl_ms: welcome.ttl_ms,
                    heartbeat_interval_ms: welcome.heartbeat_interval_ms,
                    lost: welcome.lost,
                };
                machine.handle_welcome(stream, welcome);
            }
            Heard::HeartbeatAck(ack) => machine.handle_heartbeat_ack(stream, ack.number),
            Heard::Lease(lease) => {
                let lease = session::Lease {
                    token: lease.lease_token.clone(),
                    fencing: lease.fencing_token,
                    work: Work { lease, arrived: Instant::now() },
                };
                machine.handle_lease(stream, lease);
            }
            Heard::Receipt(receipt) => {
                if receipt.kind() == pb::ReceiptKind::Fenced {
                    tracing::warn!(reason = ?receipt.reason(), "a report was fenced");
                }
                machine.handle_receipt(stream, &receipt.lease_token);
            }
            Heard::Revoke(revoke) => machine.handle_revoke(stream, &revoke.lease_token),
            Heard::HeldRequest(asked) => machine.handle_held_request(stream, asked.number),
            Heard::Drain(_) => {
                tracing::info!("the coordinator drains this agent");
                machine.handle_drain(stream);
            }
            Heard::GoAway(go_away) => self.go_away(stream, &go_away),
        }
    }

    fn go_away(&mut self, stream: u64, go_away: &pb::GoAway) {
        tracing::info!(reason = ?go_away.reason(), address = go_away.address, "told to go away");
        let reason = match go_away.reason() {
            pb::GoAwayReason::Superseded => session::GoAway::Superseded,
            pb::GoAwayReason::Unspecified
            | pb::GoAwayReason::NotLeading
            | pb::GoAwayReason::Replaced
            | pb::GoAwayReason::Unanswered => session::GoAway::ComeBack,
        };
        self.parts.coordinator.go_to(&go_away.address);
        let now = clock::now_ms();
        self.parts.machine.handle_go_away(now, stream, reason);
    }

    fn broken(&mut self, status: Status) {
        let stream = self.parts.machine.stream();
        tracing::warn!(stream, code = ?status.code(), message = status.message(), "the stream broke");
        if !self.was_welcomed && is_refusal(status.code()) {
            self.end = Some(End::Refused(Box::new(status)));
        }
        self.leave();
        let now = clock::now_ms();
        self.parts.machine.handle_disconnected(now, stream);
    }
}

/// Whether trying again is of no use unless somebody changes something. Believed only before the
/// first Welcome: an agent that worked once rides out whatever is being changed.
fn is_refusal(code: Code) -> bool {
    matches!(
        code,
        Code::Unauthenticated
            | Code::PermissionDenied
            | Code::InvalidArgument
            | Code::NotFound
            | Code::FailedPrecondition
            | Code::Unimplemented
    )
}

/// The next message of the stream, if there is a stream.
async fn next(
    incoming: &mut Option<Box<Streaming<pb::SessionResponse>>>,
) -> Result<Option<pb::SessionResponse>, Status> {
    let Some(incoming) = incoming else {
        return std::future::pending().await;
    };
    poll_fn(|cx| Pin::new(&mut **incoming).poll_next(cx)).await.transpose()
}
