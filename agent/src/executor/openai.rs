//! The executor for OpenAI-compatible endpoints: Ollama, vLLM, llama.cpp, a provider.
//!
//! A cell is one `POST {base_url}/chat/completions`, made of the bytes of its frozen input. What the answer means,
//! good or bad, is decided in [`reply`]; what a call says is put together in [`request`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, RequestBuilder, Response, Url};
use semel_proto::v1 as pb;

use self::reply::{ErrorReply, Reading};
use super::secret::{KeySource, Secret};
use super::text::{shorten, with_causes};
use super::{
    ANSWER_OVERHEAD_BYTES, Answer, Executor, JSON_EXPANSION, MAX_ERROR_BYTES, MAX_MESSAGE_BYTES, Outcome, SettingError,
    Task, failure,
};

mod reply;
mod request;

/// How long a connection may take to be made, where nothing else is configured.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the body of an error is waited for. What came by then is the message.
const ERROR_BODY_LIMIT: Duration = Duration::from_secs(10);

/// The largest list of models that a probe reads, in bytes. A longer one is not looked through.
const MAX_MODEL_LIST_BYTES: u64 = 8 * 1024 * 1024;

/// How long an idle connection is kept. llama.cpp closes its own after 5 s, and a request that is sent into a closing
/// connection costs its cell an attempt.
const IDLE_CONNECTION_LIMIT: Duration = Duration::from_secs(4);

/// How often the system asks after a peer that is silent in the middle of a call.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);

/// How one provider is reached.
#[derive(Clone, Debug)]
pub struct OpenAiSettings {
    /// The address under which `/chat/completions` lies: `http://127.0.0.1:11434/v1`. A query is kept.
    pub base_url: String,
    /// The key.
    pub key: KeySource,
    /// The header that carries the key as it is; `Authorization: Bearer …` where it is `None`.
    pub key_header: Option<String>,
    /// The response header that names the region that served.
    pub region_header: Option<String>,
    /// The JSON pointer (RFC 6901) into the response that names the region that served. The header goes first.
    pub region_pointer: Option<String>,
    /// Whether the provider's body is kept beside the output.
    pub keep_response: bool,
    /// How long a connection may take to be made, TLS included.
    pub connect_timeout: Duration,
    /// More headers for each request.
    pub headers: Vec<(String, String)>,
}

impl OpenAiSettings {
    /// An endpoint without a key, everything else by default.
    pub fn new(base_url: impl Into<String>) -> Self {
        Self {
            base_url: base_url.into(),
            key: KeySource::None,
            key_header: None,
            region_header: None,
            region_pointer: None,
            keep_response: true,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            headers: Vec::new(),
        }
    }
}

/// Runs cells on an OpenAI-compatible endpoint.
#[derive(Clone, Debug)]
pub struct OpenAi {
    endpoint: Arc<Endpoint>,
    model: String,
}

/// What all models of one provider share, its pool of connections too.
#[derive(Debug)]
struct Endpoint {
    client: Client,
    chat_url: Url,
    models_url: Url,
    /// Host and port, for records and messages.
    address: String,
    key: KeySource,
    key_header: Option<HeaderName>,
    region_header: Option<HeaderName>,
    region_pointer: Option<String>,
    keep_response: bool,
}

impl OpenAi {
    /// An executor for the provider's model `model`, which is the name that a probe looks for; each cell's input has
    /// its own. Installs ring as the process's TLS provider where there is none yet.
    ///
    /// # Errors
    /// Every setting that is at fault.
    pub fn new(settings: OpenAiSettings, model: impl Into<String>) -> Result<Self, Vec<SettingError>> {
        Ok(Self { endpoint: Arc::new(Endpoint::new(settings)?), model: model.into() })
    }

    /// The same provider for another of its models.
    #[must_use]
    pub fn for_model(&self, model: impl Into<String>) -> Self {
        Self { endpoint: Arc::clone(&self.endpoint), model: model.into() }
    }
}

