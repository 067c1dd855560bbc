//! The rules one by one, each in a history short enough to read.

use semel_session::{
    AbortReason, Action, GREETING_LIMIT_MS, GoAway, Heartbeat, Held, Lease, MAX_UNACKNOWLEDGED_HEARTBEATS, Message,
    ModelState, Recovered, ReleaseReason, Session, Settings, StopReason, Welcome,
};

type Machine = Session<u64, u64, u64>;
type Act = Action<u64, u64, u64>;
type Said = Message<u64, u64>;

const TTL: u64 = 30_000;
const INTERVAL: u64 = 5_000;

fn settings(slots: u32) -> Settings {
    Settings { slots, prefetch: 2, orphan_limit_ms: None, seed: 1 }
}

fn actions(machine: &mut Machine, now: u64) -> Vec<Act> {
    std::iter::from_fn(|| machine.poll_action(now)).collect()
}

/// All that is done and said at `now`, as a shell with room would.
fn turn(machine: &mut Machine, now: u64) -> (Vec<Act>, Vec<Said>) {
    let (mut done, mut said) = (actions(machine, now), Vec::new());
    while let Some(message) = machine.poll_message(now) {
        said.push(message);
        done.extend(actions(machine, now));
    }
    machine.check();
    (done, said)
}

fn heartbeats(said: &[Said]) -> Vec<&Heartbeat> {
    said.iter().filter_map(|message| if let Message::Heartbeat(beat) = message { Some(beat) } else { None }).collect()
}

fn reports(said: &[Said]) -> Vec<u64> {
    said.iter()
        .filter_map(|message| if let Message::Report { token, .. } = message { Some(*token) } else { None })
        .collect()
}

fn welcome(machine: &mut Machine, now: u64, lost: Vec<u64>) -> Vec<Said> {
    let stream = machine.stream();
    machine.handle_connected(stream);
    let (_, hello) = turn(machine, now);
    assert!(matches!(hello[..], [Message::Hello { .. }]), "Hello alone is first: {hello:?}");
    machine.handle_welcome(stream, Welcome { ttl_ms: TTL, heartbeat_interval_ms: INTERVAL, lost });
    hello
}

/// A machine whose first heartbeat, at 0, was acknowledged.
fn up(settings: Settings) -> Machine {
    let mut machine = Machine::new(settings, 0, []);
    assert_eq!(actions(&mut machine, 0), [Action::Connect { stream: 1 }]);
    welcome(&mut machine, 0, vec![]);
    let (_, said) = turn(&mut machine, 0);
    assert_eq!(heartbeats(&said).len(), 1);
    machine.handle_heartbeat_ack(1, 1);
    machine
}

fn lease(machine: &mut Machine, token: u64) {
    machine.handle_lease(machine.stream(), Lease { token, fencing: token, work: token });
}

/// Breaks the stream and dials the next. Gives the time.
fn redial(machine: &mut Machine, now: u64) -> u64 {
    machine.handle_disconnected(now, machine.stream());
    assert_eq!(actions(machine, now).iter().filter(|action| matches!(action, Action::Connect { .. })).count(), 0);
    let at = machine.next_wake().expect("it comes back");
    assert!(actions(machine, at).iter().any(|action| matches!(action, Action::Connect { .. })));
    at
}

#[test]
fn a_burst_of_leases_is_acknowledged_and_started_with_one_heartbeat() {
    let mut machine = up(settings(2));
    for token in [10, 11, 12] {
        lease(&mut machine, token);
    }
    assert_eq!(actions(&mut machine, 1), [], "nothing starts before it is said");
    let (done, said) = turn(&mut machine, 1);
    let [beat] = heartbeats(&said)[..] else { panic!("one heartbeat: {said:?}") };
    assert_eq!((&beat.acknowledged[..], &beat.started[..]), (&[10, 11, 12][..], &[10, 11][..]));
    assert_eq!((beat.held_count, beat.held_xor), (3, 10 ^ 11 ^ 12));
    assert_eq!(done, [Action::Start { token: 10, work: 10 }, Action::Start { token: 11, work: 11 }]);
}

