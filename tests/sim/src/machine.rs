//! A process: the shell around the real session machine.

use std::collections::BTreeSet;

use semel_core::{
    event::ToAgent,
    id::{LeaseToken, StreamId},
    words::{FailureReason, GoAwayReason},
};
use semel_session::{Action, GoAway, Message, ReleaseReason, Welcome};

use crate::{
    agent::{ProcNo, Process, RunEnd, Spooled, Work, failure, process, success},
    checkers::{Check, hold},
    dice::mix,
    network::{Down, Up},
    world::{Ev, World, trace},
};

impl World {
    pub(crate) fn name(&self, process: ProcNo) -> String {
        let one = &self.processes[process];
        format!("{}/{process}", self.agents[one.agent].id)
    }

    /// A process starts, if its agent's folder is free.
    pub(crate) fn process_starts(&mut self, agent: usize, folder: usize) -> Check {
        if self.agents[agent].spools[folder].locked_by.is_some() {
            return Ok(());
        }
        let born = process(&self.agents[agent], agent, folder, self.now, &mut self.dice);
        self.agents[agent].spools[folder].locked_by = Some(self.processes.len());
        self.processes.push(born);
        let number = self.processes.len() - 1;
        let limit = self.agents[agent].orphan_limit_ms;
        trace!(self, "{} starts in folder {folder}, orphan limit {limit:?}", self.name(number));
        self.drive(number)
    }

    /// A process ends at once: what its spool has not synced may be gone, and what it deleted may be back.
    pub(crate) fn process_dies(&mut self, number: ProcNo, notice: bool) {
        if self.processes[number].dead {
            return;
        }
        trace!(self, "{} ends", self.name(number));
        let one = &mut self.processes[number];
        one.dead = true;
        one.asleep = false;
        one.waiting.clear();
        for (token, _) in std::mem::take(&mut one.runs) {
            self.running.remove(&token.fencing);
        }
        let stream = one.stream.take();
        let spool = &mut self.agents[one.agent].spools[one.folder];
        spool.locked_by = None;
        let dice = &mut self.dice;
        spool.entries.retain(|_, entry| entry.synced || dice.one_in(2));
        spool.entries.values_mut().for_each(|e| e.synced = true);
        let severed = self.dice.one_in(2);
        if let Some(id) = stream {
            self.hang_up(id, notice);
            if let Some(stream) = self.net.streams.get_mut(&id) {
                stream.up.severed = severed;
            }
        }
    }

    /// The process closes its end; the coordinator hears of it, if the network tells it.
    fn hang_up(&mut self, stream: StreamId, notice: bool) {
        let heard = self.net.streams.get(&stream).is_some_and(|s| !s.up.lost) && notice;
        let delay = self.delay();
        let arrival = self.net.streams.get_mut(&stream).and_then(|s| s.up.arrival(self.now, delay));
        if let Some(at) = arrival.filter(|_| heard) {
            self.at(at, Ev::CoordinatorHears(stream));
        }
        self.net.close_process_end(stream);
    }

    /// Keeps what happens to a process that stands still until it goes on.
    fn awake(&mut self, number: ProcNo, ev: Ev) -> Option<Ev> {
        let one = &mut self.processes[number];
        if one.dead {
            return None;
        }
        if one.asleep {
            one.waiting.push_back(ev);
            return None;
        }
        Some(ev)
    }

    pub(crate) fn process_goes_on(&mut self, number: ProcNo) -> Check {
        let one = &mut self.processes[number];
        if one.dead || !one.asleep {
            return Ok(());
        }
        one.asleep = false;
        let waiting = std::mem::take(&mut one.waiting);
        trace!(self, "{} goes on", self.name(number));
        for ev in waiting {
            self.takes(number, ev)?;
        }
        self.drive(number)
    }

