//! The rules of this code base that a test can hold, one test each. It reads the repository as text, with nothing
//! but std, so that it says the same on every machine. Each failure names file and line, and what to do.
//!
//! Words that these rules look for are put together here from halves, so that this file doesn't break them itself.

#[path = "tidy/source.rs"]
mod source;

use std::process::Command;

use source::{Source, code_of, has_word, numbered, read, root, rust_sources, starts_path, texts};

const MAX_FILE_LINES: usize = 600;
const MAX_FUNCTION_LINES: usize = 70;
const MAX_ARCHITECTURE_LINES: usize = 300;
const MAX_RECIPES: usize = 15;

/// What the core may use beside std: crates that do no I/O, read no clock and draw no chance.
const PURE: [&str; 2] = ["roaring", "bytes"];

/// Files that may read a clock though they aren't named `clock.rs`, each with its reason.
const CLOCK_READERS: &[(&str, &str)] = &[
    ("agent/src/slots.rs", "measures how long a run took"),
    ("agent/src/spool.rs", "waits for the disk, with a limit"),
    ("agent/src/stream.rs", "measures how long a lease waited"),
    ("coordinator/src/services/jobs/watch.rs", "the runtime's clock: when the next picture is due"),
    ("agent/src/executor/command.rs", "measures how long the program ran"),
    ("agent/src/executor/openai.rs", "measures how long the call ran"),
    ("agent/src/executor/openai/reply.rs", "Retry-After may be a date"),
];

/// What allows a pause in a test, on its line or the one above.
const PAUSE_REASONS: [&str; 2] = ["// time itself is the subject", "// between two looks at the condition"];

#[test]
fn rust_files_have_at_most_600_lines() {
    let offences = rust_sources().into_iter().filter_map(|source| {
        let lines = source.text.lines().count();
        (lines > MAX_FILE_LINES).then(|| {
            format!("{}:{MAX_FILE_LINES}: {lines} lines: it has two nouns in it; give each its file", source.path)
        })
    });
    hold(offences);
}

#[test]
fn functions_have_at_most_70_lines() {
    hold(rust_sources().iter().flat_map(long_functions));
}

#[test]
fn architecture_has_at_most_300_lines() {
    let lines = read("ARCHITECTURE.md").lines().count();
    hold((lines > MAX_ARCHITECTURE_LINES).then(|| {
        format!(
            "ARCHITECTURE.md:{MAX_ARCHITECTURE_LINES}: {lines} lines: \
             move detail into the doc comment of its module"
        )
    }));
}

#[test]
fn the_justfile_has_at_most_15_recipes() {
    let text = read("justfile");
    let recipes: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
        .filter(|line| line.contains(':') && !line.contains(":="))
        .collect();
    assert!(!recipes.is_empty(), "justfile: no recipe found; this test no longer understands the file");
    hold(
        (recipes.len() > MAX_RECIPES)
            .then(|| format!("justfile:1: {} recipes, at most {MAX_RECIPES}: merge or drop one", recipes.len())),
    );
}

#[test]
fn nothing_is_left_to_do() {
    let words = ["TO DO", "FIX ME", "XX X"].map(|halves| halves.replace(' ', ""));
    let in_text = texts().into_iter().flat_map(|source| {
        source.offences_in_text(|line| {
            let word = words.iter().find(|word| has_word(line, word))?;
            Some(format!("{word}: finish it or delete it"))
        })
    });
    let macros = ["to do!", "unimple mented!", "#[ig nore"].map(|halves| halves.replace(' ', ""));
    let in_code = rust_sources().into_iter().flat_map(|source| {
        source.offences_in_code(|line| {
            let word = macros.iter().find(|word| line.contains(*word))?;
            Some(format!("{word}: what is not built is absent, and what is tested runs"))
        })
    });
    hold(in_text.chain(in_code));
}

