//! Reaching the coordinator.

use std::time::Duration;

use semel_proto::{MAX_MESSAGE_BYTES, v1::agent_service_client::AgentServiceClient};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Endpoint;
use tonic::{Request, Status};

use super::Event;
use super::outbound::outbound;

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the connection is pinged, so that a link that was cut is noticed.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How long a ping may go unanswered.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// How much a coordinator may send ahead, in bytes; leases are small and come in bursts.
const WINDOW_BYTES: u32 = 1 << 20;

/// Where the coordinator is, and how to speak to it.
pub(crate) struct Coordinator {
    home: Endpoint,
    /// Where the last GoAway pointed; tried once, then home again.
    detour: Option<Endpoint>,
    authorization: MetadataValue<Ascii>,
}

/// A stream on its way; dropping it gives it up.
pub(crate) struct Dialling(JoinHandle<()>);

impl Drop for Dialling {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Coordinator {
    /// The coordinator at `address` (`host:port`, or a URI with its scheme), spoken to with a
    /// bearer token.
    ///
    /// # Errors
    /// The address or the token can't be used.
    pub fn new(address: &str, token: &str) -> anyhow::Result<Self> {
        let home = endpoint(address).map_err(|error| {
            anyhow::anyhow!("the coordinator's address {address:?} can't be used ({error}): give host:port")
        })?;
        // The token itself stays out of the message.
        let mut authorization: MetadataValue<Ascii> = format!("Bearer {token}").parse().map_err(|_| {
            anyhow::anyhow!("the coordinator's token has characters that a header can't carry: use visible ASCII")
        })?;
        authorization.set_sensitive(true);
        Ok(Self { home, detour: None, authorization })
    }

    /// Dials `address` next; empty is home.
    pub fn go_to(&mut self, address: &str) {
        if address.is_empty() {
            return;
        }
        match endpoint(address) {
            Ok(endpoint) => self.detour = Some(endpoint),
            Err(error) => tracing::warn!(address, %error, "told to go to an address that is none"),
        }
    }

    /// Dials a stream; what becomes of it is told.
    pub fn dial(&mut self, stream: u64, tell: mpsc::Sender<Event>) -> Dialling {
        let endpoint = self.detour.take().unwrap_or_else(|| self.home.clone());
        let authorization = self.authorization.clone();
        Dialling(tokio::spawn(async move {
            let event = match open(stream, endpoint, authorization, &tell).await {
                Ok(event) => event,
                Err(status) => Event::Closed { stream, status: Box::new(status) },
            };
            // Nobody listens any more once the session has ended.
            let _ = tell.send(event).await;
        }))
    }
}

fn endpoint(address: &str) -> Result<Endpoint, tonic::transport::Error> {
    let uri = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    let endpoint = Endpoint::from_shared(uri)?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    Ok(endpoint)
}

/// Connects and opens the stream. The coordinator may wait for Hello before it answers at all, so
/// the way out is handed over as soon as there is a connection.
async fn open(
    stream: u64,
    endpoint: Endpoint,
    authorization: MetadataValue<Ascii>,
    tell: &mpsc::Sender<Event>,
) -> Result<Event, Status> {
    let channel = endpoint.connect().await.map_err(|error| Status::unavailable(chain(&error)))?;
    let mut client = AgentServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let (outbound, outgoing) = outbound();
    let mut request = Request::new(outgoing);
    request.metadata_mut().insert("authorization", authorization);
    let _ = tell.send(Event::Connected { stream, outbound }).await;
    let incoming = client.session(request).await?.into_inner();
    Ok(Event::Opened { stream, incoming: Box::new(incoming) })
}

/// An error with its causes: tonic's own words are only "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
