//! The coordinator's edge: messages become events, and what it says becomes messages and answers.

use semel_core::{
    event::{self, Answer, Event, JobCall, Out, Query, Submit, ToAgent},
    id::{CallId, LeaseToken, StreamId},
    words::{ReleaseReason as Reason, RevokeReason},
};
use semel_session::{Lease, Message, ReleaseReason};

use crate::{
    agent::{Done, Work, input_of},
    checkers::{Check, hold},
    client::Call,
    coordinator::Input,
    network::{Down, Up},
    told::Told,
    world::{Ev, World, trace},
};

/// An unanswered submission is made again after this time.
const RESUBMIT_MS: u64 = 3_000;

impl World {
    /// Whether the coordinator that accepted a stream still reads it.
    fn reads(&mut self, id: StreamId) -> bool {
        let life = self.coordinator.life;
        self.net.streams.get(&id).is_some_and(|s| s.coordinator_open && s.life == life)
            && self.coordinator.brain.is_some()
    }

    pub(crate) fn reaches_coordinator(&mut self, id: StreamId, up: Up) -> Check {
        if !self.reads(id) {
            return Ok(());
        }
        let arrived = self.net.streams.get(&id).filter(|s| !s.up.severed);
        let Some(process) = arrived.map(|s| s.process) else { return Ok(()) };
        trace!(self, "{} → coordinator {id:?}: {}", self.name(process), crate::words::up(&up));
        let event = match up {
            Message::Hello { slots, held, spooled } => {
                self.heard_acknowledged.extend(held.iter().map(|h| h.token.fencing));
                self.heard_started.extend(held.iter().filter(|h| h.started).map(|h| h.token.fencing));
                self.hello(id, process, slots, held, spooled)
            }
            Message::Heartbeat(beat) => {
                let (acknowledged, started) = (tokens(&beat.acknowledged), tokens(&beat.started));
                self.heard_acknowledged.extend(&acknowledged);
                self.heard_started.extend(&started);
                Event::Heartbeat(event::Heartbeat {
                    stream: id,
                    number: beat.number,
                    slots: beat.slots,
                    acknowledged,
                    started,
                    held_count: beat.held_count,
                    held_xor: beat.held_xor,
                })
            }
            Message::Report { token, result } => self.report(id, token, result),
            Message::Release { token, reason, message } => {
                let (reason, retry_after_ms) = reason_of(reason);
                let chance = self.dice.draw();
                let message = message.into();
                Event::Release(event::Release { stream: id, token, reason, message, retry_after_ms, chance })
            }
            Message::Held { leases, request, .. } => {
                self.heard_acknowledged.extend(leases.iter().map(|h| h.token.fencing));
                let leases = leases.into_iter().map(|h| (h.token, h.started)).collect();
                Event::Held(event::Held { stream: id, request, leases })
            }
            Message::ModelStates(states) => {
                let state = |ready: bool, message: String| if ready { Ok(()) } else { Err(message.into()) };
                let states = states.into_iter().map(|s| (s.id.as_str().into(), state(s.ready, s.message))).collect();
                Event::ModelStates(event::ModelStates { stream: id, states })
            }
        };
        self.event(event)
    }

    fn hello(
        &mut self,
        stream: StreamId,
        process: usize,
        slots: u32,
        held: Vec<semel_session::Held<LeaseToken>>,
        spooled: Vec<LeaseToken>,
    ) -> Event {
        let process = &self.processes[process];
        let agent = &self.agents[process.agent];
        Event::Hello(event::Hello {
            stream,
            agent: agent.id.clone(),
            incarnation: process.incarnation,
            region: agent.region.clone(),
            models: agent.models.iter().map(|m| (m.clone(), "p".into(), None)).collect(),
            slots,
            prefetch: agent.prefetch,
            held: held.into_iter().map(|h| (h.token, h.started)).collect(),
            spooled,
        })
    }

    fn report(&mut self, stream: StreamId, token: LeaseToken, done: Done) -> Event {
        Event::Report(event::Report {
            stream,
            token,
            body: done.body,
            leased_input: None,
            retry_after_ms: done.retry_after_ms,
            past: None,
            chance: self.dice.draw(),
        })
    }

    pub(crate) fn forged_arrives(&mut self, stream: StreamId, token: LeaseToken, done: Done) -> Check {
        if !self.reads(stream) {
            return Ok(());
        }
        trace!(self, "forged report of {} on {stream:?}", token.fencing);
        let event = self.report(stream, token, done);
        self.event(event)
    }

