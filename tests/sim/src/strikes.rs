//! Faults, as they strike.

use semel_core::{
    batch::{AttemptRow, Batch},
    event::Event,
    id::{Digest, FencingToken, LeaseToken, Nonce, StreamId},
    words::{AttemptKind, FailureReason},
};

use crate::{
    agent::{Done, ProcNo, Work, success},
    checkers::{Check, Standing, hold},
    faults::Fault,
    world::{Ev, World, trace},
};

/// How often a cell may kill its agent and pay for it with no attempt.
const MAX_UNPAID_DEATHS: u32 = 1;

impl World {
    pub(crate) fn strikes(&mut self, kind: usize) -> Check {
        if self.peace {
            return Ok(());
        }
        let next = self.faults.next_in(kind, &mut self.dice);
        self.later(next, Ev::Strikes(kind));
        self.struck[kind] += 1;
        match Fault::ALL[kind] {
            Fault::CoordinatorCrash => self.crash()?,
            Fault::CoordinatorSleep => self.coordinator_sleeps()?,
            Fault::AgentCrash => {
                if let Some(process) = self.someone() {
                    self.agent_dies(process)?;
                }
            }
            Fault::AgentSleep => {
                if let Some(process) = self.someone()
                    && !self.config.embedded
                {
                    trace!(self, "{} stands still", self.name(process));
                    self.processes[process].asleep = true;
                    let sleep = self.dice.skewed(100, 60_000);
                    self.later(sleep, Ev::GoesOn(process));
                }
            }
            Fault::SecondProcess => {
                let agent = self.dice.between(0, self.agents.len() as u64 - 1) as usize;
                for folder in 1..=self.dice.between(1, 2) as usize {
                    let at = self.dice.skewed(1, 3_000);
                    self.later(at, Ev::Starts(agent, folder));
                }
            }
            Fault::Shutdown => {
                if let Some(process) = self.someone() {
                    let local = self.processes[process].local(self.now);
                    let grace = self.dice.between(0, 10_000);
                    self.processes[process].session.handle_shutdown(local, grace);
                    self.drive(process)?;
                }
            }
            Fault::Restore => {
                if self.dice.one_in(4) && self.store.backup.is_some() {
                    self.crash()?;
                    self.restore();
                }
            }
            Fault::SlowCommits => self.coordinator.slow_until = self.now + self.dice.between(1_000, 30_000),
            Fault::Forgery => self.forges(),
            Fault::ModelUnready | Fault::SpoolFull => self.agent_in_trouble(Fault::ALL[kind])?,
            fault => self.stream_suffers(fault),
        }
        Ok(())
    }

    /// A process that is alive and awake.
    fn someone(&mut self) -> Option<ProcNo> {
        let alive: Vec<ProcNo> =
            (0..self.processes.len()).filter(|p| !self.processes[*p].dead && !self.processes[*p].asleep).collect();
        self.dice.pick(&alive).copied()
    }

    fn crash(&mut self) -> Check {
        let down = self.dice.between(1_000, 10_000);
        self.coordinator_dies(down)?;
        if self.config.embedded {
            for process in 0..self.processes.len() {
                let one = &self.processes[process];
                let (dead, agent, folder) = (one.dead, one.agent, one.folder);
                if !dead {
                    self.process_dies(process, true);
                    self.later(down + 100, Ev::Starts(agent, folder));
                }
            }
        }
        Ok(())
    }

    fn coordinator_sleeps(&mut self) -> Check {
        if self.coordinator.brain.is_none() || self.coordinator.asleep_until > self.now {
            return Ok(());
        }
        // What had run out by then is given up before: what is lost at the first tick afterwards, the sleep has lost.
        self.step(Event::Tick)?;
        let sleep = self.dice.skewed(1_500, 40_000);
        trace!(self, "the coordinator stands still for {sleep} ms");
        self.coordinator.asleep_until = self.now + sleep;
        self.later(sleep, Ev::CoordinatorGoesOn(self.coordinator.life));
        Ok(())
    }

