//! The shell of the scenarios: a core, its log, the tables, and a clock that goes when it is told to.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use semel_core::{
    Config, Core,
    batch::{Failure, Outcome, ReportBody, Served, StoredSpec, Success, Timings},
    event::{Event, Heartbeat, Held, Hello, JobCall, ModelStates, Outbox, Query, Release, Report, Retry, Submit},
    id::{CallId, Digest, Epoch, FencingToken, Incarnation, JobId, LeaseToken, Millis, Nonce, Now, StreamId, UnixMs},
    job::Policy,
    log::{Log, Sealed},
    matrix::{Matrix, ModelAxis},
    tables::Tables,
    words::{FailureReason, OnLeaseLost, RegionBasis, ReleaseReason, Stage, Status},
};

use crate::words::{batch, outs, table_lines};

/// The input of every cell.
const INPUT: Digest = Digest([1; 32]);

/// What a scenario acts on.
pub struct World {
    now: u64,
    config: Config,
    core: Option<Core>,
    log: Log,
    tables: Tables,
    sealed: Vec<Sealed>,
    outboxes: Vec<Outbox>,
    nonces: BTreeMap<FencingToken, Nonce>,
    nonce: u8,
    calls: u64,
}

/// Words of an act: those with a name, and those without.
struct Words<'a> {
    named: BTreeMap<&'a str, &'a str>,
    plain: Vec<&'a str>,
}

impl<'a> Words<'a> {
    fn of(line: &'a str) -> Self {
        let (mut named, mut plain) = (BTreeMap::new(), Vec::new());
        for word in line.split_whitespace() {
            match word.split_once('=') {
                Some((name, value)) => {
                    named.insert(name, value);
                }
                None => plain.push(word),
            }
        }
        Self { named, plain }
    }
    fn number(&self, name: &str, otherwise: u64) -> u64 {
        self.named.get(name).map_or(otherwise, |v| v.parse().expect(name))
    }
    fn cap(&self, name: &str) -> Option<u32> {
        self.named.get(name).map(|v| v.parse().expect(name))
    }
    fn list(&self, name: &str) -> Vec<&'a str> {
        self.named.get(name).map_or(vec![], |v| v.split(',').collect())
    }
    fn has(&self, word: &str) -> bool {
        self.plain.contains(&word)
    }
    fn at(&self, index: usize) -> &'a str {
        self.plain.get(index).copied().unwrap_or_default()
    }
}

impl World {
    /// A leader of epoch 1 with empty tables.
    pub fn new() -> Self {
        let mut tables = Tables::default();
        let epoch = tables.campaign(0).expect("an epoch");
        let mut world = Self {
            now: 0,
            config: Config::default(),
            core: None,
            log: Log::new(epoch),
            tables,
            sealed: vec![],
            outboxes: vec![],
            nonces: BTreeMap::new(),
            nonce: 0,
            calls: 0,
        };
        world.load(epoch);
        world
    }

    fn load(&mut self, epoch: Epoch) {
        self.log = Log::new(epoch);
        self.sealed.clear();
        self.outboxes.clear();
        let core = Core::load(self.config, epoch, self.time(), self.tables.load());
        self.core = Some(core.expect("the tables hold together"));
    }

    fn time(&self) -> Now {
        Now { mono: Millis(self.now), wall: UnixMs(1_000_000 + self.now as i64) }
    }

