//! The table of bad jobs, over gRPC: INVALID_ARGUMENT with every field, and nothing stored.

#[path = "../../../spec/tests/bad/table.rs"]
mod table;

use semel_proto::v1 as pb;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::server::Server;
use table::{Bad, Call, call, table};

/// The fields of a refusal and what it says of each, from its `google.rpc.BadRequest`.
fn violations(status: &Status) -> Vec<(String, String)> {
    let details = status.get_error_details();
    let bad = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
    bad.into_iter().map(|violation| (violation.field, violation.description)).collect()
}

/// Words without a place in a text of JSON, which in a message goes before the field.
fn placeless(words: &str) -> &str {
    let is_place = |place: &str| place.chars().all(|c| c.is_ascii_digit() || c == ':');
    words.split_once(": ").filter(|(place, _)| is_place(place)).map_or(words, |(_, rest)| rest)
}

#[tokio::test]
async fn every_fault_is_told_with_its_field_its_value_and_what_to_do_and_nothing_is_stored() {
    let server = Server::start().await;
    let mut cases = 0;
    for Bad { what, file, call, fields, .. } in table() {
        let Some(Call { job_id, spec }) = call else { continue };
        cases += 1;
        let submitted = server.submit(&job_id, spec.clone()).await.expect_err(&what);
        let request = pb::CheckJobRequest { job_id, spec: Some(spec), ..Default::default() };
        let checked = server.jobs().check_job(request).await.expect_err(&what);
        for status in [submitted, checked] {
            assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status:?}");
            assert_eq!(violations(&status), fields, "{what}, as a file:\n{file}");
            // What reads no details is told as much by the message.
            for (field, words) in &fields {
                assert!(status.message().contains(field), "{what}: {field} in {}", status.message());
                assert!(status.message().contains(placeless(words)), "{what}: {words} in {}", status.message());
            }
            assert_eq!(status.get_error_details().error_info().expect("an ErrorInfo").reason, "INVALID_INPUT");
        }
    }
    assert!(cases > 50, "{cases} cases of the table are calls");
    let jobs = server.jobs().list_jobs(pb::ListJobsRequest::default()).await.expect("listed").into_inner();
    assert_eq!(jobs, pb::ListJobsResponse::default());
    let acts = server.admin().list_audit_log(pb::ListAuditLogRequest::default()).await.expect("listed").into_inner();
    assert_eq!(acts.entries, []);
    let Call { job_id, spec } = call();
    assert!(server.submit(&job_id, spec).await.expect("what every case begins with is sound").created);
    server.stop().await;
}
