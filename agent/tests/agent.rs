//! The agent against a coordinator that a test plays, over real loopback sockets.

mod fake;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use fake::{Agent, Coordinator, Puppet, Script, Stream, eventually, spec, token, within};
use semel_agent::{AgentConfig, Ended};
use semel_proto::v1 as pb;
use semel_proto::v1::session_request::Body as Said;
use semel_proto::v1::session_response::Body as Heard;
use sha2::{Digest, Sha256};

/// An agent of one model on a puppet, and its first stream, welcomed.
struct Scene {
    coordinator: Coordinator,
    puppet: Arc<Puppet>,
    agent: Agent,
    stream: Stream,
}

impl Scene {
    async fn new(slots: u32, script: Script) -> Self {
        Self::with(slots, script, |_| {}).await
    }

    async fn with(slots: u32, script: Script, change: impl FnOnce(&mut AgentConfig)) -> Self {
        let mut coordinator = Coordinator::start().await;
        let puppet = Puppet::new(script);
        let agent = Agent::start_with(&coordinator, spec(slots, puppet.clone()), change);
        let stream = coordinator.welcome().await;
        Self { coordinator, puppet, agent, stream }
    }

    /// Leases these, and waits until as many run as there are slots.
    async fn run(&mut self, fencing: RangeInclusive<u64>) {
        for fencing in fencing {
            self.stream.lease(fencing, "m", "{}").await;
        }
        let slots = self.stream.hello.slots as usize;
        self.stream.started(slots as u64).await;
        eventually(|| self.puppet.running() == slots).await;
    }
}

fn failure(report: &pb::Report) -> &pb::Failure {
    match &report.outcome {
        Some(pb::report::Outcome::Failure(failure)) => failure,
        other => panic!("a failure was expected, not {other:?}"),
    }
}

fn output(report: &pb::Report) -> Bytes {
    match &report.outcome {
        Some(pb::report::Outcome::Success(success)) => success.output.clone(),
        other => panic!("a success was expected, not {other:?}"),
    }
}

#[tokio::test]
async fn a_lease_is_acknowledged_and_announced_before_it_is_reported() {
    let Scene { coordinator: _coordinator, agent, mut stream, .. } = Scene::new(2, Script::Echo).await;
    assert_eq!(stream.hello.protocol_version, 1);
    assert_eq!(stream.hello.agent_id, "agent");
    assert_eq!(stream.hello.incarnation.len(), 16);
    assert_eq!((stream.hello.slots, stream.hello.prefetch), (2, 2));
    stream.lease(7, "m", "{}").await;
    let report = stream.report().await;
    assert_eq!(stream.acknowledged, [7]);
    assert_eq!(stream.started, [7]);
    assert_eq!(report.lease_token, token(7));
    assert_eq!(report.input_digest[..], Sha256::digest(b"{}")[..]);
    assert_eq!(output(&report), "{}");
    let served = report.served.expect("who served");
    assert_eq!((served.region.as_str(), served.region_basis()), ("here", pb::RegionBasis::Configured));
    stream.receipt(7).await;
    agent.shutdown.cancel();
    stream.read_on();
    assert_eq!(agent.ended().await.expect("it ends well"), Ended::Done { results_left: 0 });
}

#[tokio::test]
async fn never_more_run_than_there_are_slots_and_all_are_reported() {
    let mut scene = Scene::new(3, Script::Hold).await;
    scene.run(1..=20).await;
    let Scene { puppet, stream, .. } = &mut scene;
    puppet.gate.add_permits(20);
    for _ in 1..=20 {
        let report = stream.report().await;
        stream.say(Heard::Receipt(pb::Receipt { lease_token: report.lease_token, ..pb::Receipt::default() })).await;
    }
    assert_eq!(puppet.most_running.load(Ordering::SeqCst), 3);
    assert_eq!(puppet.called.load(Ordering::SeqCst), 20);
}

