//! The services as a client meets them: over gRPC, on a real SQLite file.

#[path = "services/agent.rs"]
mod agent;
#[path = "services/bad_jobs.rs"]
mod bad_jobs;
#[path = "services/operator.rs"]
mod operator;
#[path = "services/retries.rs"]
mod retries;
#[path = "services/server.rs"]
mod server;
#[path = "services/wrong.rs"]
mod wrong;

use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message;
use prost_types::{FileDescriptorSet, MethodDescriptorProto};
use semel_coordinator::Limits;
use semel_proto::v1 as pb;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use agent::{Agent, failure, success};
use server::{Server, fields, spec};
use wrong::{WRONG, base};

#[tokio::test]
async fn bad_input_is_refused_with_every_field_and_nothing_is_stored() {
    let server = Server::start().await;
    for (what, spoil, named) in WRONG {
        let mut spec = base();
        spoil(&mut spec);
        let submitted = server.submit("j", spec.clone()).await.expect_err(what);
        let request = pb::CheckJobRequest { job_id: "j".into(), spec: Some(spec), ..Default::default() };
        let checked = server.jobs().check_job(request).await.expect_err(what);
        for status in [submitted, checked] {
            assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status:?}");
            assert_eq!(fields(&status), *named, "{what}: {}", status.message());
            assert!(status.message().contains(named[0]), "{what}: {}", status.message());
            let details = status.get_error_details();
            assert_eq!(details.error_info().unwrap().reason, "INVALID_INPUT");
        }
    }
    for (id, said) in [("", "empty"), ("a\nb", "control"), ("j ", "white space"), (&"j".repeat(256), "256 bytes")] {
        let status = server.submit(id, base()).await.expect_err(said);
        assert_eq!(fields(&status), ["job_id"]);
        assert!(status.message().contains(said), "{}", status.message());
    }
    let both = server.submit("", pb::JobSpec::default()).await.unwrap_err();
    assert_eq!(fields(&both), ["job_id", "spec.questions", "spec.models"], "the id's fault beside the specification's");
    let nothing = pb::SubmitJobRequest { job_id: "j".into(), ..Default::default() };
    assert_eq!(fields(&server.jobs().submit_job(nothing).await.unwrap_err()), ["spec"]);
    let jobs = server.jobs().list_jobs(pb::ListJobsRequest::default()).await.unwrap().into_inner();
    assert_eq!(jobs, pb::ListJobsResponse::default());
    server.stop().await;
}

#[tokio::test]
async fn the_longest_ids_are_taken_and_come_back() {
    let server = Server::start().await;
    let long = "é".repeat(127) + "x";
    let accepted = server.submit(&long, spec(&[&long], &[&long], &[&long])).await.unwrap();
    assert_eq!(accepted.job.unwrap().job_id, long);
    let job = server.jobs().get_job(pb::GetJobRequest { job_id: long.clone(), ..Default::default() }).await.unwrap();
    assert_eq!(job.into_inner().job.unwrap().by_axis[0].region, long);
    server.stop().await;
}

#[tokio::test]
async fn five_submissions_at_once_are_one_job() {
    let server = Server::start().await;
    let (a, b, c, d, e) = tokio::join!(
        server.submit("j", base()),
        server.submit("j", base()),
        server.submit("j", base()),
        server.submit("j", base()),
        server.submit("j", base()),
    );
    let answers = [a, b, c, d, e].map(Result::unwrap);
    assert_eq!(answers.iter().filter(|answer| answer.created).count(), 1);
    let digests: BTreeSet<_> = answers.iter().map(|a| a.job.as_ref().unwrap().spec_digest.clone()).collect();
    assert_eq!(digests.len(), 1);
    let check = pb::CheckJobRequest { job_id: "j".into(), spec: Some(base()), ..Default::default() };
    let checked = server.jobs().check_job(check).await.unwrap().into_inner();
    assert_eq!((checked.expected, digests.contains(&checked.spec_digest)), (4, true));
    server.stop().await;
}

