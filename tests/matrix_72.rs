//! The incident's job, by name: 8 questions × 3 models × 3 regions, submitted five times at once, over agents of
//! which some die, sleep and come back, with reports sent twice and late.

mod common;

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use common::{
    Started, binary, incident,
    provider::{Behaviour, Provider},
    run, wait_until,
};
use semel_coordinator::{Limits, Settings};
use semel_proto::v1::{
    self as pb, agent_service_client::AgentServiceClient, job_service_client::JobServiceClient,
    session_request::Body as Said, session_response::Body as Told,
};
use sqlx::{ConnectOptions, Connection, Row, sqlite::SqliteConnectOptions};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, metadata::MetadataValue, transport::Channel};

const TOKEN: &str = "a-token-of-this-test-alone";
const REGIONS: [&str; 3] = ["us-east", "eu-west", "asia-pacific"];
const MODELS: [&str; 3] = ["qwen2.5-1.5b", "mistral-7b", "llama3.2-1b"];

fn with_token<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value: MetadataValue<_> = format!("Bearer {TOKEN}").parse().expect("ASCII");
    request.metadata_mut().insert("authorization", value);
    request
}

/// Submits the job; whether this call created it.
async fn submit(channel: Channel, spec: pb::JobSpec) -> bool {
    let request = pb::SubmitJobRequest { namespace: String::new(), job_id: "incident".into(), spec: Some(spec) };
    let answer = JobServiceClient::new(channel).submit_job(with_token(request)).await.expect("accepted");
    let answer = answer.into_inner();
    assert_eq!(answer.job.and_then(|j| j.counts).map(|c| c.expected), Some(72));
    answer.created
}

async fn counts(channel: &Channel) -> pb::Counts {
    let request = pb::GetJobRequest { namespace: String::new(), job_id: "incident".into() };
    let answer = JobServiceClient::new(channel.clone()).get_job(with_token(request)).await.expect("is there");
    answer.into_inner().job.and_then(|j| j.counts).expect("counts")
}

