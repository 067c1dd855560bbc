//! What the whole-system tests share: binaries, folders, a provider that counts its calls.

#![allow(dead_code, reason = "each test uses its part")]
#![allow(clippy::print_stderr, reason = "a test that fails shows what was run")]

pub mod provider;

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

/// The binary `name` of this build.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test has a path");
    let folder = test.parent().and_then(Path::parent).expect("target/debug/deps/test");
    let path = folder.join(name);
    assert!(path.exists(), "{} is missing: run `cargo build --workspace --all-targets` first", path.display());
    path
}

/// `semel` with these arguments, in this folder.
pub fn semel(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("semel"));
    command.args(arguments).current_dir(folder).env("RUST_BACKTRACE", "0").env_remove("RUST_LOG");
    command.stdin(Stdio::null());
    command
}

/// A seed that no run had before.
pub fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

/// Runs `semel` to its end.
pub fn run(folder: &Path, arguments: &[&str]) -> Output {
    let output = semel(folder, arguments).output().expect("semel starts");
    eprintln!(
        "semel {arguments:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// A child that is ended with the test.
pub struct Started(pub Child);

impl Started {
    /// kill -9.
    pub fn kill(&mut self) {
        let _ended_already = self.0.kill();
        self.0.wait().expect("a child of ours");
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Looks at a condition until it holds, or the test has waited too long for it.
pub fn wait_until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < limit, "waited {limit:?} for: {what}");
        // between two looks at the condition
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The job of the incident, 8 × 3 × 3, with the questions' order and ids of the example.
pub fn incident(job: &str, policy: &str) -> String {
    let questions = [
        "math_basic",
        "geography_basic",
        "identity_basic",
        "tiananmen_neutral",
        "taiwan_status",
        "hongkong_2019",
        "greatest_invention",
        "greatest_leader",
    ];
    let mut text = format!("job: {job}\nquestions:\n");
    for question in questions {
        text += &format!("  - {{ id: {question}, prompt: \"the question {question}\" }}\n");
    }
    text += "models:\n";
    for model in ["qwen2.5-1.5b", "mistral-7b", "llama3.2-1b"] {
        text += &format!("  - {{ id: {model} }}\n");
    }
    text += "regions: [us-east, eu-west, asia-pacific]\n";
    text += policy;
    text
}