#[test]
fn the_end_of_a_run_starts_the_next_and_its_report_leaves_the_held_set() {
    let mut machine = up(settings(1));
    lease(&mut machine, 1);
    lease(&mut machine, 2);
    turn(&mut machine, 1);
    machine.handle_finished(&1, 100);
    let (done, said) = turn(&mut machine, 2);
    assert_eq!(done, [Action::Spool { token: 1, fencing: 1, result: 100 }, Action::Start { token: 2, work: 2 }]);
    let [Message::Heartbeat(beat), Message::Report { token: 1, result: 100 }] = &said[..] else { panic!("{said:?}") };
    assert_eq!((beat.held_count, &beat.started[..]), (2, &[2][..]), "not said yet, so still held");
    let (_, said) = turn(&mut machine, INTERVAL + 2);
    assert_eq!((heartbeats(&said)[0].held_count, heartbeats(&said)[0].held_xor), (1, 2));
    machine.handle_receipt(1, &1);
    assert_eq!(actions(&mut machine, INTERVAL + 3), [Action::Forget { token: 1 }]);
}

#[test]
fn a_revoke_that_arrives_with_its_lease_keeps_it_from_starting() {
    let mut machine = up(settings(1));
    lease(&mut machine, 1);
    machine.handle_revoke(1, &1);
    let (done, said) = turn(&mut machine, 1);
    assert_eq!(done, []);
    assert!(heartbeats(&said).iter().all(|beat| beat.started.is_empty() && beat.held_count == 0), "{said:?}");
}

#[test]
fn a_revoke_between_announcement_and_start_keeps_it_from_starting() {
    let mut machine = up(settings(1));
    lease(&mut machine, 1);
    let beat = machine.poll_message(1);
    assert!(matches!(beat, Some(Message::Heartbeat(beat)) if beat.started == [1]));
    machine.handle_revoke(1, &1);
    assert_eq!(actions(&mut machine, 1), []);
}

#[test]
fn the_result_of_an_aborted_run_is_dropped() {
    let mut machine = up(settings(1));
    lease(&mut machine, 1);
    turn(&mut machine, 1);
    machine.handle_revoke(1, &1);
    machine.handle_finished(&1, 100);
    let (done, said) = turn(&mut machine, 2);
    assert_eq!(done, [Action::Abort { token: 1, reason: AbortReason::Revoked }]);
    assert_eq!(said, []);
    assert_eq!(machine.results(), 0);
}

#[test]
fn a_finished_result_outlives_the_loss_of_its_lease() {
    let mut machine = up(settings(1));
    lease(&mut machine, 1);
    turn(&mut machine, 1);
    let at = redial(&mut machine, 2);
    machine.handle_finished(&1, 100);
    let hello = welcome(&mut machine, at, vec![1]);
    assert_eq!(hello, [Message::Hello { slots: 1, held: vec![], spooled: vec![1] }]);
    let (_, said) = turn(&mut machine, at);
    assert_eq!(heartbeats(&said)[0].held_count, 0, "lost, so not held");
    assert!(said.contains(&Message::Report { token: 1, result: 100 }), "and reported all the same");
}

#[test]
fn results_and_releases_are_said_again_on_a_new_stream_and_held_until_then() {
    let mut machine = up(settings(2));
    lease(&mut machine, 1);
    lease(&mut machine, 2);
    turn(&mut machine, 1);
    machine.handle_finished(&1, 100);
    machine.handle_released(&2, ReleaseReason::Misconfigured, "no key".to_owned());
    let (_, said) = turn(&mut machine, 2);
    assert_eq!(said.len(), 2, "{said:?}");
    let at = redial(&mut machine, 3);
    let hello = welcome(&mut machine, at, vec![]);
    assert_eq!(hello, [Message::Hello { slots: 2, held: vec![Held { token: 2, started: true }], spooled: vec![1] }]);
    let (_, said) = turn(&mut machine, at);
    assert_eq!(heartbeats(&said)[0].held_count, 2, "as the coordinator counts them after this Hello");
    assert!(said.contains(&Message::Report { token: 1, result: 100 }));
    let release = Message::Release { token: 2, reason: ReleaseReason::Misconfigured, message: "no key".to_owned() };
    assert!(said.contains(&release));
    assert_eq!(machine.held(), []);
}

