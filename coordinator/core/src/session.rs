//! Sessions: who is there, what they hold, and when they are given up.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    Core,
    batch::AgentRow,
    event::{AgentView, Decision, Heartbeat, Held, Hello, ModelStates, Out, ToAgent},
    gate::GateNo,
    id::{AgentId, FencingToken, Incarnation, JobNo, LeaseToken, Millis, ModelId, Now, ProviderId, RegionId, StreamId},
    lease::Lease,
    loss::Loss,
    words::{GoAwayReason, LeaseStage, RevokeReason},
};

/// A model as an agent serves it.
#[derive(Debug)]
pub(crate) struct Serving {
    pub provider: ProviderId,
    pub gate: GateNo,
    /// Why it can't be reached.
    pub unready: Option<Arc<str>>,
    /// Not to be used before, after leases of it were handed back; doubled each time until one succeeds.
    /// What the agent says of a model stands until it says otherwise; a lease that comes back only
    /// makes it rest, since a report can come long after what it tells of.
    pub rest_until: Millis,
    /// Why it rests.
    pub trouble: Option<Arc<str>>,
    pub rest_ms: u64,
    /// The last success.
    pub warm_at: Option<Millis>,
}

impl Serving {
    /// Whether leases of it may be given out now.
    pub fn is_usable(&self, now: Millis) -> bool {
        self.unready.is_none() && self.rest_until <= now
    }
    /// Why it can't be used now.
    pub fn trouble(&self, now: Millis) -> Option<&Arc<str>> {
        self.unready.as_ref().or(self.trouble.as_ref().filter(|_| now < self.rest_until))
    }
}

/// A HeldRequest that has no answer yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub number: u64,
    pub at: Millis,
}

/// The liveness of an agent's incarnation.
#[derive(Debug)]
pub(crate) struct Session {
    pub agent: AgentId,
    pub incarnation: Incarnation,
    pub number: u64,
    pub region: RegionId,
    pub models: BTreeMap<ModelId, Serving>,
    pub slots: u32,
    pub prefetch: u32,
    /// Where it listens; `None` while its stream is broken, or before it spoke to this leader.
    pub stream: Option<StreamId>,
    /// The newest stream on which it said Hello, broken or not.
    pub newest_stream: Option<StreamId>,
    pub heard_at: Millis,
    pub expires_at: Millis,
    /// Every live lease of this agent.
    pub leases: BTreeSet<FencingToken>,
    /// Leases that were said and not acknowledged, by the time at which they were.
    pub offered: BTreeSet<(Millis, FencingToken)>,
    /// Of the leases that the agent is known to hold: how many, and the exclusive or of their tokens.
    pub held_count: u32,
    pub held_xor: u64,
    /// The list was asked for.
    pub asked: Option<Asked>,
    /// How often it was.
    pub requests: u64,
    /// It beats and does not take in what it is told (rule S2): until it acknowledges one, it is given
    /// one lease at a time, and none before `rest_until`.
    pub deaf: bool,
    /// Takes no leases for a while, after it handed some back or did not take them in.
    pub rest_until: Millis,
    /// Why, in the agent's words or ours.
    pub rests_for: Arc<str>,
    /// Virtual time of the fair turns between jobs on this agent, and where each job stands that is ahead of it.
    pub turn: u64,
    pub turns: BTreeMap<JobNo, u64>,
    /// Holds a cell that runs alone (rule S7).
    pub alone: bool,
    /// Revoked leases whose end the agent has not shown yet, by their job.
    pub stopping: BTreeMap<FencingToken, JobNo>,
}

impl Session {
    /// The session of an agent that has not spoken to this leader, for the leases that the tables show.
    pub fn absent(agent: AgentId, incarnation: Incarnation, number: u64, region: RegionId, expires_at: Millis) -> Self {
        Self {
            agent,
            incarnation,
            number,
            region,
            models: BTreeMap::new(),
            slots: 0,
            prefetch: 0,
            stream: None,
            newest_stream: None,
            heard_at: Millis(0),
            expires_at,
            leases: BTreeSet::new(),
            offered: BTreeSet::new(),
            held_count: 0,
            held_xor: 0,
            asked: None,
            requests: 0,
            deaf: false,
            rest_until: Millis(0),
            rests_for: "".into(),
            turn: 0,
            turns: BTreeMap::new(),
            alone: false,
            stopping: BTreeMap::new(),
        }
    }