#[tokio::test]
async fn a_broken_stream_is_no_lost_session() {
    let mut scene = Scene::new(1, Script::Hold).await;
    scene.run(1..=2).await;
    let Scene { mut coordinator, puppet, agent: _agent, stream } = scene;
    let incarnation = stream.hello.incarnation.clone();
    drop(stream);
    let mut stream = coordinator.next().await;
    assert_eq!(stream.hello.incarnation, incarnation);
    let held: Vec<_> = stream.hello.held.iter().map(|held| (held.lease_token.clone(), held.started)).collect();
    assert_eq!(held, [(token(1), true), (token(2), false)]);
    // One is still live, the other was taken away meanwhile.
    stream.welcome(vec![token(1)]).await;
    within(puppet.aborted.notified()).await;
    stream.started(2).await;
    puppet.gate.add_permits(1);
    assert_eq!(stream.report().await.lease_token, token(2));
}

#[tokio::test]
async fn a_result_is_said_again_on_each_stream_until_its_receipt() {
    let Scene { mut coordinator, puppet, agent: _agent, mut stream } = Scene::new(1, Script::Echo).await;
    stream.lease(1, "m", "{}").await;
    let first = stream.report().await;
    for _ in 0..2 {
        drop(stream);
        stream = coordinator.next().await;
        assert_eq!(stream.hello.spooled.len(), 1);
        assert_eq!(stream.hello.spooled[0].lease_token, token(1));
        stream.welcome(Vec::new()).await;
        assert_eq!(stream.report().await, first);
    }
    stream.receipt(1).await;
    // The receipt was handled before what comes behind it is answered.
    stream.say(Heard::HeldRequest(pb::HeldRequest { number: 7 })).await;
    let held = stream.until(|said| if let Said::Held(held) = said { Some(held.clone()) } else { None }).await;
    assert_eq!((held.request, &held.leases[..]), (7, &[][..]));
    drop(stream);
    let stream = coordinator.next().await;
    assert_eq!(stream.hello.spooled, []);
    assert_eq!(puppet.called.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_revoked_lease_is_aborted_or_never_starts() {
    let mut scene = Scene::new(1, Script::Hold).await;
    scene.run(1..=1).await;
    let Scene { coordinator: _coordinator, puppet, agent: _agent, mut stream } = scene;
    stream.lease(2, "m", "{}").await;
    for fencing in [1, 2] {
        let reason = pb::RevokeReason::JobCancelled.into();
        stream.say(Heard::Revoke(pb::Revoke { lease_token: token(fencing), reason })).await;
    }
    within(puppet.aborted.notified()).await;
    stream.lease(3, "m", "{}").await;
    stream.started(3).await;
    puppet.gate.add_permits(9);
    assert_eq!(stream.report().await.lease_token, token(3));
    assert!(!stream.started.contains(&2));
}

#[tokio::test]
async fn without_a_word_from_the_coordinator_work_is_aborted_at_the_orphan_limit() {
    let mut scene = Scene::new(1, Script::Hold).await;
    scene.run(1..=1).await;
    let Scene { mut coordinator, puppet, agent: _agent, mut stream } = scene;
    stream.is_acknowledging(false);
    let silent_since = std::time::Instant::now();
    let reader = stream.read_on();
    within(puppet.aborted.notified()).await;
    let waited = silent_since.elapsed();
    assert!(waited < Duration::from_millis(fake::TTL_MS + 1_000), "{waited:?}");
    within(reader).await.expect("the agent leaves a stream that is silent");
    let mut stream = coordinator.welcome().await;
    let release = stream.release().await;
    assert_eq!((release.lease_token.clone(), release.reason()), (token(1), pb::ReleaseReason::Orphaned));
}

#[tokio::test]
async fn a_shutdown_lets_runs_finish_within_the_grace_and_hands_back_the_rest() {
    let mut scene = Scene::with(2, Script::Hold, |config| config.grace = Duration::from_secs(2)).await;
    scene.run(1..=3).await;
    let Scene { coordinator: _coordinator, puppet, agent, mut stream } = scene;
    agent.shutdown.cancel();
    let waiting = stream.release().await;
    assert_eq!((waiting.lease_token.clone(), waiting.reason()), (token(3), pb::ReleaseReason::Draining));
    puppet.gate.add_permits(1);
    let report = stream.report().await;
    stream.say(Heard::Receipt(pb::Receipt { lease_token: report.lease_token, ..pb::Receipt::default() })).await;
    let running = stream.release().await;
    assert_eq!(running.reason(), pb::ReleaseReason::Draining);
    assert!(stream.heartbeats.iter().any(|heartbeat| heartbeat.slots == 0));
    stream.read_on();
    assert_eq!(agent.ended().await.expect("it ends well"), Ended::Done { results_left: 0 });
}

#[tokio::test]
async fn a_superseded_agent_stops_for_good_and_keeps_its_results() {
    let Scene { coordinator: _coordinator, agent, mut stream, .. } = Scene::new(1, Script::Echo).await;
    stream.lease(1, "m", "{}").await;
    stream.report().await;
    let reason = pb::GoAwayReason::Superseded.into();
    stream.say(Heard::GoAway(pb::GoAway { reason, address: String::new() })).await;
    let folder = agent.spool.path().to_owned();
    let Agent { task, spool, .. } = agent;
    let ended = within(task).await.expect("no panic");
    assert_eq!(ended.expect("it ends well"), Ended::Superseded);
    let bytes: u64 = std::fs::read_dir(&folder)
        .expect("the spool")
        .map(|entry| entry.expect("an entry").metadata().expect("metadata").len())
        .sum();
    assert!(bytes > 0, "the result is on disk");
    drop(spool);
}

#[tokio::test]
async fn a_wrong_token_is_said_at_once_and_in_words() {
    let coordinator = Coordinator::start().await;
    let agent = Agent::start_with(&coordinator, spec(1, Puppet::new(Script::Echo)), |config| {
        config.token = "another".to_owned();
    });
    let error = agent.ended().await.expect_err("it is refused").to_string();
    assert!(error.contains("refuses this agent") && error.contains("a token is wanted"), "{error}");
    assert!(!error.contains("another"), "a token is never shown: {error}");
}

#[tokio::test]
async fn a_model_that_can_not_be_reached_is_said_in_hello_and_again_when_it_can() {
    let mut coordinator = Coordinator::start().await;
    let puppet = Puppet::new(Script::Echo);
    puppet.failing_probes.store(1, Ordering::SeqCst);
    let _agent = Agent::start(&coordinator, spec(1, puppet));
    let mut stream = coordinator.welcome().await;
    assert_eq!(stream.hello.models[0].unready.as_deref(), Some("the endpoint is down"));
    let ready = |said: &Said| match said {
        Said::ModelStates(states) => states.states.iter().any(|state| state.id == "m" && state.ready).then_some(()),
        _ => None,
    };
    stream.until(ready).await;
}

#[tokio::test]
async fn faults_of_the_provider_and_of_the_configuration_hand_the_lease_back() {
    for (script, reason, retry_after_ms, message) in [
        (Script::RateLimited(Duration::from_secs(3)), pb::ReleaseReason::RateLimited, Some(3_000), "slow down"),
        (Script::Misconfigured, pb::ReleaseReason::Misconfigured, None, "the key is wrong"),
    ] {
        let mut scene = Scene::new(1, script).await;
        let stream = &mut scene.stream;
        stream.lease(1, "m", "{}").await;
        let release = stream.release().await;
        assert_eq!(release.reason(), reason);
        assert_eq!((release.retry_after_ms, release.message.as_str()), (retry_after_ms, message));
    }
}

#[tokio::test]
async fn an_output_over_the_limit_fails_for_good_with_size_and_limit() {
    let mut scene = Scene::new(1, Script::Large((1 << 20) + 1)).await;
    let stream = &mut scene.stream;
    stream.lease(1, "m", "{}").await;
    let report = stream.report().await;
    let failure = failure(&report);
    assert_eq!((failure.reason(), failure.retryable), (pb::FailureReason::ResultTooLarge, false));
    assert_eq!(failure.message, "the output has 1048577 bytes; the limit is 1048576 bytes");
}

#[tokio::test]
async fn the_cold_timeout_holds_until_a_model_has_answered_and_then_the_run_timeout() {
    let Scene { coordinator: _coordinator, puppet, agent: _agent, mut stream } = Scene::new(1, Script::Hold).await;
    let lease = |fencing, run_timeout_ms, cold_timeout_ms| {
        let lease = fake::lease(fencing, "m", "{}");
        Heard::Lease(pb::Lease { run_timeout_ms, cold_timeout_ms, ..lease })
    };
    stream.say(lease(1, 60_000, 50)).await;
    let report = stream.report().await;
    assert_eq!(failure(&report).reason(), pb::FailureReason::ColdTimeout);
    within(puppet.aborted.notified()).await;
    stream.say(lease(2, 50, 60_000)).await;
    puppet.gate.add_permits(1);
    output(&stream.report().await);
    stream.say(lease(3, 50, 60_000)).await;
    let report = stream.report().await;
    assert_eq!(failure(&report).reason(), pb::FailureReason::RunTimeout);
    assert!(failure(&report).retryable);
}

#[tokio::test]
async fn an_executor_that_panics_fails_its_cell_and_nothing_else() {
    let mut scene = Scene::new(1, Script::Panic).await;
    let stream = &mut scene.stream;
    for fencing in [1, 2] {
        stream.lease(fencing, "m", "{}").await;
        let report = stream.report().await;
        assert_eq!(failure(&report).reason(), pb::FailureReason::Program);
        assert_eq!(report.lease_token, token(fencing));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn work_that_blocks_every_worker_does_not_starve_heartbeats() {
    let mut coordinator = Coordinator::start().await;
    // The agent's executions run on a runtime of their own here, so that the test's stays free.
    let (unblock, blocked) = std::sync::mpsc::sync_channel(1);
    let puppet = Puppet::new(Script::Block);
    *puppet.blocked.lock().expect("no panic") = Some(blocked);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let agent = {
        let _inside = runtime.enter();
        Agent::start(&coordinator, spec(1, puppet.clone()))
    };
    let mut stream = coordinator.welcome().await;
    stream.lease(1, "m", "{}").await;
    stream.started(1).await;
    eventually(|| puppet.running() == 1).await;
    let before = stream.heartbeats.len();
    while stream.heartbeats.len() < before + 5 {
        stream.until(|said| matches!(said, Said::Heartbeat(_)).then_some(())).await;
    }
    assert_eq!(puppet.running(), 1, "its only worker is still blocked");
    unblock.send(()).expect("it waits");
    stream.report().await;
    drop(agent);
    runtime.shutdown_background();
}

#[tokio::test]
async fn without_room_in_the_spool_no_lease_is_taken() {
    let mut scene = Scene::with(1, Script::Large(1 << 19), |config| config.spool_limit_bytes = 1 << 18).await;
    let stream = &mut scene.stream;
    stream.lease(1, "m", "{}").await;
    stream.report().await;
    let full = |said: &Said| matches!(said, Said::Heartbeat(beat) if beat.slots == 0).then_some(());
    stream.until(full).await;
    stream.lease(2, "m", "{}").await;
    assert_eq!(stream.release().await.reason(), pb::ReleaseReason::SpoolFull);
    stream.receipt(1).await;
    let room = |said: &Said| matches!(said, Said::Heartbeat(beat) if beat.slots == 1).then_some(());
    stream.until(room).await;
}
