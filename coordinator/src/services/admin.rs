//! `AdminService`: what an operator reads.

use semel_core::{
    event::{Answer, Event, Query},
    id::FencingToken,
};
use semel_proto::v1::{self as pb, admin_service_server::AdminService};
use tonic::{Request, Response, Status};

use super::{
    convert::{self, Check, Listing},
    errors,
};
use crate::shell::Shell;

/// The service.
pub struct Admin {
    shell: Shell,
}

impl Admin {
    /// Over a shell.
    pub fn new(shell: Shell) -> Self {
        Self { shell }
    }
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn list_agents(
        &self,
        request: Request<pb::ListAgentsRequest>,
    ) -> Result<Response<pb::ListAgentsResponse>, Status> {
        convert::namespace(&request.into_inner().namespace)?;
        match self.shell.call(|call| Event::Query(call, Query::Agents)).await? {
            Answer::Agents(agents) => {
                let agents = agents.into_iter().map(convert::agent).collect();
                Ok(Response::new(pb::ListAgentsResponse { agents }))
            }
            other => Err(errors::unexpected(&other)),
        }
    }

    async fn list_leases(
        &self,
        request: Request<pb::ListLeasesRequest>,
    ) -> Result<Response<pb::ListLeasesResponse>, Status> {
        let request = request.into_inner();
        convert::namespace(&request.namespace)?;
        let listing = Listing::new("ListLeases", "", None, 0);
        let mut check = Check::default();
        let rows = check.page_size(request.page_size) as usize;
        let after = check.page_number(&listing, &request.page_token).map(FencingToken::from_u64);
        if after == Some(None) {
            check.fault(Listing::foreign(&request.page_token));
        }
        check.finish()?;
        // One more than the page holds tells whether another page follows.
        let query = Query::Leases { after: after.flatten(), limit: rows + 1 };
        let mut leases = match self.shell.call(|call| Event::Query(call, query)).await? {
            Answer::Leases(leases) => leases,
            other => return Err(errors::unexpected(&other)),
        };
        let more = leases.len() > rows;
        leases.truncate(rows);
        let last = leases.last().filter(|_| more);
        let next_page_token = last.map(|lease| listing.number_token(lease.token.get())).unwrap_or_default();
        let leases = leases.iter().map(convert::lease).collect();
        Ok(Response::new(pb::ListLeasesResponse { leases, next_page_token }))
    }

    async fn get_leadership(
        &self,
        request: Request<pb::GetLeadershipRequest>,
    ) -> Result<Response<pb::GetLeadershipResponse>, Status> {
        convert::namespace(&request.into_inner().namespace)?;
        let leading = self.shell.leading().borrow().at;
        Ok(Response::new(pb::GetLeadershipResponse {
            epoch: leading.map_or(0, |(epoch, _)| epoch.get()),
            seq: leading.map_or(0, |(_, seq)| seq.0),
            leading: leading.is_some(),
        }))
    }

    async fn list_audit_log(
        &self,
        request: Request<pb::ListAuditLogRequest>,
    ) -> Result<Response<pb::ListAuditLogResponse>, Status> {
        let request = request.into_inner();
        convert::namespace(&request.namespace)?;
        let listing = Listing::new("ListAuditLog", "", None, 0);
        let mut check = Check::default();
        let rows = check.page_size(request.page_size);
        let before = check.page_number(&listing, &request.page_token);
        check.finish()?;
        let store = self.shell.store();
        let entries = store.audit_log(before, rows).await?;
        let next_page_token = match entries.last() {
            Some(last) if !store.audit_log(Some(last.number), 1).await?.is_empty() => listing.number_token(last.number),
            _ => String::new(),
        };
        let entries = entries.into_iter().map(convert::audit_entry).collect();
        Ok(Response::new(pb::ListAuditLogResponse { entries, next_page_token }))
    }
}