    /// Does what a line says; gives what came of it.
    pub fn act(&mut self, line: &str) -> Vec<String> {
        let words = Words::of(line);
        match words.at(0) {
            "embedded" => {
                self.config.embedded = true;
                self.load(self.log.epoch());
                vec![]
            }
            "wait" => {
                self.now += words.at(1).parse::<u64>().expect("milliseconds");
                vec![]
            }
            "pass" => {
                // In ticks of less than what counts as an own sleep (rule L6).
                let until = self.now + words.at(1).parse::<u64>().expect("milliseconds");
                let mut lines = Vec::new();
                while self.now < until {
                    self.now = until.min(self.now + 500);
                    lines.extend(self.step(Event::Tick));
                }
                lines
            }
            "busy" => {
                // Events that come one after the other, and no tick among them.
                let until = self.now + words.at(1).parse::<u64>().expect("milliseconds");
                while self.now < until {
                    self.now = until.min(self.now + 900);
                    self.step(Event::StreamClosed(StreamId(u64::MAX)));
                }
                vec![]
            }
            "rounds" => self.rounds(&words),
            "assign" => {
                let nonces = (0..8).map(|n| Nonce([self.nonce + n; 16])).collect();
                self.nonce += 8;
                self.step(Event::Assign(nonces))
            }
            "commit" => self.commit(words.has("lost")),
            "prove" => self.prove(),
            "restart" => {
                let epoch = self.tables.campaign(0).expect("an epoch");
                self.load(epoch);
                vec![format!("epoch {epoch}")]
            }
            "tables" => table_lines(&self.tables),
            "past" => self.ask_again(&words),
            "retry" => {
                let job = JobId::new(words.at(1));
                let rows = self.tables.executions.values().filter(|r| r.job == job);
                let rows = rows.filter(|r| !words.has("failed") || r.body.status() == Status::Failed);
                let records = rows.map(|r| (r.cell, r.lease.fencing, r.attempt)).collect();
                let by = self.by(words.at(1));
                self.step(Event::Retry(Retry { by, reopen: words.has("reopen"), records }))
            }
            _ => {
                let event = self.event(&words);
                self.step(event)
            }
        }
    }

    /// One cell at a time, each answered at once; only what is granted is shown.
    fn rounds(&mut self, words: &Words<'_>) -> Vec<String> {
        let mut lines = Vec::new();
        for _ in 0..words.at(1).parse::<u32>().expect("a number") {
            let granted = self.act("assign");
            let token = granted.first().and_then(|line| line.split(' ').nth(2)).expect("a grant").to_owned();
            lines.extend(granted);
            self.act("commit");
            self.act(&format!("report {} {token} ok", words.at(2)));
            self.act("commit");
        }
        lines
    }

    fn event(&mut self, words: &Words<'_>) -> Event {
        match words.at(0) {
            "submit" => self.submit(words),
            "hello" => self.hello(words),
            "beat" => self.beat(words),
            "held" => {
                let leases = words.plain.iter().skip(2).map(|t| self.token(t)).collect();
                Event::Held(Held { stream: stream(words.at(1)), request: words.number("request", 0), leases })
            }
            "report" => Event::Report(self.report(words)),
            "release" => Event::Release(Release {
                stream: stream(words.at(1)),
                token: self.token(words.at(2)).0,
                reason: ReleaseReason::parse(words.at(3)).expect("a reason"),
                message: words.at(4).into(),
                retry_after_ms: None,
                chance: 0,
            }),
            "model" => {
                let state = if words.has("ready") { Ok(()) } else { Err("unreachable".into()) };
                Event::ModelStates(ModelStates {
                    stream: stream(words.at(1)),
                    states: vec![(words.at(2).into(), state)],
                })
            }
            "closed" => Event::StreamClosed(stream(words.at(1))),
            "cancel" => Event::Cancel(self.by(words.at(1))),
            "pause" => Event::Pause(self.by(words.at(1))),
            "resume" => Event::Resume(self.by(words.at(1))),
            "job" => Event::Query(self.call(), Query::Job(words.at(1).into())),
            "explain" => Event::Query(self.call(), Query::Explain(words.at(1).into())),
            "tick" => {
                self.now += words.at(1).parse::<u64>().unwrap_or(0);
                Event::Tick
            }
            other => panic!("no act is called {other:?}"),
        }
    }

    fn call(&mut self) -> CallId {
        self.calls += 1;
        CallId(self.calls)
    }
    fn by(&mut self, job: &str) -> JobCall {
        JobCall { call: self.call(), actor: "caller".into(), id: job.into(), reason: String::new() }
    }