impl Endpoint {
    fn new(settings: OpenAiSettings) -> Result<Self, Vec<SettingError>> {
        let mut faults = Vec::new();
        let mut check = |field: &'static str, fault: String| faults.push(SettingError::new(field, fault));

        let base_url = parse_base_url(&settings.base_url).map_err(|fault| check("base_url", fault)).ok();
        let mut header = |field, name: Option<String>| {
            name.and_then(|name| {
                HeaderName::from_bytes(name.as_bytes())
                    .map_err(|_| check(field, format!("{name:?} is no name of a header")))
                    .ok()
            })
        };
        let key_header = header("key_header", settings.key_header);
        let region_header = header("region_header", settings.region_header);
        if let Some(pointer) = settings.region_pointer.as_deref().filter(|pointer| !pointer.starts_with('/')) {
            check("region_pointer", format!("{pointer:?} is no JSON pointer; one starts with a slash: /served_region"));
        }
        let mut headers = HeaderMap::new();
        for (name, value) in settings.headers {
            match parse_header(&name, &value) {
                Ok((name, value)) => drop(headers.insert(name, value)),
                Err(fault) => check("headers", fault),
            }
        }
        let Some(base_url) = base_url.filter(|_| faults.is_empty()) else { return Err(faults) };

        let client = client(&base_url, headers, settings.connect_timeout)
            .map_err(|fault| vec![SettingError::new("base_url", fault)])?;
        let address = format!(
            "{}:{}",
            base_url.host_str().unwrap_or_default(),
            base_url.port_or_known_default().unwrap_or_default()
        );
        Ok(Self {
            client,
            chat_url: below(&base_url, &["chat", "completions"]),
            models_url: below(&base_url, &["models"]),
            address,
            key: settings.key,
            key_header,
            region_header,
            region_pointer: settings.region_pointer,
            keep_response: settings.keep_response,
        })
    }

    /// `request` with the key in its header.
    fn authorized(&self, request: RequestBuilder, key: Option<&Secret>) -> RequestBuilder {
        let Some(key) = key else { return request };
        let (name, text) = match &self.key_header {
            Some(name) => (name.clone(), key.expose().to_owned()),
            None => (AUTHORIZATION, format!("Bearer {}", key.expose())),
        };
        // A `Secret` holds printable ASCII only, so this is never an error; if it were, the endpoint would say 401.
        let Ok(mut value) = HeaderValue::try_from(text) else { return request };
        value.set_sensitive(true);
        request.header(name, value)
    }

    /// A message of this endpoint for people: bounded, and without the key.
    fn message(&self, words: &str, key: Option<&Secret>) -> String {
        let mut words = format!("{}: {words}", self.address).into_bytes();
        if let Some(key) = key {
            words = key.redact(words);
        }
        shorten(String::from_utf8_lossy(&words).into_owned(), MAX_MESSAGE_BYTES)
    }

    fn misconfigured(&self, words: &str, key: Option<&Secret>) -> Outcome {
        Outcome::Misconfigured { message: self.message(words, key) }
    }

    /// What a request that got no answer means.
    fn unanswered(&self, error: reqwest::Error, key: Option<&Secret>) -> Outcome {
        let at_fault = error.is_connect() || error.is_builder();
        let words = with_causes(&error.without_url());
        if at_fault {
            return self.misconfigured(&format!("can't be reached: {words}"), key);
        }
        Outcome::Failure(self.connection_lost(&words, key), None)
    }

    fn connection_lost(&self, words: &str, key: Option<&Secret>) -> pb::Failure {
        failure::new(pb::FailureReason::Connection, pb::Stage::Run, "", self.message(words, key), true)
    }

    /// Who served, as far as `headers` and the body say so. Text that isn't known is empty; so is the region.
    fn served(&self, region: Option<String>, model: String, request_id: String) -> pb::Served {
        let basis = if region.is_some() { pb::RegionBasis::Reported } else { pb::RegionBasis::Unspecified };
        pb::Served {
            region: region.unwrap_or_default(),
            region_basis: basis.into(),
            model,
            request_id,
            endpoint: self.address.clone(),
            executor: "openai".to_owned(),
        }
    }

    async fn call(&self, task: &Task) -> Result<Answer, Box<Outcome>> {
        let body = request::body(&task.input).map_err(|fault| Outcome::Failure(failure::bad_input(fault), None))?;
        let key = self.key.read().await.map_err(|fault| self.misconfigured(&fault, None))?;
        let key = key.as_ref();
        let started = Instant::now();
        let request =
            self.authorized(self.client.post(self.chat_url.clone()), key).headers(request::headers(task)).body(body);
        let response = request.send().await.map_err(|error| self.unanswered(error, key))?;
        if !response.status().is_success() {
            return Err(Box::new(self.refused(response, key).await));
        }
        self.read_answer(response, task, key, started).await
    }

