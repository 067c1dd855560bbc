//! A provider of the tests: a loopback HTTP server that says exactly what it is told to.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What the provider does with a request.
#[derive(Clone)]
pub enum Reply {
    /// Sends these bytes and closes.
    Bytes(Vec<u8>),
    /// Sends these bytes and then more and more of the last, until the peer closes.
    Endless(Vec<u8>),
    /// Sends these bytes and waits until the peer closes.
    Hang(Vec<u8>),
}

pub struct Provider {
    pub address: std::net::SocketAddr,
    /// Each request as it came: head and body.
    pub requests: Arc<Mutex<Vec<String>>>,
    /// Connections that the peer closed while it was owed something.
    pub aborted: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Provider {
    /// A provider that gives every request the same reply.
    pub async fn start(reply: Reply) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, aborted) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let (log, count) = (Arc::clone(&requests), Arc::clone(&aborted));
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, reply.clone(), Arc::clone(&log), Arc::clone(&count)));
            }
        });
        Self { address, requests, aborted, accepting }
    }

    /// One that answers `status` with these header lines and this body.
    pub async fn answering(status: &str, headers: &[&str], body: impl AsRef<[u8]>) -> Self {
        Self::start(Reply::Bytes(response(status, headers, body.as_ref()))).await
    }

    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub fn request(&self) -> String {
        self.requests.lock().unwrap().first().cloned().expect("no request came")
    }
}

/// A response with its length.
pub fn response(status: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let mut bytes =
        format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n", body.len())
            .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

async fn serve(mut stream: TcpStream, reply: Reply, requests: Arc<Mutex<Vec<String>>>, aborted: Arc<AtomicUsize>) {
    let Some(request) = read_request(&mut stream).await else { return };
    requests.lock().unwrap().push(request);
    match reply {
        Reply::Bytes(bytes) => {
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
        }
        Reply::Endless(bytes) => {
            let _ = stream.write_all(&bytes).await;
            let more = [bytes.last().copied().unwrap_or_default(); 4096];
            while stream.write_all(&more).await.is_ok() {}
            aborted.fetch_add(1, Ordering::SeqCst);
        }
        Reply::Hang(bytes) => {
            let _ = stream.write_all(&bytes).await;
            let mut rest = [0; 16];
            while matches!(stream.read(&mut rest).await, Ok(1..)) {}
            aborted.fetch_add(1, Ordering::SeqCst);
        }
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok());
            if body.len() >= length.unwrap_or(0) {
                return Some(text);
            }
        }
        let mut chunk = [0; 4096];
        let size = stream.read(&mut chunk).await.ok()?;
        if size == 0 {
            return None;
        }
        bytes.extend_from_slice(&chunk[..size]);
    }
}