    pub(crate) fn coordinator_hears(&mut self, id: StreamId) -> Check {
        let reads = self.reads(id);
        self.net.close_coordinator_end(id);
        if reads { self.event(Event::StreamClosed(id)) } else { Ok(()) }
    }

    /// Says something that may be said; `waited` if it was in an outbox.
    pub(crate) fn say(&mut self, out: Out, waited: bool) -> Check {
        match out {
            Out::Answer(call, answer) => self.answers(call, answer),
            Out::Agent(id, message) => self.tells(id, message, waited),
        }
    }

    fn tells(&mut self, id: StreamId, message: ToAgent, waited: bool) -> Check {
        let Some(stream) = self.net.streams.get(&id).filter(|s| s.coordinator_open) else { return Ok(()) };
        let process = stream.process;
        trace!(self, "coordinator → {} {id:?}: {}", self.name(process), crate::words::down(&message));
        let down = match message {
            ToAgent::Lease(lease) => {
                self.told.lease(self.now, &lease, &self.books)?;
                let Some(stored) = self.store.tables.jobs.get(&lease.job) else { return Ok(()) };
                let (matrix, digest) = (&stored.row.matrix, stored.row.digest);
                let (Some(key), Some((lane, _, _))) = (matrix.key(lease.cell), matrix.split(lease.cell)) else {
                    return Ok(());
                };
                let model_name = matrix.models()[matrix.lanes()[lane].model].name.clone();
                let input = input_of(digest, lease.cell);
                let (job, cell, timeout_ms) = (lease.job, lease.cell, lease.run_timeout_ms);
                let work = Work { job, cell, key, model_name, input, timeout_ms };
                Down::Lease(Lease { token: lease.token, fencing: lease.token.fencing.get(), work })
            }
            ToAgent::Receipt(receipt) => {
                let digest = self.digest_of_report(process, receipt.token);
                if let Some((digest, forged)) = digest {
                    self.told.receipt(&receipt, digest, forged, &self.books)?;
                }
                Down::Other(ToAgent::Receipt(receipt))
            }
            ToAgent::Welcome { number, ttl_ms, heartbeat_ms, lost } => {
                let one = &self.processes[process];
                Told::welcome(&self.agents[one.agent].id, one.incarnation, number, &self.books)?;
                Down::Other(ToAgent::Welcome { number, ttl_ms, heartbeat_ms, lost })
            }
            ToAgent::HeartbeatAck(number) => {
                hold(!waited, "C6", || format!("acknowledgement {number} waited for a commit"))?;
                Down::Other(ToAgent::HeartbeatAck(number))
            }
            ToAgent::Revoke(token, RevokeReason::NotAcknowledged) => {
                self.told.taken_back(self.now, token.fencing, self.config.ack_ms)?;
                let process = &self.processes[process];
                let received = !process.muffled.contains(&token.fencing) && process.witness.received.contains(&token);
                hold(!received, "S2", || format!("{} is taken back as not arrived, and has arrived", token.fencing))?;
                Down::Other(ToAgent::Revoke(token, RevokeReason::NotAcknowledged))
            }
            other => Down::Other(other),
        };
        let swallowed = matches!(down, Down::Lease(_)) && self.dice.permille(self.faults.swallowed);
        let delay = self.delay();
        let Some(stream) = self.net.streams.get_mut(&id) else { return Ok(()) };
        if let Some(at) = stream.down.arrival(self.now, delay).filter(|_| !swallowed) {
            self.at(at, Ev::ToProcess(id, down));
        }
        Ok(())
    }

    /// The digest of the report that a receipt answers, and whether it was forged. A process has one
    /// report of a token; a forged one beside it makes the receipt ambiguous, and then it is not judged.
    fn digest_of_report(&self, process: usize, token: LeaseToken) -> Option<(semel_core::id::Digest, bool)> {
        let one = &self.processes[process];
        let entry = self.agents[one.agent].spools[one.folder].entries.get(&token);
        match (entry, self.forgeries.get(&token)) {
            (Some(entry), None) => Some((entry.done.body.digest, false)),
            (None, Some(digest)) => Some((*digest, true)),
            _ => None,
        }
    }

