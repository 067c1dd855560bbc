//! Keys and tokens: read from the environment or a file, and never shown.

use std::fmt;
use std::path::PathBuf;

use semel_files::secret::{self, SecretError};

/// What replaces a key in words that quote it.
const REDACTED: &[u8] = b"[key]";

/// A key or token. Its `Debug` shows nothing of it.
#[derive(Clone, PartialEq)]
pub struct Secret(String);

impl Secret {
    /// A key without the white space around it.
    ///
    /// # Errors
    /// It is not one word that an HTTP header can carry; the message doesn't quote it.
    fn new(text: &str) -> Result<Self, SecretError> {
        Ok(Self(secret::word(text)?.to_owned()))
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `bytes` quote this key.
    pub(super) fn is_in(&self, bytes: &[u8]) -> bool {
        find(bytes, self.0.as_bytes()).is_some()
    }

    /// `bytes` with `[key]` in place of this key: providers quote it in their errors.
    pub(super) fn redact(&self, bytes: Vec<u8>) -> Vec<u8> {
        redact(bytes, self.0.as_bytes())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[key]")
    }
}

/// `bytes` with `[key]` in place of every `secret`.
pub(super) fn redact(bytes: Vec<u8>, secret: &[u8]) -> Vec<u8> {
    let Some(first) = find(&bytes, secret) else { return bytes };
    let (mut clean, mut rest, mut next) = (Vec::with_capacity(bytes.len()), &bytes[..], Some(first));
    while let Some(at) = next {
        clean.extend_from_slice(&rest[..at]);
        clean.extend_from_slice(REDACTED);
        rest = &rest[at + secret.len()..];
        next = find(rest, secret);
    }
    clean.extend_from_slice(rest);
    clean
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    while let Some(step) = haystack.get(from..)?.iter().position(|byte| *byte == first) {
        from += step;
        if haystack[from..].starts_with(needle) {
            return Some(from);
        }
        from += 1;
    }
    None
}

/// Where the key of an endpoint comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum KeySource {
    /// The endpoint wants none.
    #[default]
    None,
    /// It was read from the environment when the agent started.
    Value(Secret),
    /// It is read from this file before each call, so that a key put right needs no restart.
    File(PathBuf),
}

impl KeySource {
    /// The key in the environment variable `name`, of which `value` is the value.
    ///
    /// # Errors
    /// The variable isn't set, or holds no key. The message doesn't quote `name`: people paste keys into the wrong place.
    pub fn from_env(value: Option<String>) -> Result<Self, String> {
        let value = value.ok_or("the environment variable that is named here is not set")?;
        let secret = Secret::new(&value).map_err(|fault| format!("the value of the environment variable {fault}"))?;
        Ok(Self::Value(secret))
    }

    /// The key itself, `None` where the endpoint wants none.
    ///
    /// # Errors
    /// Its file can't be read or holds no key.
    pub(super) async fn read(&self) -> Result<Option<Secret>, String> {
        match self {
            Self::None => Ok(None),
            Self::Value(secret) => Ok(Some(secret.clone())),
            Self::File(path) => {
                let of_file = |fault: String| format!("key file {}: {fault}", path.display());
                let owned = path.clone();
                let read = tokio::task::spawn_blocking(move || secret::read_word(&owned)).await;
                let word = read.map_err(|error| of_file(error.to_string()))?;
                word.map(|word| Some(Secret(word))).map_err(|fault| of_file(fault.to_string()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_shown_by_no_debug() {
        let key = KeySource::from_env(Some(" sk-hidden\n".to_owned())).unwrap();
        assert_eq!(format!("{key:?}"), "Value([key])");
    }

    #[test]
    fn a_key_with_a_line_break_inside_is_refused_without_being_quoted() {
        let fault = KeySource::from_env(Some("sk-hidden\nsk-other".to_owned())).unwrap_err();
        assert!(fault.contains("more than one line") && !fault.contains("sk-"), "{fault}");
    }

    #[test]
    fn every_quote_of_a_key_is_replaced() {
        let key = Secret::new("sk-1").unwrap();
        assert_eq!(key.redact(b"sk-1 and ssk-1sk-1!".to_vec()), b"[key] and s[key][key]!");
        assert_eq!(key.redact(b"sk-2".to_vec()), b"sk-2");
        assert!(key.is_in(b"...sk-1") && !key.is_in(b"sk-"));
    }
}
