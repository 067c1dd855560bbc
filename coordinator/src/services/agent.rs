//! `AgentService`: the wire of a session. Messages become events; what the core says becomes messages.

use std::{collections::BTreeSet, pin::Pin, sync::Arc, time::Duration};

use semel_core::{
    event::{Event, Heartbeat, Held, Hello, LeaseOut, ModelStates, Release, Report, ToAgent},
    id::{AgentId, FencingToken, Incarnation, LeaseToken, ModelId, ProviderId, RegionId, StreamId},
    words::GoAwayReason,
};
use semel_proto::v1::{
    self as pb, agent_service_server::AgentService, session_request::Body as Said, session_response::Body as Told,
};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::{services::convert, shell::Shell};

/// The version of the session's protocol that this release speaks.
pub const PROTOCOL_VERSION: u32 = 1;
/// Slots of one agent, at most.
pub const MAX_SLOTS: u32 = 65_536;
/// Leases wanted beyond the free slots, at most.
pub const MAX_PREFETCH: u32 = 1_024;
/// Models of one agent, at most.
pub const MAX_MODELS: usize = 1_024;
/// Leases in one message, at most: what an agent can hold, held and spooled.
pub const MAX_LISTED: usize = 1 << 20;
/// Words about a model or a release, in bytes.
const MAX_WORDS: usize = 1_024;
/// Messages between the session and its transport; the transport's own flow control is behind it.
const OUTBOUND: usize = 256;
/// How long a new stream may take to say Hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// The service.
pub struct Agents {
    shell: Shell,
    stop: CancellationToken,
}

impl Agents {
    /// Over a shell, until `stop`.
    pub fn new(shell: Shell, stop: CancellationToken) -> Self {
        Self { shell, stop }
    }
}

#[tonic::async_trait]
impl AgentService for Agents {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<pb::SessionResponse, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<pb::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (stream, told) = self.shell.open_stream().await?;
        let (to_wire, wire) = mpsc::channel(OUTBOUND);
        let session = Session { shell: self.shell.clone(), stream, to_wire };
        let (said, stop) = (request.into_inner(), self.stop.clone());
        // The response must not wait for the first message: some clients wait for it before they send one.
        tokio::spawn(session.run(said, told, stop));
        Ok(Response::new(Box::pin(ReceiverStream::new(wire))))
    }
}

/// One stream of one agent.
struct Session {
    shell: Shell,
    stream: StreamId,
    to_wire: mpsc::Sender<Result<pb::SessionResponse, Status>>,
}

impl Session {
    async fn run(self, said: Streaming<pb::SessionRequest>, told: mpsc::Receiver<ToAgent>, stop: CancellationToken) {
        let closed = self.to_wire.clone();
        let ended = tokio::select! {
            ended = self.listen(said) => ended,
            ended = self.tell(told) => ended,
            () = closed.closed() => Ok(()),
            () = stop.cancelled() => {
                Err(Status::unavailable("the coordinator stops; come back"))
            }
        };
        if let Err(status) = ended {
            tracing::info!(stream = self.stream.0, code = ?status.code(), reason = status.message(), "a stream ends");
            // The peer may be gone; then nobody needs the reason.
            let _gone = self.to_wire.try_send(Err(status));
        }
        let _stopping = self.shell.event(Event::StreamClosed(self.stream)).await;
    }

    /// Agent → core, until the agent leaves.
    async fn listen(&self, mut said: Streaming<pb::SessionRequest>) -> Result<(), Status> {
        let first = tokio::time::timeout(HELLO_TIMEOUT, said.next())
            .await
            .map_err(|_| Status::deadline_exceeded("no Hello within 10 s of the stream's beginning"))?;
        let Some(first) = first.transpose()? else { return Ok(()) };
        let Some(Said::Hello(hello)) = first.body else {
            return Err(Status::failed_precondition("body: the first message on a stream is hello"));
        };
        let hello = self.hello(hello)?;
        tracing::info!(stream = self.stream.0, agent = %hello.agent, incarnation = ?hello.incarnation, region = %hello.region, held = hello.held.len(), spooled = hello.spooled.len(), "hello");
        self.shell.event(Event::Hello(hello)).await?;
        while let Some(message) = said.next().await {
            if let Some(event) = self.event(message?)? {
                self.shell.event(event).await?;
            }
        }
        Ok(())
    }

