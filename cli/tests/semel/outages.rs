//! A coordinator that dies under a run: it is told, waited for, and given up.

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::support::{Folder, Started, wait_until};
use crate::elsewhere::Service;

/// Within how long a dead coordinator must be told of: far more than it takes, far less than it is waited for.
const TOLD_WITHIN: Duration = Duration::from_secs(10);

/// A coordinator in a process of its own: that of a run of another job, which waits for ever.
struct Host {
    run: Started,
    address: String,
}

impl Host {
    fn start(folder: &Folder) -> Self {
        folder.gated_agents();
        folder
            .write("host.yaml", "job: host\nquestions: [{ id: q, prompt: p }]\nmodels: [{ id: h }]\nregions: [host]\n");
        let agents = json!({
            "providers": { "sleep": { "executor": "command", "program": ["sleep", "600"], "stdout": "raw" } },
            "agents": [{ "region": "host", "models": { "h": "sleep" } }],
        });
        folder.write("host.json", &agents.to_string());
        let run = folder.start(&["run", "host.yaml", "--agents", "host.json"]);
        let mut address = String::new();
        wait_until("it says where it listens", || {
            let Ok(text) = fs::read_to_string(folder.path("semel.db.endpoint")) else { return false };
            let endpoint: Value = serde_json::from_str(&text).expect("written whole or not at all");
            let field = |name: &str| endpoint[name].as_str().expect("text").to_owned();
            address = field("address");
            folder.write("token", &field("token"));
            true
        });
        Self { run, address }
    }

    /// A run of the job `small` whose agents are its own and whose coordinator is this; it has leases when this returns.
    fn visitor(&self, folder: &Folder, patience: &str) -> Started {
        let there = ["--coordinator", &self.address, "--token-file", "token", "--patience", patience];
        let run = ["run", "job.yaml", "--agents", "agents.json", "--grace", "100ms"];
        let visitor = folder.start_logged(&[&run[..], &there].concat(), "stderr");
        folder.wait_until_leased();
        visitor
    }

    fn kill(self) {
        self.run.signal("KILL");
        assert_eq!(self.run.end().code, None);
    }
}

#[test]
fn a_coordinator_that_died_is_told_of_within_seconds_asked_again_and_given_up() {
    let folder = Folder::new();
    let host = Host::start(&folder);
    let visitor = host.visitor(&folder, "4s");
    let told = format!("warning: no answer from the coordinator at {} for", host.address);
    host.kill();
    let killed = Instant::now();
    let text = folder.wait_until_said("stderr", &told);
    assert!(killed.elapsed() < TOLD_WITHIN, "after {:?}", killed.elapsed());
    assert!(text.contains("refused") && text.contains("it is asked again "), "{text}");
    visitor.end().exits(1).says("small: open, 0 of 8 recorded").says(", as last heard at ").says(" UTC\n");
    let text = fs::read_to_string(folder.path("stderr")).expect("UTF-8");
    assert!(text.contains("error: no answer from the coordinator"), "{text}");
    assert!(text.contains("the same command goes on with it:") && text.contains("run job.yaml --agents"), "{text}");
    // What the error says of the job is true.
    folder.write("gate", "");
    folder.semel(&["run", "job.yaml", "--agents", "agents.json"]).exits(0).says("8 of 8 recorded");
}

#[test]
fn an_interrupt_while_no_coordinator_answers_says_how_to_go_on() {
    let folder = Folder::new();
    let host = Host::start(&folder);
    let visitor = host.visitor(&folder, "10min");
    host.kill();
    folder.wait_until_said("stderr", "no answer from the coordinator");
    visitor.signal("INT");
    visitor
        .end()
        .exits(4)
        .says(" waiting, as last heard at ")
        .says("interrupted: 0 of 8 recorded, as last heard at ")
        .says(" UTC. The same command goes on:")
        .says("run job.yaml --agents");
}

#[test]
fn a_run_whose_own_coordinator_is_deposed_says_so_and_ends_within_its_grace() {
    let folder = Folder::new();
    folder.gated_agents();
    let arguments = ["run", "job.yaml", "--agents", "agents.json", "--grace", "1s"];
    let run = folder.start(&arguments);
    folder.wait_until_leased();
    let store = folder.path("semel.db");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        use sqlx::{Connection, SqliteConnection};
        let mut tables = SqliteConnection::connect(&format!("sqlite:{}", store.display())).await.expect("open");
        sqlx::query("UPDATE leadership SET epoch = epoch + 1").execute(&mut tables).await.expect("written");
        tables.close().await.expect("closed");
    });
    // Its next commit finds that out.
    folder.write("gate", "");
    let gated = Instant::now();
    run.end()
        .exits(1)
        .complains("stopping: deposed")
        .complains("error: deposed: epoch")
        .says("recorded")
        .says(", as last heard at ");
    assert!(gated.elapsed() < TOLD_WITHIN, "after {:?}", gated.elapsed());
    folder.semel(&arguments).exits(0).says("8 of 8 recorded");
    folder.semel(&["audit", "small"]).exits(0).says("8 expected, 8 recorded, 0 missing, 0 extra");
}

#[test]
fn a_coordinator_that_comes_back_is_gone_on_with() {
    let folder = Folder::new();
    let service = Service::start(&folder);
    folder.gated_agents();
    let run = service.to(&["run", "job.yaml", "--agents", "agents.json"]);
    let run = folder.start_logged(&run, "stderr");
    wait_until("cells are leased", || {
        let show = folder.semel(&service.to(&["show", "small", "--output", "json"]));
        serde_json::from_str::<Value>(&show.stdout).is_ok_and(|job| job["leased"].as_u64() >= Some(4))
    });
    let address: SocketAddr = service.address.parse().expect("an address");
    drop(service);
    folder.wait_until_said("stderr", "no answer from the coordinator");
    let service = Service::start_on(&folder, address);
    folder.wait_until_said("stderr", &format!("the coordinator at {address} answers again"));
    folder.write("gate", "");
    run.end().exits(0).says("8 of 8 recorded");
    folder.semel(&service.to(&["audit", "small"])).exits(0).says("8 expected, 8 recorded, 0 missing, 0 extra");
}