    pub(crate) fn reaches_process(&mut self, id: StreamId, down: Down) -> Check {
        let Some(stream) = self.net.streams.get(&id).filter(|s| s.process_open) else { return Ok(()) };
        let number = stream.process;
        if let Some(ev) = self.awake(number, Ev::ToProcess(id, down)) {
            self.takes(number, ev)?;
            // Rule S3: all that has arrived is handled before anything starts.
            while let Some((id, down)) = self.more_for(number) {
                if self.processes[number].dead {
                    return Ok(());
                }
                self.takes(number, Ev::ToProcess(id, down))?;
            }
            return self.drive(number);
        }
        Ok(())
    }

    pub(crate) fn process_hears(&mut self, id: StreamId) -> Check {
        let Some(stream) = self.net.streams.get(&id).filter(|s| s.process_open) else { return Ok(()) };
        let number = stream.process;
        self.takes_one(number, Ev::ProcessHears(id))
    }

    pub(crate) fn dialled(&mut self, number: ProcNo, of: u64, stream: Option<StreamId>) -> Check {
        self.takes_one(number, Ev::Dialled(number, of, stream))
    }
    pub(crate) fn run_ends(&mut self, number: ProcNo, token: LeaseToken, run: u64, end: RunEnd) -> Check {
        self.takes_one(number, Ev::RunEnds(number, token, run, end))
    }
    pub(crate) fn wakes(&mut self, number: ProcNo) -> Check {
        if self.processes[number].wake_at.is_none_or(|at| at > self.now) {
            return Ok(());
        }
        self.processes[number].wake_at = None;
        self.takes_one(number, Ev::Wake(number))
    }
    pub(crate) fn model_ready(&mut self, number: ProcNo, model: usize) -> Check {
        self.takes_one(number, Ev::ModelReady(number, model))
    }
    pub(crate) fn spool_room(&mut self, number: ProcNo) -> Check {
        self.takes_one(number, Ev::SpoolRoom(number))
    }

    pub(crate) fn synced(&mut self, number: ProcNo, token: LeaseToken) -> Check {
        let one = &self.processes[number];
        if !one.dead
            && let Some(entry) = self.agents[one.agent].spools[one.folder].entries.get_mut(&token)
        {
            entry.synced = true;
        }
        Ok(())
    }

    fn takes_one(&mut self, number: ProcNo, ev: Ev) -> Check {
        if let Some(ev) = self.awake(number, ev) {
            self.takes(number, ev)?;
            return self.drive(number);
        }
        Ok(())
    }

    /// Hands something to the session machine.
    fn takes(&mut self, number: ProcNo, ev: Ev) -> Check {
        let now = self.now;
        let one = &mut self.processes[number];
        if one.dead {
            return Ok(());
        }
        let local = one.local(now);
        match ev {
            Ev::ToProcess(id, down) => return self.hears(number, id, down),
            Ev::ProcessHears(id) if one.stream == Some(id) => {
                if let Some(stream) = self.net.streams.get(&id) {
                    one.session.handle_disconnected(local, stream.number);
                }
                one.stream = None;
                self.net.close_process_end(id);
            }
            Ev::Dialled(_, of, Some(stream)) => {
                if one.session.stream() == of && one.stream.is_none() && !one.session.is_up() {
                    one.stream = Some(stream);
                    one.session.handle_connected(of);
                } else {
                    self.hang_up(stream, true);
                }
            }
            Ev::Dialled(_, of, None) => one.session.handle_disconnected(local, of),
            Ev::RunEnds(_, token, run, end) => return self.run_is_over(number, token, run, end),
            Ev::ModelReady(_, model) => {
                if let Some(id) = self.agents[one.agent].models.get(model) {
                    one.session.handle_model_state(id.as_str(), true, "");
                }
            }
            Ev::SpoolRoom(_) => one.session.handle_spool_room(true),
            _ => {}
        }
        Ok(())
    }

