//! HTTP/1.1 for one person, one script and one Prometheus: four routes, one request a connection,
//! a limit on everything.
//!
//! Small enough to be read whole: `httparse` reads the head, this does the rest. A framework would
//! bring a hundred crates for routes that are a `match`.

mod metrics;
mod routes;

use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use routes::Response;
pub use routes::{Token, TokenError};

use crate::agent::{Call, Report};
use routes::Routes;

/// Longest request line and headers.
const HEAD_BYTES_MAX: usize = 4096;
/// Most headers.
const HEADERS_MAX: usize = 32;
/// Longest body: eleven options are some 400 bytes.
const BODY_BYTES_MAX: usize = 4096;
/// Connections at a time; one more is told to come back.
const CONNECTIONS_MAX: usize = 8;
/// From the connection to the last byte of the request, however slowly they come.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// For the other side to take the answer.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// Requests a second in the long run, and how many may come at once.
const RATE_PER_S: f64 = 10.0;
const BURST: f64 = 20.0;
/// What of a refused request is read on, so that the answer is not lost to a reset.
const LINGER_BYTES: usize = 64 * 1024;
const LINGER_TIME: Duration = Duration::from_millis(500);
/// Reading is for the group of a Unix socket, too.
const SOCKET_MODE: u32 = 0o660;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A Unix socket.
    Unix(PathBuf),
    /// An address and port.
    Tcp(SocketAddr),
}

impl Listen {
    /// Reads `unix:/absolute/path` or `ADDRESS:PORT`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return path.starts_with('/').then(|| Self::Unix(path.into()));
        }
        text.parse().ok().map(Self::Tcp)
    }

    /// Only this machine can connect.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp(address) => address.ip().is_loopback(),
        }
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

/// How HTTP is served.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// Where.
    pub listen: Listen,
    /// What a write needs; without it there are no writes.
    pub token: Option<Token>,
    /// The longest that a healthy agent takes from one tick to the next.
    pub tick_max: Duration,
}

/// The last report, for readers that do not wait for the agent.
#[derive(Debug, Clone, Default)]
pub struct Board(Arc<Mutex<Option<(Instant, Report)>>>);

impl Board {
    /// Puts a report up.
    pub fn put(&self, report: Report) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), report));
    }

    fn look<T>(&self, read: impl FnOnce(Option<(Duration, &Report)>) -> T) -> T {
        let board = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        read(board.as_ref().map(|(at, report)| (at.elapsed(), report)))
    }
}

/// A bound listener: made before the thread starts, so that a taken port is an error at once.
#[derive(Debug)]
pub(super) enum Bound {
    Unix(std::os::unix::net::UnixListener),
    Tcp(StdTcpListener),
}

impl Bound {
    /// For the runtime that this is called in.
    pub(super) fn into_async(self) -> io::Result<Listener> {
        Ok(match self {
            Self::Unix(listener) => Listener::Unix(UnixListener::from_std(listener)?),
            Self::Tcp(listener) => Listener::Tcp(TcpListener::from_std(listener)?),
        })
    }
}

/// A listener of the thread's runtime.
#[derive(Debug)]
pub(super) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

pub(super) fn bind(listen: &Listen) -> io::Result<Bound> {
    match listen {
        Listen::Unix(path) => super::control::bind(path, SOCKET_MODE).map(Bound::Unix),
        Listen::Tcp(address) => {
            let listener = StdTcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(Bound::Tcp(listener))
        }
    }
}

/// Serves until the thread ends.
pub(super) async fn serve(listener: Listener, options: HttpOptions, board: Board, call: Call) {
    let routes = Arc::new(Routes { options, board, call });
    let gate = Arc::new(Gate::default());
    match listener {
        Listener::Unix(listener) => loop {
            let stream = listener.accept().await.map(|(stream, _)| stream);
            enter(stream, &gate, &routes).await;
        },
        Listener::Tcp(listener) => loop {
            let stream = listener.accept().await.map(|(stream, _)| stream);
            enter(stream, &gate, &routes).await;
        },
    }
}

