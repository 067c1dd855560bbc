//! A coordinator that does only what a test tells it to, on a real socket; and executors that a test
//! holds in its hand.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use semel_agent::config::AgentSpec;
use semel_agent::executor::{Answer, Executor, Outcome, Task};
use semel_agent::{AgentConfig, Ended};
use semel_proto::v1 as pb;
use semel_proto::v1::agent_service_server::{AgentService, AgentServiceServer};
use semel_proto::v1::session_request::Body as Said;
use semel_proto::v1::session_response::Body as Heard;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// The token that the fake coordinator wants.
pub const TOKEN: &str = "a-token-of-the-tests";
/// How long a test waits for what must happen. Only a failing test waits this long.
pub const PATIENCE: Duration = Duration::from_secs(30);
pub const INTERVAL_MS: u64 = 100;
pub const TTL_MS: u64 = 2_000;

/// The coordinator: its streams come out of `next`.
pub struct Coordinator {
    pub address: SocketAddr,
    streams: mpsc::Receiver<Stream>,
    server: JoinHandle<()>,
}

/// One stream, after its Hello.
pub struct Stream {
    pub hello: pb::Hello,
    incoming: Streaming<pb::SessionRequest>,
    outgoing: mpsc::Sender<Result<pb::SessionResponse, Status>>,
    acknowledge: bool,
    /// Acknowledged and started so far on this stream.
    pub acknowledged: Vec<u64>,
    pub started: Vec<u64>,
    pub heartbeats: Vec<pb::Heartbeat>,
    /// Read while something else was waited for.
    set_aside: VecDeque<Said>,
}

struct Service(mpsc::Sender<Stream>);

#[tonic::async_trait]
impl AgentService for Service {
    type SessionStream = ReceiverStream<Result<pb::SessionResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<pb::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let authorization = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        if authorization != Some(&format!("Bearer {TOKEN}")) {
            return Err(Status::unauthenticated("a token is wanted"));
        }
        let mut incoming = request.into_inner();
        // As a coordinator may: no answer before the Hello.
        let first = incoming.message().await?.and_then(|message| message.body);
        let Some(Said::Hello(hello)) = first else {
            return Err(Status::invalid_argument("Hello comes first"));
        };
        let (outgoing, responses) = mpsc::channel(100_000);
        let stream = Stream {
            hello,
            incoming,
            outgoing,
            acknowledge: true,
            acknowledged: Vec::new(),
            started: Vec::new(),
            heartbeats: Vec::new(),
            set_aside: VecDeque::new(),
        };
        self.0.send(stream).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}

