//! Keys and tokens, each the only word of its file. No message quotes anything of one.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::{fs, io};

/// The largest file of a key or token, in bytes. What is larger is none.
pub const MAX_BYTES: usize = 16 * 1024;
/// The fewest characters of a coordinator's token: what is shorter can be guessed.
pub const MIN_TOKEN_CHARS: usize = 16;

/// Why a text or file holds no key or token, as the end of a sentence that begins with its name.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The system doesn't give it.
    #[error("can't be read: {0}")]
    Io(#[from] io::Error),
    /// There is nothing in it but white space.
    #[error("is empty")]
    Empty,
    /// It is longer than any key or token.
    #[error("has more than {MAX_BYTES} bytes; a key or token is one word")]
    TooLong,
    /// A line ends within it.
    #[error("has more than one line; a key or token is one word")]
    Lines,
    /// It has several words.
    #[error("has white space inside; a key or token is one word")]
    WhiteSpace,
    /// It has what no HTTP header can carry.
    #[error("has a control character or one beyond ASCII; a key or token is one word of printable ASCII")]
    Unprintable,
    /// It is shorter than any token.
    #[error("has {0} characters; a token has at least {MIN_TOKEN_CHARS}")]
    TooShort(usize),
}

/// The key or token that is the only word of `text`, without the white space around it.
///
/// # Errors
/// `text` is not one word of printable ASCII.
pub fn word(text: &str) -> Result<&str, SecretError> {
    let word = text.trim();
    if word.is_empty() {
        Err(SecretError::Empty)
    } else if word.len() > MAX_BYTES {
        Err(SecretError::TooLong)
    } else if word.contains(['\n', '\r']) {
        Err(SecretError::Lines)
    } else if word.contains([' ', '\t']) {
        Err(SecretError::WhiteSpace)
    } else if !word.bytes().all(|byte| byte.is_ascii_graphic()) {
        Err(SecretError::Unprintable)
    } else {
        Ok(word)
    }
}

/// The key or token that is the only word of the file `path`.
///
/// # Errors
/// The file can't be read, or doesn't hold one word of printable ASCII.
pub fn read_word(path: &Path) -> Result<String, SecretError> {
    let bytes = super::read(path, MAX_BYTES)?;
    if bytes.len() > MAX_BYTES {
        return Err(SecretError::TooLong);
    }
    // What is no UTF-8 becomes a character beyond ASCII.
    Ok(word(&String::from_utf8_lossy(&bytes))?.to_owned())
}

/// Why a token file can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {error}; the file must hold the coordinator's token")]
pub struct TokenError {
    path: String,
    error: SecretError,
}