    fn run_is_over(&mut self, number: ProcNo, token: LeaseToken, run: u64, end: RunEnd) -> Check {
        if let RunEnd::Misconfigured(model, end) = end {
            // The agent probes on, and says when the model can be reached again.
            if self.processes[number].runs.get(&token) == Some(&run) {
                self.processes[number].session.handle_model_state(model.as_str(), false, "401");
                let at = self.agents[self.processes[number].agent].models.iter().position(|m| *m == model);
                let pause = self.dice.between(500, 5_000);
                self.later(pause, Ev::ModelReady(number, at.unwrap_or(0)));
            }
            return self.run_is_over(number, token, run, *end);
        }
        let one = &mut self.processes[number];
        if one.runs.get(&token) != Some(&run) {
            return Ok(());
        }
        one.runs.remove(&token);
        self.running.remove(&token.fencing);
        match end {
            RunEnd::Report(done) => one.session.handle_finished(&token, done),
            RunEnd::Release(reason, message) => {
                one.session.handle_released(&token, reason, message);
            }
            RunEnd::Kill => self.cell_kills(number, token)?,
            RunEnd::Misconfigured(..) => {}
        }
        Ok(())
    }

    /// What the coordinator says arrives.
    fn hears(&mut self, number: ProcNo, id: StreamId, down: Down) -> Check {
        let local = self.processes[number].local(self.now);
        let Some(of) = self.net.streams.get(&id).map(|s| s.number) else { return Ok(()) };
        let current = self.processes[number].stream == Some(id);
        let one = &mut self.processes[number];
        let witness = &mut one.witness;
        match down {
            Down::Lease(lease) => {
                let (token, poison) = (lease.token, self.poison_seed);
                let kills = current && is_poison(poison, &lease.work, self.faults.poison, 1);
                one.session.handle_lease(of, lease);
                // A stream that it has just been told to leave it reads no more.
                if one.session.held().iter().any(|held| held.token == token) {
                    one.witness.received.insert(token);
                }
                if kills {
                    self.cell_kills(number, token)?;
                }
            }
            Down::Other(ToAgent::Welcome { ttl_ms, heartbeat_ms, lost, .. }) => {
                if current {
                    witness.ttl_ms = ttl_ms;
                    witness.proven_at.get_or_insert(witness.hello_at);
                    witness.ended.extend(lost.iter().copied());
                }
                one.session.handle_welcome(of, Welcome { ttl_ms, heartbeat_interval_ms: heartbeat_ms, lost });
            }
            Down::Other(ToAgent::HeartbeatAck(beat)) => {
                if current {
                    while let Some((_, at)) = witness.sent.front().copied().filter(|(n, _)| *n <= beat) {
                        witness.sent.pop_front();
                        witness.proven_at = witness.proven_at.max(Some(at));
                    }
                }
                one.session.handle_heartbeat_ack(of, beat);
            }
            Down::Other(ToAgent::Receipt(receipt)) => one.session.handle_receipt(of, &receipt.token),
            Down::Other(ToAgent::Revoke(token, _)) => {
                if current {
                    witness.ended.insert(token);
                }
                one.session.handle_revoke(of, &token);
            }
            Down::Other(ToAgent::HeldRequest(asked)) => one.session.handle_held_request(of, asked),
            Down::Other(ToAgent::GoAway(reason)) => {
                let reason = if reason == GoAwayReason::Superseded { GoAway::Superseded } else { GoAway::ComeBack };
                one.session.handle_go_away(local, of, reason);
            }
            Down::Other(ToAgent::Lease(_)) => {}
        }
        Ok(())
    }

    /// Polls the session machine until it has nothing to do or say.
    pub(crate) fn drive(&mut self, number: ProcNo) -> Check {
        let one = &mut self.processes[number];
        let local = one.local(self.now);
        let limit = self.agents[one.agent].orphan_limit_ms.unwrap_or(one.witness.ttl_ms);
        one.witness.proven_at = one.witness.proven_at.filter(|at| local < at + limit);
        loop {
            let one = &mut self.processes[number];
            if one.dead {
                return Ok(());
            }
            let local = one.local(self.now);
            if let Some(action) = one.session.poll_action(local) {
                self.acts_on(number, action)?;
                continue;
            }
            match one.session.poll_message(local) {
                Some(message) => self.says(number, message)?,
                None => break,
            }
        }
        let one = &mut self.processes[number];
        if let Some(wake) = one.session.next_wake() {
            let at = one.global(wake).max(self.now + 1);
            if one.wake_at.is_none_or(|before| at < before) {
                one.wake_at = Some(at);
                self.at(at, Ev::Wake(number));
            }
        }
        Ok(())
    }