impl Coordinator {
    pub async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().expect("an address")).await
    }

    pub async fn start_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.expect("the port is free");
        let address = listener.local_addr().expect("an address");
        let (sender, streams) = mpsc::channel(16);
        let service = AgentServiceServer::new(Service(sender)).max_decoding_message_size(48 << 20);
        let server = tokio::spawn(async move {
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .expect("the server serves");
        });
        Self { address, streams, server }
    }

    /// The agent's next stream, not yet welcomed.
    pub async fn next(&mut self) -> Stream {
        within(self.streams.recv()).await.expect("the server runs")
    }

    /// The agent's next stream, welcomed.
    pub async fn welcome(&mut self) -> Stream {
        let stream = self.next().await;
        stream.welcome(Vec::new()).await;
        stream
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Stream {
    pub async fn welcome(&self, lost: Vec<Bytes>) {
        self.say(Heard::Welcome(pb::Welcome {
            session: "s".to_owned(),
            incarnation_number: 1,
            ttl_ms: TTL_MS,
            heartbeat_interval_ms: INTERVAL_MS,
            max_output_bytes: 1 << 20,
            max_error_bytes: 64 << 10,
            lost,
            epoch: 1,
        }))
        .await;
    }

    pub async fn say(&self, body: Heard) {
        let message = pb::SessionResponse { body: Some(body) };
        self.outgoing.send(Ok(message)).await.expect("the agent listens");
    }

    pub async fn lease(&self, fencing: u64, model: &str, input: &str) {
        self.say(Heard::Lease(lease(fencing, model, input))).await;
    }

    pub async fn receipt(&self, fencing: u64) {
        let receipt = pb::Receipt {
            lease_token: token(fencing),
            kind: pb::ReceiptKind::Recorded.into(),
            ..pb::Receipt::default()
        };
        self.say(Heard::Receipt(receipt)).await;
    }

    pub fn is_acknowledging(&mut self, acknowledge: bool) {
        self.acknowledge = acknowledge;
    }

    /// Reads on, acknowledging heartbeats, until `wanted` gives something.
    pub async fn until<T>(&mut self, mut wanted: impl FnMut(&Said) -> Option<T>) -> T {
        let found = self.set_aside.iter().position(|said| wanted(said).is_some());
        if let Some(said) = found.and_then(|at| self.set_aside.remove(at)) {
            return wanted(&said).expect("found before");
        }
        loop {
            let said = within(self.read()).await.expect("the stream goes on");
            if let Some(found) = wanted(&said) {
                return found;
            }
            if !matches!(said, Said::Heartbeat(_)) {
                self.set_aside.push_back(said);
            }
        }
    }

    /// Reads one message. `None` once the agent has left.
    pub async fn read(&mut self) -> Option<Said> {
        let said = self.incoming.message().await.ok().flatten()?.body?;
        if let Said::Heartbeat(heartbeat) = &said {
            self.acknowledged.extend(&heartbeat.acknowledged);
            self.started.extend(&heartbeat.started);
            self.heartbeats.push(heartbeat.clone());
            if self.acknowledge {
                let ack = pb::HeartbeatAck { number: heartbeat.number };
                let message = pb::SessionResponse { body: Some(Heard::HeartbeatAck(ack)) };
                // The agent may have left meanwhile.
                let _ = self.outgoing.send(Ok(message)).await;
            }
        }
        Some(said)
    }

    /// Reads on until the agent leaves.
    pub fn read_on(mut self) -> JoinHandle<()> {
        tokio::spawn(async move { while self.read().await.is_some() {} })
    }

    pub async fn report(&mut self) -> pb::Report {
        self.until(|said| match said {
            Said::Report(report) => Some(report.clone()),
            _ => None,
        })
        .await
    }

    /// Waits until a lease is handed back, and answers that it is durable.
    pub async fn release(&mut self) -> pb::Release {
        let release = self
            .until(|said| match said {
                Said::Release(release) => Some(release.clone()),
                _ => None,
            })
            .await;
        let reason = pb::RevokeReason::Released.into();
        self.say(Heard::Revoke(pb::Revoke { lease_token: release.lease_token.clone(), reason })).await;
        release
    }

    /// Waits until a heartbeat has said that this lease starts.
    pub async fn started(&mut self, fencing: u64) {
        while !self.started.contains(&fencing) {
            self.until(|said| matches!(said, Said::Heartbeat(_)).then_some(())).await;
        }
    }
}

pub fn token(fencing: u64) -> Bytes {
    format!("token-{fencing}").into()
}

pub fn lease(fencing: u64, model: &str, input: &str) -> pb::Lease {
    let key = pb::ExecutionKey {
        namespace: "default".to_owned(),
        job_id: "job".to_owned(),
        region: "here".to_owned(),
        model: model.to_owned(),
        question: format!("q{fencing}"),
        repeat: 0,
    };
    pb::Lease {
        lease_token: token(fencing),
        fencing_token: fencing,
        key: Some(key),
        input: Bytes::copy_from_slice(input.as_bytes()),
        attempt: 1,
        run_timeout_ms: 60_000,
        cold_timeout_ms: 60_000,
    }
}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("what must happen happens in time")
}

