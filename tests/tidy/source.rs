//! The repository as these rules read it: its texts, and Rust with comments and literals blanked.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A text file of the repository.
pub struct Source {
    /// Relative to the root, with `/`.
    pub path: String,
    pub text: String,
    /// The text with comments and literals blanked, line for line; empty if it isn't Rust.
    pub code: String,
}

impl Source {
    pub fn new(path: &str, text: String) -> Self {
        let code = if path.ends_with(".rs") { code_of(&text) } else { String::new() };
        Self { path: path.to_owned(), text, code }
    }

    /// Whether the file is part of what runs in production or decides a simulation.
    pub fn is_shipped(&self) -> bool {
        let folders: Vec<&str> = self.path.split('/').collect();
        let in_src = folders.contains(&"src");
        let in_test_crate = folders.contains(&"tests") && !self.path.starts_with("tests/sim/");
        in_src && !in_test_crate && !self.path.ends_with("/tests.rs")
    }

    pub fn may_print(&self) -> bool {
        self.path.starts_with("cli/") || self.path.ends_with("/main.rs") || self.path.contains("/bin/")
    }

    /// The line at which a shipped file's own tests begin, counted from 0. They stand last in it.
    fn tests_begin(&self) -> usize {
        if !self.is_shipped() {
            return 0;
        }
        let lines: Vec<&str> = self.code.lines().collect();
        let begins = |pair: &[&str]| {
            pair[0].starts_with("#[cfg(test)]") && pair[1].starts_with("mod ") && pair[1].ends_with('{')
        };
        lines.windows(2).position(begins).unwrap_or(lines.len())
    }

    pub fn shipped_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.lines().enumerate().take(self.tests_begin())
    }

    pub fn test_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.lines().enumerate().skip(self.tests_begin())
    }

    /// An offence at a line, counted from 0.
    pub fn at(&self, index: usize, what: &str) -> String {
        format!("{}:{}: {what}", self.path, index + 1)
    }

    pub fn offences_in_text(&self, judge: impl Fn(&str) -> Option<String>) -> Vec<String> {
        self.offences(&self.text, judge)
    }

    pub fn offences_in_code(&self, judge: impl Fn(&str) -> Option<String>) -> Vec<String> {
        self.offences(&self.code, judge)
    }

    fn offences(&self, text: &str, judge: impl Fn(&str) -> Option<String>) -> Vec<String> {
        let lines = text.lines().enumerate();
        lines.filter_map(|(index, line)| Some(self.at(index, &judge(line)?))).collect()
    }
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}:1: can't be read: {error}"))
}

pub fn rust_sources() -> Vec<Source> {
    let mut sources = texts();
    sources.retain(|source| source.path.ends_with(".rs"));
    assert!(sources.len() > 10, "only {} Rust files found below {}", sources.len(), root().display());
    sources
}

/// Every text that people write: no build output, no lock file, no licence.
pub fn texts() -> Vec<Source> {
    const KINDS: [&str; 14] =
        ["rs", "toml", "md", "proto", "sh", "py", "yaml", "yml", "json", "sql", "txt", "patch", "csv", "jsonl"];
    let mut found = Vec::new();
    let mut folders = vec![root().to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: can't be listed: {error}", folder.display()));
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry of a folder").path()).collect();
        paths.sort();
        for path in paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                // Cargo marks its target folders with that tag, unless somebody made the folder before it.
                let foreign = name.starts_with('.') && name != ".ci"
                    || name == "node_modules"
                    || name == "target"
                    || path.join("CACHEDIR.TAG").exists();
                if !foreign && !path.is_symlink() {
                    folders.push(path);
                }
            } else if path.extension().is_none_or(|kind| KINDS.iter().any(|known| kind == *known))
                && !name.starts_with("LICENSE")
                // In a further work tree it is a file.
                && name != ".git"
            {
                // What isn't UTF-8 isn't a text that people write.
                if let Ok(text) = fs::read_to_string(&path) {
                    let relative =
                        path.strip_prefix(root()).expect("below the root").to_string_lossy().replace('\\', "/");
                    found.push(Source::new(&relative, text));
                }
            }
        }
    }
    found
}

pub fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

pub fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| !line[..at].ends_with(part) && !line[at + word.len()..].starts_with(part))
}

/// Whether the line names a folder, and not a word or a longer path that contains its name.
pub fn starts_path(line: &str, folder: &str) -> bool {
    let before = |c: char| c.is_alphanumeric() || "/._-".contains(c);
    let after = |c: char| !folder.ends_with('/') && (c.is_alphanumeric() || c == '_');
    line.match_indices(folder)
        .any(|(at, _)| !line[..at].ends_with(before) && !line[at + folder.len()..].starts_with(after))
}

/// Rust with comments and the insides of literals blanked, so that what is left is code; lines stay where they are.
pub fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let length = literal_or_comment(rest, code.chars().next_back()).unwrap_or(0);
        if length == 0 {
            code.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            code.extend(rest[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[length..];
        }
    }
    code
}

/// The bytes of the comment or literal that the text begins with.
fn literal_or_comment(text: &str, before: Option<char>) -> Option<usize> {
    let end_of = |from: usize, mark: &str| text[from..].find(mark).map_or(text.len(), |at| from + at + mark.len());
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if text.starts_with("/*") {
        return Some(block_comment(text));
    }
    if text.starts_with('"') {
        return Some(quoted(text, '"'));
    }
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if text.starts_with('r') && !in_word {
        let hashes = text[1..].chars().take_while(|c| *c == '#').count();
        return text[1 + hashes..].starts_with('"').then(|| end_of(2 + hashes, &format!("\"{}", "#".repeat(hashes))));
    }
    // A character: 'x' or an escape; anything else that begins so is a lifetime.
    let mut chars = text.strip_prefix('\'')?.chars();
    match (chars.next()?, chars.next()?) {
        ('\\', _) => Some(quoted(text, '\'')),
        (c, '\'') => Some(2 + c.len_utf8()),
        _ => None,
    }
}

fn quoted(text: &str, mark: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == mark => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    for (at, pair) in text.as_bytes().windows(2).enumerate() {
        match pair {
            b"/*" => depth += 1,
            b"*/" if depth == 1 => return at + 2,
            b"*/" => depth -= 1,
            _ => {}
        }
    }
    text.len()
}
