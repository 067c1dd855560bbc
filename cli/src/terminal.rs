//! What goes to the terminal: nothing of what a model, a provider or a job's author wrote acts on it.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write},
};

use clap::ValueEnum;

use crate::exit::ReaderGone;

/// When colours are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Holds to what was chosen, for both outputs.
pub fn choose_colors(color: Color) {
    let is_barred = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let chosen = match color {
        Color::Always => Some(true),
        Color::Never => Some(false),
        Color::Auto if is_barred => Some(false),
        Color::Auto => None,
    };
    if let Some(chosen) = chosen {
        console::set_colors_enabled(chosen);
        console::set_colors_enabled_stderr(chosen);
    }
}

/// Whether a terminal or a reader could take a character as an order: C0, DEL and C1 move the cursor,
/// set titles, ring; the bidi controls and line separators show a text in another order than it has;
/// the tag characters hide one.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{061c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

fn push_escaped(text: &mut String, c: char) {
    match c {
        '\n' => text.push_str("\\n"),
        '\r' => text.push_str("\\r"),
        '\t' => text.push_str("\\t"),
        c if is_unsafe(c) => text.extend(c.escape_unicode()),
        c => text.push(c),
    }
}

/// One line of text that does nothing to a terminal: what could is written out, as `\u{1b}`.
pub fn shown(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    text.chars().for_each(|c| push_escaped(&mut safe, c));
    safe
}

/// As [`shown`], of bytes: those that are no UTF-8 are written as `\xff`.
pub fn shown_bytes(bytes: &[u8]) -> String {
    let mut safe = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        chunk.valid().chars().for_each(|c| push_escaped(&mut safe, c));
        push_bytes(&mut safe, chunk.invalid());
    }
    safe
}

/// As [`shown_bytes`], with line ends and tabs as they are: for answers, of which the lines matter.
pub fn shown_lines(bytes: &[u8]) -> String {
    let mut safe = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if matches!(c, '\n' | '\t') { safe.push(c) } else { push_escaped(&mut safe, c) }
        }
        push_bytes(&mut safe, chunk.invalid());
    }
    safe
}

/// As [`shown_bytes`], of text that is to stand in a line: runs of white space are one space, and what is longer than so
/// many characters is cut.
pub fn one_line(bytes: &[u8], most_chars: usize) -> String {
    let words: Vec<&[u8]> = bytes.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).collect();
    let line = shown_bytes(&words.join(&b' '));
    match line.char_indices().nth(most_chars) {
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or(&line)),
        None => line,
    }
}

fn push_bytes(safe: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // A String takes everything.
        let _ = write!(safe, "\\x{byte:02x}");
    }
}

/// JSON in which every unsafe character stands as `\u001b` does: the same value, and nothing to a terminal.
pub fn shown_json(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for c in json.chars() {
        // Outside of strings JSON has no other such character than line ends and spaces of its layout.
        if c == '\n' || !is_unsafe(c) {
            safe.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(safe, "\\u{unit:04x}");
        }
    }
    safe
}

/// Standard output. A reader that has gone is told apart from every other fault.
#[derive(Debug)]
pub struct Out {
    stdout: io::BufWriter<io::Stdout>,
    is_terminal: bool,
}

impl Out {
    /// Standard output, buffered until [`Out::flush`].
    pub fn new() -> Self {
        let stdout = io::stdout();
        let is_terminal = stdout.is_terminal();
        Self { stdout: io::BufWriter::new(stdout), is_terminal }
    }

    /// Whether a person looks at it.
    pub fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Writes a line, or several.
    ///
    /// # Errors
    /// It can't be written.
    pub fn line(&mut self, text: impl AsRef<str>) -> io::Result<()> {
        self.write_all(text.as_ref().as_bytes())?;
        self.write_all(b"\n")
    }

    /// Writes a value as JSON, laid out, and sends it off.
    ///
    /// # Errors
    /// It can't be written.
    pub fn json(&mut self, value: &impl serde::Serialize) -> anyhow::Result<()> {
        self.line(shown_json(&serde_json::to_string_pretty(value)?))?;
        Ok(self.flush()?)
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stdout.write(bytes).map_err(gone)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stdout.flush().map_err(gone)
    }
}

fn gone(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::BrokenPipe { io::Error::other(ReaderGone) } else { error }
}

/// Says something on stderr, every line made safe. If that fails there is nobody to tell.
pub fn complain(text: &str) {
    say_on_stderr("", text);
}

/// As [`complain`], as an error.
pub fn error(text: &str) {
    say_on_stderr(&console::style("error: ").for_stderr().red().to_string(), text);
}

/// As [`complain`], as a warning.
pub fn warning(text: &str) {
    say_on_stderr(&console::style("warning: ").for_stderr().yellow().to_string(), text);
}

fn say_on_stderr(label: &str, text: &str) {
    let mut stderr = io::stderr().lock();
    for (index, line) in text.lines().enumerate() {
        let label = if index == 0 { label } else { "" };
        let _ = writeln!(stderr, "{label}{}", shown(line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an answer could try: sequences that move, colour, title, paste, ring, and reorder.
    const ATTACKS: [&str; 9] = [
        "\u{1b}[2J\u{1b}[H",
        "\u{1b}]0;title\u{7}",
        "\u{1b}]52;c;cGFzdGU=\u{1b}\\",
        "\u{9b}31m",
        "\u{9d}0;title\u{9c}",
        "a\rb",
        "\u{7}\u{8}\u{7f}\0",
        "abc\u{202e}cba\u{2066}x\u{2069}\u{200f}\u{61c}",
        "\u{2028}\u{feff}\u{e0041}",
    ];

    fn is_harmless(text: &str) -> bool {
        text.chars().all(|c| !is_unsafe(c))
    }

    #[test]
    fn nothing_that_a_terminal_acts_on_is_left() {
        for attack in ATTACKS {
            assert!(is_harmless(&shown(attack)), "{attack:?}");
            assert!(is_harmless(&shown_bytes(attack.as_bytes())), "{attack:?}");
            assert!(is_harmless(&shown_lines(attack.as_bytes())), "{attack:?}");
        }
        assert_eq!(shown("\u{1b}[2J"), "\\u{1b}[2J");
        assert_eq!(shown("a\nb\tc\rd"), "a\\nb\\tc\\rd");
        assert_eq!(shown_bytes(b"\xff\x1b\x9bz\xe2\x80"), "\\xff\\u{1b}\\x9bz\\xe2\\x80");
    }

    #[test]
    fn a_text_of_lines_stands_in_one_and_is_cut() {
        assert_eq!(one_line(b"one\n  two\r\n\n", 20), "one two");
        assert_eq!(one_line("größer".as_bytes(), 3), "grö…");
        assert_eq!(one_line("größer".as_bytes(), 6), "größer");
        assert!(ATTACKS.iter().all(|attack| is_harmless(&one_line(attack.as_bytes(), 100))));
    }

    #[test]
    fn text_in_any_script_stays_as_it_is() {
        for text in ["Lisboa", "意味", "हिन्दी", "👩‍🔬", "שלום", "a\\b"] {
            assert_eq!(shown(text), text);
        }
        assert_eq!(shown_lines("eins\n\tzwei\r\n".as_bytes()), "eins\n\tzwei\\r\n");
    }

    #[test]
    fn json_keeps_its_value_and_does_nothing_to_a_terminal() {
        for attack in ATTACKS {
            let json = shown_json(&serde_json::to_string(attack).unwrap());
            assert!(is_harmless(&json), "{json}");
            assert_eq!(serde_json::from_str::<String>(&json).unwrap(), attack);
        }
    }
}