    /// An agent's process ends; where all is one process, all of it.
    fn agent_dies(&mut self, process: ProcNo) -> Check {
        if self.config.embedded {
            return self.crash();
        }
        let one = &self.processes[process];
        let (agent, folder) = (one.agent, one.folder);
        let notice = !self.dice.one_in(3);
        self.process_dies(process, notice);
        let pause = self.dice.skewed(10, 60_000);
        self.later(pause, Ev::Starts(agent, folder));
        Ok(())
    }

    /// Rule S2: a lease that killed its agent cost an attempt, unless it was acknowledged and not known to
    /// have started. Now and then one may have gone back before the coordinator knew of the death.
    pub(crate) fn killer_ended(&mut self, token: FencingToken, batch: &Batch) -> Check {
        if !self.killers.remove(&token) {
            return Ok(());
        }
        let row = batch.attempts.iter().find(|a| a.token == token);
        let paid = row.is_some_and(|a| a.counted || a.kind != AttemptKind::Lost);
        let Some(slot) = self.books.slots.get(&token).filter(|_| !paid) else { return Ok(()) };
        let (job, at) = (slot.job.clone(), slot.cell);
        let cell = self.books.jobs.get_mut(&job).and_then(|b| b.cells.get_mut(at.0 as usize));
        let Some(cell) = cell else { return Ok(()) };
        cell.kills += 1;
        hold(cell.kills <= MAX_UNPAID_DEATHS, "S2", || {
            format!("job {job} cell {} killed its agent {} times and paid for none", at.0, cell.kills)
        })
    }

    /// Where a lost lease is the end of its cell, a run that began and was lost is followed by no other one; but
    /// of a lease of which its agent's edge has swallowed a word nobody can tell.
    pub(crate) fn ran_and_lost(&mut self, token: FencingToken, batch: &Batch) -> Check {
        let Some(slot) = self
            .books
            .slots
            .get(&token)
            .filter(|_| self.began.get(&token).is_some_and(|p| !self.processes[*p].muffled.contains(&token)))
        else {
            return Ok(());
        };
        let policy = self.books.jobs.get(&slot.job).map(|book| &book.plan.policy);
        let row = batch.attempts.iter().find(|a| a.token == token && a.kind != AttemptKind::Fenced);
        let closed = batch.job_changes.get(&slot.job).is_some_and(|change| change.state.is_some());
        let lost = row.map_or(!closed, |a| a.kind == AttemptKind::Lost);
        hold(!lost || policy.is_none_or(|p| p.on_lease_lost.may_run_again()), "S4", || {
            format!("{token} of job {} cell {} ran, was lost and waits again: {row:?}", slot.job, slot.cell.0)
        })
    }

    /// A cell ends the process that has it.
    pub(crate) fn cell_kills(&mut self, process: ProcNo, token: LeaseToken) -> Check {
        trace!(self, "{} is killed by {}", self.name(process), token.fencing);
        let live = self.books.slots.get(&token.fencing).is_some_and(|s| s.standing == Standing::Live);
        if live && !self.config.embedded {
            self.killers.insert(token.fencing);
        }
        self.agent_dies(process)
    }

    fn stream_suffers(&mut self, fault: Fault) {
        let open = self.net.open_streams();
        let Some(&id) = self.dice.pick(&open) else { return };
        let longer = self.dice.skewed(500, 15_000);
        let quiet = self.dice.one_in(2);
        let (one, other) = (self.delay(), self.delay());
        let silence = 2 * self.config.ttl_ms;
        trace!(self, "{fault:?} on {id:?}");
        let Some(stream) = self.net.streams.get_mut(&id) else { return };
        match fault {
            Fault::Broken => {
                // What is on its way arrives or is lost; what is said from now on is.
                stream.up.lost = true;
                stream.down.lost = true;
                self.later(one, Ev::ProcessHears(id));
                if quiet {
                    self.later(other, Ev::CoordinatorHears(id));
                } else {
                    self.later(silence, Ev::CoordinatorHears(id));
                }
            }
            Fault::LostUp => stream.up.lost = true,
            Fault::LostDown => stream.down.lost = true,
            Fault::LostBoth => {
                stream.up.lost = true;
                stream.down.lost = true;
                if quiet {
                    self.later(silence, Ev::CoordinatorHears(id));
                }
            }
            _ => {
                if quiet {
                    stream.up.slower_ms = longer;
                } else {
                    stream.down.slower_ms = longer;
                }
            }
        }
    }