#[test]
fn tests_wait_on_conditions_and_not_on_sleeps() {
    let what = format!(
        "a sleep in a test: wait on the condition, or say on the line above `{}` or `{}`",
        PAUSE_REASONS[0], PAUSE_REASONS[1]
    );
    hold(rust_sources().iter().flat_map(|source| {
        let raw: Vec<&str> = source.text.lines().collect();
        let excused = |index: usize| {
            let near = raw[index.saturating_sub(1)..=index].concat();
            PAUSE_REASONS.iter().any(|reason| near.contains(reason))
        };
        let found = source.test_lines().filter(|(index, line)| pauses(line) && !excused(*index));
        found.map(|(index, _)| source.at(index, &what)).collect::<Vec<_>>()
    }));
}

#[test]
fn clocks_are_read_only_in_clock_rs() {
    let sources = rust_sources();
    let readers: Vec<(&Source, usize)> = sources
        .iter()
        .filter(|source| source.is_shipped() && !source.path.ends_with("/clock.rs"))
        .filter_map(|source| {
            let (index, _) = source.shipped_lines().find(|(_, line)| reads_clock(line))?;
            Some((source, index))
        })
        .collect();
    let what = "reads a clock: take the time as an argument, or read it in clock.rs";
    let unlisted = readers
        .iter()
        .filter(|(source, _)| CLOCK_READERS.iter().all(|(path, _)| *path != source.path))
        .map(|(source, index)| source.at(*index, what));
    let stale = CLOCK_READERS
        .iter()
        .filter(|(path, _)| readers.iter().all(|(source, _)| source.path != *path))
        .map(|(path, _)| format!("{path}:1: reads no clock: take it off CLOCK_READERS"));
    hold(unlisted.chain(stale));
}

#[test]
fn only_binaries_print() {
    // `eprintln!` contains `println!`.
    let prints = |line: &str| line.contains("println!") || line.contains("print!");
    let what = "prints: log it with tracing, or return it to the binary";
    let sources = rust_sources();
    let libraries = sources.iter().filter(|source| source.is_shipped() && !source.may_print());
    hold(libraries.flat_map(|source| {
        let found = source.shipped_lines().filter(|(_, line)| prints(line));
        found.map(|(index, _)| source.at(index, what)).collect::<Vec<_>>()
    }));
}

#[test]
fn the_core_depends_on_pure_crates_only() {
    hold(direct_dependencies("semel-core").into_iter().filter(|name| !PURE.contains(&name.as_str())).map(|name| {
        format!(
            "coordinator/core/Cargo.toml:1: depends on {name}: the core is pure; \
             give it what it needs with the event"
        )
    }));
}

#[test]
fn the_session_machine_depends_on_std_only() {
    hold(direct_dependencies("semel-session").into_iter().map(|name| {
        format!(
            "agent/session/Cargo.toml:1: depends on {name}: the machine is pure; \
             give it what it needs with the event"
        )
    }));
}

#[test]
fn the_agent_links_no_database_and_not_the_core() {
    let barred = |name: &str| {
        name.starts_with("sqlx") || name.contains("sqlite") || name == "semel-core" || name == "semel-coordinator"
    };
    let tree = dependencies("semel-agent", &[]);
    assert!(
        tree.iter().any(|name| name == "tonic"),
        "cargo tree of semel-agent names no tonic: this test no longer understands it"
    );
    hold(tree.into_iter().filter(|name| barred(name)).map(|name| {
        format!(
            "agent/Cargo.toml:1: brings in {name}: \
             an agent sees its coordinator through the contract only"
        )
    }));
}

#[test]
fn ring_and_rustls_are_the_only_cryptography() {
    let barred = ["aws-lc-rs", "aws-lc-sys", "openssl", "openssl-sys", "native-tls"];
    let lock = read("Cargo.lock");
    assert!(lock.contains("name = \"ring\""), "Cargo.lock names no ring: this test no longer understands it");
    hold(numbered(&lock).filter_map(|(line, text)| {
        let name = text.strip_prefix("name = \"")?.strip_suffix('"')?;
        barred.contains(&name).then(|| {
            format!(
                "Cargo.lock:{line}: {name}: \
             `cargo tree -i {name}` says who wants it; switch that feature off"
            )
        })
    }));
}

