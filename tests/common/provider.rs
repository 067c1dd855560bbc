//! A provider on loopback that answers `region`-blind chat completions and writes each call down.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// How the provider answers.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// How long an answer takes.
    pub delay: Duration,
    /// The status of every answer; 200 answers.
    pub status: u16,
    /// Headers beside the usual ones, each with its line end.
    pub headers: String,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { delay: Duration::from_millis(20), status: 200, headers: String::new() }
    }
}

struct Shared {
    behaviour: Mutex<Behaviour>,
    /// Idempotency key → calls begun.
    calls: Mutex<BTreeMap<String, usize>>,
    running: AtomicUsize,
    answered: Mutex<Vec<Instant>>,
    stop: AtomicBool,
    wake: Condvar,
}

/// The provider; it stops with the test.
pub struct Provider {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Provider {
    /// Listens on a free port.
    pub fn start(behaviour: Behaviour) -> Self {
        Self::start_on(0, behaviour)
    }
    /// Listens on this port of loopback.
    pub fn start_on(port: u16, behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            behaviour: Mutex::new(behaviour),
            calls: Mutex::default(),
            running: AtomicUsize::new(0),
            answered: Mutex::default(),
            stop: AtomicBool::new(false),
            wake: Condvar::new(),
        });
        let serve = shared.clone();
        let acceptor = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if serve.stop.load(Ordering::SeqCst) {
                    return;
                }
                let shared = serve.clone();
                std::thread::spawn(move || {
                    // A client that goes away in the middle is what some tests are about.
                    let _gone = answer(stream, &shared);
                });
            }
        });
        Self { address, shared, acceptor: Some(acceptor) }
    }

    /// The base URL of the endpoint.
    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }
    /// Calls begun so far.
    pub fn calls(&self) -> usize {
        self.shared.calls.lock().expect("no panic").values().sum()
    }
    /// Calls begun so far, by idempotency key.
    pub fn calls_by_key(&self) -> BTreeMap<String, usize> {
        self.shared.calls.lock().expect("no panic").clone()
    }
    /// Calls under way.
    pub fn running(&self) -> usize {
        self.shared.running.load(Ordering::SeqCst)
    }
    /// Calls answered within the last `window`.
    pub fn answered_within(&self, window: Duration) -> usize {
        self.shared.answered.lock().expect("no panic").iter().filter(|at| at.elapsed() < window).count()
    }
    /// Answers differently from now on.
    pub fn behave(&self, behaviour: Behaviour) {
        *self.shared.behaviour.lock().expect("no panic") = behaviour;
        self.shared.wake.notify_all();
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.wake.notify_all();
        let _wakes_the_acceptor = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().expect("the acceptor does not panic");
        }
    }
}

/// Serves one connection, request after request.
fn answer(stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    while let Some((line, key, body)) = request(&mut reader)? {
        let (status, headers, text) = if line.starts_with("GET") {
            listing(shared)
        } else {
            *shared.calls.lock().expect("no panic").entry(key).or_default() += 1;
            shared.running.fetch_add(1, Ordering::SeqCst);
            let told = take_time(shared);
            shared.answered.lock().expect("no panic").push(Instant::now());
            shared.running.fetch_sub(1, Ordering::SeqCst);
            (told.status, told.headers, completion(&body, told.status))
        };
        write!(
            writer,
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{headers}\r\n{text}",
            text.len()
        )?;
        writer.flush()?;
    }
    Ok(())
}

/// The list of models, or the refusal that every call meets.
fn listing(shared: &Shared) -> (u16, String, String) {
    let status = shared.behaviour.lock().expect("no panic").status;
    if status == 401 { (status, String::new(), completion(&[], status)) } else { (200, String::new(), models()) }
}

fn take_time(shared: &Shared) -> Behaviour {
    let told = shared.behaviour.lock().expect("no panic");
    let delay = told.delay;
    let (told, _) =
        shared.wake.wait_timeout_while(told, delay, |_| !shared.stop.load(Ordering::SeqCst)).expect("no panic");
    told.clone()
}

fn request(reader: &mut impl BufRead) -> std::io::Result<Option<(String, String, Vec<u8>)>> {
    let mut first = String::new();
    if reader.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let (mut length, mut key) = (0, String::new());
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        if lower.starts_with("idempotency-key:") {
            key = line.split_once(':').map_or("", |(_, v)| v).trim().to_owned();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some((first, key, body)))
}

fn models() -> String {
    let names = ["qwen2.5-1.5b", "mistral-7b", "llama3.2-1b", "m"];
    let data: Vec<_> = names.iter().map(|n| serde_json::json!({ "id": n })).collect();
    serde_json::json!({ "data": data }).to_string()
}

fn completion(body: &[u8], status: u16) -> String {
    if status != 200 {
        return serde_json::json!({ "error": { "message": format!("the provider says {status}") } }).to_string();
    }
    let asked: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let model = asked["model"].as_str().unwrap_or_default();
    let prompt =
        asked["messages"].as_array().and_then(|m| m.last()).map_or("", |m| m["content"].as_str().unwrap_or(""));
    serde_json::json!({
        "id": "call",
        "model": model,
        "choices": [{ "message": { "role": "assistant", "content": format!("{model}: {prompt}") }, "finish_reason": "stop" }],
        "usage": { "prompt_tokens": 3, "completion_tokens": 5 },
    })
    .to_string()
}
