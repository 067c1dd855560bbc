//! Decisions as words.

use semel_core::{
    batch::{Batch, Outcome, ReportBody},
    event::{Answer, JobView, Out, ToAgent},
    id::{FencingToken, LeaseToken},
    tables::Tables,
};

/// A token as the scenarios write it.
pub fn token(token: FencingToken) -> String {
    format!("{}.{}", token.epoch(), token.get() & 0xffff_ffff)
}

fn tokens(list: &[LeaseToken]) -> String {
    list.iter().map(|t| token(t.fencing)).collect::<Vec<_>>().join(" ")
}

/// What is said, a line each.
pub fn outs(outs: &[Out]) -> Vec<String> {
    outs.iter()
        .map(|out| match out {
            Out::Agent(stream, message) => format!("s{} {}", stream.0, to_agent(message)),
            Out::Answer(call, answer) => format!("call {} {}", call.0, answer_words(answer)),
        })
        .collect()
}

fn to_agent(message: &ToAgent) -> String {
    match message {
        ToAgent::Welcome { number, lost, .. } if lost.is_empty() => format!("Welcome, start {number}"),
        ToAgent::Welcome { number, lost, .. } => format!("Welcome, start {number}, lost {}", tokens(lost)),
        ToAgent::HeartbeatAck(number) => format!("HeartbeatAck {number}"),
        ToAgent::Lease(l) => {
            format!("Lease {} {} cell {} attempt {}", token(l.token.fencing), l.job, l.cell.0, l.attempt)
        }
        ToAgent::Receipt(r) => {
            let reason = r.reason.map_or(String::new(), |reason| format!(" ({})", reason.as_str()));
            format!("Receipt {} {}{reason}", token(r.token.fencing), r.kind.as_str())
        }
        ToAgent::Revoke(t, reason) => format!("Revoke {} ({})", token(t.fencing), reason.as_str()),
        ToAgent::HeldRequest(number) => format!("HeldRequest {number}"),
        ToAgent::GoAway(reason) => format!("GoAway ({})", reason.as_str()),
    }
}

fn view(view: &JobView) -> String {
    let c = view.counts;
    let complete = if view.completed_at.is_some() { ", complete" } else { "" };
    let paused = if view.paused { ", paused" } else { "" };
    format!(
        "{} {}{paused}{complete}: {} = {} recorded ({} failed) + {} leased + {} pending + {} not run",
        view.id,
        view.state.as_str(),
        c.expected,
        c.recorded,
        c.failed,
        c.leased,
        c.pending,
        c.not_run
    )
}

fn answer_words(answer: &Answer) -> String {
    match answer {
        Answer::Submitted(v, true) => format!("created: {}", view(v)),
        Answer::Submitted(v, false) => format!("was there: {}", view(v)),
        Answer::OtherSpec => "refused: another specification has this id".into(),
        Answer::NoSuchJob => "no such job".into(),
        Answer::Refused(words) => format!("refused: {words}"),
        Answer::Job(v) => view(v),
        Answer::Cancelled(v, running) => format!("{running} may still run: {}", view(v)),
        Answer::Retried(v, moved) => format!("{moved} moved: {}", view(v)),
        Answer::Pending(v, groups) => {
            let groups: Vec<_> = groups.iter().map(|g| format!("{} {}", g.cells, g.wait.reason.as_str())).collect();
            format!("{}; waits: {}", view(v), groups.join(", "))
        }
        other => format!("{other:?}"),
    }
}

fn body(body: &ReportBody) -> String {
    match &body.outcome {
        Outcome::Succeeded(_) => "succeeded".into(),
        Outcome::Failed(f) => format!("failed ({})", f.reason.as_str()),
    }
}

/// What is written, a line a row.
pub fn batch(batch: &Batch) -> Vec<String> {
    let mut lines = Vec::new();
    lines.extend(batch.jobs.iter().map(|j| format!("job {}", j.id)));
    lines.extend(batch.agents.iter().map(|a| format!("agent {} start {}", a.agent, a.number)));
    for grant in &batch.grants {
        let cells: Vec<_> = grant.cells.iter().map(|c| c.0.to_string()).collect();
        lines.push(format!("grant {} to {}: {} cells {}", token(grant.first), grant.agent, grant.job, cells.join(" ")));
    }
    for r in &batch.records {
        lines.push(format!("record {} cell {} under {}: {}", r.job, r.cell.0, token(r.lease.fencing), body(&r.body)));
    }
    lines.extend(
        batch.replaced.iter().map(|r| format!("moves record {} cell {} of {}", r.job, r.cell.0, token(r.token))),
    );
    for (grant, mask) in &batch.blanks {
        let slots = (0..64).filter(|s| mask & (1u64 << s) != 0);
        lines.extend(slots.map(|s| format!("blanks {}", token(grant.offset(s)))));
    }
    lines.extend(batch.ended.iter().map(|g| format!("ends grant {}", token(*g))));
    for a in &batch.attempts {
        let counted = if a.counted { "counted" } else { "uncounted" };
        let company = if a.in_company { ", in company" } else { "" };
        let why = a.fenced.map_or(String::new(), |f| format!(" ({})", f.as_str()));
        lines.push(format!("attempt {} {}{why}: {counted}{company}", token(a.token), a.kind.as_str()));
    }
    for (id, change) in &batch.job_changes {
        let mut words = Vec::new();
        words.extend(change.state.map(|s| s.as_str().to_owned()));
        words.extend(change.paused.map(|p| if p { "paused".to_owned() } else { "resumed".to_owned() }));
        words.extend(change.completed_at.map(|c| if c.is_some() { "complete" } else { "not complete" }.to_owned()));
        lines.push(format!("changes {id}: {}", words.join(", ")));
    }
    lines
}

/// The tables, in short.
pub fn table_lines(tables: &Tables) -> Vec<String> {
    let mut lines = Vec::new();
    for (id, job) in &tables.jobs {
        lines.push(format!("job {id} {}", job.state.as_str()));
    }
    for ((job, cell), r) in &tables.executions {
        lines.push(format!("execution {job} cell {} under {}: {}", cell.0, token(r.lease.fencing), body(&r.body)));
    }
    for (first, grant) in &tables.grants {
        let slots: Vec<_> =
            grant.slots.iter().map(|s| s.map_or_else(|| "blank".to_owned(), |c| c.0.to_string())).collect();
        lines.push(format!("grant {} to {}: {} {}", token(*first), grant.row.agent, grant.row.job, slots.join(" ")));
    }
    for (t, kind, _) in tables.attempts.keys() {
        lines.push(format!("attempt {} {}", token(*t), kind.as_str()));
    }
    lines
}
