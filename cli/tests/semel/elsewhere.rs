//! A coordinator that runs elsewhere: every verb over --coordinator and its token.

use std::{fs, net::SocketAddr};

use semel_coordinator::{Limits, Running, Settings, start};
use tokio::runtime::Runtime;

use super::support::{Folder, is_there};

/// A coordinator as a service would run it, and the file with its token.
pub struct Service {
    runtime: Runtime,
    running: Option<Running>,
    pub address: String,
    token: String,
}

impl Service {
    pub fn start(folder: &Folder) -> Self {
        Self::start_on(folder, SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// On an address, with the token of the one that was there before.
    pub fn start_on(folder: &Folder, listen: SocketAddr) -> Self {
        let token = fs::read_to_string(folder.path("token")).ok().map(|text| text.trim().to_owned());
        let runtime = Runtime::new().expect("a runtime");
        let settings = Settings {
            store: folder.path("service.db"),
            listen,
            token,
            core: semel_core::Config::default(),
            limits: Limits::default(),
        };
        let running = runtime.block_on(start(settings)).expect("a coordinator");
        folder.write("token", &format!("{}\n", running.token()));
        let (address, token) = (running.address().to_string(), folder.path("token").display().to_string());
        Self { runtime, running: Some(running), address, token }
    }

    /// Arguments that lead to it.
    pub fn to<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        [arguments, &["--coordinator", &self.address, "--token-file", &self.token]].concat()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            self.runtime.block_on(running.stop()).expect("it stops");
        }
    }
}

#[test]
fn the_self_test_goes_through_it() {
    let folder = Folder::new();
    let service = Service::start(&folder);
    folder
        .semel(&service.to(&["selftest"]))
        .exits(0)
        .says("72 expected, 72 recorded, 0 missing, 0 extra")
        .says("72 of 72");
    folder.semel(&service.to(&["audit", "--all"])).exits(0).says("exact: every cell once, by key");
    assert!(!is_there(&folder.path("semel.db")), "nothing of it is stored here");
}

#[test]
fn agents_of_a_run_serve_it_and_every_verb_reaches_it() {
    let folder = Folder::new();
    let service = Service::start(&folder);
    folder.shell_agents("printf there");
    folder.semel(&service.to(&["run", "job.yaml", "--echo"])).exits(2).complains("--agents");
    folder
        .semel(&service.to(&["run", "job.yaml", "--agents", "agents.json"]))
        .exits(0)
        .says("8 of 8 recorded")
        .says(&format!("semel audit small --coordinator {}", service.address));
    folder.semel(&service.to(&["list"])).exits(0).says("small");
    folder.semel(&service.to(&["why", "small"])).exits(0).says("nothing waits");
    assert_eq!(folder.semel(&service.to(&["export", "small"])).exits(0).stdout.lines().count(), 8);
    assert!(!is_there(&folder.path("semel.db")), "nothing of it is stored here");
}

#[test]
fn there_other_open_jobs_are_warned_of_and_no_reason_to_refuse() {
    let folder = Folder::new();
    let service = Service::start(&folder);
    folder.shell_agents("printf there");
    folder.semel(&service.to(&["run", "job.yaml", "--agents", "agents.json"])).exits(0);
    let retry = folder.semel(&service.to(&["retry", "small", "--status", "succeeded"])).exits(0);
    assert!(!retry.stdout.contains("nothing is running"), "a coordinator is: {retry:?}");
    folder.write("other.yaml", &super::support::JOB.replace("job: small", "job: other"));
    folder
        .semel(&service.to(&["run", "other.yaml", "--agents", "agents.json"]))
        .exits(0)
        .complains("warning: job small is open in this store too")
        .says("another job of these agents: small: ");
}

#[test]
fn without_its_token_nothing_is_told() {
    let folder = Folder::new();
    let service = Service::start(&folder);
    folder.write("wrong", "0123456789abcdef0123456789abcdef");
    let wrong = ["list", "--coordinator", &service.address, "--token-file", "wrong"];
    let refused = folder.semel(&wrong).exits(1).complains("refuses the token");
    assert_eq!(refused.stdout, "");
    folder.semel(&["list", "--coordinator", &service.address]).exits(2).complains("--token-file");
    folder.semel(&["list", "--coordinator", "127.0.0.1:1", "--token-file", "wrong"]).exits(1).complains("127.0.0.1:1");
}