    fn acts_on(&mut self, number: ProcNo, action: Action<LeaseToken, Work, crate::agent::Done>) -> Check {
        match action {
            Action::Connect { stream } => {
                if let Some(old) = self.processes[number].stream.take() {
                    self.hang_up(old, true);
                }
                let delay = self.delay();
                let refused = self.coordinator.brain.is_none() || self.coordinator.asleep_until > self.now;
                let dialled = (!refused).then(|| self.net.open(number, stream, self.coordinator.life));
                self.later(delay, Ev::Dialled(number, stream, dialled));
            }
            Action::Disconnect { .. } => {
                if let Some(old) = self.processes[number].stream.take() {
                    let notice = !self.dice.one_in(3);
                    self.hang_up(old, notice);
                }
            }
            Action::Start { token, work } => return self.run_starts(number, token, work),
            Action::Abort { token, .. } => {
                self.processes[number].runs.remove(&token);
                self.running.remove(&token.fencing);
            }
            Action::Spool { token, result, .. } => {
                let one = &self.processes[number];
                let entry = Spooled { token, done: result, synced: false };
                self.agents[one.agent].spools[one.folder].entries.insert(token, entry);
                let sync = self.dice.skewed(1, 100);
                self.later(sync, Ev::Synced(number, token));
            }
            Action::Forget { token } => {
                let one = &self.processes[number];
                self.agents[one.agent].spools[one.folder].entries.remove(&token);
            }
            Action::Stop(reason) => {
                trace!(self, "{} stops: {reason:?}", self.name(number));
                let agent = self.processes[number].agent;
                self.process_dies(number, true);
                // Somebody starts the agent again, unless another process has taken its place.
                let place_taken = self.processes.iter().any(|p| p.agent == agent && !p.dead);
                if !place_taken {
                    let pause = self.dice.between(100, 5_000);
                    self.later(pause, Ev::Starts(agent, 0));
                }
            }
        }
        Ok(())
    }

    /// Rules S1, S2, S3 and S4, at the one moment that matters.
    fn may_start(one: &Process, token: LeaseToken, local: u64, orphan: Option<u64>) -> Check {
        let w = &one.witness;
        let fencing = token.fencing.get();
        hold(w.acknowledged.contains(&fencing), "S2", || format!("{fencing} starts and was not acknowledged"))?;
        hold(w.announced.contains(&fencing), "S4", || format!("{fencing} starts and was not said to"))?;
        hold(!w.ended.contains(&token), "S3", || format!("{fencing} starts after its end was told"))?;
        let limit = w.ttl_ms.min(orphan.unwrap_or(w.ttl_ms));
        hold(w.proven_at.is_some_and(|at| local < at + limit), "S1", || {
            format!("{fencing} starts at {local}, proven at {:?} for {limit}", w.proven_at)
        })
    }

    fn run_starts(&mut self, number: ProcNo, token: LeaseToken, work: Work) -> Check {
        let local = self.processes[number].local(self.now);
        let orphan = self.agents[self.processes[number].agent].orphan_limit_ms;
        Self::may_start(&self.processes[number], token, local, orphan)?;
        let run = self.number();
        self.processes[number].runs.insert(token, run);
        self.running.insert(token.fencing, number);
        self.began.insert(token.fencing, number);
        let f = &self.faults;
        let (hangs, fails, released, wrong, poison) = (f.hangs, f.fails, f.released, f.wrong, f.poison);
        let mut lasts = self.dice.skewed(1, f.run_ms);
        let end = if is_poison(self.poison_seed, &work, poison, 2) {
            // Often before the heartbeat that says its start has left the machine.
            lasts = if self.dice.one_in(2) { 1 } else { lasts };
            RunEnd::Kill
        } else if self.dice.permille(hangs) {
            return Ok(());
        } else if lasts >= work.timeout_ms {
            lasts = work.timeout_ms;
            RunEnd::Report(failure(&work, run, FailureReason::RunTimeout, true))
        } else if self.dice.permille(released) {
            self.hands_back(&work, run)
        } else if self.dice.permille(fails) {
            RunEnd::Report(failure(&work, run, FailureReason::ProviderError, !self.dice.one_in(4)))
        } else {
            self.answer_of(&work, run, wrong)
        };
        self.later(lasts, Ev::RunEnds(number, token, run, end));
        Ok(())
    }

