//! The trace, for people: short words for what passes.

use semel_core::event::{Answer, ToAgent};
use semel_session::Message;

use crate::network::Up;

/// What an agent says.
pub fn up(message: &Up) -> String {
    match message {
        Message::Hello { slots, held, spooled } => {
            let held: Vec<_> = held.iter().map(|h| (h.token.fencing.get(), h.started)).collect();
            let spooled: Vec<_> = spooled.iter().map(|t| t.fencing.get()).collect();
            format!("Hello, {slots} slots, holds {held:?}, spooled {spooled:?}")
        }
        Message::Heartbeat(b) => format!(
            "Heartbeat {}: {} slots, acknowledged {:?}, started {:?}, {} held",
            b.number, b.slots, b.acknowledged, b.started, b.held_count
        ),
        Message::Report { token, result } => format!("Report {}: {:?}", token.fencing, result.body.status()),
        Message::Release { token, reason, .. } => format!("Release {}: {reason:?}", token.fencing),
        Message::Held { leases, request, .. } => {
            let held: Vec<_> = leases.iter().map(|h| (h.token.fencing.get(), h.started)).collect();
            format!("Held {held:?}, as asked by {request}")
        }
        Message::ModelStates(states) => format!("ModelStates {states:?}"),
    }
}

/// What an agent is told.
pub fn down(message: &ToAgent) -> String {
    match message {
        ToAgent::Welcome { number, lost, .. } => {
            let lost: Vec<_> = lost.iter().map(|t| t.fencing.get()).collect();
            format!("Welcome {number}, lost {lost:?}")
        }
        ToAgent::HeartbeatAck(number) => format!("HeartbeatAck {number}"),
        ToAgent::Lease(l) => format!("Lease {}: {} cell {}, attempt {}", l.token.fencing, l.job, l.cell.0, l.attempt),
        ToAgent::Receipt(r) => format!("Receipt {}: {:?} {:?}", r.token.fencing, r.kind, r.reason),
        ToAgent::Revoke(token, reason) => format!("Revoke {}: {reason:?}", token.fencing),
        ToAgent::HeldRequest(number) => format!("HeldRequest {number}"),
        ToAgent::GoAway(reason) => format!("GoAway {reason:?}"),
    }
}

/// What a caller is told.
pub fn answer(answer: &Answer) -> String {
    match answer {
        Answer::Submitted(view, created) => format!("submitted, created: {created}, {:?}", view.counts),
        Answer::Job(view) => format!("{:?} {:?}", view.state, view.counts),
        Answer::Cancelled(view, running) => format!("cancelled: {:?}, {running} still run", view.state),
        Answer::Retried(view, moved) => format!("{moved} records move, {:?}", view.counts),
        Answer::Refused(words) => words.clone(),
        Answer::OtherSpec => "another specification".into(),
        Answer::NoSuchJob => "no such job".into(),
        _ => "a list".into(),
    }
}
