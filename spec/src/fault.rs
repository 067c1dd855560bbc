//! What is wrong with a specification: every fault at once, each with its place.

use std::{collections::HashSet, fmt};

use crate::path::{Dialect, Path, Step, render};

/// Faults listed one by one; the rest are only counted, so that a question file of a million
/// broken lines is answered in bounded space.
pub const MAX_FAULTS: usize = 1_000;
/// The most bytes that an id may have.
pub const MAX_ID_BYTES: usize = 255;
/// Characters of a value that a fault shows.
const SHOWN_CHARS: usize = 60;

/// One thing that is wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file it is in, as it was named; none for what came over the wire.
    pub file: Option<String>,
    /// The field, as `questions[3].id`; empty if the file as a whole is meant. Over the wire it is
    /// written with the contract's names: `spec.policy.backoff_ms`.
    pub path: String,
    /// The line in the file, from 1.
    pub line: Option<u32>,
    /// The column in the line, in characters, from 1.
    pub column: Option<u32>,
    /// The value, shortened, with control characters escaped and in quotes if it is text.
    pub value: Option<String>,
    /// What is wrong, as the end of a sentence that begins with the value or the field: `is no number`; where the file as a
    /// whole is meant, the whole sentence.
    pub problem: String,
    /// What to do.
    pub help: String,
}

impl Fault {
    /// A fault of a field that has no place in a file.
    pub fn of_field(path: &str, value: Option<&str>, problem: &str, help: &str) -> Fault {
        Fault {
            file: None,
            path: path.to_owned(),
            line: None,
            column: None,
            value: value.map(quote),
            problem: problem.to_owned(),
            help: help.to_owned(),
        }
    }
}

/// One line: `job.yaml:12:5 questions[3].id: "q1" is already used by …; give …`.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut place = self.file.as_deref().map(escape).unwrap_or_default();
        for number in [self.line, self.column].into_iter().flatten() {
            if !place.is_empty() {
                place.push(':');
            }
            place.push_str(&number.to_string());
        }
        match (place.is_empty(), self.path.is_empty()) {
            (true, true) => {}
            (false, true) => write!(f, "{place}: ")?,
            (true, false) => write!(f, "{}: ", self.path)?,
            (false, false) => write!(f, "{place} {}: ", self.path)?,
        }
        if let Some(value) = &self.value {
            write!(f, "{value} ")?;
        }
        write!(f, "{}; {}", self.problem, self.help)
    }
}

/// Every fault that was found, in the order of their lines in a file; never empty, and at most
/// [`MAX_FAULTS`] and one that counts the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl Faults {
    /// The faults, one after the other.
    pub fn iter(&self) -> std::slice::Iter<'_, Fault> {
        self.0.iter()
    }
}

/// One fault a line.
impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// Checks an id (of a job, a namespace, an agent, a question, a model or a region): 1 to 255
/// bytes, no control characters, no white space at either end. `field` is the path that the fault
/// names.
pub fn check_id(field: &str, id: &str) -> Option<Fault> {
    let (problem, help) = id_problem(id)?;
    Some(Fault::of_field(field, Some(id), &problem, &help))
}

/// What is wrong with an id, and what to do about it.
pub(crate) fn id_problem(id: &str) -> Option<(String, String)> {
    if id.is_empty() {
        return Some(("is empty".to_owned(), "give it 1 to 255 bytes of text".to_owned()));
    }
    if id.chars().all(|c| c.is_whitespace() && !c.is_control()) {
        return Some(("is nothing but white space".to_owned(), "give it 1 to 255 bytes of text".to_owned()));
    }
    if id.len() > MAX_ID_BYTES {
        let problem = format!("has {} bytes, and {MAX_ID_BYTES} is the most", id.len());
        return Some((problem, "shorten it".to_owned()));
    }
    if let Some(control) = id.chars().find(|c| c.is_control()) {
        let problem = format!("has the control character {}", name_of(control));
        return Some((problem, "take it out".to_owned()));
    }
    if id.starts_with(char::is_whitespace) || id.ends_with(char::is_whitespace) {
        let problem = "begins or ends with white space".to_owned();
        return Some((problem, format!("write {}", quote(id.trim()))));
    }
    None
}

fn name_of(control: char) -> String {
    match control {
        '\0' => "NUL".to_owned(),
        other => format!("U+{:04X}", u32::from(other)),
    }
}

/// A value in quotes, shortened, with control characters escaped.
pub(crate) fn quote(value: &str) -> String {
    let mut shown: String = value.chars().take(SHOWN_CHARS).collect();
    if shown.len() < value.len() {
        shown.push('…');
    }
    format!("\"{}\"", escape(&shown))
}

/// Text with what a terminal would act on written out.
pub(crate) fn escape(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            '\0' => text.push_str("\\0"),
            c if c.is_control() => text.extend(c.escape_unicode()),
            c => text.push(c),
        }
    }
    text
}

/// A place in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spot {
    pub(crate) file: Option<String>,
    pub(crate) line: Option<u32>,
    pub(crate) column: Option<u32>,
}

