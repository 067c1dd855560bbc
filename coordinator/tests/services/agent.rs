//! An agent by hand: it speaks the contract and nothing of the agent's code.

use std::collections::BTreeMap;

use bytes::Bytes;
use semel_proto::v1::{self as pb, report::Outcome, session_request::Body as Say, session_response::Body as Hear};
use sha2::{Digest as _, Sha256};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;

use super::server::Server;

/// What an agent answers to a lease; nothing lets it run for ever.
pub type Answer = fn(&pb::ExecutionKey) -> Option<Outcome>;

/// An agent that runs until it is dropped.
pub struct Agent(JoinHandle<()>);

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub fn success(output: impl Into<Bytes>) -> Option<Outcome> {
    Some(Outcome::Success(pb::Success { output: output.into(), finish_reason: "stop".into(), ..Default::default() }))
}

pub fn failure(message: &'static [u8]) -> Option<Outcome> {
    Some(Outcome::Failure(pb::Failure {
        reason: pb::FailureReason::ProviderRefused.into(),
        stage: pb::Stage::Run.into(),
        code: "400".into(),
        message: Bytes::from_static(message),
        ..Default::default()
    }))
}

impl Agent {
    /// An agent of a region that serves these models.
    pub async fn start(server: &Server, region: &str, models: &[&str], slots: u32, answer: Answer) -> Self {
        let (say, said) = mpsc::channel(64);
        let hello = pb::Hello {
            protocol_version: 1,
            agent_id: format!("agent of {region}"),
            incarnation: Bytes::from_static(&[7; 16]),
            region: region.into(),
            models: models
                .iter()
                .map(|id| pb::AgentModel { id: (*id).into(), provider: "p".into(), unready: None })
                .collect(),
            slots,
            ..Default::default()
        };
        say.send(pb::SessionRequest { body: Some(Say::Hello(hello)) }).await.unwrap();
        let mut heard = server.agents().session(ReceiverStream::new(said)).await.unwrap().into_inner();
        let mut session = Session { say, region: region.into(), slots, number: 0, held: BTreeMap::new(), answer };
        Self(tokio::spawn(async move {
            while let Ok(Some(message)) = heard.message().await {
                session.hear(message.body.unwrap()).await;
            }
        }))
    }
}

struct Session {
    say: mpsc::Sender<pb::SessionRequest>,
    region: String,
    slots: u32,
    number: u64,
    held: BTreeMap<u64, Bytes>,
    answer: Answer,
}

impl Session {
    async fn hear(&mut self, message: Hear) {
        match message {
            Hear::Lease(lease) => self.run(lease).await,
            Hear::Revoke(revoke) => self.held.retain(|_, token| *token != revoke.lease_token),
            Hear::HeldRequest(asked) => {
                let leases =
                    self.held.values().map(|token| pb::HeldLease { lease_token: token.clone(), started: true });
                self.say(Say::Held(pb::Held { number: self.number, leases: leases.collect(), request: asked.number }))
                    .await;
            }
            _ => {}
        }
    }

    async fn run(&mut self, lease: pb::Lease) {
        self.held.insert(lease.fencing_token, lease.lease_token.clone());
        self.number += 1;
        let xor = self.held.keys().fold(0, |xor, token| xor ^ token);
        self.say(Say::Heartbeat(pb::Heartbeat {
            number: self.number,
            slots: self.slots,
            acknowledged: vec![lease.fencing_token],
            started: vec![lease.fencing_token],
            held_count: self.held.len() as u32,
            held_xor: xor,
        }))
        .await;
        let Some(outcome) = (self.answer)(&lease.key.unwrap()) else { return };
        self.held.remove(&lease.fencing_token);
        let served = pb::Served {
            region: self.region.clone(),
            region_basis: pb::RegionBasis::Configured.into(),
            endpoint: "127.0.0.1:1".into(),
            executor: "test".into(),
            ..Default::default()
        };
        self.say(Say::Report(pb::Report {
            lease_token: lease.lease_token,
            input_digest: Bytes::copy_from_slice(&Sha256::digest(&lease.input)),
            served: Some(served),
            timings: Some(pb::Timings { waited_ms: 1, ran_ms: 2, first_byte_ms: None }),
            outcome: Some(outcome),
        }))
        .await;
    }

    async fn say(&self, body: Say) {
        self.say.send(pb::SessionRequest { body: Some(body) }).await.unwrap();
    }
}
