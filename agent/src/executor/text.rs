//! Text of providers and programs: JSON read leniently, words cut to a bound.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A JSON string as the bytes that it stands for, invalid UTF-8 included.
///
/// A model can answer half a character. serde_json reads such a string into bytes, and into nothing else.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Text(pub(super) Vec<u8>);

impl Text {
    /// As text for a field that is text, invalid UTF-8 replaced.
    pub(super) fn into_string(self) -> String {
        match String::from_utf8(self.0) {
            Ok(text) => text,
            Err(broken) => String::from_utf8_lossy(broken.as_bytes()).into_owned(),
        }
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Text, E> {
                Ok(Text(bytes.to_vec()))
            }
        }

        deserializer.deserialize_bytes(Bytes)
    }
}

/// JSON in which every `\u` escape of half a surrogate pair is replaced by `\ufffd`, which is as long.
///
/// JSON allows such an escape and Unicode has no character for it. Only the escapes are touched, so a body without
/// one is returned as it is.
pub(super) fn repair_surrogates(json: &[u8]) -> Cow<'_, [u8]> {
    let mut repaired = Cow::Borrowed(json);
    let mut at = 0;
    while let Some(step) = json.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == b'\\')) {
        at += step;
        // In JSON a backslash stands only in a string, and takes the next character with it.
        at += match unicode_escape(json, at) {
            None => 2,
            Some(0xD800..=0xDBFF) if matches!(unicode_escape(json, at + 6), Some(0xDC00..=0xDFFF)) => 12,
            Some(0xD800..=0xDFFF) => {
                if let Some(escape) = repaired.to_mut().get_mut(at..at + 6) {
                    escape.copy_from_slice(b"\\ufffd");
                }
                6
            }
            Some(_) => 6,
        };
    }
    repaired
}

/// The code unit of the escape `\uXXXX` that starts at `at`, if one does.
fn unicode_escape(json: &[u8], at: usize) -> Option<u16> {
    let digits = json.get(at..at + 6)?.strip_prefix(b"\\u")?;
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// `text`, cut at a character so that it has at most `max` bytes.
pub(super) fn shorten(mut text: String, max: usize) -> String {
    const MARK: &str = "…";
    if text.len() > max {
        let mut end = max.saturating_sub(MARK.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(MARK);
    }
    text
}

/// An error and its causes in one line.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        // Wrappers often repeat the words of what they wrap.
        if !line.ends_with(&words) {
            line.push_str(": ");
            line.push_str(&words);
        }
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Vec<u8> {
        serde_json::from_slice::<Text>(&repair_surrogates(json.as_bytes())).unwrap().0
    }

    #[test]
    fn half_a_surrogate_pair_becomes_the_replacement_character() {
        assert_eq!(read(r#""a\ud800b""#), "a\u{fffd}b".as_bytes());
        assert_eq!(read(r#""\uDC00\uD83D""#), "\u{fffd}\u{fffd}".as_bytes());
        assert_eq!(read(r#""\ud83d\ud83d\ude00""#), "\u{fffd}😀".as_bytes());
    }

    #[test]
    fn whole_pairs_nul_and_escaped_backslashes_stay_as_they_are() {
        for json in [r#""\ud83d\ude00""#, r#""\u0000""#, r#""\\ud800""#, r#""\\\\u0000""#, r#""\"\\""#] {
            assert!(matches!(repair_surrogates(json.as_bytes()), Cow::Borrowed(_)), "{json}");
        }
        assert_eq!(read(r#""\ud83d\ude00""#), "😀".as_bytes());
        assert_eq!(read(r#""\u0000""#), [0]);
        assert_eq!(read(r#""\\u0000""#), br"\u0000");
        assert_eq!(read(r#""\\\ud800""#), "\\\u{fffd}".as_bytes());
    }

    #[test]
    fn json_that_breaks_off_in_an_escape_is_left_to_the_parser() {
        for json in [r#""\"#, r#""\u"#, r#""\ud8"#, r#""\ud800"#, r#""\ud800\u"#] {
            assert!(serde_json::from_slice::<Text>(&repair_surrogates(json.as_bytes())).is_err(), "{json}");
        }
    }

    #[test]
    fn invalid_utf8_in_a_string_comes_back_byte_for_byte() {
        let json = [b"\"", &[0xff, 0xc3][..], b"\""].concat();
        assert_eq!(serde_json::from_slice::<Text>(&repair_surrogates(&json)).unwrap().0, [0xff, 0xc3]);
    }

    #[test]
    fn words_are_cut_at_a_character() {
        assert_eq!(shorten("äöü".to_owned(), 6), "äöü");
        assert_eq!(shorten("äöü!".to_owned(), 6), "ä…");
        assert!(shorten("ä".repeat(4000), 1024).len() <= 1024);
    }
}
