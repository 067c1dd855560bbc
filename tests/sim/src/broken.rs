//! Broken variants: for each promise and rule a small, deliberate break, as a patch on the machines. The
//! simulator has to find it. They are applied to a copy of three crates; shipped code has no switch.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// Seeds that a variant may take until it is found.
pub const MAX_SEEDS: u64 = 24_000;

/// The crates that are copied.
const PARTS: [&str; 3] = ["coordinator/core", "agent/session", "tests/sim"];

/// A patch, and what must find it.
#[derive(Debug)]
pub struct Variant {
    /// The file's name, without its ending.
    pub name: String,
    /// The rule that it breaks.
    pub rule: String,
    /// The checkers that may find it.
    pub expect: Vec<String>,
    /// The file.
    pub path: PathBuf,
}

/// How a variant was found.
#[derive(Debug)]
pub struct Found {
    /// The checker.
    pub rule: String,
    /// The seed.
    pub seed: u64,
    /// What was seen.
    pub what: String,
}

/// All variants of this repository, in the order of their names.
///
/// # Errors
/// A patch can't be read, or says neither what it breaks nor what must find it.
pub fn variants(repository: &Path) -> io::Result<Vec<Variant>> {
    let mut paths: Vec<PathBuf> = fs::read_dir(repository.join("tests/sim/broken"))?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "patch"))
        .collect();
    paths.sort();
    paths.into_iter().map(variant).collect()
}

fn variant(path: PathBuf) -> io::Result<Variant> {
    let text = fs::read_to_string(&path)?;
    let header = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let missing = |what: &str| io::Error::other(format!("{}: no `{what}` line in its header", path.display()));
    let rule = header("rule:").ok_or_else(|| missing("rule:"))?.to_owned();
    let expect = header("expect:").ok_or_else(|| missing("expect:"))?;
    let expect = expect.split(',').map(|e| e.trim().to_owned()).collect();
    let name = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Variant { name, rule, expect, path })
}

/// A copy of the three crates, in which one variant after another is built.
#[derive(Debug)]
pub struct Bench {
    /// The sources as they were when the bench was made.
    pristine: PathBuf,
    copy: PathBuf,
    target: PathBuf,
}

impl Bench {
    /// Makes the copy in `folder`; what is built stays in `folder` as well.
    ///
    /// # Errors
    /// Files can't be copied.
    pub fn new(repository: &Path, folder: &Path) -> io::Result<Self> {
        let (pristine, copy, target) = (folder.join("pristine"), folder.join("copy"), folder.join("target"));
        for part in PARTS {
            copy_sources(&repository.join(part), &pristine.join(part))?;
        }
        let bench = Self { pristine, copy, target };
        bench.reset()?;
        let manifest = fs::read_to_string(repository.join("Cargo.toml"))?;
        fs::write(bench.copy.join("Cargo.toml"), own_workspace(&manifest))?;
        fs::copy(repository.join("Cargo.lock"), bench.copy.join("Cargo.lock"))?;
        Ok(bench)
    }

    /// Puts the sources back as they were.
    fn reset(&self) -> io::Result<()> {
        PARTS.iter().try_for_each(|part| copy_sources(&self.pristine.join(part), &self.copy.join(part)))
    }

    /// Builds a variant and runs seeds until one finds it.
    ///
    /// # Errors
    /// The patch doesn't apply, or what it makes doesn't build.
    pub fn try_out(&self, variant: &Variant) -> io::Result<Option<Found>> {
        self.reset()?;
        let mut patch = Command::new("patch");
        patch.args(["--strip=1", "--silent", "--no-backup-if-mismatch", "--input"]).arg(&variant.path);
        done(patch.current_dir(&self.copy), &format!("{} does not apply", variant.path.display()))?;
        let mut build = Command::new("cargo");
        build
            .args(["build", "--offline", "--quiet", "--package", "semel-sim", "--bin", "semel-sim"])
            .env("CARGO_TARGET_DIR", &self.target)
            .env("RUSTFLAGS", "--cap-lints=allow");
        done(build.current_dir(&self.copy), &format!("{} does not build", variant.name))?;
        let found =
            Command::new(self.target.join("debug/semel-sim")).args(["first", &MAX_SEEDS.to_string()]).output()?;
        let text = String::from_utf8_lossy(&found.stdout);
        let mut words = text.trim().splitn(3, ' ');
        let (Some(rule), Some(seed)) = (words.next(), words.next().and_then(|w| w.parse().ok())) else {
            return Ok(None);
        };
        Ok(Some(Found { rule: rule.to_owned(), seed, what: words.next().unwrap_or_default().to_owned() }))
    }
}

/// The manifest of a workspace of the three crates alone; of a profile that builds fast.
fn own_workspace(manifest: &str) -> String {
    let mut text = String::from(
        "[workspace]\nmembers = [\"coordinator/core\", \"agent/session\", \"tests/sim\"]\nresolver = \"3\"\n\n\
         [profile.dev]\ndebug = false\nopt-level = 1\nincremental = true\n\n",
    );
    for section in ["workspace.package", "workspace.dependencies", "workspace.lints.rust", "workspace.lints.clippy"] {
        text.push_str(&section_of(manifest, section));
    }
    text
}

fn section_of(manifest: &str, name: &str) -> String {
    let title = format!("[{name}]");
    let mut lines = manifest.lines().skip_while(|line| *line != title);
    let mut text = String::new();
    if let Some(first) = lines.next() {
        text.push_str(first);
        text.push('\n');
    }
    for line in lines.take_while(|line| !line.starts_with('[')) {
        // Members that are not in the copy are dependencies of nobody here.
        let left_out = line.contains("path = ") && !["semel-core", "semel-session"].iter().any(|n| line.starts_with(n));
        if !left_out {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// Copies what changed, so that only that is built again.
fn copy_sources(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            if entry.file_name() != "tests" && entry.file_name() != "broken" {
                copy_sources(&path, &target)?;
            }
        } else if fs::read(&target).ok() != Some(fs::read(&path)?) {
            fs::copy(&path, &target)?;
        }
    }
    Ok(())
}

fn done(command: &mut Command, what: &str) -> io::Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let words = [output.stdout, output.stderr].concat();
    Err(io::Error::other(format!("{what}:\n{}", String::from_utf8_lossy(&words))))
}