    /// How many leases it can take now.
    pub fn capacity(&self, now: Millis) -> u32 {
        if self.stream.is_none() || self.slots == 0 || self.alone || now < self.rest_until {
            return 0;
        }
        let room = (self.slots + self.prefetch).saturating_sub(self.leases.len() as u32);
        if self.deaf {
            // What kept it from them may be over: it is tried again.
            return room.min(u32::from(self.leases.len() as u32 == self.held_count));
        }
        room
    }
    /// The agent is known to hold a lease.
    pub fn holds(&mut self, token: FencingToken) {
        self.held_count += 1;
        self.held_xor ^= token.get();
    }
    /// The agent is known to hold a lease no more.
    pub fn holds_no_more(&mut self, token: FencingToken) {
        self.held_count -= 1;
        self.held_xor ^= token.get();
    }
}

/// Whether a lease at this stage is among those whose count and exclusive or a heartbeat carries
/// (rule S4): from its arrival until its report or release is handled. A spooled result that Hello
/// names is among them until it is reported on the new stream.
pub(crate) fn is_held(stage: LeaseStage) -> bool {
    stage >= LeaseStage::Acknowledged
}

fn held_stage(started: bool) -> LeaseStage {
    if started { LeaseStage::Started } else { LeaseStage::Acknowledged }
}

impl Core {
    /// An agent's first message on a stream.
    pub(crate) fn hello(&mut self, at: Now, hello: Hello, out: &mut Decision) {
        let latest = self.latest.get(&hello.agent).map_or(0, |(number, _)| *number);
        let known = self.incarnations.get(&(hello.agent.clone(), hello.incarnation)).copied();
        if known.is_some_and(|number| number < latest) {
            // Rule S5: refused for good. Said after the newer one's admission is durable.
            out.outbox.push(Out::Agent(hello.stream, ToAgent::GoAway(GoAwayReason::Superseded)));
            return;
        }
        let newest = self.sessions.get(&hello.agent).and_then(|s| s.newest_stream);
        if known.is_some() && newest.is_some_and(|newest| newest > hello.stream) {
            // An agent dials one stream after the other, and this one it has given up: what its Hello
            // lacks has been leased since. It is not the agent's word any more (rule S3).
            out.outbox.push(Out::Agent(hello.stream, ToAgent::GoAway(GoAwayReason::Replaced)));
            return;
        }
        let present = self.present(&hello);
        let number = known.unwrap_or(latest + 1);
        if known.is_some() {
            self.reconcile(at, &hello.agent, &present, out);
        } else {
            self.admit(at, &hello, number, &present, out);
        }
        let welcome = ToAgent::Welcome {
            number,
            ttl_ms: self.config.ttl_ms,
            heartbeat_ms: self.config.heartbeat_ms,
            lost: self.not_live(&hello),
        };
        let stream = hello.stream;
        self.attach(at, hello, number, out);
        out.outbox.push(Out::Agent(stream, welcome));
    }

    /// What Hello presents, of this agent's live leases, and how far each is.
    fn present(&self, hello: &Hello) -> BTreeMap<FencingToken, LeaseStage> {
        let held = hello.held.iter().map(|(t, started)| (*t, held_stage(*started)));
        let spooled = hello.spooled.iter().map(|t| (*t, LeaseStage::Finished));
        let all = held.chain(spooled).filter(|(t, _)| self.live(&hello.agent, *t).is_some());
        all.map(|(t, stage)| (t.fencing, stage)).collect()
    }
    fn not_live(&self, hello: &Hello) -> Vec<LeaseToken> {
        let all = hello.held.iter().map(|(t, _)| t).chain(&hello.spooled);
        all.filter(|t| self.live(&hello.agent, **t).is_none()).copied().collect()
    }

