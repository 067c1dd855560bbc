//! A job of 100 million cells costs one row: it is accepted at once, and its first cells run.

#![allow(clippy::print_stdout, reason = "a test that fails shows what was seen")]

use std::time::{Duration, Instant};

use semel_agent::{AgentConfig, config::AgentSpec};
use semel_coordinator::{Limits, Settings};
use semel_proto::v1::{self as pb, job_service_client::JobServiceClient};
use tokio_util::sync::CancellationToken;
use tonic::{Request, metadata::MetadataValue, transport::Channel};

const FIRST: u64 = 1_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_100_million_cells_is_accepted_and_its_first_cells_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = Settings {
        store: folder.path().join("s.db"),
        listen: ([127, 0, 0, 1], 0).into(),
        token: None,
        core: semel_core::Config::default(),
        limits: Limits::default(),
    };
    let coordinator = semel_coordinator::start(settings).await.expect("starts");
    let url = format!("http://{}", coordinator.address());
    let channel = Channel::from_shared(url).expect("a URL").connect().await.expect("connects");
    let bearer: MetadataValue<_> = format!("Bearer {}", coordinator.token()).parse().expect("ASCII");
    let mut jobs = JobServiceClient::with_interceptor(channel, move |mut request: Request<()>| {
        request.metadata_mut().insert("authorization", bearer.clone());
        Ok(request)
    });
    let question = |i| pb::Question { id: format!("q{i}"), prompt: Some("?".into()), ..pb::Question::default() };
    let model = |i| pb::Model { id: format!("m{i}"), regions: vec!["us-east".into()], ..pb::Model::default() };
    let spec = pb::JobSpec {
        questions: (0..100).map(question).collect(),
        models: (0..10).map(model).collect(),
        repeat: Some(100_000),
        ..pb::JobSpec::default()
    };
    let begun = Instant::now();
    let request = pb::SubmitJobRequest { namespace: String::new(), job_id: "large".into(), spec: Some(spec) };
    let answer = jobs.submit_job(request).await.expect("accepted").into_inner();
    println!("accepted in {:?}", begun.elapsed());
    assert_eq!(answer.job.and_then(|j| j.counts).map(|c| c.expected), Some(100_000_000));

    let models: Vec<String> = (0..10).map(|i| format!("m{i}")).collect();
    let specs = AgentSpec::echo_everywhere(&["us-east".into()], &models, 64);
    let spec = specs.into_iter().next().expect("one region, one agent");
    let address = coordinator.address().to_string();
    let config = AgentConfig::new(address, coordinator.token(), spec, folder.path().join("spool"));
    let stop = CancellationToken::new();
    let agent = tokio::spawn(semel_agent::run(config, stop.clone()));
    let watched = pb::WatchJobRequest { namespace: String::new(), job_id: "large".into(), interval_ms: 100 };
    let mut pictures = jobs.watch_job(watched).await.expect("watches").into_inner();
    let first = async {
        while let Some(picture) = pictures.message().await.expect("no error") {
            let counts = picture.job.and_then(|j| j.counts).expect("counts");
            let sum = counts.recorded + counts.leased + counts.pending + counts.not_run;
            assert_eq!(sum, counts.expected, "promise 4");
            if counts.recorded >= FIRST {
                return;
            }
        }
        panic!("the watch ended before {FIRST} cells were recorded");
    };
    tokio::time::timeout(Duration::from_secs(60), first).await.expect("the first cells are recorded within a minute");
    println!("{FIRST} cells recorded after {:?}", begun.elapsed());
    stop.cancel();
    agent.await.expect("no panic").expect("ends well");
    coordinator.stop().await.expect("stops");
}
