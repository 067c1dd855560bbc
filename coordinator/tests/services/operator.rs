//! What an operator reads.

use semel_proto::v1 as pb;

use crate::{agent::Agent, base, server::Server};

#[tokio::test]
async fn an_operator_sees_agents_leases_the_leader_and_who_did_what() {
    let server = Server::start().await;
    server.submit("j", base()).await.unwrap();
    let _agent = Agent::start(&server, "eu", &["m1", "m2"], 3, |_| None).await;
    let watch = pb::WatchJobRequest { job_id: "j".into(), interval_ms: 100, ..Default::default() };
    let mut pictures = server.jobs().watch_job(watch).await.unwrap().into_inner();
    while pictures.message().await.unwrap().unwrap().job.unwrap().counts.unwrap().leased < 3 {}
    let mut admin = server.admin();
    let agents = admin.list_agents(pb::ListAgentsRequest::default()).await.unwrap().into_inner().agents;
    assert_eq!((agents.len(), agents[0].leased, agents[0].slots, agents[0].connected), (1, 3, 3, true));
    assert!(agents[0].models.iter().all(|model| model.ready));

    let (mut tokens, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = pb::ListLeasesRequest { page_size: 2, page_token, ..Default::default() };
        let page = admin.list_leases(request).await.unwrap().into_inner();
        tokens.extend(page.leases.iter().map(|lease| lease.fencing_token.parse::<u64>().unwrap()));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert!(tokens.len() == 3 && tokens.is_sorted(), "{tokens:?}");

    let leader = admin.get_leadership(pb::GetLeadershipRequest::default()).await.unwrap().into_inner();
    assert!(leader.leading && leader.seq > 0 && u64::from(leader.epoch) == tokens[0] >> 32, "{leader:?}");

    server.jobs().pause_job(pb::PauseJobRequest { job_id: "j".into(), ..Default::default() }).await.unwrap();
    let first = pb::ListAuditLogRequest { page_size: 1, ..Default::default() };
    let first = admin.list_audit_log(first).await.unwrap().into_inner();
    let next = pb::ListAuditLogRequest { page_size: 1, page_token: first.next_page_token, ..Default::default() };
    let next = admin.list_audit_log(next).await.unwrap().into_inner();
    let acts: Vec<_> =
        first.entries.iter().chain(&next.entries).map(|e| (e.action.as_str(), e.job_id.as_str())).collect();
    assert_eq!(acts, [("pause", "j"), ("submit", "j")], "newest first");
    assert!(next.next_page_token.is_empty() && !next.entries[0].actor.is_empty());
    server.stop().await;
}