    /// What an answer means whose status isn't 2xx.
    async fn refused(&self, response: Response, key: Option<&Secret>) -> Outcome {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body =
            tokio::time::timeout(ERROR_BODY_LIMIT, read_start(response, MAX_ERROR_BYTES)).await.unwrap_or_default();
        let body = key.map_or(body.clone(), |key| key.redact(body));
        let served = self.served(
            reply::header(&headers, self.region_header.as_ref()),
            String::new(),
            reply::request_id(&headers),
        );
        let reply = ErrorReply::new(status, &headers, body);
        reply.outcome(|words| self.message(words, key), served)
    }

    async fn read_answer(
        &self,
        response: Response,
        task: &Task,
        key: Option<&Secret>,
        started: Instant,
    ) -> Result<Answer, Box<Outcome>> {
        let headers = response.headers().clone();
        let limit = task.max_output_bytes.saturating_mul(JSON_EXPANSION).saturating_add(ANSWER_OVERHEAD_BYTES);
        let mut region = reply::header(&headers, self.region_header.as_ref());
        let request_id = reply::request_id(&headers);
        let failed = |failure, region, model| {
            Box::new(Outcome::Failure(failure, Some(self.served(region, model, request_id.clone()))))
        };

        let too_large = |size: &str, stage| failure::too_large(size, task.max_output_bytes, stage);

        let (body, first_byte) = match read_whole(response, limit).await {
            Ok(read) => read,
            Err(Unread::TooLarge) => {
                let size = format!("a body of more than {limit} bytes");
                return Err(failed(too_large(&size, pb::Stage::Run), region, String::new()));
            }
            Err(Unread::Broken(error)) => {
                let words =
                    format!("the connection broke in the middle of the answer: {}", with_causes(&error.without_url()));
                return Err(failed(self.connection_lost(&words, key), region, String::new()));
            }
        };
        region = region.or_else(|| reply::at_pointer(&body, self.region_pointer.as_deref()));
        let chat = match reply::read(&body) {
            Reading::Chat(chat) => chat,
            Reading::Error(status) => {
                let body = key.map_or(body.clone(), |key| key.redact(body));
                let reply = ErrorReply::new(status, &headers, body);
                return Err(Box::new(
                    reply.outcome(|words| self.message(words, key), self.served(region, String::new(), request_id)),
                ));
            }
            Reading::Unreadable(fault) => {
                let message = self.message(&format!("the answer can't be read: {fault}"), key);
                return Err(failed(
                    failure::new(pb::FailureReason::BadResponse, pb::Stage::Result, "", message, true),
                    region,
                    String::new(),
                ));
            }
        };
        if chat.output.len() as u64 > task.max_output_bytes {
            let size = format!("{} bytes", chat.output.len());
            return Err(failed(too_large(&size, pb::Stage::Result), region, chat.model));
        }
        let fits = body.len() as u64 <= task.max_output_bytes;
        let keep = self.keep_response && fits && !key.is_some_and(|key| key.is_in(&body));
        Ok(Answer {
            output: chat.output.into(),
            response: if keep { body.into() } else { Default::default() },
            finish_reason: chat.finish_reason,
            usage: chat.usage,
            served_region: region,
            served_model: chat.model,
            request_id: if request_id.is_empty() { chat.id } else { request_id },
            endpoint: self.address.clone(),
            first_byte: first_byte.map(|at| at.duration_since(started)),
        })
    }