    /// Rule S5: a new incarnation. Leases whose results are in its spool pass to it; all others of this agent are lost.
    fn admit(
        &mut self,
        at: Now,
        hello: &Hello,
        number: u64,
        present: &BTreeMap<FencingToken, LeaseStage>,
        out: &mut Decision,
    ) {
        out.batch.agents.push(AgentRow {
            agent: hello.agent.clone(),
            incarnation: hello.incarnation,
            number,
            region: hello.region.clone(),
            admitted_at: at.wall,
        });
        self.incarnations.insert((hello.agent.clone(), hello.incarnation), number);
        self.latest.insert(hello.agent.clone(), (number, hello.incarnation));
        let Some(old) = self.sessions.get(&hello.agent) else {
            return;
        };
        if let Some(stream) = old.stream {
            self.streams.remove(&stream);
            out.outbox.push(Out::Agent(stream, ToAgent::GoAway(GoAwayReason::Superseded)));
        }
        let dead: Vec<_> = old.leases.iter().copied().filter(|t| !present.contains_key(t)).collect();
        self.die(at, &dead, out);
        if let Some(session) = self.sessions.get_mut(&hello.agent) {
            session.stream = None;
            session.stopping.clear();
        }
        self.confirm(at, &hello.agent, present);
    }

    /// The same incarnation says what it holds: what it does not have is lost.
    fn reconcile(
        &mut self,
        at: Now,
        agent: &AgentId,
        present: &BTreeMap<FencingToken, LeaseStage>,
        out: &mut Decision,
    ) {
        let Some(session) = self.sessions.get(agent) else {
            return;
        };
        let missing: Vec<_> = session.leases.iter().copied().filter(|t| !present.contains_key(t)).collect();
        for token in missing {
            self.vanish(at, token, out);
        }
        self.confirm(at, agent, present);
    }

    /// What the agent has shown to hold has arrived.
    fn confirm(&mut self, at: Now, agent: &AgentId, present: &BTreeMap<FencingToken, LeaseStage>) {
        for (&token, &stage) in present {
            if stage == LeaseStage::Started {
                // Heard of in a list and in no heartbeat: its timeout counts from here.
                self.note_started(at, agent, token);
            } else {
                self.note_stage(agent, token, stage);
            }
        }
    }

    /// A lease that its living agent does not have (rules S2 and S4).
    fn vanish(&mut self, at: Now, token: FencingToken, out: &mut Decision) {
        let Some(lease) = self.leases.get(&token) else {
            return;
        };
        // A leader before this one granted it, and may have died before it was said. What this
        // incarnation has received it lists until it is told of its durable end.
        let granted_to_it = self.sessions.get(&lease.agent).is_some_and(|s| s.incarnation == lease.granted_to);
        let loss = match lease.stage {
            LeaseStage::Offered => Loss::NeverArrived,
            LeaseStage::Restored if granted_to_it => Loss::NeverArrived,
            LeaseStage::Acknowledged => Loss::NeverStarted,
            LeaseStage::Started => Loss::Culprit,
            LeaseStage::Restored | LeaseStage::Finished => Loss::Nobody,
        };
        self.lose(at, token, loss, out);
    }

    /// Binds the stream to the agent's session, made new or renewed.
    fn attach(&mut self, at: Now, hello: Hello, number: u64, out: &mut Decision) {
        let Hello { stream, agent, incarnation, region, models, slots, prefetch, .. } = hello;
        let mut session = self
            .sessions
            .remove(&agent)
            .unwrap_or_else(|| Session::absent(agent.clone(), incarnation, number, region.clone(), Millis(0)));
        if let Some(old) = session.stream.replace(stream).filter(|old| *old != stream) {
            self.streams.remove(&old);
            out.outbox.push(Out::Agent(old, ToAgent::GoAway(GoAwayReason::Replaced)));
        }
        session.newest_stream = session.newest_stream.max(Some(stream));
        let mut before = std::mem::take(&mut session.models);
        for (model, provider, unready) in models {
            let gate = self.gates.number(&provider, &model, &region);
            let warm_at = before.remove(&model).and_then(|s| s.warm_at);
            let rest_until = Millis(0);
            let serving = Serving { provider, gate, unready, rest_until, trouble: None, rest_ms: 0, warm_at };
            session.models.insert(model, serving);
        }
        session.deaf &= session.incarnation == incarnation;
        session.incarnation = incarnation;
        session.number = number;
        session.region = region;
        session.slots = slots;
        session.prefetch = prefetch;
        session.asked = None;
        session.rest_until = Millis(0);
        self.streams.insert(stream, agent.clone());
        self.sessions.insert(agent.clone(), session);
        self.find_gates(&agent);
        self.heard(at, &agent);
    }