    fn submit(&mut self, words: &Words<'_>) -> Event {
        let regions = |text: &str| text.split('+').map(Into::into).collect();
        let axis = |text: &&str| {
            let (id, of) = text.split_once(':').unwrap_or((text, "eu"));
            ModelAxis { id: id.into(), name: id.into(), accept: vec![], regions: regions(of) }
        };
        let models = words.list("models");
        let models = if models.is_empty() { vec!["m"] } else { models };
        let questions = (0..words.number("questions", 1)).map(|q| format!("q{q}").as_str().into()).collect();
        let matrix = Matrix::new(models.iter().map(axis).collect(), questions, 1).expect("a matrix");
        let policy = Policy {
            attempts: words.number("attempts", 3) as u32,
            backoff_ms: 1_000,
            max_backoff_ms: 60_000,
            run_timeout_ms: 60_000,
            cold_timeout_ms: 120_000,
            deadline_ms: words.number("deadline", 86_400_000),
            on_lease_lost: if words.has("fail_if_lost") { OnLeaseLost::Fail } else { OnLeaseLost::Retry },
            max_leased: words.cap("cap"),
            max_leased_per_model: words.cap("model_cap"),
            max_leased_per_region: words.cap("region_cap"),
            require_reported_region: words.has("region_reported"),
            weight: words.number("weight", 1) as u32,
            priority: words.number("priority", 0) as i32,
        };
        let nothing = Bytes::from_static(b"{}");
        Event::Submit(Submit {
            call: self.call(),
            actor: "caller".into(),
            id: words.at(1).into(),
            digest: Digest([words.number("spec", 1) as u8; 32]),
            matrix: Arc::new(matrix),
            policy,
            spec: Arc::new(StoredSpec { sent: nothing.clone(), resolved: nothing, input_version: 1 }),
        })
    }

    fn hello(&self, words: &Words<'_>) -> Event {
        let models = words.list("models");
        let models = if models.is_empty() { vec!["m"] } else { models };
        Event::Hello(Hello {
            stream: stream(words.at(2)),
            agent: words.at(1).into(),
            incarnation: Incarnation([words.number("start", 1) as u8; 16]),
            region: words.named.get("region").copied().unwrap_or("eu").into(),
            models: models.iter().map(|m| ((*m).into(), "p".into(), None)).collect(),
            slots: words.number("slots", 1) as u32,
            prefetch: words.number("prefetch", 0) as u32,
            held: words.list("held").iter().map(|t| self.token(t)).collect(),
            spooled: words.list("spooled").iter().map(|t| self.token(t).0).collect(),
        })
    }

    fn beat(&self, words: &Words<'_>) -> Event {
        let tokens = |name| words.list(name).iter().map(|t| self.token(t).0.fencing).collect::<Vec<_>>();
        let held = tokens("holds");
        Event::Heartbeat(Heartbeat {
            stream: stream(words.at(1)),
            number: words.number("number", 1),
            slots: words.number("slots", 1) as u32,
            acknowledged: tokens("acknowledged"),
            started: tokens("started"),
            held_count: held.len() as u32,
            held_xor: held.iter().fold(0, |xor, t| xor ^ t.get()),
        })
    }

    fn report(&self, words: &Words<'_>) -> Report {
        let digest = Digest([words.number("digest", 7) as u8; 32]);
        let served = Served {
            region: words.named.get("region").copied().unwrap_or("eu").into(),
            basis: if words.has("reported") { RegionBasis::Reported } else { RegionBasis::Configured },
            model: words.named.get("model").copied().unwrap_or("").into(),
            request_id: "".into(),
            endpoint: "".into(),
            executor: "echo".into(),
        };
        let failed = |reason| {
            Outcome::Failed(Failure {
                reason,
                stage: Stage::Run,
                code: "".into(),
                message: Bytes::from_static(b"no"),
                retryable: !words.has("final"),
            })
        };
        let outcome = match words.at(3) {
            "ok" => Outcome::Succeeded(Success {
                output: Bytes::from_static(b"yes"),
                response: Bytes::new(),
                finish_reason: "stop".into(),
                prompt_tokens: None,
                completion_tokens: None,
            }),
            reason => failed(FailureReason::parse(reason).expect("a reason")),
        };
        let token = self.token(words.at(2)).0;
        let live = self.core.as_ref().and_then(|core| core.leased_cell(token)).is_some();
        let input_digest = if words.has("other_input") { Digest([2; 32]) } else { INPUT };
        let body = ReportBody { digest, input_digest, served: Some(served), timings: Timings::default(), outcome };
        Report {
            stream: stream(words.at(1)),
            token,
            body: Arc::new(body),
            leased_input: live.then_some(INPUT),
            retry_after_ms: None,
            past: None,
            chance: 0,
        }
    }