#[tokio::test]
async fn another_specification_under_a_used_id_is_refused_with_the_difference() {
    let server = Server::start().await;
    server.submit("j", base()).await.unwrap();
    let mut other = base();
    other.questions[0].prompt = Some("something else?".into());
    other.repeat = Some(2);
    let check = pb::CheckJobRequest { job_id: "j".into(), spec: Some(other.clone()), ..Default::default() };
    let statuses = [server.submit("j", other).await.unwrap_err(), server.jobs().check_job(check).await.unwrap_err()];
    for status in statuses {
        assert_eq!(status.code(), Code::AlreadyExists, "{status:?}");
        let details = status.get_error_details();
        let listed: Vec<_> =
            details.precondition_failure().unwrap().violations.iter().map(|v| v.description.clone()).collect();
        assert_eq!(listed.len(), 2, "{listed:?}");
        for (line, part) in [("something else?", "questions.q1.prompt"), ("is now 2", "repeat")] {
            assert!(listed.iter().any(|l| l.contains(line) && l.contains(part)), "{listed:?}");
            assert!(status.message().contains(line), "{}", status.message());
        }
        assert_eq!(details.resource_info().unwrap().resource_name, "j");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_specification_of_64_mib_is_taken_and_one_byte_more_is_refused() {
    let server = Server::start().await;
    let mut spec = base();
    let room = semel_spec::MAX_SPEC_BYTES - semel_spec::wire::from_wire(&spec).unwrap().canonical().len();
    spec.questions[0].prompt.as_mut().unwrap().push_str(&"x".repeat(room));
    let request = pb::CheckJobRequest { job_id: "j".into(), spec: Some(spec.clone()), ..Default::default() };
    assert_eq!(server.jobs().check_job(request).await.unwrap().into_inner().expected, 4);
    spec.questions[0].prompt.as_mut().unwrap().push('x');
    let status = server.submit("j", spec).await.unwrap_err();
    assert_eq!((status.code(), fields(&status)), (Code::InvalidArgument, vec!["spec".to_owned()]), "{status:?}");
    assert!(status.message().contains("67108865 bytes, and 67108864 is the most"), "{}", status.message());
    server.stop().await;
}

#[tokio::test]
async fn thousands_of_faults_still_reach_the_client() {
    let server = Server::start().await;
    let mut spec = base();
    spec.questions = vec![pb::Question { prompt: Some("?".into()), ..Default::default() }; 3_000];
    let status = server.submit("j", spec).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let fields = fields(&status);
    assert_eq!((fields[0].as_str(), fields.last().unwrap().as_str()), ("spec.questions[0].id", ""));
    let details = status.get_error_details();
    let last = &details.bad_request().unwrap().field_violations.last().unwrap().description;
    assert!(last.starts_with("at least ") && last.contains("more faults"), "{last}");
    server.stop().await;
}

#[tokio::test]
async fn jobs_are_listed_newest_first_in_pages_that_neither_repeat_nor_skip() {
    let server = Server::start().await;
    for i in 0..4 {
        server.submit(&format!("j{i}"), base()).await.unwrap();
    }
    let page = |size, token: &str| {
        let request = pb::ListJobsRequest { page_size: size, page_token: token.into(), ..Default::default() };
        let mut jobs = server.jobs();
        async move { jobs.list_jobs(request).await.map(tonic::Response::into_inner) }
    };
    let ids = |page: &pb::ListJobsResponse| page.jobs.iter().map(|j| j.job_id.clone()).collect::<Vec<_>>();
    let first = page(2, "").await.unwrap();
    assert_eq!(ids(&first), ["j3", "j2"]);
    server.submit("j4", base()).await.unwrap();
    let second = page(2, &first.next_page_token).await.unwrap();
    assert_eq!(ids(&second), ["j1", "j0"], "a job submitted between two pages moves none");
    assert_eq!(second.next_page_token, "", "a page that is exactly full can be the last");
    for size in [0, 5, 1_000] {
        let all = page(size, "").await.unwrap();
        assert_eq!((all.jobs.len(), all.next_page_token.as_str()), (5, ""));
    }
    let over = page(1_001, "").await.unwrap_err();
    assert_eq!(fields(&over), ["page_size"]);
    assert!(over.message().contains("1001") && over.message().contains("1000"), "{}", over.message());
    for token in ["x", "00", &first.next_page_token[2..]] {
        assert_eq!(fields(&page(2, token).await.unwrap_err()), ["page_token"], "{token:?}");
    }
    let leases = pb::ListLeasesRequest { page_token: first.next_page_token, ..Default::default() };
    assert_eq!(fields(&server.admin().list_leases(leases).await.unwrap_err()), ["page_token"], "another listing's");
    server.stop().await;
}

/// Every call about a job, as (its name, what it answers).
#[expect(clippy::needless_update, reason = "some of the requests have no other field")]
async fn calls(server: &Server, namespace: &str, job: &str) -> Vec<(&'static str, Result<(), Status>)> {
    let mut jobs = server.jobs();
    macro_rules! call {
        ($method:ident, $request:ident { $($field:ident: $value:expr),* }) => {{
            let request = pb::$request {
                namespace: namespace.into(), job_id: job.into(), $($field: $value,)* ..Default::default()
            };
            (stringify!($method), jobs.$method(request).await.map(|_| ()))
        }};
    }
    let key = pb::ExecutionKey {
        namespace: namespace.into(),
        job_id: job.into(),
        region: "eu".into(),
        model: "m1".into(),
        question: "q1".into(),
        repeat: 0,
    };
    vec![
        call!(get_job, GetJobRequest {}),
        call!(watch_job, WatchJobRequest {}),
        call!(pause_job, PauseJobRequest {}),
        call!(resume_job, ResumeJobRequest {}),
        call!(retry_job, RetryJobRequest { status: 2 }),
        call!(list_executions, ListExecutionsRequest {}),
        call!(list_attempts, ListAttemptsRequest {}),
        call!(explain_pending, ExplainPendingRequest {}),
        call!(audit_job, AuditJobRequest {}),
        call!(export_job, ExportJobRequest {}),
        call!(cancel_job, CancelJobRequest {}),
        ("get_execution", jobs.get_execution(pb::GetExecutionRequest { key: Some(key) }).await.map(|_| ())),
    ]
}

#[tokio::test]
async fn what_is_not_there_is_not_found_by_name_on_every_call() {
    let server = Server::start().await;
    server.submit("j", base()).await.unwrap();
    for (namespace, job, kind, name) in [("", "k", "job", "k"), ("other", "j", "namespace", "other")] {
        for (call, answer) in calls(&server, namespace, job).await {
            let status = answer.expect_err(call);
            assert_eq!(status.code(), Code::NotFound, "{call}: {status:?}");
            let details = status.get_error_details();
            let resource = details.resource_info().unwrap();
            assert_eq!((resource.resource_type.as_str(), resource.resource_name.as_str()), (kind, name), "{call}");
        }
    }
    for (call, answer) in calls(&server, "", "").await {
        let field = if call == "get_execution" { "key.job_id" } else { "job_id" };
        assert_eq!(fields(&answer.expect_err(call)), [field], "{call}");
    }
    for (call, answer) in calls(&server, "default", "j").await {
        answer.unwrap_or_else(|status| panic!("{call}: {status:?}"));
    }
    let mut admin = server.admin();
    let other = || "other".to_owned();
    let refused = [
        admin.list_agents(pb::ListAgentsRequest { namespace: other() }).await.map(|_| ()),
        admin.get_leadership(pb::GetLeadershipRequest { namespace: other() }).await.map(|_| ()),
        admin.list_leases(pb::ListLeasesRequest { namespace: other(), ..Default::default() }).await.map(|_| ()),
        admin.list_audit_log(pb::ListAuditLogRequest { namespace: other(), ..Default::default() }).await.map(|_| ()),
    ];
    assert!(refused.iter().all(|r| r.as_ref().is_err_and(|s| s.code() == Code::NotFound)), "{refused:?}");
    server.stop().await;
}

#[tokio::test]
async fn every_call_wants_the_token_health_and_reflection_too() {
    let server = Server::start().await;
    let contract = FileDescriptorSet::decode(semel_proto::DESCRIPTORS).unwrap();
    // Paths, and whether a call without a message is answered once.
    let mut paths =
        vec![("grpc.health.v1.Health/Check".to_owned(), true), ("grpc.health.v1.Health/Watch".into(), false)];
    for version in ["v1", "v1alpha"] {
        paths.push((format!("grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"), false));
    }
    for file in &contract.file {
        for service in &file.service {
            let path = |m: &MethodDescriptorProto| format!("{}.{}/{}", file.package(), service.name(), m.name());
            paths.extend(service.method.iter().map(|m| (path(m), !m.server_streaming())));
        }
    }
    assert!(paths.len() > 20, "{paths:?}");
    for (path, once) in paths.iter().map(|(path, once)| (format!("/{path}"), once)) {
        for token in [None, Some("Bearer no"), Some("")] {
            let refused = server.call(&path, token).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unauthenticated, "{path} with {token:?}: {refused:?}");
        }
        if *once {
            let code = server.call(&path, Some(server.token())).await.map_or_else(|s| s.code(), |()| Code::Ok);
            assert!(![Code::Unauthenticated, Code::Unimplemented].contains(&code), "{path}: {code:?}");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn a_cell_that_a_job_does_not_have_is_named_by_the_part_that_is_wrong() {
    let server = Server::start().await;
    server.submit("j", base()).await.unwrap();
    for (region, model, question, repeat, said) in [
        ("eu", "m9", "q1", 0, "no model \"m9\""),
        ("us", "m1", "q1", 0, "region \"us\""),
        ("eu", "m1", "q9", 0, "no question \"q9\""),
        ("eu", "m1", "q1x", 0, "did you mean \"q1\"?"),
        ("eu", "m1", "q1", 1, "0 to 0"),
    ] {
        let key = pb::ExecutionKey {
            job_id: "j".into(),
            region: region.into(),
            model: model.into(),
            question: question.into(),
            repeat,
            ..Default::default()
        };
        let status = server.jobs().get_execution(pb::GetExecutionRequest { key: Some(key) }).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound);
        assert!(status.message().contains(said), "{}", status.message());
    }
    let filter = pb::CellFilter { regions: vec!["eu".into(), "us".into()], repeats: vec![1], ..Default::default() };
    let request = pb::ListExecutionsRequest { job_id: "j".into(), filter: Some(filter), ..Default::default() };
    let status = server.jobs().list_executions(request).await.unwrap_err();
    assert_eq!(fields(&status), ["filter.regions[1]", "filter.repeats[0]"]);
    server.stop().await;
}

/// Outputs that a careless road would change, by question.
const OUTPUTS: &[(&str, &[u8])] = &[
    ("empty", b""),
    ("nul", b"a\0b\0"),
    ("broken", b"\xff\xfe half a character: \xe2\x82"),
    ("escapes", b"\x1b[31mred\r\n"),
    ("plain", "ordinary ✓".as_bytes()),
];

fn echo_outputs(key: &pb::ExecutionKey) -> Option<pb::report::Outcome> {
    success(OUTPUTS.iter().find(|(question, _)| *question == key.question)?.1)
}

#[tokio::test]
async fn outputs_come_back_byte_for_byte_on_every_road() {
    let server = Server::start().await;
    let questions: Vec<_> = OUTPUTS.iter().map(|(question, _)| *question).collect();
    server.submit("j", spec(&questions, &["m"], &["eu"])).await.unwrap();
    let _agent = Agent::start(&server, "eu", &["m"], 2, echo_outputs).await;
    let job = server.ended("j").await;
    assert_eq!((job.state(), job.counts.unwrap().recorded), (pb::JobState::Complete, 5));
    assert!(job.completed_at.is_some());

    let same = |execution: &pb::Execution, output: &[u8]| {
        assert_eq!(&execution.output[..], output);
        assert_eq!(execution.status(), pb::ExecutionStatus::Succeeded);
        assert_eq!(execution.output_digest, sha256(output));
        assert_eq!(execution.served.as_ref().unwrap().executor, "test");
    };
    let listed = server.records("j").await;
    assert_eq!(listed.len(), OUTPUTS.len());
    let request = pb::ExportJobRequest { job_id: "j".into(), with_input: true, ..Default::default() };
    let mut exported = server.jobs().export_job(request).await.unwrap().into_inner();
    for ((question, output), listed) in OUTPUTS.iter().zip(listed) {
        assert_eq!(listed.key.as_ref().unwrap().question, *question, "in the order of cells");
        same(&listed, output);
        let row = exported.message().await.unwrap().unwrap();
        same(row.execution.as_ref().unwrap(), output);
        assert_eq!(row.execution.unwrap().input_digest, sha256(&row.input));
        let one = server.jobs().get_execution(pb::GetExecutionRequest { key: listed.key }).await.unwrap().into_inner();
        same(one.execution.as_ref().unwrap(), output);
        assert_eq!((one.input, one.wait_reason), (row.input, 0));
    }
    assert!(exported.message().await.unwrap().is_none());

    let audit = server.jobs().audit_job(pb::AuditJobRequest { job_id: "j".into(), ..Default::default() }).await;
    let audit = audit.unwrap().into_inner();
    let total = audit.total.unwrap();
    assert_eq!((total.expected, total.recorded, total.missing, total.extra, audit.exact), (5, 5, 0, 0, true));
    server.stop().await;
}

fn sha256(bytes: &[u8]) -> Bytes {
    use sha2::{Digest as _, Sha256};
    Bytes::copy_from_slice(&Sha256::digest(bytes))
}

#[tokio::test]
async fn an_output_over_the_limit_fails_its_cell_and_nothing_beside_it() {
    let server = Server::with(Limits { max_output_bytes: 8, max_error_bytes: 4 }).await;
    server.submit("j", spec(&["at", "over", "error"], &["m"], &["eu"])).await.unwrap();
    let _agent = Agent::start(&server, "eu", &["m"], 3, |key| match key.question.as_str() {
        "at" => success("12345678"),
        "over" => success("123456789"),
        _ => failure(b"\0\xff345"),
    })
    .await;
    let job = server.ended("j").await;
    assert_eq!(job.counts.unwrap().failed, 2);
    let records = server.records("j").await;
    let [at, over, error] = &records[..] else { panic!("{records:?}") };
    assert_eq!(&at.output[..], b"12345678");
    let failed = over.failure.as_ref().unwrap();
    assert_eq!((failed.reason(), failed.retryable, over.attempt), (pb::FailureReason::ResultTooLarge, false, 1));
    let words = String::from_utf8_lossy(&failed.message);
    assert!(words.contains('9') && words.contains('8'), "{words}");
    assert!(over.output.is_empty() && over.output_digest.is_empty());
    let failed = error.failure.as_ref().unwrap();
    assert_eq!(
        (&failed.message[..], failed.code.as_str()),
        (&b"\0\xff34"[..], "400"),
        "cut to its limit, else as it was"
    );
    server.stop().await;
}

#[tokio::test]
async fn a_report_that_breaks_the_contract_ends_its_attempt_and_not_the_stream() {
    let server = Server::start().await;
    let mut broken = spec(&["bad", "good"], &["m"], &["eu"]);
    broken.policy = Some(pb::Policy { attempts: Some(1), ..Default::default() });
    server.submit("j", broken).await.unwrap();
    let _agent = Agent::start(&server, "eu", &["m"], 1, |key| match key.question.as_str() {
        "good" => success("yes"),
        _ => Some(pb::report::Outcome::Failure(pb::Failure { reason: 99, ..Default::default() })),
    })
    .await;
    assert_eq!(server.ended("j").await.counts.unwrap().failed, 1);
    let records = server.records("j").await;
    let [bad, good] = &records[..] else { panic!("{records:?}") };
    assert_eq!(&good.output[..], b"yes", "on the same stream, and after it");
    let failed = bad.failure.as_ref().unwrap();
    assert_eq!(failed.reason(), pb::FailureReason::BadReport);
    let words = String::from_utf8_lossy(&failed.message);
    assert!(words.contains("failure.reason") && words.contains("99") && words.contains("failure.stage"), "{words}");
    server.stop().await;
}

/// 1.5 MiB, then 3.9 MiB twice, then little.
fn wide(key: &pb::ExecutionKey) -> Option<pb::report::Outcome> {
    let bytes = match key.question.as_str() {
        "a" => 3 << 19,
        "b" | "c" => 39 * (1 << 20) / 10,
        _ => 1,
    };
    success(vec![b'x'; bytes])
}

#[tokio::test]
async fn a_client_with_the_usual_limits_reads_pages_of_wide_outputs() {
    let server = Server::start().await;
    server.submit("j", spec(&["a", "b", "c", "d", "e"], &["m"], &["eu"])).await.unwrap();
    let _agent = Agent::start(&server, "eu", &["m"], 1, wide).await;
    server.ended("j").await;
    let (mut pages, mut token) = (Vec::new(), String::new());
    loop {
        let request = pb::ListExecutionsRequest { job_id: "j".into(), page_token: token, ..Default::default() };
        let page = server.jobs().list_executions(request).await.unwrap().into_inner();
        pages.push(page.executions.iter().map(|e| e.key.as_ref().unwrap().question.clone()).collect::<String>());
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(pages, ["a", "b", "c", "de"]);
    server.stop().await;
}

#[tokio::test]
async fn pages_of_records_end_exactly_and_their_tokens_are_their_own() {
    let server = Server::start().await;
    server.submit("j", spec(&["a", "b", "c", "d"], &["m"], &["eu"])).await.unwrap();
    let _agent = Agent::start(&server, "eu", &["m"], 4, |key| match key.question.as_str() {
        "b" => failure(b"no"),
        _ => success("yes"),
    })
    .await;
    server.ended("j").await;
    let page = |size, token: &str, status: pb::ExecutionStatus| {
        let mut jobs = server.jobs();
        let request = pb::ListExecutionsRequest {
            job_id: "j".into(),
            page_size: size,
            page_token: token.into(),
            status: status.into(),
            ..Default::default()
        };
        async move {
            let page = jobs.list_executions(request).await?.into_inner();
            let cells: Vec<_> = page.executions.iter().map(|e| e.cell).collect();
            Ok::<_, Status>((cells, page.next_page_token))
        }
    };
    use pb::ExecutionStatus::{Failed, Succeeded, Unspecified};
    let (cells, token) = page(2, "", Unspecified).await.unwrap();
    assert_eq!(cells, [0, 1]);
    assert_eq!(page(2, &token, Unspecified).await.unwrap(), (vec![2, 3], String::new()), "full, and the last");
    assert_eq!(page(4, "", Unspecified).await.unwrap().1, "");
    assert_eq!(page(1_000, "", Succeeded).await.unwrap(), (vec![0, 2, 3], String::new()));
    assert_eq!(page(1, "", Failed).await.unwrap(), (vec![1], String::new()));
    assert_eq!(fields(&page(1_001, "", Unspecified).await.unwrap_err()), ["page_size"]);
    assert_eq!(fields(&page(2, &token, Failed).await.unwrap_err()), ["page_token"], "of another status");
    let request = pb::ListExecutionsRequest { job_id: "j".into(), status: 7, page_size: 1_001, ..Default::default() };
    let status = server.jobs().list_executions(request).await.unwrap_err();
    assert_eq!(fields(&status), ["status", "page_size"], "both at once");
    server.stop().await;
}

#[tokio::test]
async fn an_export_with_missing_has_each_cell_once_and_says_why_it_is_missing() {
    let server = Server::start().await;
    let mut spec = spec(&["a", "b", "stuck"], &["m", "n"], &["eu", "us"]);
    spec.questions[1].metadata_json = Some(r#"{"topic":"b"}"#.into());
    server.submit("j", spec).await.unwrap();
    let _agent =
        Agent::start(&server, "eu", &["m"], 4, |key| if key.question == "stuck" { None } else { success("x") }).await;
    let request = || pb::WatchJobRequest { job_id: "j".into(), interval_ms: 100, ..Default::default() };
    let mut pictures = server.jobs().watch_job(request()).await.unwrap().into_inner();
    loop {
        let counts = pictures.message().await.unwrap().unwrap().job.unwrap().counts.unwrap();
        if (counts.recorded, counts.leased) == (2, 1) {
            break;
        }
    }
    let export = |missing, filter| {
        let mut jobs = server.jobs();
        async move {
            let request = pb::ExportJobRequest { job_id: "j".into(), missing, filter, ..Default::default() };
            let mut stream = jobs.export_job(request).await.unwrap().into_inner();
            let mut rows = Vec::new();
            while let Some(row) = stream.message().await.unwrap() {
                rows.push(row);
            }
            rows
        }
    };
    let rows = export(true, None).await;
    let cells: Vec<_> = rows.iter().map(|row| row.execution.as_ref().unwrap().cell).collect();
    assert_eq!(cells, (0..12).collect::<Vec<_>>(), "every cell once, in order");
    use pb::WaitReason::{Leased, NoAgentInRegion, NoAgentWithModel, Unspecified};
    let why: Vec<_> = rows.iter().map(|row| row.execution.as_ref().unwrap().missing()).collect();
    let lane = |reason| [reason; 3];
    let expected =
        [[Unspecified, Unspecified, Leased], lane(NoAgentInRegion), lane(NoAgentWithModel), lane(NoAgentInRegion)];
    assert_eq!(why, expected.concat());
    assert_eq!(rows[1].question_metadata_json, r#"{"topic":"b"}"#);
    assert_eq!((rows[0].question_metadata_json.as_str(), rows[0].input.len()), ("", 0));

    let filter = pb::CellFilter { regions: vec!["us".into()], questions: vec!["b".into()], ..Default::default() };
    let some: Vec<_> = export(true, Some(filter)).await.into_iter().map(|row| row.execution.unwrap().cell).collect();
    assert_eq!(some, [4, 10]);
    assert_eq!(export(false, None).await.len(), 2, "records alone");

    let cancelled = server.jobs().cancel_job(pb::CancelJobRequest { job_id: "j".into(), ..Default::default() }).await;
    assert_eq!(cancelled.unwrap().into_inner().job.unwrap().counts.unwrap().not_run, 10);
    let rows = export(true, None).await;
    let closed = rows.iter().filter(|row| row.execution.as_ref().unwrap().missing() == pb::WaitReason::JobClosed);
    assert_eq!((rows.len(), closed.count()), (12, 10));
    server.stop().await;
}

#[tokio::test]
async fn an_export_of_many_missing_cells_goes_over_all_of_its_rounds() {
    let server = Server::start().await;
    let mut spec = spec(&["a"], &["m"], &["eu"]);
    spec.repeat = Some(2_500);
    server.submit("j", spec).await.unwrap();
    let request = pb::ExportJobRequest { job_id: "j".into(), missing: true, ..Default::default() };
    let mut rows = server.jobs().export_job(request).await.unwrap().into_inner();
    let mut next = 0;
    while let Some(row) = rows.message().await.unwrap() {
        let execution = row.execution.unwrap();
        assert_eq!((execution.cell, execution.missing()), (next, pb::WaitReason::NoAgentInRegion));
        next += 1;
    }
    assert_eq!(next, 2_500);
    server.stop().await;
}

#[tokio::test]
async fn a_watch_shows_the_end_and_then_ends() {
    let server = Server::start().await;
    server.submit("j", base()).await.unwrap();
    let watch = |interval_ms| pb::WatchJobRequest { job_id: "j".into(), interval_ms, ..Default::default() };
    for interval in [99, 60_001] {
        let status = server.jobs().watch_job(watch(interval)).await.unwrap_err();
        assert_eq!(fields(&status), ["interval_ms"], "{interval}");
    }
    // A client that reads nothing until all is over still sees the end.
    let mut late = server.jobs().watch_job(watch(100)).await.unwrap().into_inner();
    let mut pictures = server.jobs().watch_job(watch(60_000)).await.unwrap().into_inner();
    let first = pictures.message().await.unwrap().unwrap();
    assert_eq!(first.job.unwrap().counts.unwrap().pending, 4);
    assert_eq!(first.pending.iter().map(|group| group.cells).sum::<u64>(), 4, "why each of them waits");
    let reason = |reason: String| pb::CancelJobRequest { job_id: "j".into(), reason, ..Default::default() };
    let over = server.jobs().cancel_job(reason("x".repeat(1_025))).await.unwrap_err();
    assert_eq!(fields(&over), ["reason"]);
    for _ in 0..2 {
        let cancelled = server.jobs().cancel_job(reason("x".repeat(1_024))).await.unwrap().into_inner();
        assert_eq!(cancelled.job.unwrap().state(), pb::JobState::Cancelled, "again the same answer");
    }
    let mut last = None;
    while let Some(picture) = late.message().await.unwrap() {
        last = picture.job;
    }
    assert_eq!(last.unwrap().state(), pb::JobState::Cancelled);
    assert_eq!(server.ended("j").await.counts.unwrap().not_run, 4, "a watch of what is over is one picture");
    server.stop().await;
}