    /// Restored leases go through the gates of their models as soon as those are known.
    fn find_gates(&mut self, agent: &AgentId) {
        let Some(session) = self.sessions.get(agent) else {
            return;
        };
        for token in &session.leases {
            let Some(lease) = self.leases.get_mut(token).filter(|l| l.gate.is_none()) else {
                continue;
            };
            let job = self.jobs.get(&lease.job);
            let model = job.map(|j| &j.row.matrix.models()[j.lanes[j.lane_of(lease.cell)].model].id);
            lease.gate = model.and_then(|m| session.models.get(m)).map(|serving| serving.gate);
            if let Some(gate) = lease.gate {
                self.gates.enter(gate, 1);
            }
        }
    }

    fn heard(&mut self, at: Now, agent: &AgentId) {
        let lives = self.config.ttl_ms + self.config.margin_ms;
        if let Some(session) = self.sessions.get_mut(agent) {
            session.heard_at = at.mono;
            session.expires_at = session.expires_at.max(at.mono.after(lives));
        }
    }

    /// A sign of life, and what changed since the last.
    pub(crate) fn heartbeat(&mut self, at: Now, beat: Heartbeat, out: &mut Decision) {
        let Some(agent) = self.streams.get(&beat.stream).cloned() else {
            out.now.push(Out::Agent(beat.stream, ToAgent::GoAway(GoAwayReason::NotLeading)));
            return;
        };
        self.heard(at, &agent);
        for number in &beat.acknowledged {
            self.note_stage(&agent, *number, LeaseStage::Acknowledged);
        }
        for number in &beat.started {
            self.note_started(at, &agent, *number);
        }
        out.now.push(Out::Agent(beat.stream, ToAgent::HeartbeatAck(beat.number)));
        let Some(session) = self.sessions.get_mut(&agent) else {
            return;
        };
        session.slots = beat.slots;
        session.deaf &= beat.acknowledged.is_empty();
        let same = session.held_count == beat.held_count && session.held_xor == beat.held_xor;
        if same {
            session.stopping.clear();
        }
        let patience = self.config.ack_ms;
        let late = session.offered.first().is_some_and(|(said, _)| at.mono.since(*said) >= patience);
        if !same || late || self.is_start_overdue(at.mono, &agent) {
            self.ask(at, &agent, beat.stream, out);
        } else if let Some(session) = self.sessions.get_mut(&agent) {
            session.asked = None;
        }
    }

    /// Whether an agent has had a lease for a TTL and a slot for it, and no word of its start has come: the
    /// word may be lost, and with it the run's timeout (rule S4). Count and exclusive or do not show that.
    fn is_start_overdue(&self, now: Millis, agent: &AgentId) -> bool {
        let Some(session) = self.sessions.get(agent) else {
            return false;
        };
        let leases = || session.leases.iter().filter_map(|token| self.leases.get(token));
        let old = |lease: &Lease| now.since(lease.since) >= self.config.ttl_ms;
        let started = leases().filter(|lease| lease.stage == LeaseStage::Started).count();
        started < session.slots as usize && leases().any(|l| l.stage == LeaseStage::Acknowledged && old(l))
    }

    /// Asks for the list, once: a stream loses nothing while it stands. An agent that goes on beating
    /// and has not answered for a TTL is sent away: in its next Hello it lists what it holds.
    fn ask(&mut self, at: Now, agent: &AgentId, stream: StreamId, out: &mut Decision) {
        let Some(session) = self.sessions.get_mut(agent) else {
            return;
        };
        match session.asked {
            None => {
                session.requests += 1;
                session.asked = Some(Asked { number: session.requests, at: at.mono });
                out.now.push(Out::Agent(stream, ToAgent::HeldRequest(session.requests)));
            }
            Some(asked) if at.mono.since(asked.at) >= self.config.ttl_ms => {
                session.deaf = true;
                session.stream = None;
                self.streams.remove(&stream);
                out.now.push(Out::Agent(stream, ToAgent::GoAway(GoAwayReason::Unanswered)));
            }
            Some(_) => {}
        }
    }