/// Waits until `condition` holds.
pub async fn eventually(mut condition: impl FnMut() -> bool) {
    within(async {
        while !condition() {
            // between two looks at the condition
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// What an executor in a test's hand does with each call.
pub enum Script {
    /// Answers with the input, at once.
    Echo,
    /// Answers with the input once the test lets one through.
    Hold,
    /// Answers with this many bytes.
    Large(usize),
    RateLimited(Duration),
    Misconfigured,
    Panic,
    /// Blocks its thread until the test lets one through.
    Block,
}

/// An executor in a test's hand.
pub struct Puppet {
    pub script: Script,
    pub gate: Semaphore,
    pub called: AtomicUsize,
    pub running: AtomicUsize,
    pub most_running: AtomicUsize,
    /// Probes fail while this is above 0; each takes one off.
    pub failing_probes: AtomicUsize,
    pub blocked: std::sync::Mutex<Option<std::sync::mpsc::Receiver<()>>>,
    pub aborted: Notify,
}

impl Puppet {
    pub fn new(script: Script) -> Arc<Self> {
        Arc::new(Self {
            script,
            gate: Semaphore::new(0),
            called: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            most_running: AtomicUsize::new(0),
            failing_probes: AtomicUsize::new(0),
            blocked: std::sync::Mutex::new(None),
            aborted: Notify::new(),
        })
    }

    pub fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }
}

struct Call<'a> {
    puppet: &'a Puppet,
    finished: bool,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.puppet.running.fetch_sub(1, Ordering::SeqCst);
        if !self.finished {
            self.puppet.aborted.notify_one();
        }
    }
}

#[async_trait]
impl Executor for Puppet {
    fn name(&self) -> &'static str {
        "echo"
    }

    async fn probe(&self) -> Result<(), String> {
        let failing = self.failing_probes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if failing.is_ok() { Err("the endpoint is down".to_owned()) } else { Ok(()) }
    }

    async fn execute(&self, task: Task) -> Outcome {
        self.called.fetch_add(1, Ordering::SeqCst);
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_running.fetch_max(running, Ordering::SeqCst);
        let mut call = Call { puppet: self, finished: false };
        let mut output = task.input.clone();
        match &self.script {
            Script::Echo => {}
            Script::Hold => self.gate.acquire().await.expect("the gate is open").forget(),
            Script::Large(size) => output = vec![b'x'; *size].into(),
            Script::RateLimited(after) => {
                call.finished = true;
                return Outcome::RateLimited { retry_after: Some(*after), message: "slow down".to_owned() };
            }
            Script::Misconfigured => {
                call.finished = true;
                return Outcome::Misconfigured { message: "the key is wrong".to_owned() };
            }
            Script::Panic => panic!("as the test wants it"),
            Script::Block => {
                let blocked = self.blocked.lock().expect("no panic").take();
                if let Some(blocked) = blocked {
                    let _ = blocked.recv();
                }
            }
        }
        call.finished = true;
        Outcome::Success(Answer { output, served_model: "m".to_owned(), ..Answer::default() })
    }
}

/// An agent with one model, `m`, on `executor`.
pub fn spec(slots: u32, executor: Arc<dyn Executor>) -> AgentSpec {
    AgentSpec {
        id: "agent".to_owned(),
        region: "here".to_owned(),
        slots,
        prefetch: slots,
        models: BTreeMap::from([("m".to_owned(), ("provider".to_owned(), executor))]),
        keep_response: true,
    }
}

/// An agent that runs beside the test.
pub struct Agent {
    pub shutdown: CancellationToken,
    pub task: JoinHandle<anyhow::Result<Ended>>,
    pub spool: tempfile::TempDir,
}

impl Agent {
    pub fn start(coordinator: &Coordinator, spec: AgentSpec) -> Self {
        Self::start_with(coordinator, spec, |_| {})
    }

    pub fn start_with(coordinator: &Coordinator, spec: AgentSpec, change: impl FnOnce(&mut AgentConfig)) -> Self {
        let spool = tempfile::tempdir().expect("a folder");
        let mut config = AgentConfig::new(coordinator.address.to_string(), TOKEN, spec, spool.path());
        change(&mut config);
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(semel_agent::run(config, shutdown.clone()));
        Self { shutdown, task, spool }
    }

    /// Waits for its end.
    pub async fn ended(self) -> anyhow::Result<Ended> {
        within(self.task).await.expect("the agent doesn't panic")
    }
}
