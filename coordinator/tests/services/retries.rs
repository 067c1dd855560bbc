//! Records that are moved to the history, and their cells run again.

use semel_proto::v1 as pb;

use super::{
    agent::{Agent, failure},
    server::{Server, fields, spec},
    wrong::base,
};

#[tokio::test]
async fn a_retry_names_its_status_and_moves_what_it_chose() {
    let server = Server::start().await;
    server.submit("j", base()).await.unwrap();
    let agent = Agent::start(&server, "eu", &["m1", "m2"], 4, |_| failure(b"no")).await;
    assert_eq!(server.ended("j").await.counts.unwrap().failed, 4);
    drop(agent);
    let retry = |status: i32, models: &[&str]| {
        let filter = pb::CellFilter { models: models.iter().map(|m| (*m).into()).collect(), ..Default::default() };
        pb::RetryJobRequest { job_id: "j".into(), status, filter: Some(filter), ..Default::default() }
    };
    for (status, models, named) in
        [(0, &[][..], &["status"][..]), (9, &[], &["status"]), (0, &["m9"], &["status", "filter.models[0]"])]
    {
        let refused = server.jobs().retry_job(retry(status, models)).await.unwrap_err();
        assert_eq!(fields(&refused), named, "{}", refused.message());
    }
    let retried = server.jobs().retry_job(retry(2, &["m1"])).await.unwrap().into_inner();
    let counts = retried.job.unwrap().counts.unwrap();
    assert_eq!((retried.retried, counts.recorded, counts.pending), (2, 2, 2));
    let request = |page_size, page_token| pb::ListAttemptsRequest {
        job_id: "j".into(),
        page_size,
        page_token,
        ..Default::default()
    };
    let first = server.jobs().list_attempts(request(1, String::new())).await.unwrap().into_inner();
    let second = server.jobs().list_attempts(request(1, first.next_page_token)).await.unwrap().into_inner();
    assert_eq!(second.next_page_token, "");
    for attempt in first.attempts.iter().chain(&second.attempts) {
        assert_eq!((attempt.kind(), attempt.status()), (pb::AttemptKind::Replaced, pb::ExecutionStatus::Failed));
        assert_eq!(&attempt.failure.as_ref().unwrap().message[..], b"no");
    }
    let key = first.attempts[0].key.clone();
    let one = server.jobs().get_execution(pb::GetExecutionRequest { key }).await.unwrap().into_inner();
    assert_eq!((&one.execution, one.attempts.len()), (&None, 1));
    assert_ne!(one.wait_reason(), pb::WaitReason::Unspecified);
    server.stop().await;
}

#[tokio::test]
async fn a_retry_of_more_records_than_a_commit_holds_moves_each_once() {
    const CELLS: u32 = 2_000;
    let server = Server::start().await;
    server.submit("j", pb::JobSpec { repeat: Some(CELLS), ..spec(&["q"], &["m"], &["eu"]) }).await.unwrap();
    let agent = Agent::start(&server, "eu", &["m"], 64, |_| failure(b"no")).await;
    assert_eq!(server.ended("j").await.counts.unwrap().failed, u64::from(CELLS));
    drop(agent);
    let request = pb::RetryJobRequest { job_id: "j".into(), status: 2, ..Default::default() };
    let retried = server.jobs().retry_job(request.clone()).await.unwrap().into_inner();
    let counts = retried.job.unwrap().counts.unwrap();
    assert_eq!((retried.retried, counts.recorded, counts.failed), (u64::from(CELLS), 0, 0));
    assert_eq!(
        server.jobs().retry_job(request).await.unwrap().into_inner().retried,
        0,
        "there is nothing left to move"
    );
    server.stop().await;
}
