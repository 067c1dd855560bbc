//! `command` over real programs: what they say, and that nothing of them outlives their call.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use semel_agent::executor::{Command, CommandSettings, Executor, MAX_ERROR_BYTES, Outcome, Stdout};
use semel_proto::v1::{FailureReason, Usage};

use super::{answer, failure, misconfigured, task, until};

/// The folder of the helper process of [`a_program_and_its_children_end_with_an_agent_that_is_killed`].
const VICTIM_FOLDER: &str = "SEMEL_TEST_VICTIM_FOLDER";

/// A program that is this shell script.
fn script(text: &str, change: impl FnOnce(&mut CommandSettings)) -> Command {
    let mut settings = CommandSettings::new(["sh", "-c", text].map(str::to_owned).to_vec(), "/");
    change(&mut settings);
    Command::new(settings).unwrap()
}

fn raw(text: &str) -> Command {
    script(text, |settings| settings.stdout = Stdout::Raw)
}

async fn run(command: Command) -> Outcome {
    command.execute(task("2 + 2?")).await
}

/// Whether the process is running. One that has ended and that nobody has asked after yet is not.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

/// The process ids that a script wrote to `file`, one a line, once there are `count`.
async fn pids(file: &Path, count: usize) -> Vec<u32> {
    let read = || {
        std::fs::read_to_string(file)
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.parse().ok())
            .collect::<Vec<u32>>()
    };
    until("the program starts its children", || read().len() == count).await;
    read()
}

/// A script that starts a child and a grandchild, writes all three ids to `file`, and would run for long.
fn family(file: &Path) -> String {
    let file = file.display();
    format!("echo $$ >> {file}; sh -c 'sleep 1000 & echo $! >> {file}; echo $$ >> {file}; wait' & wait")
}

#[tokio::test]
async fn a_program_reads_the_cell_as_json_and_as_variables() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("seen");
    let text = format!(
        r#"cat > {}; printf '{{"output":"%s %s %s"}}' "$SEMEL_FENCING_TOKEN" "$SEMEL_QUESTION" "$SEMEL_REPEAT""#,
        file.display()
    );
    assert_eq!(answer(run(script(&text, |_| ())).await).output, "9223372036854775807 q 1 3");
    let seen: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(seen["input"]["messages"][1]["content"], "2 + 2?");
    assert_eq!(seen["key"]["job_id"], "job");
    assert_eq!(
        (&seen["attempt"], &seen["fencing_token"], &seen["remaining_ms"]),
        (&2.into(), &"9223372036854775807".into(), &60_000.into())
    );
}

#[tokio::test]
async fn everything_that_a_program_says_of_its_answer_is_kept() {
    let said = r#"{"output":"4","finish_reason":"stop","usage":{"prompt_tokens":7},"served_region":"us-east","served_model":"m","request_id":"r"}"#;
    let answer = answer(run(script(&format!("printf %s '{said}'"), |_| ())).await);
    assert_eq!((answer.output.as_ref(), answer.response.as_ref()), (&b"4"[..], said.as_bytes()));
    assert_eq!(
        (answer.finish_reason.as_str(), answer.served_model.as_str(), answer.request_id.as_str()),
        ("stop", "m", "r")
    );
    assert_eq!(answer.usage, Some(Usage { prompt_tokens: Some(7), completion_tokens: None }));
    assert_eq!((answer.served_region.as_deref(), answer.endpoint.as_str()), (Some("us-east"), "sh"));
    assert!(answer.first_byte.is_some());
}