#[test]
fn p5_a_release_is_repeated_until_its_revoke() {
    let mut machine = up(settings(1));
    lease(&mut machine, 1);
    turn(&mut machine, 1);
    machine.handle_released(&1, ReleaseReason::Misconfigured, String::new());
    turn(&mut machine, 2);
    // A later heartbeat is acknowledged: that is said before anything is durable.
    let (_, said) = turn(&mut machine, INTERVAL + 2);
    machine.handle_heartbeat_ack(1, heartbeats(&said)[0].number);
    let at = redial(&mut machine, INTERVAL + 3);
    let hello = welcome(&mut machine, at, vec![]);
    assert!(matches!(&hello[..], [Message::Hello { held, .. }] if held.len() == 1));
    let (_, said) = turn(&mut machine, at);
    assert!(said.iter().any(|message| matches!(message, Message::Release { token: 1, .. })), "{said:?}");
    machine.handle_revoke(machine.stream(), &1);
    let at = redial(&mut machine, at + 1);
    let hello = welcome(&mut machine, at, vec![]);
    assert!(matches!(&hello[..], [Message::Hello { held, .. }] if held.is_empty()));
}

#[test]
fn a_report_that_a_stream_broke_under_lets_all_others_go_first() {
    let mut machine = up(settings(4));
    for token in 1..=4 {
        lease(&mut machine, token);
    }
    turn(&mut machine, 1);
    for token in 1..=3 {
        machine.handle_finished(&token, token);
    }
    actions(&mut machine, 2);
    // The first is so large that the stream breaks before there is room for another.
    assert!(matches!(machine.poll_message(2), Some(Message::Report { token: 1, .. })));
    let at = redial(&mut machine, 3);
    welcome(&mut machine, at, vec![]);
    assert!(matches!(machine.poll_message(at), Some(Message::Heartbeat(_))));
    machine.handle_finished(&4, 4);
    assert_eq!(reports(&turn(&mut machine, at).1), [2, 3, 4, 1], "also what is finished on this stream");
    // Without receipts the one said longest ago is first: each has its turn.
    let at = redial(&mut machine, at + 1);
    welcome(&mut machine, at, vec![]);
    assert!(matches!(machine.poll_message(at), Some(Message::Heartbeat(_))));
    assert!(matches!(machine.poll_message(at), Some(Message::Report { token: 2, .. })));
    let at = redial(&mut machine, at + 1);
    welcome(&mut machine, at, vec![]);
    assert_eq!(reports(&turn(&mut machine, at).1), [3, 4, 1, 2]);
}

#[test]
fn a_stream_without_room_for_a_heartbeat_is_left_after_a_ttl_and_not_before() {
    let mut machine = up(Settings { orphan_limit_ms: Some(10 * TTL), ..settings(1) });
    let (_, said) = turn(&mut machine, INTERVAL);
    machine.handle_heartbeat_ack(1, heartbeats(&said)[0].number);
    // A report fills the stream: nothing more is polled, and all that was said is answered.
    let unsaid_since = INTERVAL;
    assert_eq!(actions(&mut machine, unsaid_since + TTL - 1), []);
    assert_eq!(actions(&mut machine, unsaid_since + TTL), [Action::Disconnect { stream: 1 }]);
}

#[test]
fn what_a_replaced_stream_still_delivers_is_dropped() {
    let mut machine = up(settings(1));
    lease(&mut machine, 1);
    turn(&mut machine, 1);
    machine.handle_finished(&1, 100);
    turn(&mut machine, 2);
    redial(&mut machine, 3);
    machine.handle_lease(1, Lease { token: 9, fencing: 9, work: 9 });
    machine.handle_receipt(1, &1);
    machine.handle_go_away(4, 1, GoAway::Superseded);
    machine.handle_disconnected(4, 1);
    assert_eq!(machine.held().len(), 0, "the report was said; the late lease is not there");
    assert_eq!(machine.results(), 1);
    assert_eq!(machine.stream(), 2);
}

#[test]
fn a_sleeper_aborts_and_hands_back_before_it_says_or_starts_anything() {
    let mut machine = up(settings(1));
    lease(&mut machine, 1);
    lease(&mut machine, 2);
    turn(&mut machine, 1);
    machine.handle_finished(&1, 100);
    let woke = TTL;
    let first = machine.poll_action(woke);
    assert_eq!(first, Some(Action::Spool { token: 1, fencing: 1, result: 100 }), "finished before the abort: kept");
    let (done, said) = turn(&mut machine, woke);
    assert!(!done.iter().any(|action| matches!(action, Action::Start { .. })), "{done:?}");
    assert!(done.contains(&Action::Disconnect { stream: 1 }), "and the stream was silent for too long");
    assert_eq!(said, []);
    let at = machine.next_wake().expect("it comes back");
    actions(&mut machine, at);
    welcome(&mut machine, at, vec![]);
    let (_, said) = turn(&mut machine, at);
    let release = Message::Release { token: 2, reason: ReleaseReason::Orphaned, message: String::new() };
    assert!(said.contains(&release), "{said:?}");
}