#[test]
fn every_dependency_is_stated_once_with_its_reason() {
    let root = read("Cargo.toml");
    let shared = section_lines(&root, |name| name == "workspace.dependencies");
    assert!(!shared.is_empty(), "Cargo.toml: [workspace.dependencies] not found");
    let reason = |text: &str| text.split_once(" # ").map(|(_, reason)| reason.trim().len());
    let without_reason = shared
        .into_iter()
        .filter(|(_, text)| !text.contains("path = ") && reason(text).unwrap_or(0) == 0)
        .map(|(line, text)| format!("Cargo.toml:{line}: `{text}`: add its reason at the end of the line, after ` # `"));
    let manifests = texts().into_iter().filter(|source| source.path.ends_with("Cargo.toml"));
    let of_its_own = manifests.flat_map(|source| {
        let lines =
            section_lines(&source.text, |name| name.ends_with("dependencies") && name != "workspace.dependencies");
        let own = lines.into_iter().filter(|(_, text)| !text.contains("workspace = true"));
        own.map(|(line, text)| {
            let what = format!("`{text}`: state it in the root's manifest, say `.workspace = true` here");
            source.at(line - 1, &what)
        })
        .collect::<Vec<_>>()
    });
    hold(without_reason.chain(of_its_own));
}

#[test]
fn the_project_names_no_machine_and_no_registry() {
    let folders = ["/wo rk", "sha red/"].map(|halves| halves.replace(' ', ""));
    let hosts =
        ["crates .io", "docs .rs", "pypi .org", "python hosted", "npmjs .com", "npmjs .org", "docker .io", "ghcr .io"]
            .map(|halves| halves.replace(' ', ""));
    hold(texts().into_iter().flat_map(|source| {
        source.offences_in_text(|line| {
            let folder = folders.iter().find(|folder| starts_path(line, folder));
            let found = folder.or_else(|| hosts.iter().find(|host| line.contains(*host)))?;
            Some(format!("names `{found}`: the project speaks of itself alone; say it without the place"))
        })
    }));
}

#[test]
fn every_page_that_is_named_exists() {
    let is_page = |word: &&str| {
        let stem = word.strip_suffix(".md").unwrap_or_default();
        !stem.is_empty() && stem.chars().all(|c| c.is_ascii_uppercase())
    };
    hold(texts().into_iter().flat_map(|source| {
        source.offences_in_text(|line| {
            let mut words = line.split(|c: char| !(c.is_ascii_alphanumeric() || "._-/".contains(c)));
            let missing = words.find(|word| is_page(word) && !root().join(word).exists());
            let cited = ["DESIGN", "PROTOCOL", "STYLE"].into_iter().find(|name| line.contains(&format!("{name} §")));
            let page = missing.or(cited)?;
            Some(format!("names {page}, which isn't here: name a page that is, or the rule alone"))
        })
    }));
}

#[test]
fn strings_and_comments_are_no_code() {
    let code = code_of(
        "let a = \"{ // }\"; // {\nlet b = r#\"\"{\"#; /* { /* } */ */ let c = '{';\nlet d: &'static str = b\"\\\"{\";",
    );
    assert!(!code.contains('{') && !code.contains('}'), "left: {code}");
    assert_eq!(code.lines().count(), 3, "lines moved: {code}");
    assert!(code.contains("&'static str"), "a lifetime was taken for a character: {code}");
}

#[test]
fn a_function_of_71_lines_is_found_and_one_of_70_is_not() {
    let function = |lines: usize| {
        format!(
            "impl A {{\n    pub(crate) async fn f(a: [u8; 2]) -> B\n    {{\n{}    }}\n}}\n",
            "        g();\n".repeat(lines - 3)
        )
    };
    let found = |lines| long_functions(&Source::new("a/src/b.rs", function(lines)));
    assert_eq!(found(70), Vec::<String>::new());
    assert_eq!(found(71).len(), 1);
    assert!(found(71)[0].starts_with("a/src/b.rs:2: f has 71 lines"), "{:?}", found(71));
}