    /// Rule S2: a lease that its agent has had the time to acknowledge when the list was asked for, and
    /// that is not in the answer, goes back uncounted: the request followed it on the same stream, so it
    /// has not arrived. A heartbeat without it proves less: it may have been sent before the lease came.
    fn take_back(&mut self, at: Now, agent: &AgentId, asked: Asked, out: &mut Decision) {
        let patience = self.config.ack_ms;
        while let Some(session) = self.sessions.get_mut(agent) {
            let late = session.offered.first().filter(|(said, _)| asked.at.since(*said) >= patience);
            let Some(&(_, token)) = late else { break };
            session.deaf = true;
            session.rest_until = session.rest_until.max(at.mono.after(self.config.ttl_ms));
            session.rests_for = "it did not acknowledge its leases".into();
            self.revoke(token, RevokeReason::NotAcknowledged, out);
            self.lose(at, token, Loss::NeverArrived, out);
        }
    }

    /// The list of all leases that an agent holds (rule S4).
    pub(crate) fn held(&mut self, at: Now, held: Held, out: &mut Decision) {
        let Some(agent) = self.streams.get(&held.stream).cloned() else {
            return;
        };
        let mut present = BTreeMap::new();
        for (token, started) in &held.leases {
            if self.live(&agent, *token).is_some() {
                present.insert(token.fencing, held_stage(*started));
            } else {
                out.outbox.push(Out::Agent(held.stream, ToAgent::Revoke(*token, RevokeReason::NotLive)));
            }
        }
        self.confirm(at, &agent, &present);
        let Some(session) = self.sessions.get_mut(&agent) else {
            return;
        };
        let answered = session.asked.take_if(|asked| asked.number == held.request);
        let listed: BTreeSet<_> = held.leases.iter().map(|(t, _)| t.fencing).collect();
        session.stopping.retain(|token, _| listed.contains(token));
        let counts = |t: &&FencingToken| self.leases.get(t).is_some_and(|l| is_held(l.stage));
        let missing = session.leases.iter().filter(counts).filter(|t| !present.contains_key(t));
        for token in missing.copied().collect::<Vec<_>>() {
            self.vanish(at, token, out);
        }
        if let Some(asked) = answered {
            self.take_back(at, &agent, asked, out);
        }
    }

    /// Which models an agent can reach.
    pub(crate) fn model_states(&mut self, states: ModelStates) {
        let Some(agent) = self.streams.get(&states.stream) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(agent) else {
            return;
        };
        for (model, state) in states.states {
            if let Some(serving) = session.models.get_mut(&model) {
                if state.is_ok() {
                    serving.rest_until = Millis(0);
                }
                serving.unready = state.err();
            }
        }
    }

    /// A stream ended. The session goes on until its time runs out.
    pub(crate) fn stream_closed(&mut self, stream: StreamId) {
        let Some(agent) = self.streams.remove(&stream) else {
            return;
        };
        if let Some(session) = self.sessions.get_mut(&agent).filter(|s| s.stream == Some(stream)) {
            session.stream = None;
        }
    }

    /// Gives up the sessions whose time has run out.
    pub(crate) fn expire_sessions(&mut self, at: Now, out: &mut Decision) {
        let expired: Vec<_> =
            self.sessions.values().filter(|s| s.expires_at <= at.mono).map(|s| s.agent.clone()).collect();
        for agent in expired {
            let Some(session) = self.sessions.get(&agent) else {
                continue;
            };
            let leases: Vec<_> = session.leases.iter().copied().collect();
            let stream = session.stream;
            self.die(at, &leases, out);
            self.sessions.remove(&agent);
            if let Some(stream) = stream {
                self.streams.remove(&stream);
                out.outbox.push(Out::Agent(stream, ToAgent::GoAway(GoAwayReason::NotLeading)));
            }
        }
    }

    /// The agents, as operators see them.
    pub(crate) fn agent_views(&self, now: Millis) -> Vec<AgentView> {
        let running = |s: &Session| {
            s.leases.iter().filter(|t| self.leases.get(t).is_some_and(|l| l.stage == LeaseStage::Started)).count()
                as u32
        };
        let models = |s: &Session| {
            s.models.iter().map(|(id, m)| (id.clone(), m.provider.clone(), m.trouble(now).cloned())).collect()
        };
        let view = |s: &Session| AgentView {
            agent: s.agent.clone(),
            region: s.region.clone(),
            number: s.number,
            slots: s.slots,
            leased: s.leases.len() as u32,
            running: running(s),
            connected: s.stream.is_some(),
            last_heard_ms: now.since(s.heard_at),
            draining: s.slots == 0 || s.deaf,
            models: models(s),
        };
        self.sessions.values().map(view).collect()
    }
}
