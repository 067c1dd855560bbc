//! The contract is enough: a client and an agent in Python, with nothing but grpcio and reflection.

#![allow(clippy::print_stdout, reason = "a test that fails shows what was seen")]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use common::Started;
use semel_coordinator::{Limits, Settings};

/// What the examples import, pinned.
const PACKAGES: [&str; 2] = ["grpcio==1.80.0", "grpcio-reflection==1.80.0"];

/// A Python with grpcio, made once in the build folder.
fn python() -> PathBuf {
    let folder = common::binary("semel").with_file_name("../python");
    let python = folder.join("bin/python");
    let run = |command: &mut Command| {
        let output = command.output().expect("Python 3 is there: install it");
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    if !python.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder));
    }
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(PACKAGES));
    python
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/python")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_and_an_agent_without_generated_code_do_a_job() {
    let lines = fs::read_to_string(examples().join("agent.py")).expect("reads").lines().count();
    assert!(lines < 120, "the agent's promise is under 120 lines; it has {lines}");
    let python = python();
    let folder = tempfile::tempdir().expect("a folder");
    let store = folder.path().join("s.db");
    let settings = Settings {
        store: store.clone(),
        listen: ([127, 0, 0, 1], 0).into(),
        token: None,
        core: semel_core::Config::default(),
        limits: Limits::default(),
    };
    let coordinator = semel_coordinator::start(settings).await.expect("starts");

    let mut agent = Command::new(&python);
    agent.arg(examples().join("agent.py")).arg(&store).args(["us-east", "m"]).stdin(Stdio::null());
    let agent = Started(agent.spawn().expect("starts"));
    let mut client = Command::new(&python);
    client.arg(examples().join("client.py")).arg(&store).args(["py", "us-east", "m", "q1=once", "q2=semel"]);
    let output = tokio::task::spawn_blocking(move || client.stdin(Stdio::null()).output()).await;
    let output = output.expect("no panic").expect("starts");
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success());
    for expected in [
        "semel.v1.AgentService, semel.v1.JobService",
        "submitted: created=True expected=2",
        "JOB_STATE_COMPLETE: 2 of 2",
        "q1: ONCE",
        "q2: SEMEL",
    ] {
        let listed = expected.split(", ").all(|part| said.contains(part));
        assert!(listed, "{expected:?} is not in what the client printed");
    }
    drop(agent);
    coordinator.stop().await.expect("stops");
}