    async fn probe(&self, model: &str) -> Result<(), String> {
        let key = self.key.read().await.map_err(|fault| self.message(&fault, None))?;
        let key = key.as_ref();
        let request = self.authorized(self.client.get(self.models_url.clone()), key);
        let response = request.send().await.map_err(|error| {
            let words = with_causes(&error.without_url());
            self.message(&format!("can't be reached: {words}"), key)
        })?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        match status {
            200..=299 => {
                let Ok((list, _)) = read_whole(response, MAX_MODEL_LIST_BYTES).await else { return Ok(()) };
                reply::find_model(&list, model).map_err(|words| self.message(&words, key))
            }
            300..=399 | 401 | 402 | 403 | 407 | 500..=599 => {
                let body = read_start(response, MAX_ERROR_BYTES).await;
                Err(self.message(&ErrorReply::new(status, &headers, body).words(), key))
            }
            // No list is kept here, or it isn't to be had now: only a call can tell.
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Executor for OpenAi {
    fn name(&self) -> &'static str {
        "openai"
    }

    async fn probe(&self) -> Result<(), String> {
        self.endpoint.probe(&self.model).await
    }

    async fn execute(&self, task: Task) -> Outcome {
        match self.endpoint.call(&task).await {
            Ok(answer) => Outcome::Success(answer),
            Err(outcome) => *outcome,
        }
    }
}

/// The address as configured, if calls can be made below it. Messages don't quote it: it may hold a password.
fn parse_base_url(text: &str) -> Result<Url, String> {
    let url =
        Url::parse(text).map_err(|error| format!("is no URL ({error}); one looks like http://127.0.0.1:11434/v1"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("starts with {:?}; it must be http or https", url.scheme()));
    }
    if !url.has_host() {
        return Err("names no host".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("holds a user or password; give the key by key_env or key_file".to_owned());
    }
    if url.fragment().is_some() {
        return Err("has a part after '#', which no request can carry".to_owned());
    }
    Ok(url)
}

fn parse_header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), String> {
    const CARRY_KEYS: [&str; 6] =
        ["authorization", "proxy-authorization", "api-key", "x-api-key", "x-goog-api-key", "cookie"];
    if CARRY_KEYS.iter().any(|reserved| name.eq_ignore_ascii_case(reserved)) {
        return Err(format!(
            "{name} carries a key; give it by key_env or key_file, and its header's name by key_header"
        ));
    }
    let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("{name:?} is no name of a header"))?;
    let mut value = HeaderValue::from_str(value)
        .map_err(|_| format!("{name}: the value has characters that no header can carry"))?;
    value.set_sensitive(true);
    Ok((parsed, value))
}

fn client(base_url: &Url, mut headers: HeaderMap, connect_timeout: Duration) -> Result<Client, String> {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // An error means that another thread has just installed one.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    let mut builder = Client::builder()
        .default_headers(headers)
        .user_agent(concat!("semel-agent/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(connect_timeout)
        // A redirect could carry prompt and key to another host, and makes a GET of a POST.
        .redirect(reqwest::redirect::Policy::none())
        .pool_idle_timeout(IDLE_CONNECTION_LIMIT)
        .tcp_keepalive(TCP_KEEPALIVE);
    if is_loopback(base_url) {
        // HTTPS_PROXY and its kin are for the world outside.
        builder = builder.no_proxy();
    }
    builder.build().map_err(|error| format!("no HTTP client can be made: {}", with_causes(&error)))
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// `base` with `segments` after its path.
fn below(base: &Url, segments: &[&str]) -> Url {
    let mut url = base.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
    url
}

enum Unread {
    TooLarge,
    Broken(reqwest::Error),
}

/// The whole body and when its first byte came. One that is over `limit` is dropped where that shows, and its connection with it.
async fn read_whole(mut response: Response, limit: u64) -> Result<(Vec<u8>, Option<Instant>), Unread> {
    if response.content_length().is_some_and(|size| size > limit) {
        return Err(Unread::TooLarge);
    }
    let (mut body, mut first_byte) = (Vec::new(), None);
    while let Some(chunk) = response.chunk().await.map_err(Unread::Broken)? {
        first_byte.get_or_insert_with(Instant::now);
        if (body.len() + chunk.len()) as u64 > limit {
            return Err(Unread::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok((body, first_byte))
}

/// The first `limit` bytes of a body, or as many as come.
async fn read_start(mut response: Response, limit: usize) -> Vec<u8> {
    let mut body = Vec::new();
    while body.len() < limit {
        let Ok(Some(chunk)) = response.chunk().await else { break };
        body.extend_from_slice(&chunk);
    }
    body.truncate(limit);
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_of_the_address_is_kept_behind_the_path() {
        let base = Url::parse("https://host/openai/?api-version=1").unwrap();
        assert_eq!(
            below(&base, &["chat", "completions"]).as_str(),
            "https://host/openai/chat/completions?api-version=1"
        );
    }

    #[test]
    fn settings_at_fault_are_all_named_and_none_is_quoted_with_a_password() {
        let mut settings = OpenAiSettings::new("http://me:hunter2@host/v1");
        settings.region_pointer = Some("region".into());
        settings.headers = vec![("Api-Key".into(), "hunter2".into())];
        let faults = OpenAi::new(settings, "m").unwrap_err();
        let text = faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        for field in ["base_url", "region_pointer", "headers"] {
            assert!(text.contains(field), "{text}");
        }
        assert!(!text.contains("hunter2"), "{text}");
    }
}