    /// Core → agent, until the core closes the stream.
    async fn tell(&self, mut told: mpsc::Receiver<ToAgent>) -> Result<(), Status> {
        while let Some(message) = told.recv().await {
            let last = matches!(message, ToAgent::GoAway(_));
            let body = self.wire(message).await?;
            if self.to_wire.send(Ok(pb::SessionResponse { body: Some(body) })).await.is_err() || last {
                return Ok(());
            }
        }
        Err(Status::unavailable("the coordinator rebuilds its state or stops; come back"))
    }

    fn hello(&self, hello: pb::Hello) -> Result<Hello, Status> {
        if hello.protocol_version != PROTOCOL_VERSION {
            return Err(Status::failed_precondition(format!(
                "protocol_version: this coordinator speaks {PROTOCOL_VERSION}, the agent {}; run releases that speak the same",
                hello.protocol_version
            )));
        }
        convert::namespace(&hello.namespace)?;
        let incarnation: [u8; 16] = hello.incarnation.as_ref().try_into().map_err(|_| {
            Status::invalid_argument(format!("incarnation: 16 bytes are wanted, {} came", hello.incarnation.len()))
        })?;
        at_most("slots", hello.slots as usize, MAX_SLOTS as usize)?;
        at_most("prefetch", hello.prefetch as usize, MAX_PREFETCH as usize)?;
        at_most("models", hello.models.len(), MAX_MODELS)?;
        at_most("held", hello.held.len(), MAX_LISTED)?;
        at_most("spooled", hello.spooled.len(), MAX_LISTED)?;
        let mut models = Vec::with_capacity(hello.models.len());
        let mut ids = BTreeSet::new();
        for (i, model) in hello.models.into_iter().enumerate() {
            let id = convert::text_id(&format!("models[{i}].id"), &model.id)?;
            if !ids.insert(id.clone()) {
                return Err(Status::invalid_argument(format!("models[{i}].id: {id:?} is named twice")));
            }
            let provider = convert::text_id(&format!("models[{i}].provider"), &model.provider)?;
            let unready = model.unready.map(|words| words_of(&words));
            models.push((ModelId::new(id), ProviderId::new(provider), unready));
        }
        Ok(Hello {
            stream: self.stream,
            agent: AgentId::new(convert::text_id("agent_id", &hello.agent_id)?),
            incarnation: Incarnation(incarnation),
            region: RegionId::new(convert::text_id("region", &hello.region)?),
            models,
            slots: hello.slots,
            prefetch: hello.prefetch,
            held: held("held", &hello.held)?,
            spooled: held("spooled", &hello.spooled)?.into_iter().map(|(token, _)| token).collect(),
        })
    }

    fn event(&self, message: pb::SessionRequest) -> Result<Option<Event>, Status> {
        let stream = self.stream;
        Ok(Some(match message.body {
            Some(Said::Heartbeat(beat)) => {
                at_most("slots", beat.slots as usize, MAX_SLOTS as usize)?;
                Event::Heartbeat(Heartbeat {
                    stream,
                    number: beat.number,
                    slots: beat.slots,
                    acknowledged: fencing(&beat.acknowledged),
                    started: fencing(&beat.started),
                    held_count: beat.held_count,
                    held_xor: beat.held_xor,
                })
            }
            Some(Said::Report(report)) => {
                let token = convert::lease_token("lease_token", &report.lease_token)?;
                let (body, retry_after_ms) = convert::report_body(report, &self.shell.limits());
                Event::Report(Report {
                    stream,
                    token,
                    body,
                    leased_input: None,
                    retry_after_ms,
                    past: None,
                    chance: chance(),
                })
            }
            Some(Said::Release(release)) => Event::Release(Release {
                stream,
                token: convert::lease_token("lease_token", &release.lease_token)?,
                reason: convert::release_reason(release.reason),
                message: words_of(&release.message),
                retry_after_ms: release.retry_after_ms,
                chance: chance(),
            }),
            Some(Said::Held(list)) => {
                Event::Held(Held { stream, request: list.request, leases: held("leases", &list.leases)? })
            }
            Some(Said::ModelStates(list)) => {
                at_most("states", list.states.len(), MAX_MODELS)?;
                let state =
                    |s: pb::ModelState| (ModelId::new(s.id), if s.ready { Ok(()) } else { Err(words_of(&s.message)) });
                Event::ModelStates(ModelStates { stream, states: list.states.into_iter().map(state).collect() })
            }
            Some(Said::Hello(_)) => {
                return Err(Status::failed_precondition("body: hello comes once, first on its stream"));
            }
            // A message of a later release that this one does not know.
            None => return Ok(None),
        }))
    }