    /// A report again, with what the tables say of its token (rule C10).
    fn ask_again(&mut self, words: &Words<'_>) -> Vec<String> {
        assert!(self.sealed.is_empty() && !self.log.is_filling(), "the tables are read when nothing is in flight");
        let words = Words { named: words.named.clone(), plain: words.plain[1..].to_vec() };
        let mut report = self.report(&words);
        report.past = Some(self.tables.past(report.token.fencing));
        self.step(Event::Report(report))
    }

    fn step(&mut self, event: Event) -> Vec<String> {
        let now = self.time();
        let Some(core) = &mut self.core else { return vec![] };
        let decision = match core.step(now, event) {
            Ok(decision) => decision,
            Err(broken) => return vec![format!("broken: {}", broken.0)],
        };
        core.recount().expect("what memory says adds up");
        for grant in &decision.batch.grants {
            for slot in 0..grant.cells.len() as u32 {
                self.nonces.insert(grant.first.offset(slot), grant.nonce);
            }
        }
        let mut lines: Vec<String> = outs(&decision.now).into_iter().map(|line| format!("now: {line}")).collect();
        lines.extend(batch(&decision.batch).into_iter().map(|line| format!("writes: {line}")));
        lines.extend(decision.ask.map(|token| format!("asks for the past of {}", crate::words::token(token))));
        if let Some(sealed) = self.log.add(decision) {
            lines.push(format!("closes batch {} first: it touches the same", sealed.seq.0));
            self.sealed.push(sealed);
        }
        self.outboxes.extend(self.log.take_outboxes());
        lines
    }

    /// Commits what is sealed and what is filling, one batch after the other. `lost`: the answers are.
    fn commit(&mut self, lost: bool) -> Vec<String> {
        self.sealed.extend(self.log.seal());
        self.outboxes.extend(self.log.take_outboxes());
        let mut lines = Vec::new();
        let mut waiting = std::mem::take(&mut self.sealed);
        if waiting.is_empty() {
            // Nothing to write; an answer may only have waited for what was committed before.
            waiting.push(self.log.seal_empty());
        }
        for sealed in waiting {
            match self.tables.commit(sealed.epoch, sealed.seq, &sealed.batch) {
                Ok(_) if lost => {
                    lines.push(format!("commit {} is applied, its answer is lost", sealed.seq.0));
                    let again = self.tables.commit(sealed.epoch, sealed.seq, &sealed.batch);
                    lines.extend(again.err().map(|refused| format!("sent again: {refused:?}, no proof")));
                }
                Ok(proof) => lines.extend(self.open(&proof)),
                Err(refused) => lines.push(format!("commit {}: {refused:?}", sealed.seq.0)),
            }
        }
        lines
    }

    /// Rule C4: an empty commit that proves those before it.
    fn prove(&mut self) -> Vec<String> {
        let sealed = self.log.seal_empty();
        match self.tables.commit(sealed.epoch, sealed.seq, &sealed.batch) {
            Ok(proof) => self.open(&proof),
            Err(refused) => vec![format!("{refused:?}")],
        }
    }

    fn open(&mut self, proof: &semel_core::Committed) -> Vec<String> {
        let mut lines = Vec::new();
        for outbox in std::mem::take(&mut self.outboxes) {
            match outbox.open(proof) {
                Ok(items) => {
                    lines.extend(outs(&items).into_iter().map(|line| format!("says: {line}")));
                    let said = Event::said(&items).map(|said| self.step(said));
                    assert_eq!(said.unwrap_or_default(), Vec::<String>::new(), "nothing comes of having said");
                }
                Err(closed) => self.outboxes.push(closed),
            }
        }
        lines
    }

    fn token(&self, text: &str) -> (LeaseToken, bool) {
        let started = text.ends_with('*');
        let forged = text.ends_with('!');
        let (epoch, counter) = text.trim_end_matches(['*', '!']).split_once('.').expect("EPOCH.COUNTER");
        let epoch = epoch.parse().ok().and_then(Epoch::new).expect("an epoch");
        let fencing = FencingToken::new(epoch, counter.parse().expect("a counter"));
        let nonce = self.nonces.get(&fencing).copied().filter(|_| !forged).unwrap_or(Nonce([0xff; 16]));
        (LeaseToken { fencing, nonce }, started)
    }
}

fn stream(text: &str) -> StreamId {
    StreamId(text.trim_start_matches('s').parse().expect("a stream: s1"))
}