/// Who may come in.
#[derive(Debug)]
struct Gate {
    places: Arc<Semaphore>,
    tokens: Mutex<(f64, Instant)>,
}

impl Default for Gate {
    fn default() -> Self {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Self { places, tokens: Mutex::new((BURST, Instant::now())) }
    }
}

impl Gate {
    /// Takes one from the bucket.
    fn is_in_rate(&self) -> bool {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, at) = *tokens;
        let left = (left + at.elapsed().as_secs_f64() * RATE_PER_S).min(BURST);
        let is_in = left >= 1.0;
        *tokens = (if is_in { left - 1.0 } else { left }, Instant::now());
        is_in
    }
}

async fn enter<S>(stream: io::Result<S>, gate: &Arc<Gate>, routes: &Arc<Routes>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Ok(mut stream) = stream else {
        // Out of descriptors, or the like: no reason to spin.
        tokio::time::sleep(Duration::from_secs(1)).await;
        return;
    };
    let Ok(place) = Arc::clone(&gate.places).try_acquire_owned() else {
        // Not waited for: whatever fits into the socket's buffer.
        let busy = Response::plain(503, "too many connections; try again").to_bytes();
        let _ = timeout(Duration::from_millis(10), stream.write_all(&busy)).await;
        return;
    };
    let is_in_rate = gate.is_in_rate();
    let routes = Arc::clone(routes);
    tokio::spawn(async move {
        let _place = place;
        let response = if is_in_rate {
            talk(&mut stream, &routes).await
        } else {
            Some(Response::plain(429, "too many requests; try again in a second"))
        };
        if let Some(response) = response {
            let _ = timeout(ANSWER_TIME, stream.write_all(&response.to_bytes())).await;
            let _ = timeout(LINGER_TIME, linger(&mut stream)).await;
        }
    });
}

async fn linger<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) {
    let _ = stream.shutdown().await;
    let mut rest = [0; 1024];
    for _ in 0..LINGER_BYTES / rest.len() {
        if !matches!(stream.read(&mut rest).await, Ok(1..)) {
            return;
        }
    }
}

/// One request and what to answer; `None` where nobody is there to be answered.
async fn talk<S: AsyncRead + Unpin>(stream: &mut S, routes: &Routes) -> Option<Response> {
    let request = match timeout(REQUEST_TIME, read_request(stream)).await {
        Ok(Ok(request)) => request,
        Ok(Err(Wrong::Gone)) => return None,
        Ok(Err(Wrong::Answer(response))) => return Some(response),
        Err(_) => return Some(Response::plain(408, "the request did not come within 5 s")),
    };
    Some(routes.answer(request).await)
}

/// A request that was read whole.
#[derive(Debug)]
struct Request {
    method: String,
    /// With its query.
    target: String,
    authorization: Option<Vec<u8>>,
    body: Vec<u8>,
}

/// The target and the body of the request in `bytes`, read as the server reads it from a connection
/// that then ends; an error is the status that it is refused with, 0 for no answer.
///
/// # Errors
/// The status.
pub fn read(bytes: &[u8]) -> Result<(String, Vec<u8>), u16> {
    let mut stream = bytes;
    let reading = std::pin::pin!(read_request(&mut stream));
    // What is there already is never waited for.
    match reading.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(request)) => Ok((request.target, request.body)),
        Poll::Ready(Err(Wrong::Answer(response))) => Err(response.status),
        Poll::Ready(Err(Wrong::Gone)) | Poll::Pending => Err(0),
    }
}

/// Why there is no request.
enum Wrong {
    Gone,
    Answer(Response),
}

fn wrong(status: u16, reason: &str) -> Wrong {
    Wrong::Answer(Response::plain(status, reason))
}

async fn read_request<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Request, Wrong> {
    let mut bytes = Vec::with_capacity(1024);
    let (mut request, head_length, length) = loop {
        if stream.read_buf(&mut bytes).await.map_err(|_| Wrong::Gone)? == 0 {
            return Err(Wrong::Gone);
        }
        if let Some(head) = parse_head(&bytes)? {
            break head;
        }
        if bytes.len() >= HEAD_BYTES_MAX {
            return Err(wrong(431, "the request line and headers are longer than 4096 bytes"));
        }
    };
    bytes.drain(..head_length);
    while bytes.len() < length {
        if stream.read_buf(&mut bytes).await.map_err(|_| Wrong::Gone)? == 0 {
            return Err(Wrong::Gone);
        }
    }
    bytes.truncate(length);
    request.body = bytes;
    Ok(request)
}