#[tokio::test]
async fn outputs_come_through_byte_for_byte() {
    let cases: [(Command, &[u8]); 5] = [
        (script(r#"printf %s '{"output_base64":"AP/D"}'"#, |_| ()), &[0, 0xff, 0xc3]),
        (script(r#"printf %s '{"output":"a\u0000\ud800"}'"#, |_| ()), "a\0\u{fffd}".as_bytes()),
        (script(r#"printf %s '{"output":""}'"#, |_| ()), b""),
        (raw(r"printf 'a\000\377\n'"), b"a\0\xff\n"),
        (raw("true"), b""),
    ];
    for (command, output) in cases {
        assert_eq!(answer(run(command).await).output.as_ref(), output);
    }
}

#[tokio::test]
async fn a_program_need_not_read_its_input_nor_a_large_input_wait_for_it() {
    let prompt = "x".repeat(1024 * 1024);
    assert_eq!(answer(raw("printf 4").execute(task(&prompt)).await).output, "4");
    let mut large = task(&prompt);
    large.max_output_bytes = 4 * 1024 * 1024;
    assert!(answer(raw("cat").execute(large).await).output.len() > prompt.len());
}

#[tokio::test]
async fn an_exit_status_is_a_failure_that_carries_the_end_of_stderr() {
    let failed = failure(run(raw("echo no weights >&2; exit 3")).await);
    assert_eq!((failed.reason(), failed.retryable, failed.code.as_str()), (FailureReason::Program, true, "3"));
    assert_eq!(failed.message, "no weights\n");
    let failed = failure(run(raw("head -c 300000 /dev/zero | tr '\\0' x >&2; printf END >&2; exit 1")).await);
    assert!(failed.message.len() == MAX_ERROR_BYTES && failed.message.ends_with(b"xEND"), "{}", failed.message.len());
    let failed = failure(run(raw("kill -11 $$")).await);
    assert_eq!((failed.code.as_str(), failed.retryable), ("signal 11", true));
}

#[tokio::test]
async fn an_error_that_a_program_reports_is_what_it_says() {
    let reported =
        |error: &str, status: u8| script(&format!("printf %s '{{\"error\":{error}}}'; exit {status}"), |_| ());
    let failed = failure(run(reported(r#"{"message":"no such city","retryable":false,"code":7}"#, 1)).await);
    assert_eq!((failed.reason(), failed.retryable, failed.code.as_str()), (FailureReason::Program, false, "7"));
    assert_eq!(failed.message, "no such city");
    assert!(failure(run(reported(r#"{"message":"busy"}"#, 0)).await).retryable);
    assert!(
        misconfigured(run(reported(r#"{"message":"no licence","misconfigured":true}"#, 0)).await)
            .contains("no licence")
    );
    match run(reported(r#"{"message":"slow","rate_limited":true,"retry_after_ms":1500}"#, 0)).await {
        Outcome::RateLimited { retry_after, message } => {
            assert_eq!((retry_after, message.as_str()), (Some(Duration::from_millis(1500)), "sh: slow"))
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_is_not_the_protocol_is_a_failure_that_says_so() {
    for (text, words) in [
        ("echo hello", "not the JSON"),
        ("true", "not the JSON"),
        ("echo '{}'", "not one of"),
        (r#"echo '{"output":"","output_base64":""}'"#, "not one of"),
        (r#"echo '{"output_base64":"?"}'"#, "base64"),
    ] {
        let failed = failure(run(script(text, |_| ())).await);
        assert_eq!((failed.reason(), failed.retryable), (FailureReason::Program, true), "{text}");
        assert!(String::from_utf8_lossy(&failed.message).contains(words), "{failed:?}");
    }
}

#[tokio::test]
async fn an_output_over_the_limit_fails_for_good_and_ends_its_program() {
    assert_eq!(answer(run(raw("head -c 1024 /dev/zero")).await).output.len(), 1024);
    for command in [raw("yes"), script("yes", |_| ()), script(r#"printf '{"output":"%01025d"}' 0"#, |_| ())] {
        let failed = failure(run(command).await);
        assert_eq!((failed.reason(), failed.retryable), (FailureReason::ResultTooLarge, false));
        assert!(String::from_utf8_lossy(&failed.message).contains("1024 bytes"), "{failed:?}");
    }
}

#[tokio::test]
async fn a_program_that_is_not_there_or_cannot_start_is_misconfiguration() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str, mode| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    };
    file("plain", "", 0o644);
    file("orphan", "#!/no/such/interpreter\n", 0o755);
    file("good", "#!/bin/sh\nprintf '{\"output\":\"%s\"}' \"$1$PWD\"\n", 0o755);
    let command = |program: &str| {
        Command::new(CommandSettings::new(vec![program.to_owned(), "x".to_owned()], folder.path())).unwrap()
    };
    for missing in ["./missing", "./plain", "no-such-program-anywhere", "/no/such/program"] {
        assert!(misconfigured(run(command(missing)).await).contains("there is no program"));
        assert!(command(missing).probe().await.unwrap_err().contains("there is no program"));
    }
    assert!(misconfigured(run(command("./orphan")).await).contains("not found"));
    assert_eq!(command("./good").probe().await, Ok(()));
    let output = answer(run(command("./good")).await).output;
    assert_eq!(output, format!("x{}", folder.path().canonicalize().unwrap().display()));
}

#[tokio::test]
async fn a_program_that_fails_with_the_shells_own_status_is_no_misconfiguration() {
    assert_eq!(failure(run(raw("exit 127")).await).code, "127");
}

#[tokio::test]
async fn a_program_sees_of_the_environment_only_what_it_is_given() {
    let command = |text: &str| {
        script(text, |settings| {
            settings.stdout = Stdout::Raw;
            settings.env = [("GIVEN".to_owned(), "one".to_owned())].into();
            settings.pass_env = [("PROVIDER_KEY".to_owned(), "sk-hidden-0123456789".to_owned())].into();
        })
    };
    let output = answer(run(command("env")).await).output;
    let seen = String::from_utf8_lossy(&output);
    // Cargo sets this for each test.
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some() && !seen.contains("CARGO_MANIFEST_DIR"), "{seen}");
    assert!(
        seen.contains("GIVEN=one\n") && seen.contains("PROVIDER_KEY=sk-hidden") && seen.contains("PATH="),
        "{seen}"
    );
    let failed = failure(run(command("echo wrong key: $PROVIDER_KEY >&2; exit 1")).await);
    assert_eq!(failed.message, "wrong key: [key]\n");
    assert!(!format!("{:?}", command("true")).contains("sk-hidden"));
}

#[tokio::test]
async fn dropping_a_call_ends_the_program_its_children_and_theirs() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pids");
    let command = raw(&family(&file));
    let call = tokio::spawn(run(command));
    let pids = pids(&file, 3).await;
    assert!(pids.iter().all(|pid| runs(*pid)), "{pids:?}");
    call.abort();
    until("the whole group ends", || !pids.iter().any(|pid| runs(*pid))).await;
}

#[tokio::test]
async fn what_a_program_leaves_behind_ends_with_it_and_does_not_hold_its_answer_up() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pids");
    let answer = answer(run(raw(&format!("sleep 1000 & echo $! > {}; printf 4", file.display()))).await);
    assert_eq!(answer.output, "4");
    let pids = pids(&file, 1).await;
    until("the child ends", || !pids.iter().any(|pid| runs(*pid))).await;
}

#[tokio::test]
async fn a_program_that_waits_for_all_its_children_is_not_kept_by_the_watcher() {
    // bash's and dash's wait know their own children only; python3's os.wait() takes any.
    let text = "import os\ntry:\n os.wait()\nexcept ChildProcessError:\n print('none', end='')";
    let mut settings = CommandSettings::new(["python3", "-c", text].map(str::to_owned).to_vec(), "/");
    settings.stdout = Stdout::Raw;
    assert_eq!(answer(run(Command::new(settings).unwrap()).await).output, "none");
}

#[tokio::test]
async fn a_hundred_programs_at_once_are_told_apart_and_all_end() {
    let calls: Vec<_> =
        (0..100).map(|number| tokio::spawn(run(raw(&format!("cat >/dev/null; printf {number}"))))).collect();
    for (number, call) in calls.into_iter().enumerate() {
        assert_eq!(answer(call.await.unwrap()).output, number.to_string());
    }
}

#[tokio::test]
async fn a_program_and_its_children_end_with_an_agent_that_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "command::victim", "--nocapture"])
        .env(VICTIM_FOLDER, folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pids = pids(&folder.path().join("pids"), 6).await;
    assert!(pids.iter().all(|pid| runs(*pid)), "{pids:?}");
    // SIGKILL: nothing of the agent runs after it.
    agent.kill().unwrap();
    agent.wait().unwrap();
    until("both groups end", || !pids.iter().any(|pid| runs(*pid))).await;
}

/// The agent that is killed: runs two programs until then. By itself it does nothing.
#[tokio::test]
async fn victim() {
    let Some(folder) = std::env::var_os(VICTIM_FOLDER).map(PathBuf::from) else { return };
    let file = folder.join("pids");
    tokio::join!(run(raw(&family(&file))), run(raw(&family(&file))));
}
