//! The gRPC services: handlers without decisions. What they say comes from the core or the tables.

mod admin;
pub mod agent;
pub mod auth;
pub mod convert;
pub mod errors;
mod executions;
mod jobs;

use std::time::Duration;

use semel_proto::{
    DESCRIPTORS, MAX_MESSAGE_BYTES,
    v1::{
        admin_service_server::AdminServiceServer, agent_service_server::AgentServiceServer,
        job_service_server::JobServiceServer,
    },
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{service::InterceptorLayer, transport::Server};

use crate::shell::Shell;

pub use auth::Caller;

/// The largest output limit that can be set: an output and a provider's body of that size fit one message.
pub const MAX_OUTPUT_BYTES: u64 = 32 << 20;
/// What an agent may send before it is read, on a stream and on a connection: large reports over far links.
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Streams and calls at once on one connection.
const MAX_STREAMS: u32 = 1_024;
/// HTTP/2 pings notice a peer that is gone without a word; heartbeats are messages all the same.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Serves until `stop`, then ends every stream at once: nobody waits for a peer that is silent.
pub(crate) async fn serve(
    shell: Shell,
    listener: TcpListener,
    token: &str,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    // Both fail only on descriptors that do not decode: they are compiled in, and a test lists them.
    let (Ok(v1), Ok(v1alpha)) = (reflection().build_v1(), reflection().build_v1alpha()) else {
        unreachable!("the descriptors that were compiled in decode");
    };
    let (reporter, health) = tonic_health::server::health_reporter();
    let follow = tokio::spawn(follow_health(shell.clone(), reporter));
    let agents = AgentServiceServer::new(agent::Agents::new(shell.clone(), stop.clone()))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let jobs = JobServiceServer::new(jobs::Jobs::new(shell.clone()))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let admin = AdminServiceServer::new(admin::Admin::new(shell));
    let served = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE / 2))
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .tcp_nodelay(true)
        .layer(InterceptorLayer::new(auth::Auth::new(token)))
        .add_service(health)
        .add_service(v1)
        .add_service(v1alpha)
        .add_service(agents)
        .add_service(jobs)
        .add_service(admin)
        .serve_with_incoming(TcpListenerStream::new(listener));
    let ended = tokio::select! {
        ended = served => ended,
        () = stop.cancelled() => Ok(()),
    };
    follow.abort();
    ended
}

/// Health is SERVING exactly while this process leads and its commits succeed.
async fn follow_health(shell: Shell, reporter: tonic_health::server::HealthReporter) {
    let mut leading = shell.leading();
    loop {
        let now = *leading.borrow_and_update();
        let status = if now.at.is_some() && !now.stalled {
            tonic_health::ServingStatus::Serving
        } else {
            tonic_health::ServingStatus::NotServing
        };
        for service in ["", "semel.v1.AgentService", "semel.v1.JobService", "semel.v1.AdminService"] {
            reporter.set_service_status(service, status).await;
        }
        if leading.changed().await.is_err() {
            return;
        }
    }
}