/// The head, its length and that of the body to come; `None` while the head is not whole.
fn parse_head(bytes: &[u8]) -> Result<Option<(Request, usize, usize)>, Wrong> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut headers);
    let head_length = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= HEAD_BYTES_MAX => length,
        Ok(httparse::Status::Complete(_)) => {
            return Err(wrong(431, "the request line and headers are longer than 4096 bytes"));
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(wrong(431, "more than 32 headers")),
        Err(_) => return Err(wrong(400, "this is no HTTP/1.1 request")),
    };
    let (Some(method), Some(target)) = (head.method, head.path) else {
        return Err(wrong(400, "this is no HTTP/1.1 request"));
    };
    let named = |name: &'static str| {
        let headers = head.headers.iter();
        headers.filter(move |header| header.name.eq_ignore_ascii_case(name))
    };
    if named("transfer-encoding").next().is_some() {
        return Err(wrong(501, "send the body with a Content-Length"));
    }
    let mut lengths = named("content-length").map(|header| header.value);
    let length = match (lengths.next(), lengths.next()) {
        (None, _) if method == "POST" => {
            return Err(wrong(411, "send the body with a Content-Length"));
        }
        (None, _) => 0,
        (Some(text), None) => {
            content_length(text).ok_or_else(|| wrong(400, "bad Content-Length"))?
        }
        (Some(_), Some(_)) => return Err(wrong(400, "more than one Content-Length")),
    };
    if length > BODY_BYTES_MAX {
        return Err(wrong(413, "the body is longer than 4096 bytes"));
    }
    let request = Request {
        method: method.to_owned(),
        target: target.to_owned(),
        authorization: named("authorization").next().map(|header| header.value.to_vec()),
        body: Vec::new(),
    };
    Ok(Some((request, head_length, length)))
}

/// Digits only: no sign, no blank, no list.
fn content_length(text: &[u8]) -> Option<usize> {
    let is_plain = !text.is_empty() && text.len() <= 9 && text.iter().all(u8::is_ascii_digit);
    if is_plain { std::str::from_utf8(text).ok()?.parse().ok() } else { None }
}

/// Removes a Unix socket when its server ends.
pub(super) fn forget(listen: &Listen) {
    if let Listen::Unix(path) = listen {
        let _: io::Result<()> = std::fs::remove_file(Path::new(path));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_are_read_and_told_apart() {
        let unix = Listen::parse("unix:/run/brokertuner/edge.sock").unwrap();
        assert_eq!(unix, Listen::Unix("/run/brokertuner/edge.sock".into()));
        for (text, is_local) in [
            ("127.0.0.1:9188", true),
            ("[::1]:9188", true),
            ("0.0.0.0:9188", false),
            ("192.168.1.2:9188", false),
        ] {
            assert_eq!(Listen::parse(text).unwrap().is_local(), is_local, "{text}");
        }
        for wrong in ["", "unix:relative", "localhost:9188", "127.0.0.1", "9188"] {
            assert_eq!(Listen::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_rate_has_a_burst_and_an_end() {
        let gate = Gate::default();
        let passed = (0..1000).filter(|_| gate.is_in_rate()).count();
        assert!((20..=30).contains(&passed), "{passed}");
    }

    #[test]
    fn lengths_are_plain_decimals() {
        assert_eq!(content_length(b"12"), Some(12));
        for wrong in [&b""[..], b"-1", b"+1", b"1 ", b"0x1", b"1,1", b"9999999999", b"\xff"] {
            assert_eq!(content_length(wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_head(&bytes);
            let mut near = b"POST /apply_knobs HTTP/1.1\r\nContent-Length: ".to_vec();
            near.extend(bytes);
            let _ = parse_head(&near);
        }
    }
}