    fn hands_back(&mut self, work: &Work, run: u64) -> RunEnd {
        let retry_after_ms = self.dice.one_in(2).then(|| self.dice.between(100, 5_000));
        match self.dice.between(0, 3) {
            0 => RunEnd::Release(ReleaseReason::RateLimited { retry_after_ms }, "429".into()),
            1 => RunEnd::Misconfigured(
                work.key.model.clone(),
                Box::new(RunEnd::Release(ReleaseReason::Misconfigured, "401".into())),
            ),
            2 => RunEnd::Report(failure(work, run, FailureReason::RateLimited, true)),
            _ => RunEnd::Misconfigured(
                work.key.model.clone(),
                Box::new(RunEnd::Report(failure(work, run, FailureReason::Misconfigured, true))),
            ),
        }
    }

    /// An answer, or one of another input, region or model (rule S6).
    fn answer_of(&mut self, work: &Work, run: u64, wrong: u64) -> RunEnd {
        let (mut input, region, model) = (work.input, work.key.region.as_str(), work.model_name.clone());
        let mut served = (region.into(), if self.dice.one_in(4) { format!("{model}-b").into() } else { model });
        if self.dice.permille(wrong) {
            match self.dice.between(0, 2) {
                0 => input.0[0] ^= 1,
                1 => served.0 = "elsewhere".into(),
                _ => served.1 = "another".into(),
            }
        }
        RunEnd::Report(success(work, run, input, served))
    }

    fn says(&mut self, number: ProcNo, message: Up) -> Check {
        let local = self.processes[number].local(self.now);
        let one = &mut self.processes[number];
        let Some(id) = one.stream else { return Ok(()) };
        let witness = &mut one.witness;
        match &message {
            Message::Hello { held, spooled, .. } => {
                // Its end is told when it is durable, and until then its agent has not forgotten it.
                let listed: BTreeSet<_> = held.iter().map(|h| h.token).chain(spooled.iter().copied()).collect();
                let live = |t: &&LeaseToken| self.books.is_live(t.fencing);
                let forgotten = witness.received.iter().filter(live).find(|t| !listed.contains(t));
                hold(forgotten.is_none(), "P5", || {
                    format!("{forgotten:?} is live, its process has had it and lists it no more")
                })?;
                witness.acknowledged = held.iter().map(|h| h.token.fencing.get()).collect();
                witness.announced.clear();
                witness.sent.clear();
                witness.hello_at = local;
            }
            Message::Heartbeat(beat) => {
                witness.acknowledged.extend(&beat.acknowledged);
                witness.announced.extend(&beat.started);
                witness.sent.push_back((beat.number, local));
            }
            _ => {}
        }
        let heeded = matches!(message, Message::Hello { .. } | Message::ModelStates(_));
        let swallowed = !heeded && self.dice.permille(self.faults.swallowed);
        if swallowed {
            self.processes[number].swallows(&message);
        }
        let delay = self.delay();
        let Some(stream) = self.net.streams.get_mut(&id) else { return Ok(()) };
        if let Some(at) = stream.up.arrival(self.now, delay).filter(|_| !swallowed) {
            self.at(at, Ev::ToCoordinator(id, message));
        }
        Ok(())
    }
}

/// Whether a cell kills: `when` is 1 on arrival, 2 while it runs.
pub(crate) fn is_poison(seed: u64, work: &Work, permille: u64, when: u64) -> bool {
    let chance = mix(seed ^ mix(u64::from(work.cell.0)) ^ work.job.as_str().len() as u64);
    chance % 1_000 < permille && chance / 1_000 % 2 + 1 == when
}