    fn answers(&mut self, id: CallId, answer: Answer) -> Check {
        let Some(call) = self.clients.calls.remove(&id) else { return Ok(()) };
        trace!(self, "answer to {call:?}: {}", crate::words::answer(&answer));
        self.told.answer(&call, &answer, &self.clients, &self.books)?;
        if let Call::Submit(plan) = call
            && !self.dice.permille(self.faults.call_lost)
        {
            self.clients.answered[plan] = true;
        }
        Ok(())
    }

    /// A caller submits, and again until it has an answer.
    pub(crate) fn submits(&mut self, plan: usize) -> Check {
        if self.clients.answered[plan] {
            return Ok(());
        }
        for _ in 0..self.dice.between(1, 2) {
            self.calls(Call::Submit(plan));
        }
        self.later(RESUBMIT_MS, Ev::Submits(plan));
        Ok(())
    }

    fn calls(&mut self, call: Call) {
        let id = self.clients.number(call.clone());
        let delay = self.delay();
        self.later(delay, Ev::Called(id, call));
    }

    /// Something that a caller does now and then.
    pub(crate) fn acts(&mut self) -> Check {
        if self.peace {
            return Ok(());
        }
        let pause = self.dice.between(200, 8_000);
        self.later(pause, Ev::Acts);
        let plan = self.dice.between(0, self.clients.plans.len() as u64 - 1) as usize;
        let job = self.clients.plans[plan].id.clone();
        let call = match self.dice.between(0, 19) {
            0 => Call::Cancel(job),
            1 | 2 => Call::Pause(job),
            3..=5 => Call::Resume(job),
            6 | 7 => Call::Retry { job, reopen: false, failed: self.dice.one_in(2) },
            8 | 9 => Call::Retry { job, reopen: true, failed: true },
            10..=12 => Call::Job(job),
            13 => Call::Jobs,
            14 | 15 => Call::Explain(job),
            16 => Call::Agents,
            17 => Call::Leases,
            _ => Call::Submit(plan),
        };
        for _ in 0..self.dice.between(1, 2) {
            self.calls(call.clone());
        }
        Ok(())
    }

    pub(crate) fn called(&mut self, id: CallId, call: Call) -> Check {
        if self.coordinator.brain.is_none() {
            self.clients.calls.remove(&id);
            return Ok(());
        }
        // A crash in between has made the caller forget the call's number.
        self.clients.calls.insert(id, call.clone());
        trace!(self, "call {call:?}");
        let by = |job| JobCall { call: id, actor: "caller".into(), id: job, reason: String::new() };
        let event = match call {
            Call::Submit(plan) => {
                let plan = &self.clients.plans[plan];
                Event::Submit(Submit {
                    call: id,
                    actor: "caller".into(),
                    id: plan.id.clone(),
                    digest: plan.digest,
                    matrix: plan.matrix.clone(),
                    policy: plan.policy.clone(),
                    spec: plan.spec.clone(),
                })
            }
            Call::Cancel(job) => Event::Cancel(by(job)),
            Call::Pause(job) => Event::Pause(by(job)),
            Call::Resume(job) => Event::Resume(by(job)),
            Call::Retry { job, reopen, failed } => {
                self.coordinator.inbox(Input::Retry(by(job), reopen, failed));
                return self.pump();
            }
            Call::Job(job) => Event::Query(id, Query::Job(job)),
            Call::Jobs => Event::Query(id, Query::Jobs { after: None, limit: 100 }),
            Call::Explain(job) => Event::Query(id, Query::Explain(job)),
            Call::Agents => Event::Query(id, Query::Agents),
            Call::Leases => Event::Query(id, Query::Leases { after: None, limit: 100 }),
        };
        self.event(event)
    }
}

fn tokens(numbers: &[u64]) -> Vec<semel_core::id::FencingToken> {
    numbers.iter().filter_map(|n| semel_core::id::FencingToken::from_u64(*n)).collect()
}

fn reason_of(reason: ReleaseReason) -> (Reason, Option<u64>) {
    match reason {
        ReleaseReason::Draining => (Reason::Draining, None),
        ReleaseReason::RateLimited { retry_after_ms } => (Reason::RateLimited, retry_after_ms),
        ReleaseReason::Misconfigured => (Reason::Misconfigured, None),
        ReleaseReason::Overloaded => (Reason::Overloaded, None),
        ReleaseReason::SpoolFull => (Reason::SpoolFull, None),
        ReleaseReason::Orphaned => (Reason::Orphaned, None),
    }
}