#[test]
fn the_session_is_counted_from_the_sending_of_what_was_acknowledged() {
    let mut machine = up(settings(1));
    lease(&mut machine, 1);
    turn(&mut machine, 1);
    let (_, said) = turn(&mut machine, INTERVAL + 1);
    // Acknowledged late, and still counted from when it was sent.
    machine.handle_heartbeat_ack(1, heartbeats(&said)[0].number);
    let sent_at = INTERVAL + 1;
    let aborted = |done: &[Act]| done.contains(&Action::Abort { token: 1, reason: AbortReason::Orphaned });
    assert!(!aborted(&actions(&mut machine, sent_at + TTL - 1)));
    assert!(aborted(&actions(&mut machine, sent_at + TTL)));
}

#[test]
fn a_longer_orphan_limit_lets_runs_go_on_and_starts_nothing() {
    let mut machine = up(Settings { orphan_limit_ms: Some(100_000), ..settings(1) });
    lease(&mut machine, 1);
    lease(&mut machine, 2);
    turn(&mut machine, 1);
    machine.handle_finished(&1, 100);
    let (done, _) = turn(&mut machine, TTL);
    assert!(!done.iter().any(|action| matches!(action, Action::Start { .. } | Action::Abort { .. })), "{done:?}");
    assert_eq!(machine.held().len(), 2, "what waits is kept: the session may live");
}

#[test]
fn a_welcome_prolongs_no_session_that_lives_already() {
    let mut machine = up(settings(1));
    lease(&mut machine, 1);
    turn(&mut machine, 1);
    let at = redial(&mut machine, TTL / 2);
    welcome(&mut machine, at, vec![]);
    let done = actions(&mut machine, TTL);
    assert!(done.contains(&Action::Abort { token: 1, reason: AbortReason::Orphaned }), "{done:?}");
}

#[test]
fn a_silent_coordinator_is_left_and_dialled_again() {
    let mut machine = up(settings(1));
    let (_, said) = turn(&mut machine, INTERVAL);
    assert_eq!(heartbeats(&said).len(), 1);
    assert_eq!(actions(&mut machine, INTERVAL + TTL / 2 - 1), []);
    assert_eq!(actions(&mut machine, INTERVAL + TTL / 2), [Action::Disconnect { stream: 1 }]);
    // And so is one that never greets.
    let mut machine = Machine::new(settings(1), 0, []);
    actions(&mut machine, 0);
    machine.handle_connected(1);
    turn(&mut machine, 1);
    assert_eq!(actions(&mut machine, GREETING_LIMIT_MS), [Action::Disconnect { stream: 1 }]);
}

#[test]
fn reconnects_back_off_with_jitter_and_within_their_bounds() {
    let mut waits = Vec::new();
    for seed in 0..50 {
        let mut machine = Machine::new(Settings { seed, ..settings(1) }, 0, []);
        let mut now = 0;
        for failure in 0..10_u32 {
            actions(&mut machine, now);
            machine.handle_disconnected(now, machine.stream());
            let at = machine.next_wake().expect("it comes back");
            let full = (semel_session::BACKOFF_MIN_MS << failure).min(semel_session::BACKOFF_MAX_MS);
            assert!((full / 2..=full).contains(&(at - now)), "seed {seed}, failure {failure}: {} ms", at - now);
            waits.push(at - now);
            now = at;
        }
    }
    waits.sort_unstable();
    waits.dedup();
    assert!(waits.len() > 100, "agents don't come back as one");
}

