//! Faults that come over HTTP: from those who flood, dawdle, lie or have no token.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::site::Site;
use super::{ROW, Row};
use crate::support::{PATIENCE, wait_for};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
/// More than the agent has places for, many times over.
const FLOOD: usize = 200;

pub(super) static ROWS: &[Row] = &[
    Row {
        name: "a flood of requests",
        fault: |site| {
            let http = serve(site);
            let crowd: Vec<_> = (0..FLOOD).map(|_| TcpStream::connect(http)).collect();
            for mut stream in crowd.into_iter().flatten() {
                let _ = stream.write_all(b"GET /status HTTP/1.1\r\n\r\n");
                hear(site, stream);
            }
            for _ in 0..FLOOD {
                let Ok(mut stream) = TcpStream::connect(http) else { continue };
                let _ = stream.write_all(b"GET /status HTTP/1.1\r\n\r\n");
                hear(site, stream);
            }
            until_served(http);
        },
        says: &["HTTP/1.1 503 ", "HTTP/1.1 429 "],
        ..ROW
    },
    Row {
        name: "requests that never end",
        fault: |site| {
            let http = serve(site);
            let slow: Vec<TcpStream> = (0..4)
                .map(|_| {
                    let mut stream = TcpStream::connect(http).unwrap();
                    stream.write_all(b"POST /apply_knobs HTTP/1.1\r\nX: ").unwrap();
                    stream
                })
                .collect();
            until_served(http);
            for stream in slow {
                hear(site, stream);
            }
        },
        says: &["HTTP/1.1 408 "],
        ..ROW
    },
    Row {
        name: "a body that is too large",
        fault: |site| {
            let body = format!("{{\"autosave_interval\": {}300}}", " ".repeat(100_000));
            ask(site, &with_token(&body));
        },
        says: &["HTTP/1.1 413 "],
        ..ROW
    },
    Row {
        name: "headers without end",
        fault: |site| {
            let text = format!("GET /status HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(100_000));
            ask(site, text.as_bytes());
        },
        says: &["HTTP/1.1 431 "],
        ..ROW
    },
    Row {
        name: "no token",
        fault: |site| {
            let body = "{\"autosave_interval\": 300}";
            let head = format!("POST /apply_knobs HTTP/1.1\r\nContent-Length: {}", body.len());
            ask(site, format!("{head}\r\n\r\n{body}").as_bytes());
        },
        says: &["HTTP/1.1 401 "],
        ..ROW
    },
    Row {
        name: "a request for all eleven options, most of them held",
        fault: |site| ask(site, &with_token(ALL_ELEVEN)),
        says: &["HTTP/1.1 422 ", "opt in to have it changed"],
        ..ROW
    },
    Row {
        name: "a request for a memory_limit below the heap",
        config: "[knobs.memory_limit]\ntune = \"yes\"\n",
        fault: |site| ask(site, &with_token("{\"memory_limit\": 44000}")),
        says: &["HTTP/1.1 422 ", "memory_limit"],
        ..ROW
    },
    Row {
        name: "a body that is no JSON",
        fault: |site| ask(site, &with_token("max_inflight_messages 0\n")),
        says: &["HTTP/1.1 400 ", "the body is no JSON"],
        ..ROW
    },
    Row {
        name: "the port for HTTP is taken",
        fault: |site| {
            let taken = TcpListener::bind("127.0.0.1:0").unwrap();
            configure(site, taken.local_addr().unwrap());
            assert_eq!(site.run_edge(&["run"]), 2);
        },
        says: &["http.listen: 127.0.0.1:"],
        ..ROW
    },
];

const ALL_ELEVEN: &str = "{\"max_inflight_messages\":100,\"max_inflight_bytes\":0,\
    \"max_queued_messages\":5000,\"max_queued_bytes\":0,\"queue_qos0_messages\":true,\
    \"memory_limit\":0,\"persistence\":false,\"autosave_interval\":1800,\
    \"set_tcp_nodelay\":true,\"max_packet_size\":1048576,\"message_size_limit\":0}";

fn with_token(body: &str) -> Vec<u8> {
    let head = "POST /apply_knobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer";
    let length = body.len();
    format!("{head} {TOKEN}\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes()
}

fn configure(site: &mut Site, http: SocketAddr) {
    let token = site.path("token");
    fs::write(&token, TOKEN).unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    site.config.extra += &format!("[http]\nlisten = \"{http}\"\ntoken_file = {token:?}\n");
}

/// The agent, tuned and serving HTTP.
fn serve(site: &mut Site) -> SocketAddr {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    configure(site, free);
    site.tune();
    until_served(free);
    free
}

fn until_served(http: SocketAddr) {
    wait_for("an answer in good health", || {
        let mut stream = TcpStream::connect(http).ok()?;
        stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").ok()?;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        answer.starts_with(b"HTTP/1.1 200 ").then_some(())
    });
}

fn hear(site: &mut Site, mut stream: TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    site.heard.push_str(&String::from_utf8_lossy(&answer));
}

/// One request that is to be refused: nothing is changed by it.
fn ask(site: &mut Site, request: &[u8]) {
    let http = serve(site);
    let before = fs::read(&site.config.drop_in).unwrap();
    let mut stream = TcpStream::connect(http).unwrap();
    // A server that has heard enough may close while we still write.
    let _ = stream.write_all(request);
    hear(site, stream);
    until_served(http);
    assert_eq!(fs::read(&site.config.drop_in).unwrap(), before);
}
