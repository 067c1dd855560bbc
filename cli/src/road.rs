//! The one road of every verb: the contract, to a coordinator that runs or to one started for the call.

use std::{
    error::Error,
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{anyhow, bail};
use semel_coordinator::{
    Limits, Running, Settings, StartError, endpoint,
    store::sqlite::{LockError, OpenError},
};
use semel_proto::{
    MAX_MESSAGE_BYTES,
    v1::{self as pb, admin_service_client::AdminServiceClient, job_service_client::JobServiceClient},
};
use tonic::{
    Code, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;

use crate::{
    attendance::Attendance,
    exit::{Closed, Refused},
    unknown::{NoSuchJob, with_nearest_job},
};

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a coordinator may take to say that it is alive.
const ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// How often the connection is pinged, so that a link that was cut is noticed.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How long a store that another process holds is waited for: a verb that ran before may just be closing it.
const HELD_PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks at such a store.
const HELD_LOOK: Duration = Duration::from_millis(50);

/// Which coordinator a verb speaks to.
#[derive(Clone, Debug)]
pub enum Target {
    /// That of a store: the one that runs on it, else one in this process.
    Store(PathBuf),
    /// One that runs elsewhere.
    Remote {
        /// Host and port.
        address: String,
        /// Its bearer token.
        token: String,
    },
}

/// A connection to a coordinator, and the coordinator itself if it is of this process.
pub struct Road {
    channel: Channel,
    token: Token,
    address: String,
    own: Option<Running>,
}

/// Calls of jobs.
pub type Jobs = JobServiceClient<InterceptedService<Channel, Token>>;

/// Calls of administration.
pub type Admin = AdminServiceClient<InterceptedService<Channel, Token>>;

impl Road {
    /// Connects to the coordinator of a target; starts one where none runs. A store that isn't there is not made.
    ///
    /// # Errors
    /// None runs and none can be started, in words that say what to do.
    pub async fn open(target: &Target) -> anyhow::Result<Self> {
        let store = match target {
            Target::Remote { address, token } => return Self::to(address, token).await,
            Target::Store(store) => store,
        };
        existing(store)?;
        Self::on(store, true).await
    }

    /// Starts a coordinator on a store, which is made if it isn't there. Not for a store that another process holds.
    ///
    /// # Errors
    /// Another process holds it, or it can't be started.
    pub async fn lead(store: &Path) -> anyhow::Result<Self> {
        Self::on(store, false).await
    }

    /// Starts a coordinator on a store, or connects to the one that is there if that may be `shared`.
    async fn on(store: &Path, shared: bool) -> anyhow::Result<Self> {
        let mut waited = Duration::ZERO;
        loop {
            if shared && let Some(road) = Self::to_running(store).await {
                return Ok(road);
            }
            match Self::start(store).await {
                Err(error) if holder(&error).is_some() && waited < HELD_PATIENCE => {}
                Err(error) => return Err(held(store, shared, error)),
                Ok(road) => return Ok(road),
            }
            tokio::time::sleep(HELD_LOOK).await;
            waited += HELD_LOOK;
        }
    }

    async fn start(store: &Path) -> anyhow::Result<Self> {
        usable(store)?;
        if is_read_only(store) {
            bail!(
                "--store {} can't be used: this user may only read it or its folder, and every verb but `audit` writes a \
                 lock beside it, and SQLite its log. `semel audit` reads it as it is; for the others name a copy of it in \
                 a folder that may be written",
                store.display()
            );
        }
        let settings = Settings {
            store: store.to_owned(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            token: None,
            core: semel_core::Config { embedded: true, ..semel_core::Config::default() },
            limits: Limits::default(),
        };
        let own = semel_coordinator::start(settings).await.map_err(|error| of_store(store, error))?;
        match Self::to(&own.address().to_string(), own.token()).await {
            Ok(road) => Ok(Self { own: Some(own), ..road }),
            Err(error) => {
                own.stop().await?;
                Err(error)
            }
        }
    }

    /// The coordinator that runs on a store, if one does: what its endpoint file says may be of a dead process.
    async fn to_running(store: &Path) -> Option<Self> {
        let endpoint = endpoint::read(store).ok()??;
        let road = Self::to(&endpoint.address, &endpoint.token).await.ok()?;
        let mut admin = road.admin();
        let asked = admin.get_leadership(pb::GetLeadershipRequest::default());
        let answered = tokio::time::timeout(ALIVE_TIMEOUT, asked).await.ok()?;
        answered.is_ok().then_some(road)
    }

    async fn to(address: &str, token: &str) -> anyhow::Result<Self> {
        let uri = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        let endpoint = Endpoint::from_shared(uri)
            .map_err(|_| Refused(format!("--coordinator {address:?}: write HOST:PORT, as 127.0.0.1:7601")))?;
        let channel = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_INTERVAL)
            .connect()
            .await
            .map_err(|error| anyhow!("no coordinator answers at {address}: {}", innermost(&error)))?;
        Ok(Self { channel, token: Token::new(token)?, address: address.to_owned(), own: None })
    }

    /// The client of jobs.
    pub fn jobs(&self) -> Jobs {
        JobServiceClient::with_interceptor(self.channel.clone(), self.token.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Who is there to run jobs.
    pub async fn attendance(&self) -> Attendance {
        if self.own.is_some() {
            return Attendance::Nobody;
        }
        let asked = self.admin().list_agents(pb::ListAgentsRequest::default()).await;
        Attendance::Coordinator(asked.ok().map(|answer| answer.into_inner().agents))
    }

    /// The client of administration.
    pub fn admin(&self) -> Admin {
        AdminServiceClient::with_interceptor(self.channel.clone(), self.token.clone())
    }

    /// Host and port of the coordinator.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The bearer token that it wants.
    pub fn token(&self) -> &str {
        &self.token.text
    }

    /// Waits until this process's own coordinator fails; for ever where it has none.
    pub async fn failed(&mut self) -> anyhow::Error {
        let Some(own) = &mut self.own else { return std::future::pending().await };
        match own.ended().await {
            Ok(()) => anyhow::anyhow!("the coordinator ended"),
            Err(error) => error.into(),
        }
    }

    /// Stops this process's own coordinator, if it has one.
    ///
    /// # Errors
    /// It had failed before.
    pub async fn close(self) -> anyhow::Result<()> {
        drop(self.channel);
        match self.own {
            Some(own) => Ok(own.stop().await?),
            None => Ok(()),
        }
    }
}

/// Asks over the road to a target, and leaves nothing running behind.
///
/// # Errors
/// There is no road, or what was asked failed.
pub async fn ask<T>(target: &Target, question: impl AsyncFnOnce(Jobs) -> anyhow::Result<T>) -> anyhow::Result<T> {
    walk(target, async |road: &Road| question(road.jobs()).await).await
}

/// As [`ask`], of what more than jobs can answer.
///
/// # Errors
/// As of [`ask`].
pub async fn walk<T>(target: &Target, errand: impl AsyncFnOnce(&Road) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let road = Road::open(target).await?;
    let answer = match errand(&road).await {
        Ok(answer) => Ok(answer),
        Err(error) => Err(with_nearest_job(error, road.jobs()).await),
    };
    road.close().await?;
    answer
}

/// As [`ask`], by one call that steers a job: one that is closed ends the verb with a code of its own.
///
/// # Errors
/// There is no road, or the call is refused.
pub async fn steer<T>(
    target: &Target,
    job_id: &str,
    call: impl AsyncFnOnce(Jobs) -> Result<Response<T>, Status>,
) -> anyhow::Result<T> {
    ask(target, async |jobs| match call(jobs.clone()).await {
        Ok(response) => Ok(response.into_inner()),
        Err(status) => Err(steering_failure(jobs, job_id, status).await),
    })
    .await
}

/// A store that is there, and that a verb reads.
///
/// # Errors
/// There is none, or something that is no file.
pub fn existing(store: &Path) -> anyhow::Result<&Path> {
    usable(store)?;
    if !store.exists() {
        bail!("there is no store at {}: `semel run JOB` makes one; --store names another", store.display());
    }
    Ok(store)
}

/// What can be seen of a store's path before anything is opened or made.
fn usable(store: &Path) -> Result<(), Refused> {
    let refused = |words: String| Err(Refused(format!("--store {}: {words}", store.display())));
    if store.is_dir() {
        return refused(format!("is a folder; name a file in it: {}", store.join("semel.db").display()));
    }
    match store.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) if !folder.is_dir() => {
            refused(format!("there is no folder {}; make it, or name a file in another", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Why no coordinator could be started on a store, and what to do. One that is held stays as it is: it is waited for.
fn of_store(store: &Path, error: StartError) -> anyhow::Error {
    let help = match &error {
        StartError::Store(OpenError::Lock(LockError::Io { .. })) | StartError::Endpoint(..) => {
            "name a file in a folder that this user may write"
        }
        StartError::Store(OpenError::Database { .. }) => "name a file that Semel made, or one that isn't there yet",
        _ => return error.into(),
    };
    anyhow::Error::from(error).context(format!("--store {} can't be used; {help}", store.display()))
}

/// Whether a store is there, and this user may not write it or make files beside it. Not to be asked while this process
/// has the store open: closing a file drops the locks that SQLite has on it.
fn is_read_only(store: &Path) -> bool {
    let folder = store.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let may_write = || File::options().append(true).open(store).is_ok() && tempfile::tempfile_in(folder).is_ok();
    store.is_file() && !may_write()
}

/// The process that has a store, in words, where it could not be opened because of that.
fn holder(error: &anyhow::Error) -> Option<&str> {
    match error.downcast_ref() {
        Some(StartError::Store(OpenError::Lock(LockError::Held { holder, .. }))) => Some(holder),
        _ => None,
    }
}

/// What can be done about a store that another process has; any other error as it is. Where it may be `shared`, that
/// process was asked first.
fn held(store: &Path, shared: bool, error: anyhow::Error) -> anyhow::Error {
    let Some(holder) = holder(&error) else { return error };
    let store = store.display();
    if shared {
        return anyhow!(
            "{store} is in use by {holder}, which doesn't answer: try again, end that process, or name another store with \
             --store"
        );
    }
    anyhow!(
        "{store} is in use by {holder}, and a run wants a store to itself. Show, why, export, pause and the rest speak to that \
         process meanwhile; to run this, wait for its end, or name another store with --store. If it is a \
         semel-coordinator, --coordinator HOST:PORT --token-file FILE --agents FILE runs the job there"
    )
}

/// The bearer token of every call.
#[derive(Clone)]
pub struct Token {
    text: String,
    header: MetadataValue<Ascii>,
}

impl Token {
    fn new(token: &str) -> anyhow::Result<Self> {
        // The token itself stays out of the message.
        let mut header: MetadataValue<Ascii> = format!("Bearer {token}")
            .parse()
            .map_err(|_| Refused("--token-file: the token has characters that a header can't carry".to_owned()))?;
        header.set_sensitive(true);
        Ok(Self { text: token.to_owned(), header })
    }
}

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.header.clone());
        Ok(request)
    }
}

/// What a coordinator refused, as this program says it and ends with it.
pub fn failure(status: Status) -> anyhow::Error {
    match status.code() {
        Code::InvalidArgument | Code::AlreadyExists => Refused(words(&status)).into(),
        Code::Unauthenticated => anyhow::anyhow!("the coordinator refuses the token: {}", status.message()),
        _ => match absent_job(&status) {
            Some(absent) => absent.into(),
            None => anyhow::anyhow!("{}", words(&status)),
        },
    }
}

/// Why a call did not come through: the innermost cause where the transport knows one, else the status's own words.
pub fn root_cause(status: &Status) -> String {
    status.source().map_or_else(|| status.message().to_owned(), |cause| innermost(cause).to_string())
}

/// The cause of all others: what the system said.
fn innermost<'e>(error: &'e (dyn Error + 'static)) -> &'e (dyn Error + 'static) {
    error.source().map_or(error, innermost)
}

/// The job that a status says is not there.
fn absent_job(status: &Status) -> Option<NoSuchJob> {
    let details = status.get_error_details();
    let resource = details.resource_info().filter(|resource| resource.resource_type == "job")?;
    (status.code() == Code::NotFound).then(|| NoSuchJob(resource.resource_name.clone()))
}

/// As [`failure`], of a call that steers a job.
pub async fn steering_failure(mut jobs: Jobs, job_id: &str, status: Status) -> anyhow::Error {
    if status.code() == Code::FailedPrecondition {
        let request = pb::GetJobRequest { job_id: job_id.to_owned(), ..Default::default() };
        let job = jobs.get_job(request).await.ok().and_then(|response| response.into_inner().job);
        let is_closed = job.is_some_and(|job| matches!(job.state(), pb::JobState::Cancelled | pb::JobState::Expired));
        if is_closed {
            return Closed(words(&status)).into();
        }
    }
    failure(status)
}

/// A status in words: its first line, and every line of its details.
fn words(status: &Status) -> String {
    let details = status.get_error_details();
    let faults = details.bad_request().map_or(&[][..], |faults| &faults.field_violations);
    let fault =
        |field: &str, words: &str| if field.is_empty() { words.to_owned() } else { format!("{field}: {words}") };
    let mut lines: Vec<String> = faults.iter().map(|f| fault(&f.field, &f.description)).collect();
    if status.code() == Code::AlreadyExists {
        let differences = details.precondition_failure().map_or(&[][..], |failure| &failure.violations);
        let head = status.message().lines().next().unwrap_or_default();
        lines.push(head.to_owned());
        lines.extend(differences.iter().map(|difference| format!("  {}", difference.description)));
    }
    if lines.is_empty() {
        return status.message().to_owned();
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_refusal_lists_every_fault_with_its_field() {
        let mut details = ErrorDetails::new();
        details.add_bad_request_violation("spec.questions", "has none; ask at least one question");
        details.add_bad_request_violation("spec.models", "has none; name at least one model");
        let error = failure(Status::with_error_details(Code::InvalidArgument, "refused", details));
        let refused = error.downcast_ref::<Refused>().expect("refused input");
        assert_eq!(refused.0.lines().count(), 2);
        assert!(refused.0.starts_with("spec.questions: has none"), "{refused}");
    }

    #[test]
    fn another_specification_under_a_job_id_is_told_with_its_difference() {
        let mut details = ErrorDetails::new();
        details.add_precondition_failure_violation("SPECIFICATION", "j", "repeat: was 1, is now 2");
        let status = Status::with_error_details(Code::AlreadyExists, "job \"j\" was accepted before:\nmore", details);
        let error = failure(status);
        assert!(error.is::<Refused>());
        assert_eq!(error.to_string(), "job \"j\" was accepted before:\n  repeat: was 1, is now 2");
    }
}