#[test]
fn leases_beyond_all_that_was_asked_for_are_handed_back() {
    let mut machine = up(settings(1));
    for token in 1..=200 {
        lease(&mut machine, token);
    }
    let (_, said) = turn(&mut machine, 1);
    let overloaded = |said: &[Said]| {
        let is_one = |said: &&Said| matches!(said, Message::Release { reason: ReleaseReason::Overloaded, .. });
        said.iter().filter(is_one).count()
    };
    let kept = 2 * (1 + 2) + semel_session::LEASE_ALLOWANCE as usize;
    assert_eq!(overloaded(&said), kept, "none is taken while as many wait for their Revokes");
    assert_eq!(machine.held().len(), kept);
    machine.handle_revoke(1, &200);
    machine.handle_revoke(1, &(kept as u64 + 1));
    lease(&mut machine, 201);
    lease(&mut machine, 202);
    assert_eq!(overloaded(&turn(&mut machine, 2).1), 1, "one was answered");
}

#[test]
fn a_full_spool_hands_back_what_waits_and_wants_nothing_until_it_has_room() {
    let mut machine = up(settings(1));
    lease(&mut machine, 1);
    lease(&mut machine, 2);
    turn(&mut machine, 1);
    machine.handle_spool_room(false);
    lease(&mut machine, 3);
    let (_, said) = turn(&mut machine, 2);
    assert_eq!(heartbeats(&said)[0].slots, 0);
    let full = |said: &&Said| matches!(said, Message::Release { reason: ReleaseReason::SpoolFull, .. });
    assert_eq!(said.iter().filter(full).count(), 2);
    machine.handle_spool_room(true);
    let (_, said) = turn(&mut machine, 3);
    assert_eq!(heartbeats(&said)[0].slots, 1);
}

#[test]
fn a_drain_finishes_what_runs_and_hands_back_the_rest() {
    let mut machine = up(settings(1));
    lease(&mut machine, 1);
    lease(&mut machine, 2);
    turn(&mut machine, 1);
    machine.handle_drain(1);
    let (done, said) = turn(&mut machine, 2);
    assert_eq!(done, []);
    assert_eq!(heartbeats(&said)[0].slots, 0);
    let back = Message::Release { token: 2, reason: ReleaseReason::Draining, message: String::new() };
    assert!(said.contains(&back));
    assert_eq!(machine.running(), 1);
}

#[test]
fn a_shutdown_ends_once_all_is_answered() {
    let mut machine = up(settings(2));
    lease(&mut machine, 1);
    lease(&mut machine, 2);
    turn(&mut machine, 1);
    machine.handle_shutdown(10, 1_000);
    machine.handle_finished(&1, 100);
    let (done, _) = turn(&mut machine, 10);
    assert_eq!(done, [Action::Spool { token: 1, fencing: 1, result: 100 }]);
    machine.handle_receipt(1, &1);
    assert_eq!(machine.next_wake(), Some(1_010), "the grace's end");
    let (done, said) = turn(&mut machine, 1_010);
    assert!(done.contains(&Action::Abort { token: 2, reason: AbortReason::Shutdown }));
    let back = Message::Release { token: 2, reason: ReleaseReason::Draining, message: String::new() };
    assert!(said.contains(&back), "{said:?}");
    assert_eq!(actions(&mut machine, 1_011), [], "the end waits for the release's answer");
    machine.handle_revoke(1, &2);
    assert_eq!(actions(&mut machine, 1_011), [Action::Stop(StopReason::Done { results_left: 0 })]);
    assert_eq!(turn(&mut machine, 99_999), (vec![], vec![]));
    assert_eq!(machine.next_wake(), None);
}

#[test]
fn a_shutdown_without_a_coordinator_ends_at_its_hard_limit() {
    let recovered = Recovered { token: 5, fencing: 5, result: 50 };
    let mut machine = Machine::new(settings(1), 0, [recovered]);
    actions(&mut machine, 0);
    machine.handle_shutdown(0, 1_000);
    machine.handle_disconnected(0, 1);
    let mut now = 0;
    let end = loop {
        let wake = machine.next_wake().expect("not ended");
        assert!(wake <= 1_000 + semel_session::DEFAULT_TTL_MS);
        now = now.max(wake);
        let done = actions(&mut machine, now);
        if let Some(Action::Stop(reason)) = done.last() {
            break *reason;
        }
        machine.handle_disconnected(now, machine.stream());
    };
    assert_eq!((now, end), (1_000 + semel_session::DEFAULT_TTL_MS, StopReason::Done { results_left: 1 }));
}