    async fn wire(&self, message: ToAgent) -> Result<Told, Status> {
        Ok(match message {
            ToAgent::Welcome { number, ttl_ms, heartbeat_ms, lost } => {
                let limits = self.shell.limits();
                let epoch = self.shell.leading().borrow().at.map_or(0, |(epoch, _)| epoch.get());
                Told::Welcome(pb::Welcome {
                    session: format!("{}-{}", epoch, self.stream.0),
                    incarnation_number: number,
                    ttl_ms,
                    heartbeat_interval_ms: heartbeat_ms,
                    max_output_bytes: limits.max_output_bytes,
                    max_error_bytes: limits.max_error_bytes,
                    lost: lost.into_iter().map(token_bytes).collect(),
                    epoch,
                })
            }
            ToAgent::HeartbeatAck(number) => Told::HeartbeatAck(pb::HeartbeatAck { number }),
            ToAgent::Lease(lease) => Told::Lease(self.lease(lease).await?),
            ToAgent::Receipt(receipt) => Told::Receipt(convert::receipt(&receipt)),
            ToAgent::Revoke(token, reason) => Told::Revoke(pb::Revoke {
                lease_token: token_bytes(token),
                reason: convert::revoke_reason(reason).into(),
            }),
            ToAgent::HeldRequest(number) => Told::HeldRequest(pb::HeldRequest { number }),
            ToAgent::GoAway(reason) => {
                if reason == GoAwayReason::Superseded {
                    tracing::warn!(stream = self.stream.0, "an incarnation that a newer one has replaced is refused");
                }
                Told::GoAway(pb::GoAway { reason: convert::go_away_reason(reason).into(), address: String::new() })
            }
        })
    }

    /// The lease with what its cell runs: the frozen input, as canonical bytes (promise 8).
    async fn lease(&self, lease: LeaseOut) -> Result<pb::Lease, Status> {
        let spec = self.shell.spec(&lease.job).await?;
        let found = spec.and_then(|spec| Some((spec.matrix.key(lease.cell)?, spec.input(lease.cell)?)));
        let Some((key, input)) = found else {
            return Err(Status::internal(format!("job {:?} has no cell {}", lease.job, lease.cell.0)));
        };
        Ok(pb::Lease {
            lease_token: token_bytes(lease.token),
            fencing_token: lease.token.fencing.get(),
            key: Some(convert::key(&lease.job, &key)),
            input,
            attempt: lease.attempt,
            run_timeout_ms: lease.run_timeout_ms,
            cold_timeout_ms: lease.cold_timeout_ms,
        })
    }
}

fn at_most(field: &str, value: usize, limit: usize) -> Result<(), Status> {
    if value <= limit {
        return Ok(());
    }
    Err(Status::invalid_argument(format!("{field}: {value} is over the limit of {limit}")))
}

fn held(field: &str, leases: &[pb::HeldLease]) -> Result<Vec<(LeaseToken, bool)>, Status> {
    at_most(field, leases.len(), MAX_LISTED)?;
    let token = |lease: &pb::HeldLease| Some((LeaseToken::from_bytes(&lease.lease_token)?, lease.started));
    // What was never a token of ours names no lease: it is not live, and nothing hangs on it.
    Ok(leases.iter().filter_map(token).collect())
}

fn fencing(numbers: &[u64]) -> Vec<FencingToken> {
    numbers.iter().filter_map(|n| FencingToken::from_u64(*n)).collect()
}

fn token_bytes(token: LeaseToken) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(&token.to_bytes())
}

fn words_of(text: &str) -> Arc<str> {
    convert::bounded_text(text, MAX_WORDS).into()
}

/// Randomness for jitter. Without any, the jitter is none.
fn chance() -> u64 {
    getrandom::u64().unwrap_or(0)
}