/// Finds where in its file a part of a specification was written.
pub(crate) trait Locate {
    /// The place of the part, or of the nearest part around it.
    fn locate(&self, steps: &[Step<'_>]) -> Spot;
}

/// What has no file: a specification that came over the wire.
pub(crate) struct Nowhere;

impl Locate for Nowhere {
    fn locate(&self, _: &[Step<'_>]) -> Spot {
        Spot::default()
    }
}

/// Collects faults. A part that was found faulty while it was read is not judged a second time
/// when the whole is checked: its stand-in would only be accused of what the reader said already.
pub(crate) struct Collector<'a> {
    locate: &'a dyn Locate,
    dialect: Dialect,
    faults: Vec<Fault>,
    uncounted: usize,
    unread: HashSet<String>,
}

impl<'a> Collector<'a> {
    pub(crate) fn new(locate: &'a dyn Locate, dialect: Dialect) -> Collector<'a> {
        Collector { locate, dialect, faults: Vec::new(), uncounted: 0, unread: HashSet::new() }
    }

    /// Goes on with the faults found so far, locating later ones elsewhere.
    pub(crate) fn located_by<'b>(self, locate: &'b dyn Locate) -> Collector<'b> {
        Collector { locate, dialect: self.dialect, faults: self.faults, uncounted: self.uncounted, unread: self.unread }
    }

    /// Notes a fault of a part whose place is found by its path.
    pub(crate) fn fault(&mut self, path: &Path<'_>, value: Option<String>, what: (&str, &str)) {
        let steps = path.steps();
        if self.is_unread(&steps) {
            return;
        }
        let spot = self.locate.locate(&steps);
        self.push(&steps, spot, value, what);
    }

    /// Notes a fault of a part that can't be read as what it should be, at a known place.
    pub(crate) fn unread(&mut self, path: &Path<'_>, spot: Spot, value: Option<String>, what: (&str, &str)) {
        let steps = path.steps();
        self.unread.insert(render(&steps, self.dialect));
        self.push(&steps, spot, value, what);
    }

    /// Takes a part for one that can't be read, without a word: what is wrong there was said of another part.
    pub(crate) fn excuse(&mut self, path: &Path<'_>) {
        self.unread.insert(render(&path.steps(), self.dialect));
    }

    /// Whether anything was found wrong so far.
    pub(crate) fn is_clean(&self) -> bool {
        self.faults.is_empty()
    }

    /// Whether this very part couldn't be read.
    pub(crate) fn could_not_read(&self, path: &Path<'_>) -> bool {
        !self.unread.is_empty() && self.unread.contains(&render(&path.steps(), self.dialect))
    }

    /// Whether a part under these steps couldn't be read.
    pub(crate) fn has_unread_under(&self, path: &Path<'_>) -> bool {
        let above = render(&path.steps(), self.dialect);
        self.unread.iter().any(|path| path.starts_with(&above) || path.is_empty())
    }

    /// What was found; nothing if all is well.
    pub(crate) fn finish(self) -> Result<(), Faults> {
        let mut faults = self.faults;
        if faults.is_empty() {
            return Ok(());
        }
        if self.dialect == Dialect::File {
            // As someone goes through the file; what has no place keeps its order.
            faults.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        }
        if self.uncounted > 0 {
            let problem = format!("{} more faults are not listed", self.uncounted);
            faults.push(Fault::of_field("", None, &problem, "put these right first"));
        }
        Err(Faults(faults))
    }

    fn is_unread(&self, steps: &[Step<'_>]) -> bool {
        !self.unread.is_empty()
            && (0..=steps.len()).any(|end| {
                let around = steps.get(..end).unwrap_or(steps);
                self.unread.contains(&render(around, self.dialect))
            })
    }

    fn push(&mut self, steps: &[Step<'_>], spot: Spot, value: Option<String>, (problem, help): (&str, &str)) {
        if self.faults.len() >= MAX_FAULTS {
            self.uncounted += 1;
            return;
        }
        self.faults.push(Fault {
            file: spot.file,
            path: render(steps, self.dialect),
            line: spot.line,
            column: spot.column,
            value,
            problem: problem.to_owned(),
            help: help.to_owned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_refused_for_what_is_wrong_with_it() {
        let long = "x".repeat(256);
        for (id, said) in [
            ("", "is empty"),
            ("a\0b", "control character NUL"),
            ("a\u{1b}", "control character U+001B"),
            ("q1 ", "white space"),
            ("\u{a0}q1", "white space"),
            (long.as_str(), "has 256 bytes"),
        ] {
            let fault = check_id("job_id", id).expect("refused");
            assert!(fault.problem.contains(said), "{id:?}: {fault}");
            assert_eq!(fault.path, "job_id");
        }
    }

    #[test]
    fn an_ordinary_id_passes_whatever_its_script() {
        for id in ["q1", "llama3.2:1b", "意味", "a b", &"x".repeat(255)] {
            assert_eq!(check_id("job_id", id), None);
        }
    }

    #[test]
    fn a_fault_is_one_line_whatever_the_value_holds() {
        let fault = check_id("job_id", "a\nb\u{1b}[31m").expect("refused");
        let line = fault.to_string();
        assert!(!line.chars().any(char::is_control), "{line}");
        assert!(line.starts_with(r#"job_id: "a\nb\u{1b}[31m" has the control character U+000A; "#), "{line}");
    }

    #[test]
    fn the_place_comes_first() {
        let fault = Fault {
            file: Some("job.yaml".to_owned()),
            line: Some(12),
            column: Some(5),
            ..Fault::of_field("questions[3].id", Some("q1"), "is taken", "rename it")
        };
        assert_eq!(fault.to_string(), r#"job.yaml:12:5 questions[3].id: "q1" is taken; rename it"#);
    }
}