#[test]
fn a_superseded_machine_aborts_everything_and_says_nothing_more() {
    let mut machine = up(settings(1));
    lease(&mut machine, 1);
    turn(&mut machine, 1);
    machine.handle_go_away(2, 1, GoAway::Superseded);
    let (done, said) = turn(&mut machine, 2);
    assert_eq!(
        done,
        [
            Action::Abort { token: 1, reason: AbortReason::Superseded },
            Action::Disconnect { stream: 1 },
            Action::Stop(StopReason::Superseded),
        ]
    );
    assert_eq!(said, []);
}

#[test]
fn recovered_results_are_named_in_hello_and_reported() {
    let recovered = [5, 6].map(|token| Recovered { token, fencing: token, result: token * 10 });
    let mut machine = Machine::new(settings(1), 0, recovered);
    actions(&mut machine, 0);
    // 5 is not live any more, 6 is.
    let hello = welcome(&mut machine, 0, vec![5]);
    assert_eq!(hello, [Message::Hello { slots: 1, held: vec![], spooled: vec![5, 6] }]);
    let (_, said) = turn(&mut machine, 0);
    assert_eq!((heartbeats(&said)[0].held_count, heartbeats(&said)[0].held_xor), (1, 6));
    assert!(said.contains(&Message::Report { token: 5, result: 50 }));
    assert!(said.contains(&Message::Report { token: 6, result: 60 }));
}

#[test]
fn the_list_of_what_is_held_follows_the_heartbeat_that_acknowledges_it() {
    let mut machine = up(settings(1));
    lease(&mut machine, 1);
    machine.handle_held_request(1, 1);
    machine.handle_held_request(1, 2);
    let (_, said) = turn(&mut machine, 1);
    let [Message::Heartbeat(beat), Message::Held { number, request: 2, leases }] = &said[..] else {
        panic!("{said:?}")
    };
    assert_eq!((beat.number, &leases[..]), (*number, &[Held { token: 1, started: true }][..]));
}

#[test]
fn models_that_are_not_ready_are_said_after_each_welcome_and_changes_at_once() {
    let mut machine = Machine::new(settings(1), 0, []);
    machine.handle_model_state("a", false, "down");
    machine.handle_model_state("b", true, "");
    actions(&mut machine, 0);
    welcome(&mut machine, 0, vec![]);
    let states = |said: Vec<Said>| {
        said.into_iter()
            .filter_map(|one| if let Message::ModelStates(states) = one { Some(states) } else { None })
            .flatten()
    };
    let down = ModelState { id: "a".to_owned(), ready: false, message: "down".to_owned() };
    let ready = ModelState { id: "a".to_owned(), ready: true, message: String::new() };
    assert_eq!(states(turn(&mut machine, 0).1).collect::<Vec<_>>(), [down]);
    machine.handle_model_state("a", true, "");
    machine.handle_model_state("a", true, "");
    assert_eq!(states(turn(&mut machine, 1).1).collect::<Vec<_>>(), [ready]);
    assert_eq!(states(turn(&mut machine, 2).1).count(), 0);
}

#[test]
fn reports_are_not_starved_by_heartbeats_nor_heartbeats_by_reports() {
    let mut machine = up(settings(1));
    // Before each single message something new has arrived or ended that wants a heartbeat.
    let (mut beats, mut reports) = (0, 0);
    for token in 1..60 {
        lease(&mut machine, token);
        for action in actions(&mut machine, 2) {
            if let Action::Start { token, .. } = action {
                machine.handle_finished(&token, 0);
            }
        }
        actions(&mut machine, 2);
        match machine.poll_message(2) {
            Some(Message::Heartbeat(_)) => beats += 1,
            Some(Message::Report { .. }) => reports += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(beats > 10 && reports > 10, "{beats} heartbeats, {reports} reports");
}

#[test]
fn heartbeats_that_nobody_acknowledges_take_bounded_memory_and_the_next_answer_counts() {
    let mut machine = up(settings(1));
    for token in 0..3 * MAX_UNACKNOWLEDGED_HEARTBEATS as u64 {
        lease(&mut machine, token);
        let (_, said) = turn(&mut machine, 1);
        assert!(!heartbeats(&said).is_empty() || token > 60);
        machine.handle_revoke(1, &token);
        turn(&mut machine, 1);
    }
    let (_, said) = turn(&mut machine, INTERVAL + 1);
    let last = heartbeats(&said)[0].number;
    machine.handle_heartbeat_ack(1, last);
    assert_eq!(actions(&mut machine, INTERVAL + TTL), [], "the last acknowledged one proves the session");
}
