//! How a verb ends: its exit code, and the words of what went wrong.

use std::{fmt, io, process::ExitCode};

use crate::terminal;

/// The exit codes of `semel`. They are part of its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done; of a job: every cell succeeded.
    Complete = 0,
    /// Something failed that is not the input's fault.
    Error = 1,
    /// The input was refused; nothing was stored.
    Refused = 2,
    /// The job is complete and some of its cells failed, or it is cancelled or expired.
    Failures = 3,
    /// A signal ended it; the same command goes on.
    Interrupted = 4,
    /// An audit found a difference.
    Difference = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Input that is refused, in words: one line a fault.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// The job is cancelled or expired, and so the call does nothing.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Closed(pub String);

/// Whoever read this process's output has gone: no error, and nobody to tell.
#[derive(Debug)]
pub struct ReaderGone;

impl fmt::Display for ReaderGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads the output any more")
    }
}

impl std::error::Error for ReaderGone {}

/// Whether an error only says that nobody reads the output any more.
pub fn is_reader_gone(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        inner.is_some_and(|inner| inner.is::<ReaderGone>())
    })
}

/// Says on stderr what went wrong, if anything did, and gives the exit code.
pub fn report(result: anyhow::Result<Exit>) -> Exit {
    let error = match result {
        Ok(exit) => return exit,
        Err(error) => error,
    };
    if is_reader_gone(&error) {
        return Exit::Complete;
    }
    let exit = if error.is::<Refused>() {
        Exit::Refused
    } else if error.is::<Closed>() {
        Exit::Failures
    } else {
        Exit::Error
    };
    let words = in_words(&error);
    match exit {
        // The faults stand by themselves, each with its place.
        Exit::Refused => terminal::complain(&words),
        _ => terminal::error(&words),
    }
    exit
}

/// An error and its causes, but for those that an error before them has told already.
fn in_words(error: &anyhow::Error) -> String {
    let mut words = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if words.contains(&cause) {
            continue;
        }
        if !words.is_empty() {
            words.push_str(": ");
        }
        words.push_str(&cause);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_was_told_is_not_told_again() {
        #[derive(Debug, thiserror::Error)]
        #[error("semel.db.lock: {source}")]
        struct Lock {
            source: io::Error,
        }
        let source = io::Error::other("no room");
        let error = anyhow::Error::from(Lock { source }).context("--store semel.db can't be used");
        assert_eq!(in_words(&error), "--store semel.db can't be used: semel.db.lock: no room");
    }

    #[test]
    fn only_a_reader_that_has_gone_is_no_error() {
        let gone = anyhow::Error::from(io::Error::other(ReaderGone)).context("writing");
        assert!(is_reader_gone(&gone));
        let pipe = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("a connection");
        assert!(!is_reader_gone(&pipe));
    }
}
