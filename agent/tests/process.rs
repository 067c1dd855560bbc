//! The agent as a process: killed, started again, stopped by a signal.

mod fake;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use fake::{Coordinator, eventually, token};
use semel_proto::v1 as pb;
use semel_proto::v1::session_response::Body as Heard;

const AGENT: &str = env!("CARGO_BIN_EXE_semel-agent");

/// A process that is ended with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(coordinator: &Coordinator, folder: &Path) -> Process {
    start_by(Command::new(AGENT), coordinator, folder)
}

/// Starts the agent by `command`, which takes its arguments.
fn start_by(mut command: Command, coordinator: &Coordinator, folder: &Path) -> Process {
    let agents =
        "providers:\n  instant: { executor: echo }\nagents:\n  - { region: here, slots: 2, models: { m: instant } }\n";
    fs::write(folder.join("agents.yaml"), agents).expect("an agents file");
    fs::write(folder.join("token"), fake::TOKEN).expect("a token file");
    let child = command
        .arg("--coordinator")
        .arg(coordinator.address.to_string())
        .arg("--agents")
        .arg(folder.join("agents.yaml"))
        .arg("--token-file")
        .arg(folder.join("token"))
        .arg("--spool")
        .arg(folder.join("spool"))
        .env("RUST_LOG", "info")
        .stderr(Stdio::piped())
        .spawn()
        .expect("the agent starts");
    Process(child)
}

/// The names of the spool's files that end so, in their order.
fn spool_files(folder: &Path, suffix: &str) -> Vec<String> {
    let entries = fs::read_dir(folder.join("spool")).expect("the spool");
    let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(suffix)).collect();
    names.sort();
    names
}

fn spooled_bytes(folder: &Path) -> u64 {
    let results = spool_files(folder, ".results").into_iter().map(|name| folder.join("spool").join(name));
    results.map(|path| fs::metadata(path).map_or(0, |file| file.len())).sum()
}

#[tokio::test]
async fn a_result_survives_a_killed_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut coordinator = Coordinator::start().await;
    let mut killed = start(&coordinator, folder.path());
    let mut stream = coordinator.welcome().await;
    stream.lease(1, "m", r#"{"messages":[{"content":"hi","role":"user"}]}"#).await;
    let report = stream.report().await;
    eventually(|| spooled_bytes(folder.path()) > 0).await;
    killed.0.kill().expect("it is killed");
    killed.0.wait().expect("it has ended");
    let incarnation = stream.hello.incarnation.clone();
    let _again = start(&coordinator, folder.path());
    let mut stream = coordinator.next().await;
    assert_ne!(stream.hello.incarnation, incarnation);
    assert_eq!(stream.hello.held, []);
    assert_eq!(stream.hello.spooled[0].lease_token, token(1));
    stream.welcome(Vec::new()).await;
    assert_eq!(stream.report().await, report);
    stream.receipt(1).await;
    eventually(|| spooled_bytes(folder.path()) == 0).await;
}

#[tokio::test]
async fn a_write_that_the_system_cuts_short_damages_nothing_that_was_kept_before() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut coordinator = Coordinator::start().await;
    // No file may grow beyond 200 blocks (of 512 or 1024 bytes, as the shell counts).
    let mut limited = Command::new("/bin/sh");
    limited.args(["-c", r#"trap '' XFSZ; ulimit -f 200; exec "$@""#, "sh", AGENT]);
    let mut limited = start_by(limited, &coordinator, folder.path());
    let mut stream = coordinator.welcome().await;
    stream.lease(1, "m", r#"{"messages":[{"content":"hi","role":"user"}]}"#).await;
    stream.report().await;
    eventually(|| spooled_bytes(folder.path()) > 0).await;
    let kept = spooled_bytes(folder.path());
    let long = format!(r#"{{"messages":[{{"content":"{}","role":"user"}}],"model":"m"}}"#, "x".repeat(600_000));
    stream.lease(2, "m", &long).await;
    let report = stream.report().await;
    let Some(pb::report::Outcome::Success(success)) = report.outcome else { panic!("it succeeds: {report:?}") };
    assert_eq!(success.output.len(), 600_000);
    // It tries again in another file.
    eventually(|| spool_files(folder.path(), ".results").len() > 1).await;
    limited.0.kill().expect("it is killed");
    limited.0.wait().expect("it has ended");
    let first = folder.path().join("spool").join(&spool_files(folder.path(), ".results")[0]);
    assert_eq!(fs::metadata(first).expect("the first file").len(), kept);
    let _again = start(&coordinator, folder.path());
    let stream = coordinator.next().await;
    let spooled: Vec<_> = stream.hello.spooled.iter().map(|one| one.lease_token.clone()).collect();
    assert_eq!(spooled, [token(1)]);
    assert_eq!(spool_files(folder.path(), ".corrupt"), [] as [String; 0]);
}

#[tokio::test]
async fn a_second_process_on_one_spool_is_refused_in_words() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut coordinator = Coordinator::start().await;
    let _first = start(&coordinator, folder.path());
    let _stream = coordinator.welcome().await;
    let mut second = start(&coordinator, folder.path());
    let stderr = second.0.stderr.take().expect("its log");
    let log = std::io::read_to_string(stderr).expect("text");
    let status = second.0.wait().expect("it ends");
    assert!(!status.success());
    assert!(log.contains("in use by another process"), "{log}");
    assert!(!log.contains(fake::TOKEN), "a token is never logged: {log}");
}

#[tokio::test]
async fn sigterm_hands_back_and_ends_well() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut coordinator = Coordinator::start().await;
    let mut process = start(&coordinator, folder.path());
    let mut stream = coordinator.welcome().await;
    stream.lease(1, "m", r#"{"messages":[]}"#).await;
    let report = stream.report().await;
    let pid = rustix::process::Pid::from_child(&process.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("the signal");
    let receipt = pb::Receipt { lease_token: report.lease_token, ..pb::Receipt::default() };
    stream.say(Heard::Receipt(receipt)).await;
    tokio::spawn(async move { while stream.read().await.is_some() {} });
    let status = tokio::task::spawn_blocking(move || process.0.wait()).await.expect("no panic").expect("it ends");
    assert!(status.success(), "{status}");
}