#[test]
fn tests_inside_a_source_file_are_told_from_what_ships() {
    let source = Source::new("a/src/b.rs", "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\n".to_owned());
    assert!(source.shipped_lines().all(|(_, line)| !line.contains("fn b")));
    assert!(source.test_lines().any(|(_, line)| line.contains("fn b")));
    assert!(pauses("tokio::time::sleep(limit).await") && pauses("sleep(limit)") && !pauses("self.asleep(limit)"));
    assert!(reads_clock("let now = Instant::now();") && !reads_clock("fn now(&self)"));
}

#[test]
fn a_folder_is_told_from_a_word_that_contains_it() {
    let folder = ["/wo", "rk"].concat();
    assert!(starts_path(&format!("cd {folder}/main"), &folder));
    assert!(starts_path(&format!("\"{folder}\""), &folder));
    assert!(!starts_path(&format!("net{folder}"), &folder));
    assert!(!starts_path(&format!("{folder}ers"), &folder));
}

/// Fails with every offence at once, one a line.
fn hold(offences: impl IntoIterator<Item = String>) {
    let offences: Vec<String> = offences.into_iter().collect();
    assert!(offences.is_empty(), "{} offences:\n{}", offences.len(), offences.join("\n"));
}

/// Numbered lines of the sections whose name the filter takes, without blank lines and whole-line comments.
fn section_lines(manifest: &str, wanted: impl Fn(&str) -> bool) -> Vec<(usize, &str)> {
    let mut inside = false;
    let mut lines = Vec::new();
    for (line, text) in numbered(manifest) {
        if let Some(name) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            inside = wanted(name);
        } else if inside && !text.is_empty() && !text.starts_with('#') {
            lines.push((line, text));
        }
    }
    lines
}

/// The names of the crates that one of ours needs to be built and to run, without itself.
fn dependencies(package: &str, extra: &[&str]) -> Vec<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(root())
        .args(["tree", "--locked", "--offline", "--edges", "normal,build", "--prefix", "none", "--package", package])
        .args(extra)
        .output()
        .expect("cargo runs, as it runs this test");
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8_lossy(&output.stdout);
    let mut names = tree.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned);
    assert_eq!(names.next().as_deref(), Some(package), "cargo tree begins with the package itself");
    names.collect()
}

fn direct_dependencies(package: &str) -> Vec<String> {
    dependencies(package, &["--depth", "1"])
}

fn pauses(line: &str) -> bool {
    ["sleep(", "sleep_until(", "sleep_ms("].iter().any(|call| {
        line.match_indices(call).any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
    })
}

fn reads_clock(line: &str) -> bool {
    ["Instant::now", "SystemTime::now", "Timestamp::now", "Zoned::now", ".elapsed()"]
        .iter()
        .any(|read| line.contains(read))
}

/// Functions that are too long, by counting brackets in code without comments and literals.
fn long_functions(source: &Source) -> Vec<String> {
    let mut offences = Vec::new();
    let mut from = 0;
    for line in source.code.split_inclusive('\n') {
        let start = from;
        from += line.len();
        let Some(at) = line
            .match_indices("fn ")
            .map(|(at, _)| at)
            .find(|at| !line[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
        else {
            continue;
        };
        let name: String = line[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let Some(length) = body_end(&source.code[start + at..]).filter(|_| !name.is_empty()) else {
            continue;
        };
        let lines = source.code[start..start + at + length].lines().count();
        if lines > MAX_FUNCTION_LINES {
            let what = format!("{name} has {lines} lines, at most {MAX_FUNCTION_LINES}: name a part");
            offences.push(source.at(source.code[..start].lines().count(), &what));
        }
    }
    offences
}

/// Where the body of the function that the code begins with has ended; none if it is a declaration.
fn body_end(code: &str) -> Option<usize> {
    let (mut round, mut curly) = (0i32, 0i32);
    for (at, c) in code.char_indices() {
        match c {
            '(' | '[' => round += 1,
            ')' | ']' => round -= 1,
            ';' if round == 0 && curly == 0 => return None,
            '{' => curly += 1,
            '}' => {
                curly -= 1;
                if curly == 0 && round == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}