    fn agent_in_trouble(&mut self, fault: Fault) -> Check {
        let Some(process) = self.someone() else { return Ok(()) };
        let pause = self.dice.between(100, 10_000);
        let one = &mut self.processes[process];
        if fault == Fault::SpoolFull {
            one.session.handle_spool_room(false);
            self.later(pause, Ev::SpoolRoom(process));
        } else {
            let models = &self.agents[one.agent].models;
            if models.is_empty() {
                return Ok(());
            }
            let model = self.dice.between(0, models.len() as u64 - 1) as usize;
            one.session.handle_model_state(models[model].as_str(), false, "refused");
            self.later(pause, Ev::ModelReady(process, model));
        }
        self.drive(process)
    }

    /// A report that nobody may make: under a secret that was guessed, or another answer under a lease that ended.
    fn forges(&mut self) {
        let open: Vec<StreamId> = self
            .net
            .open_streams()
            .into_iter()
            .filter(|id| {
                let stream = &self.net.streams[id];
                self.processes[stream.process].session.is_up()
            })
            .collect();
        let Some(&id) = self.dice.pick(&open) else { return };
        let process = &self.processes[self.net.streams[&id].process];
        let me = &self.agents[process.agent].id;
        let guessed = self.dice.one_in(2);
        let chosen: Vec<_> =
            self.books
                .slots
                .iter()
                .filter(|(_, s)| {
                    if guessed { s.standing == Standing::Live } else { s.agent == *me && s.standing != Standing::Live }
                })
                .map(|(t, s)| (*t, s.clone()))
                .collect();
        let Some((fencing, slot)) = self.dice.pick(&chosen).cloned() else { return };
        let nonce = if guessed { Nonce(self.dice.bytes16()) } else { slot.nonce };
        let token = LeaseToken { fencing, nonce };
        let Some(done) = self.forged_report(&slot) else { return };
        self.forged.insert(done.body.digest);
        self.forgeries.insert(token, done.body.digest);
        let delay = self.delay();
        let Some(stream) = self.net.streams.get_mut(&id) else { return };
        if let Some(at) = stream.up.arrival(self.now, delay) {
            self.at(at, Ev::Forged(id, token, done));
        }
    }

    fn forged_report(&mut self, slot: &crate::checkers::Slot) -> Option<Done> {
        let plan = &self.books.jobs.get(&slot.job)?.plan;
        let key = plan.matrix.key(slot.cell)?;
        let model = plan.matrix.models().iter().find(|m| m.id == key.model)?;
        let input: Digest = crate::agent::input_of(plan.digest, slot.cell);
        let served = (key.region.as_str().into(), model.name.clone());
        let work =
            Work { job: slot.job.clone(), cell: slot.cell, key, model_name: model.name.clone(), input, timeout_ms: 1 };
        let number = self.number();
        Some(success(&work, number, input, served))
    }

    /// Rule S1, at both ends: no lease is lost while a process that is alive and awake, and the newest
    /// of its agent, runs it.
    pub(crate) fn lost_while_running(&mut self, row: &AttemptRow) -> Check {
        if row.kind != AttemptKind::Lost || row.reason != Some(FailureReason::LeaseLost) {
            return Ok(());
        }
        let Some(&number) = self.running.get(&row.token) else { return Ok(()) };
        let process = &self.processes[number];
        let agent = &self.agents[process.agent];
        let newest = self.books.newest.get(&agent.id).is_some_and(|n| n.1 == process.incarnation);
        let longer = agent.orphan_limit_ms.is_some_and(|limit| limit > self.config.ttl_ms);
        let earlier = self.books.leader.is_some_and(|leader| row.token.epoch() < leader);
        let rule = if earlier { "L1" } else { "S1" };
        hold(!newest || longer || process.asleep, rule, || {
            format!("agent {} runs {} when the coordinator gives it up", agent.id, row.token)
        })
    }
}