/// The coordinator's bearer token from the file `path`, which a coordinator, its agents and command lines share. A file
/// that every user of this machine can read is warned of in the log, and taken: some secret stores mount no other.
///
/// # Errors
/// The file can't be read, or doesn't hold one word of at least [`MIN_TOKEN_CHARS`] printable ASCII characters. The
/// message names the file.
pub fn read_token(path: &Path) -> Result<String, TokenError> {
    let of_file = |error| TokenError { path: path.display().to_string(), error };
    let token = read_word(path).map_err(of_file)?;
    if token.len() < MIN_TOKEN_CHARS {
        return Err(of_file(SecretError::TooShort(token.len())));
    }
    let is_public = fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o004 != 0);
    if is_public {
        tracing::warn!(file = %path.display(), "every user of this machine can read the token; chmod o= the file");
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::sync::{Arc, Mutex};

    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn token_of(bytes: impl AsRef<[u8]>) -> Result<String, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        fs::write(&path, bytes).expect("a file");
        let read = read_token(&path);
        read.map_err(|error| {
            let words = error.to_string();
            let rest = words.strip_prefix(&format!("{}: ", path.display())).expect("the file's name comes first");
            rest.to_owned()
        })
    }

    #[test]
    fn a_token_is_taken_without_the_white_space_around_it() {
        for text in [TOKEN.to_owned(), format!("{TOKEN}\n"), format!(" \t{TOKEN}\r\n\n"), format!("\n{TOKEN}")] {
            assert_eq!(token_of(&text).as_deref(), Ok(TOKEN), "{text:?}");
        }
        assert_eq!(token_of("!~!~!~!~!~!~!~!~").as_deref(), Ok("!~!~!~!~!~!~!~!~"), "printable ASCII at both its ends");
    }

    #[test]
    fn what_is_no_token_is_refused_for_what_is_wrong_with_it_and_quoted_nowhere() {
        for (bytes, said) in [
            (&b""[..], "is empty"),
            (b" \r\n\t", "is empty"),
            (b"SECRET7890abcdef\nSECRET", "more than one line"),
            (b"SECRET7890abcdef\rSECRET", "more than one line"),
            (b"SECRET 7890abcdef", "white space inside"),
            (b"SECRET\t7890abcdef", "white space inside"),
            (b"SECRET7890abcde\x1f", "a control character"),
            (b"SECRET7890abcde\x7f", "a control character"),
            (b"SECRET\x007890abcdef", "a control character"),
            (b"SECRET7890abcde\xff", "beyond ASCII"),
            ("SECRET7890abcdef\u{f6}".as_bytes(), "beyond ASCII"),
            ("\u{feff}SECRET7890abcdef".as_bytes(), "beyond ASCII"),
        ] {
            let fault = token_of(bytes).expect_err(said);
            assert!(fault.starts_with("has ") || fault.starts_with("is "), "{fault}");
            assert!(fault.contains(said) && !fault.contains("SECRET"), "{bytes:?}: {fault}");
        }
    }

    #[test]
    fn a_token_has_its_least_and_its_most_length() {
        assert_eq!(token_of("x".repeat(MIN_TOKEN_CHARS)).map(|token| token.len()), Ok(MIN_TOKEN_CHARS));
        let short = token_of("x".repeat(MIN_TOKEN_CHARS - 1)).expect_err("one less");
        assert!(short.starts_with("has 15 characters; a token has at least 16"), "{short}");
        assert_eq!(token_of("x".repeat(MAX_BYTES)).map(|token| token.len()), Ok(MAX_BYTES));
        let long = token_of("x".repeat(MAX_BYTES + 1)).expect_err("one more");
        assert!(long.starts_with("has more than 16384 bytes"), "{long}");
    }

    #[test]
    fn a_file_that_can_not_be_read_is_named_with_the_reason() {
        let folder = tempfile::tempdir().expect("a folder");
        let missing = read_token(&folder.path().join("nowhere")).expect_err("there is none").to_string();
        assert!(missing.contains("/nowhere: can't be read: No such file"), "{missing}");
        let directory = read_token(folder.path()).expect_err("a folder").to_string();
        assert!(directory.contains("can't be read: Is a directory"), "{directory}");
        let path = folder.path().join("token");
        fs::write(&path, TOKEN).expect("a file");
        fs::set_permissions(&path, Permissions::from_mode(0o000)).expect("the file is ours");
        // The superuser reads everything.
        if fs::File::open(&path).is_err() {
            let denied = read_token(&path).expect_err("not allowed").to_string();
            assert!(denied.contains("/token: can't be read: Permission denied"), "{denied}");
        }
    }

    #[test]
    fn a_token_that_everybody_can_read_is_taken_with_a_warning() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        fs::write(&path, TOKEN).expect("a file");
        for (mode, is_warned_of) in [(0o600, false), (0o640, false), (0o644, true), (0o604, true)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("the file is ours");
            let (token, log) = logged(|| read_token(&path));
            assert_eq!(token.expect("it is good"), TOKEN, "{mode:o}");
            assert_eq!(log.contains("WARN") && log.contains("/token"), is_warned_of, "{mode:o}: {log}");
            assert!(!log.contains(TOKEN), "{log}");
        }
    }

    fn logged<T>(run: impl FnOnce() -> T) -> (T, String) {
        #[derive(Clone, Default)]
        struct Log(Arc<Mutex<Vec<u8>>>);
        impl io::Write for Log {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().expect("no panic").extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let done = tracing::subscriber::with_default(subscriber, run);
        let bytes = log.0.lock().expect("no panic").clone();
        (done, String::from_utf8(bytes).expect("text"))
    }
}
