//! A real coordinator on loopback with a SQLite file of its own, and clients of it.

use std::net::SocketAddr;

use semel_coordinator::{Limits, Running, Settings};
use semel_proto::{
    MAX_MESSAGE_BYTES,
    v1::{
        self as pb, admin_service_client::AdminServiceClient, agent_service_client::AgentServiceClient,
        job_service_client::JobServiceClient,
    },
};
use tempfile::TempDir;
use tonic::{
    Request, Status,
    client::Grpc,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt;

/// Shows the token with every call.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

pub type Jobs = JobServiceClient<InterceptedService<Channel, Bearer>>;
pub type Admin = AdminServiceClient<InterceptedService<Channel, Bearer>>;
pub type Agents = AgentServiceClient<InterceptedService<Channel, Bearer>>;

pub struct Server {
    running: Running,
    channel: Channel,
    token: Bearer,
    // Removed after the coordinator has stopped.
    _folder: TempDir,
}

impl Server {
    pub async fn start() -> Self {
        Self::with(Limits::default()).await
    }

    pub async fn with(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings {
            store: folder.path().join("semel.db"),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            token: None,
            core: semel_core::Config::default(),
            limits,
        };
        let running = semel_coordinator::start(settings).await.unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{}", running.address())).unwrap();
        let token = Bearer(format!("Bearer {}", running.token()).parse().unwrap());
        Self { channel: endpoint.connect_lazy(), token, running, _folder: folder }
    }

    /// With the limits that a client has by default: 4 MiB a message.
    pub fn jobs(&self) -> Jobs {
        JobServiceClient::with_interceptor(self.channel.clone(), self.token.clone())
    }
    pub fn admin(&self) -> Admin {
        AdminServiceClient::with_interceptor(self.channel.clone(), self.token.clone())
    }
    pub fn agents(&self) -> Agents {
        AgentServiceClient::with_interceptor(self.channel.clone(), self.token.clone())
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }
    /// Calls a method without a message, and says what became of it; with a token or without.
    pub async fn call(&self, path: &str, token: Option<&str>) -> Result<(), Status> {
        let mut client = Grpc::new(self.channel.clone());
        client.ready().await.unwrap();
        let mut request = Request::new(());
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", token.parse().unwrap());
        }
        client.unary(request, path.parse().unwrap(), ProstCodec::<(), ()>::default()).await.map(|_| ())
    }
    /// What `authorization` says of who has the token.
    pub fn token(&self) -> &str {
        self.token.0.to_str().unwrap()
    }

    pub async fn submit(&self, job: &str, spec: pb::JobSpec) -> Result<pb::SubmitJobResponse, Status> {
        let request = pb::SubmitJobRequest { job_id: job.into(), spec: Some(spec), ..Default::default() };
        self.jobs().submit_job(request).await.map(tonic::Response::into_inner)
    }

    pub async fn records(&self, job: &str) -> Vec<pb::Execution> {
        let request = pb::ListExecutionsRequest { job_id: job.into(), page_size: 1_000, ..Default::default() };
        self.jobs().list_executions(request).await.unwrap().into_inner().executions
    }

    /// Reads the job's pictures until it has ended: the last one.
    pub async fn ended(&self, job: &str) -> pb::Job {
        let request = pb::WatchJobRequest { job_id: job.into(), interval_ms: 100, ..Default::default() };
        let mut pictures = self.jobs().watch_job(request).await.unwrap().into_inner();
        let mut last = None;
        while let Some(picture) = pictures.message().await.unwrap() {
            last = picture.job;
        }
        last.unwrap()
    }

    pub async fn stop(self) {
        self.running.stop().await.unwrap();
    }
}

/// A job of these axes: each model in each region.
pub fn spec(questions: &[&str], models: &[&str], regions: &[&str]) -> pb::JobSpec {
    let question = |id: &&str| pb::Question { id: (*id).into(), prompt: Some(format!("{id}?")), ..Default::default() };
    let model = |id: &&str| pb::Model {
        id: (*id).into(),
        regions: regions.iter().map(|r| (*r).into()).collect(),
        ..Default::default()
    };
    pb::JobSpec {
        questions: questions.iter().map(question).collect(),
        models: models.iter().map(model).collect(),
        policy: Some(pb::Policy { backoff_ms: Some(0), ..Default::default() }),
        ..Default::default()
    }
}

/// The fields that a refusal names.
pub fn fields(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let violations = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
    violations.into_iter().map(|violation| violation.field).collect()
}