async fn until_complete(channel: &Channel) {
    for _ in 0..600 {
        if counts(channel).await.recorded == 72 {
            return;
        }
        // between two looks at the condition
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the job did not end within a minute: {:?}", counts(channel).await);
}

/// An agent process.
fn agent(folder: &Path, address: &str, name: &str, spool: &str) -> Started {
    let child = Command::new(binary("semel-agent"))
        .args(["--coordinator", address, "--agents", "agents.yaml", "--token-file", "token", "--agent", name])
        .args(["--spool", spool])
        .current_dir(folder)
        .env("RUST_LOG", "warn")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("starts");
    Started(child)
}

fn signal(child: &Started, name: &str) {
    let status = Command::new("kill").args([name, &child.0.id().to_string()]).status().expect("kill is there");
    assert!(status.success(), "kill {name}");
}

/// Takes one lease by hand, keeps it past its session's end, and then reports it twice.
struct Zombie {
    say: mpsc::Sender<pb::SessionRequest>,
    told: tonic::Streaming<pb::SessionResponse>,
}

impl Zombie {
    async fn connect(channel: Channel, incarnation: u8, slots: u32) -> Self {
        let (say, said) = mpsc::channel(64);
        let hello = pb::Hello {
            protocol_version: 1,
            agent_id: "zombie".into(),
            incarnation: vec![incarnation; 16].into(),
            region: "us-east".into(),
            models: MODELS.map(|id| pb::AgentModel { id: id.into(), provider: "zombie".into(), unready: None }).into(),
            slots,
            ..pb::Hello::default()
        };
        say.send(pb::SessionRequest { body: Some(Said::Hello(hello)) }).await.expect("room");
        let stream = with_token(ReceiverStream::new(said));
        let told = AgentServiceClient::new(channel).session(stream).await.expect("a session").into_inner();
        Self { say, told }
    }
    async fn say(&self, body: Said) {
        self.say.send(pb::SessionRequest { body: Some(body) }).await.expect("the stream is open");
    }
    async fn until<T>(&mut self, mut wanted: impl FnMut(Told) -> Option<T>) -> T {
        let found = async {
            loop {
                let message = self.told.message().await.expect("no error").expect("not ended");
                if let Some(found) = message.body.and_then(&mut wanted) {
                    return found;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), found).await.expect("the coordinator says it within 30 s")
    }
    async fn lease(&mut self) -> pb::Lease {
        let lease = self.until(|m| if let Told::Lease(lease) = m { Some(lease) } else { None }).await;
        let started = vec![lease.fencing_token];
        self.say(Said::Heartbeat(pb::Heartbeat {
            number: 1,
            slots: 1,
            acknowledged: started.clone(),
            started,
            held_count: 1,
            held_xor: lease.fencing_token,
        }))
        .await;
        lease
    }
    async fn report(&mut self, lease: &pb::Lease, output: &'static [u8]) -> pb::Receipt {
        use sha2::{Digest, Sha256};
        let served = pb::Served {
            region: "us-east".into(),
            region_basis: pb::RegionBasis::Configured.into(),
            executor: "zombie".into(),
            ..pb::Served::default()
        };
        let success = pb::Success { output: output.into(), ..pb::Success::default() };
        self.say(Said::Report(pb::Report {
            lease_token: lease.lease_token.clone(),
            input_digest: Sha256::digest(&lease.input).to_vec().into(),
            served: Some(served),
            timings: Some(pb::Timings::default()),
            outcome: Some(pb::report::Outcome::Success(success)),
        }))
        .await;
        self.until(|m| if let Told::Receipt(receipt) = m { Some(receipt) } else { None }).await
    }
}

/// The zombie comes back, its session long gone, and hands in what it had: twice.
async fn come_back_late(channel: Channel, held: &pb::Lease) {
    let mut zombie = Zombie::connect(channel, 1, 0).await;
    for _ in 0..2 {
        let receipt = zombie.report(held, b"late").await;
        assert_eq!(receipt.kind(), pb::ReceiptKind::Fenced, "promise 3: {receipt:?}");
        assert_eq!(receipt.reason(), pb::ReceiptReason::LeaseLost);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn promise_1_the_incidents_job_has_each_of_its_72_keys_exactly_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let provider = Provider::start(Behaviour { delay: Duration::from_millis(250), ..Behaviour::default() });
    std::fs::write(here.join("token"), TOKEN).expect("writes");
    let names = ["a1", "a2", "a3", "b1", "b2", "b3"];
    let mut agents = format!("providers:\n  fake: {{ executor: openai, base_url: {:?} }}\nagents:\n", provider.url());
    for (i, name) in names.iter().enumerate() {
        let models = MODELS.map(|m| format!("{m}: fake")).join(", ");
        agents += &format!(
            "  - {{ id: {name}, region: {}, slots: 2, prefetch: 2, models: {{ {models} }} }}\n",
            REGIONS[i % 3]
        );
    }
    std::fs::write(here.join("agents.yaml"), agents).expect("writes");

    let core =
        semel_core::Config { ttl_ms: 2_000, heartbeat_ms: 300, margin_ms: 300, ack_ms: 600, ..Default::default() };
    let settings = Settings {
        store: here.join("s.db"),
        listen: ([127, 0, 0, 1], 0).into(),
        token: Some(TOKEN.into()),
        core,
        limits: Limits::default(),
    };
    let coordinator = semel_coordinator::start(settings).await.expect("starts");
    let address = coordinator.address().to_string();
    let channel = Channel::from_shared(format!("http://{address}")).expect("a URL").connect().await.expect("connects");

    // Submitted five times at once: one of them creates it.
    let text = incident("incident", "");
    let file = semel_spec::parse("job.yaml", text.as_bytes(), semel_spec::Format::Yaml, &|_| Err("none".into()));
    let spec = semel_spec::wire::to_wire(&file.expect("a good job").checked.spec);
    let submits = (0..5).map(|_| tokio::spawn(submit(channel.clone(), spec.clone())));
    let mut created = 0;
    for submit in submits.collect::<Vec<_>>() {
        created += usize::from(submit.await.expect("no panic"));
    }
    assert_eq!(created, 1, "promise 6: five submissions are one job");

    // The zombie takes a lease before anybody else is there, and falls silent.
    let mut zombie = Zombie::connect(channel.clone(), 1, 1).await;
    let held = zombie.lease().await;

    let mut running: BTreeMap<&str, Started> = BTreeMap::new();
    for name in names {
        running.insert(name, agent(here, &address, name, &format!("spool-{name}")));
    }
    wait_until("the first calls", Duration::from_secs(30), || provider.calls() >= 6);
    running.get_mut("a2").expect("there").kill();
    signal(&running["a3"], "-STOP");
    running.insert("a2", agent(here, &address, "a2", "spool-a2"));
    // A second process under the same id: the newer incarnation wins for good.
    let twin = agent(here, &address, "a1", "spool-twin");
    wait_until("half of the calls", Duration::from_secs(60), || provider.calls() >= 36);
    running.get_mut("b1").expect("there").kill();
    signal(&running["a3"], "-CONT");

    until_complete(&channel).await;
    drop(twin);

    come_back_late(channel.clone(), &held).await;
    check_rows(&here.join("s.db"), &held).await;
    assert_eq!(run(here, &["audit", "incident", "--store", "s.db"]).status.code(), Some(0), "the audit is exact");
    drop(running);
    coordinator.stop().await.expect("stops");
}

/// Eight rows in each of the nine cells of the incident's table, and the late report kept in the history.
async fn check_rows(store: &Path, late: &pb::Lease) {
    let mut connection = SqliteConnectOptions::new().filename(store).read_only(true).connect().await.expect("opens");
    let rows = sqlx::query(
        "select model, region, count(*) as n, count(distinct question) as questions, sum(status = 'succeeded') as good
         from executions group by model, region",
    );
    let rows = rows.fetch_all(&mut connection).await.expect("reads");
    assert_eq!(rows.len(), 9);
    for row in rows {
        let numbers = ["n", "questions", "good"].map(|column| row.get::<i64, _>(column));
        assert_eq!(numbers, [8, 8, 8], "{} in {}", row.get::<String, _>("model"), row.get::<String, _>("region"));
    }
    let kept = sqlx::query("select count(*) as n from attempts where kind = 'fenced' and fencing_token = ?");
    let token = i64::try_from(late.fencing_token).expect("63 bits");
    let kept = kept.bind(token).fetch_one(&mut connection).await.expect("reads");
    assert_eq!(kept.get::<i64, _>("n"), 1, "the refused late report is kept once, though it came twice");
    connection.close().await.expect("closes");
}
