//! What is seen of a job that runs: a picture redrawn in place on a terminal, plain lines elsewhere.
//!
//! A run doesn't stop because nobody reads its output any more: what can't be written is dropped.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use console::Term;
use semel_proto::v1 as pb;
use serde_json::Value;

use crate::{
    clock::{Heard, Stopwatch},
    picture,
    rate::Rate,
    terminal::{Out, complain, warning},
};

/// When the first plain line comes: by then the agents have connected, and a short job has ended.
const FIRST_LINE_AFTER: Duration = Duration::from_secs(2);
/// The least time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Lines of the terminal that a picture leaves free.
const FREE_LINES: usize = 2;

/// Where a run is seen.
pub struct Screen {
    mode: Mode,
    rate: Rate,
    since: Stopwatch,
}

enum Mode {
    /// Redrawn in place; so many lines were drawn.
    Live { term: Term, drawn: usize },
    /// A line when something has changed.
    Plain { is_stderr: bool, last: Option<(Duration, String)> },
}

impl Screen {
    /// The screen of this process; `is_script` where a script reads stdout, and progress goes to stderr.
    pub fn new(is_script: bool) -> Self {
        let is_live = !is_script && io::stdout().is_terminal() && !console::is_dumb();
        let mode = if is_live {
            Mode::Live { term: Term::buffered_stdout(), drawn: 0 }
        } else {
            Mode::Plain { is_stderr: is_script, last: None }
        };
        Self { mode, rate: Rate::default(), since: Stopwatch::start() }
    }

    /// Shows how the job stands, if it is time.
    pub fn show(&mut self, job: &pb::Job, groups: &[pb::PendingGroup]) {
        let now = self.since.reading();
        self.rate.look(now, job.counts.unwrap_or_default().recorded);
        self.rate.hold(picture::is_held(groups));
        match &mut self.mode {
            Mode::Live { term, drawn } => {
                let width = usize::from(term.size().1);
                redraw(term, drawn, &picture::lines(job, groups, Some(&self.rate), Some(width)), true)
                    .unwrap_or_default();
            }
            Mode::Plain { is_stderr, last } => {
                let waiting = picture::waiting(groups);
                // Without the rate, which always changes.
                let state = format!("{}{waiting:?}", picture::standing(job, None));
                let is_due = match last {
                    None => now >= FIRST_LINE_AFTER,
                    Some((at, said)) => *said != state && now.saturating_sub(*at) >= LINE_EVERY,
                };
                if is_due {
                    let mut line = picture::headline(job, Some(&self.rate));
                    if let Some(reason) = waiting.first() {
                        line.push_str(&format!("; waiting: {reason}"));
                    }
                    write(*is_stderr, &line);
                    *last = Some((now, state));
                }
            }
        }
    }

    /// Shows how the job stood when it was last heard of, where a picture stands and not lines, each with its moment.
    pub fn show_heard(&mut self, job: &pb::Job, heard: Heard) {
        if let Mode::Live { term, drawn } = &mut self.mode {
            let width = usize::from(term.size().1);
            redraw(term, drawn, &picture::heard(job, heard, Some(width)), true).unwrap_or_default();
        }
    }

    /// Shows how the job stands at the end, or with `heard` how it stood then, and keeps it on the screen.
    pub fn last(&mut self, job: &pb::Job, heard: Option<Heard>) {
        let lines = match heard {
            Some(heard) => picture::heard(job, heard, None),
            None => picture::lines(job, &[], None, None),
        };
        match &mut self.mode {
            Mode::Live { term, drawn } => {
                redraw(term, drawn, &lines, false).unwrap_or_default();
                *drawn = 0;
            }
            Mode::Plain { is_stderr, .. } => lines.iter().for_each(|line| write(*is_stderr, line)),
        }
    }

    /// Says a line that stays.
    pub fn say(&mut self, line: &str) {
        self.above();
        write(matches!(self.mode, Mode::Plain { is_stderr: true, .. }), line);
    }

    /// Says something on stderr.
    pub fn note(&mut self, line: &str) {
        self.above();
        complain(line);
    }

    /// Warns on stderr.
    pub fn warn(&mut self, line: &str) {
        self.above();
        warning(line);
    }

    /// Writes what a script reads.
    pub fn json(&mut self, value: &Value) {
        Out::new().json(value).unwrap_or_default();
    }

    /// Takes the picture away; the next is drawn below what is said now.
    fn above(&mut self) {
        if let Mode::Live { term, drawn } = &mut self.mode {
            redraw(term, drawn, &[], true).unwrap_or_default();
        }
    }
}

/// Draws lines over those drawn before, cut to the terminal's width and, where they will be drawn over, its height.
fn redraw(term: &Term, drawn: &mut usize, lines: &[String], is_bounded: bool) -> io::Result<()> {
    let (height, width) = term.size();
    let (width, room) = (usize::from(width).max(1), usize::from(height).saturating_sub(FREE_LINES).max(1));
    term.clear_last_lines(*drawn)?;
    *drawn = 0;
    let is_cut = is_bounded && lines.len() > room;
    let shown = if is_cut { room.saturating_sub(1) } else { lines.len() };
    for line in lines.iter().take(shown) {
        let line = if is_bounded { console::truncate_str(line, width, "…") } else { line.as_str().into() };
        term.write_line(&line)?;
        *drawn += 1;
    }
    if is_cut {
        term.write_line(&console::truncate_str(&format!("… {} more lines", lines.len() - shown), width, "…"))?;
        *drawn += 1;
    }
    term.flush()
}

fn write(is_stderr: bool, line: &str) {
    let written = if is_stderr { writeln!(io::stderr(), "{line}") } else { writeln!(io::stdout(), "{line}") };
    written.unwrap_or_default();
}
