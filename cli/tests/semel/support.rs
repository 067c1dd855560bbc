//! A folder with a job, and `semel` in it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// How long a condition is waited for. Far more than it takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(60);

/// 2 questions × 2 models × 2 regions.
pub const JOB: &str = "\
job: small
questions:
  - { id: q1, prompt: one }
  - { id: q2, prompt: two }
models: [{ id: a }, { id: b }]
regions: [us-east, eu-west]
";

/// A folder of its own, in which `semel` runs.
pub struct Folder(tempfile::TempDir);

impl Folder {
    /// Runs the job to its end: every record is of a first attempt, whatever the cells waited for before.
    pub fn runs_with_no_attempt_used(&self) {
        self.semel(&["run", "job.yaml", "--echo"]).exits(0);
        let rows = self.semel(&["export", "small"]).stdout;
        assert!(rows.lines().count() > 0 && rows.lines().all(|row| row.contains("\"attempt\":1,")), "{rows}");
    }

    /// With [`JOB`] as `job.yaml`.
    pub fn new() -> Self {
        let folder = Self(tempfile::tempdir().expect("a folder"));
        folder.write("job.yaml", JOB);
        folder
    }

    /// Writes a file.
    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("written");
    }

    /// The path of a file.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// An agents file in which a shell answers every cell of [`JOB`]: what it prints is the answer.
    pub fn shell_agents(&self, script: &str) {
        let agent = |region| json!({ "region": region, "slots": 2, "models": { "a": "shell", "b": "shell" } });
        let agents = json!({
            "providers": { "shell": { "executor": "command", "program": ["sh", "-c", script], "stdout": "raw" } },
            "agents": [agent("us-east"), agent("eu-west")],
        });
        self.write("agents.json", &agents.to_string());
    }

    /// As [`Folder::shell_agents`]: each cell waits until the file `gate` is there.
    pub fn gated_agents(&self) {
        let gate = self.path("gate");
        self.shell_agents(&format!("while [ ! -e '{}' ]; do sleep 0.02; done; printf open", gate.display()));
    }

    /// `semel` with arguments, ready to run here.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_semel"));
        command.args(arguments).current_dir(self.0.path()).stdin(Stdio::null());
        for variable in ["RUST_LOG", "RUST_BACKTRACE", "SEMEL_STORE"] {
            command.env_remove(variable);
        }
        command
    }

    /// Runs `semel` to its end.
    pub fn semel(&self, arguments: &[&str]) -> Done {
        Done::of(arguments, self.command(arguments).output().expect("semel runs"))
    }

    /// Starts `semel`.
    pub fn start(&self, arguments: &[&str]) -> Started {
        let mut command = self.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Started { child: Some(command.spawn().expect("semel starts")), arguments: arguments.join(" ") }
    }

    /// As [`Folder::start`], with stderr in a file of this name, where it can be read while it runs.
    pub fn start_logged(&self, arguments: &[&str], log: &str) -> Started {
        let mut command = self.command(arguments);
        let log = fs::File::create(self.path(log)).expect("a file");
        command.stdout(Stdio::piped()).stderr(log);
        Started { child: Some(command.spawn().expect("semel starts")), arguments: arguments.join(" ") }
    }

    /// Waits until a file has these words, and gives all of it.
    #[track_caller]
    pub fn wait_until_said(&self, log: &str, words: &str) -> String {
        let mut text = String::new();
        wait_until(words, || {
            text = fs::read_to_string(self.path(log)).expect("UTF-8");
            text.contains(words)
        });
        text
    }

    /// What a verb says with `--output json`.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let all: Vec<&str> = arguments.iter().copied().chain(["--output", "json"]).collect();
        let done = self.semel(&all);
        serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"))
    }

    /// Waits until agents have cells of the job `small`.
    pub fn wait_until_leased(&self) {
        wait_until("cells are leased", || {
            let done = self.semel(&["show", "small", "--output", "json"]);
            serde_json::from_str::<Value>(&done.stdout).is_ok_and(|job| job["leased"].as_u64() >= Some(4))
        });
    }
}

/// A `semel` that has ended.
#[derive(Debug)]
pub struct Done {
    pub arguments: String,
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Done {
    fn of(arguments: &[&str], output: Output) -> Self {
        Self {
            arguments: arguments.join(" "),
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    /// Fails unless it ended with this code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "semel {}: {self:#?}", self.arguments);
        self
    }

    /// Fails unless it said this on stdout.
    #[track_caller]
    pub fn says(self, words: &str) -> Self {
        assert!(self.stdout.contains(words), "{words:?} is not in {self:#?}");
        self
    }

    /// Fails unless it said this on stderr.
    #[track_caller]
    pub fn complains(self, words: &str) -> Self {
        assert!(self.stderr.contains(words), "{words:?} is not in {self:#?}");
        self
    }
}

/// A `semel` that runs. Ended with the test.
pub struct Started {
    child: Option<Child>,
    arguments: String,
}

impl Started {
    /// Sends it a signal by name.
    pub fn signal(&self, name: &str) {
        let id = self.child.as_ref().expect("it runs").id().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &id]).status().expect("kill runs");
        assert!(sent.success(), "kill -{name} {id}");
    }

    /// Waits for its end.
    pub fn end(mut self) -> Done {
        let child = self.child.take().expect("it runs");
        Done::of(&[&self.arguments], child.wait_with_output().expect("it ends"))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits for a condition.
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        // between two looks at the condition
        thread::sleep(Duration::from_millis(20));
    }
}

/// Fails if a text would do anything to a terminal.
#[track_caller]
pub fn assert_harmless(text: &str) {
    let bad = text
        .chars()
        .find(|c| (c.is_control() && *c != '\n') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'));
    assert_eq!(bad, None, "{text:?}");
}

/// Whether there is a file.
pub fn is_there(path: &Path) -> bool {
    path.exists()
}
