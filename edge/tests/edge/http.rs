//! HTTP against the running agent: every answer word for word, and everything that is refused.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use brokertuner_edge::agent::Report;
use brokertuner_edge::control::Broker as _;
use prometheus_parse::{Scrape, Value as Metric};
use serde_json::{Value, json};

use super::broker::{Broker, eventually, mosquittos};
use super::cli::{Running, on};
use super::model;
use super::orders::Site;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// An address that was free just now.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A broker and an agent that wants nothing: what changes is what was asked for.
fn site(mosquitto: &Path, listen: &str, knobs: &str) -> Site {
    let broker = Broker::start_with(mosquitto, "");
    let model = broker.path("model.btm");
    model::write(&model, &[]);
    let token = broker.path("token");
    fs::write(&token, TOKEN).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(&token, mode).unwrap();
    let decide = "[decide]\ninterval_ms = 250\ndwell_s = 3600\nverify_window_s = 1\n";
    let token = token.display();
    let http = format!("[http]\nlisten = \"{listen}\"\ntoken_file = \"{token}\"\n");
    let config = broker.edge_config(&model, &format!("{decide}{http}{knobs}"));
    Site { broker, config }
}

/// A broker, and an agent that can be asked.
fn served() -> (Http, Site, Running) {
    let http = Http(free_address());
    let site = site(&mosquittos()[0], &http.0.to_string(), "");
    let agent = site.agent();
    http.up();
    (http, site, agent)
}

/// Status and body of the answer to these very bytes.
fn said(mut stream: impl Read + Write, request: &[u8]) -> (u16, String) {
    // A server that has heard enough may close while we still write.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let length = format!("Content-Length: {}\r\n", body.len());
    assert!(status.is_none() || format!("{head}\r\n").contains(&length), "{head}");
    (status.unwrap_or(0), body.to_owned())
}

struct Http(SocketAddr);

impl Http {
    fn raw(&self, request: &[u8]) -> (u16, String) {
        loop {
            let stream = TcpStream::connect(self.0).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let answer = said(stream, request);
            if answer.0 != 429 {
                return answer;
            }
            // The tests ask faster than a person.
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn get(&self, path: &str) -> (u16, String) {
        self.raw(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
    }

    fn post_as(&self, authorization: &str, path: &str, body: &str) -> (u16, Value) {
        let length = body.len();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\n{authorization}Content-Length: {length}\r\n\r\n{body}"
        );
        let (status, body) = self.raw(request.as_bytes());
        (status, serde_json::from_str(&body).unwrap())
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.post_as(&format!("Authorization: Bearer {TOKEN}\r\n"), path, &body.to_string())
    }

    fn up(&self) {
        eventually("an agent that ticks", || {
            let stream = TcpStream::connect(self.0).ok()?;
            let (status, _) = said(stream, b"GET /healthz HTTP/1.1\r\n\r\n");
            std::thread::sleep(Duration::from_millis(100));
            (status == 200).then_some(())
        });
    }
}

/// All eleven options, as in the request that the defaults refuse.
fn all_eleven(memory_limit: u64) -> Value {
    json!({
        "max_inflight_messages": 100,
        "max_inflight_bytes": 0,
        "max_queued_messages": 5000,
        "max_queued_bytes": 0,
        "queue_qos0_messages": true,
        "memory_limit": memory_limit,
        "persistence": false,
        "autosave_interval": 1800,
        "set_tcp_nodelay": true,
        "max_packet_size": 1_048_576,
        "message_size_limit": 0,
    })
}

/// Why the defaults refuse [`all_eleven`].
fn held_reasons() -> serde_json::Map<String, Value> {
    let held = |key: &str| {
        let reason = format!("{key} is held at the site's value; opt in to have it changed");
        (key.to_owned(), json!(reason))
    };
    let keys = [
        "queue_qos0_messages",
        "memory_limit",
        "persistence",
        "max_packet_size",
        "message_size_limit",
    ];
    keys.into_iter().map(held).collect()
}

#[test]
fn options_are_set_scheduled_and_refused() {
    for mosquitto in mosquittos() {
        let http = Http(free_address());
        let site = site(&mosquitto, &http.0.to_string(), "");
        let agent = site.agent();
        http.up();
        site.until_tuned();

        assert_eq!(
            http.post("/apply_knobs", &json!({"autosave_interval": 300})),
            (200, json!({"status": "ok"}))
        );
        let text = fs::read_to_string(site.broker.drop_in()).unwrap();
        assert!(text.ends_with("\nautosave_interval 300\n"), "{text}");
        let report = site.until("what was set to be told", |report| !report.pinned.is_empty());
        assert_eq!(report.pinned, ["autosave_interval"]);

        let refused = held_reasons();
        let before = text;
        assert_eq!(
            http.post("/apply_knobs", &all_eleven(0)),
            (422, json!({"status": "refused", "refused": refused}))
        );
        let (status, body) = http.post(
            "/apply_knobs",
            &json!({"max_inflight_messages": 1000, "set_tcp_nodelay": 1, "max_conections": 5}),
        );
        assert_eq!(status, 422);
        assert_eq!(body["refused"]["set_tcp_nodelay"], "must be true or false");
        assert!(
            body["refused"]["max_inflight_messages"].as_str().unwrap().contains("below 2 times"),
            "{body}"
        );
        assert_eq!(body["refused"].as_object().unwrap().len(), 3, "{body}");
        assert_eq!(fs::read_to_string(site.broker.drop_in()).unwrap(), before, "nothing changed");

        let (status, body) = http.post("/apply_knobs?locked=skip", &all_eleven(0));
        let id = body["id"].as_u64().unwrap();
        let mut skipped: Vec<&str> = refused.keys().map(String::as_str).collect();
        skipped.sort_unstable();
        let mut told: Vec<&str> =
            body["skipped"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        told.sort_unstable();
        assert_eq!((status, &body["status"], told), (202, &json!("scheduled"), skipped));
        eventually("the restart", || (site.window() == 100).then_some(()));
        let is_done = |report: &Report| report.last.as_ref().is_some_and(|last| last.id == id);
        assert_eq!(site.until("it to be told", is_done).scheduled, None);
        let (_, out, _) = on(&site.config, &["explain", &id.to_string()]);
        assert!(out.contains("asked for over HTTP"), "{out}");

        site.done(&["pause"]);
        assert_eq!(
            http.post("/apply_knobs", &json!({"autosave_interval": 600})),
            (409, json!({"status": "held", "reason": "nothing is changed until `edge resume`"}))
        );
        drop(agent);
    }
}

/// An agent that may not restart its broker at any hour.
fn in_quiet_hours() -> (Http, Site, Running) {
    let http = Http(free_address());
    let site = site(&mosquittos()[0], &http.0.to_string(), "");
    let quiet = "[decide]\nquiet_hours = [\"00:00-12:00\", \"12:00-00:00\"]\n";
    let text = fs::read_to_string(&site.config).unwrap();
    fs::write(&site.config, text.replace("[decide]\n", quiet)).unwrap();
    let agent = site.agent();
    http.up();
    site.until_tuned();
    (http, site, agent)
}

/// What waits keeps its number, and what is set meanwhile has one of its own; no input of the
/// policy's weighed in either.
#[test]
fn what_is_set_meanwhile_is_another_decision() {
    let (http, site, agent) = in_quiet_hours();
    let (status, body) = http.post("/apply_knobs", &json!({"set_tcp_nodelay": true}));
    assert_eq!(status, 202, "{body}");
    let waiting = body["id"].as_u64();
    let set = http.post("/apply_knobs", &json!({"autosave_interval": 300}));
    assert_eq!(set, (200, json!({"status": "ok"})));
    let report = site.until("it to be told", |report| report.last.is_some());
    let last = report.last.unwrap();
    assert_ne!(Some(last.id), waiting, "{last:?}");
    assert_eq!((last.influences.len(), last.why.as_str()), (0, "asked for over HTTP"));
    assert_eq!(report.scheduled, waiting);

    // Each request that is not made by itself is told so, by its number.
    let (status, body) = http.post("/apply_knobs", &json!({"max_queued_messages": 5000}));
    assert_eq!(status, 202, "{body}");
    let later = body["id"].as_u64().unwrap();
    let (_, out, _) = on(&site.config, &["explain", &waiting.unwrap().to_string()]);
    assert!(out.contains(&format!("taken into decision {later}")), "{out}");
    site.done(&["pause"]);
    let (_, out, _) = on(&site.config, &["explain", &later.to_string()]);
    assert!(out.contains("waits no longer") && out.contains("edge pause came before"), "{out}");
    drop(agent);
}

/// The later word holds, and two that would be in force together are judged together.
#[test]
fn what_waits_and_what_is_set_now_are_one() {
    let (http, site, agent) = in_quiet_hours();
    let (status, body) = http.post("/apply_knobs", &json!({"set_tcp_nodelay": true}));
    assert_eq!(status, 202, "{body}");
    let taken_back = body["id"].to_string();
    let set = http.post("/apply_knobs", &json!({"set_tcp_nodelay": false}));
    assert_eq!(set, (200, json!({"status": "ok"})));
    site.until("it to wait no longer", |report| report.scheduled.is_none());
    let (_, out, _) = on(&site.config, &["explain", &taken_back]);
    assert!(out.contains("what was set later holds"), "{out}");

    let asked = json!({"max_inflight_messages": 400, "max_queued_messages": 1000});
    let (status, body) = http.post("/apply_knobs", &asked);
    assert_eq!(status, 202, "{body}");
    // 300 is enough for the window in force, and not for the one that waits.
    let (status, body) = http.post("/apply_knobs", &json!({"max_queued_messages": 300}));
    assert_eq!(status, 422, "{body}");
    assert!(body["refused"]["max_queued_messages"].as_str().unwrap().contains("below 2 times"));
    drop(agent);
}

/// With the options opted in and a memory limit, the same body is accepted.
#[test]
fn all_eleven_options_are_accepted_where_the_operator_says_so() {
    let http = Http(free_address());
    let tuned = ["queue_qos0_messages", "memory_limit", "persistence", "max_packet_size"];
    let mut knobs: String =
        tuned.iter().map(|key| format!("[knobs.{key}]\ntune = \"yes\"\n")).collect();
    knobs.push_str("[knobs.message_size_limit]\ntune = \"yes\"\n");
    let site = site(&mosquittos()[0], &http.0.to_string(), &knobs);
    let agent = site.agent();
    http.up();
    // Then it is known what the limits must stay above.
    site.until_tuned();
    let (status, body) = http.post("/apply_knobs", &all_eleven(0));
    assert_eq!(status, 422, "{body}");
    assert!(
        body["refused"]["queue_qos0_messages"]
            .as_str()
            .unwrap()
            .contains("set memory_limit as well"),
        "{body}"
    );
    let (status, body) = http.post("/apply_knobs", &all_eleven(256 << 20));
    assert_eq!(status, 202, "{body}");
    eventually("the restart", || (site.window() == 100).then_some(()));
    let connack = site.broker.live().answer().unwrap();
    assert_eq!(connack.packet_bytes_max, Some(1 << 20));
    let text = fs::read_to_string(site.broker.drop_in()).unwrap();
    assert_eq!(text.lines().count(), 1 + 11, "{text}");
    drop(agent);
}

#[test]
fn reading_needs_no_token_and_is_true() {
    let (http, site, agent) = served();
    site.until_tuned();
    assert_eq!(http.get("/healthz"), (200, "{\"status\":\"ok\"}\n".into()));
    let (status, body) = http.get("/status");
    let report: Report = serde_json::from_str(&body).unwrap();
    assert_eq!((status, report.broker.pid), (200, Some(site.broker.pid())));

    let (status, text) = eventually("a probe that came back", || {
        let (status, text) = http.get("/metrics");
        let has_probe = text.contains("\nbrokertuner_broker_probe_latency_qos0_seconds ");
        has_probe.then_some((status, text))
    });
    assert_eq!(status, 200);
    let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).unwrap();
    let written = text.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(scrape.samples.len(), written, "the parser understands every line: {text}");
    for sample in &scrape.samples {
        let name = &sample.metric;
        assert!(name.starts_with("brokertuner_"), "{name}");
        assert!(scrape.docs.get(name).is_some_and(|help| help.ends_with('.')), "{name}: no help");
        let is_counter = matches!(sample.value, Metric::Counter(_));
        let is_typed = is_counter || matches!(sample.value, Metric::Gauge(_));
        assert!(is_typed && is_counter == name.ends_with("_total"), "{name}: {:?}", sample.value);
        assert_eq!(text.matches(&format!("# TYPE {name} ")).count(), 1, "{name}");
    }
    for line in [
        "brokertuner_standing{standing=\"tuning\"} 1",
        "brokertuner_standing{standing=\"off\"} 0",
        "brokertuner_verdict{verdict=\"hold\"} 1",
        "brokertuner_setting{option=\"max_inflight_messages\",value=\"site\"} 20",
        "brokertuner_broker_clients 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    let seconds = text
        .lines()
        .find_map(|line| line.strip_prefix("brokertuner_broker_probe_latency_qos0_seconds "));
    let seconds: f64 = seconds.unwrap_or_else(|| panic!("no probe: {text}")).parse().unwrap();
    assert!((1e-6..1.0).contains(&seconds), "{seconds}: {text}");
    drop(agent);
}

#[test]
fn everything_else_is_refused_in_words() {
    let (http, site, agent) = served();
    site.until_tuned();
    let error = |reason: &str| json!({"status": "error", "reason": reason});
    let needs_token = error("send `Authorization: Bearer TOKEN` with the token of http.token_file");
    for authorization in [
        "",
        "Authorization: Bearer 0123456789abcdef\r\n",
        "Authorization: Basic 0123456789abcdef0123456789abcdef\r\n",
        "Authorization: Bearer\r\n",
    ] {
        let answer = http.post_as(authorization, "/apply_knobs", "{\"autosave_interval\": 300}");
        assert_eq!(answer, (401, needs_token.clone()), "{authorization}");
    }
    let auth = format!("Authorization: Bearer {TOKEN}\r\n");
    for (path, body, status, reason) in [
        ("/apply_knobs", "{}", 400, "the body names no option"),
        ("/apply_knobs", "[1]", 400, "the body must be a JSON object of options and values"),
        ("/apply_knobs?locked=no", "{}", 400, "the only query is ?locked=skip"),
        ("/status", "", 405, "/status takes GET"),
        (
            "/x",
            "",
            404,
            "no such path; there are GET /status, /healthz, /metrics and POST /apply_knobs",
        ),
    ] {
        assert_eq!(http.post_as(&auth, path, body), (status, error(reason)), "{path} {body}");
    }
    let (status, body) = http.post_as(&auth, "/apply_knobs", "{");
    assert!(status == 400 && body["reason"].as_str().unwrap().starts_with("the body is no JSON"));
    assert!(!site.broker.drop_in().exists(), "nothing was changed");
    drop(agent);
}

#[test]
fn what_is_no_proper_request_is_refused_in_words() {
    let (http, site, agent) = served();
    let error = |reason: &str| json!({"status": "error", "reason": reason});
    let long = "x".repeat(5000);
    let (no_http, too_long) =
        ("this is no HTTP/1.1 request", "the request line and headers are longer than 4096 bytes");
    let with_length = "send the body with a Content-Length";
    for (request, status, reason) in [
        ("GET /apply_knobs HTTP/1.1\r\n\r\n", 405, "/apply_knobs takes POST"),
        ("PUT /status HTTP/1.1\r\n\r\n", 405, "/status takes GET"),
        ("nonsense\r\n\r\n", 400, no_http),
        ("\u{0}\u{1}\u{2}\r\n\r\n", 400, no_http),
        (&format!("GET /{long} HTTP/1.1\r\n\r\n"), 431, too_long),
        (&format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(40)), 431, "more than 32 headers"),
        ("POST /apply_knobs HTTP/1.1\r\n\r\n", 411, with_length),
        (
            "POST /apply_knobs HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            501,
            with_length,
        ),
        (
            &format!("POST /apply_knobs HTTP/1.1\r\nContent-Length: 5000\r\n\r\n{long}"),
            413,
            "the body is longer than 4096 bytes",
        ),
        ("POST /apply_knobs HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400, "bad Content-Length"),
        (
            "POST /apply_knobs HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n12",
            400,
            "more than one Content-Length",
        ),
    ] {
        let (found, body) = http.raw(request.as_bytes());
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((found, body), (status, error(reason)), "{request:.60}");
    }
    assert_eq!(http.raw(b"HEAD /status HTTP/1.1\r\n\r\n").0, 405);
    assert!(!site.broker.drop_in().exists(), "nothing was changed");
    drop(agent);
}

/// Where no token is configured nobody may write, with whatever token.
#[test]
fn without_a_token_file_nothing_is_set() {
    let http = Http(free_address());
    let site = site(&mosquittos()[0], &http.0.to_string(), "");
    let text = fs::read_to_string(&site.config).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("token_file"));
    fs::write(&site.config, lines.collect::<Vec<_>>().join("\n")).unwrap();
    let agent = site.agent();
    http.up();
    let reason = "there is no token to write with: set http.token_file";
    let refused = (403, json!({"status": "error", "reason": reason}));
    assert_eq!(http.post("/apply_knobs", &json!({"autosave_interval": 300})), refused);
    assert_eq!(http.get("/status").0, 200);
    drop(agent);
}

/// Those who never finish a request are let go after 5 s, and others are served meanwhile.
#[test]
fn slow_and_many_clients_cost_nothing_but_themselves() {
    let (http, _site, agent) = served();
    let started = Instant::now();
    let mut slow: Vec<TcpStream> = (0..4)
        .map(|_| {
            let mut stream = TcpStream::connect(http.0).unwrap();
            stream.write_all(b"GET /status HTTP/1.1\r\nX: ").unwrap();
            stream
        })
        .collect();
    assert_eq!(http.get("/healthz").0, 200);
    // One byte now and then does not keep the place.
    let mut first = slow.remove(0);
    first.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut answer = Vec::new();
    eventually("the slow one to be let go", || {
        let _ = first.write_all(b"y");
        let mut bytes = [0; 1024];
        let count = first.read(&mut bytes).unwrap_or(0);
        answer.extend_from_slice(&bytes[..count]);
        (count > 0).then_some(())
    });
    let answer = String::from_utf8(answer).unwrap();
    let reason = "{\"reason\":\"the request did not come within 5 s\",\"status\":\"error\"}\n";
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.ends_with(reason), "{answer:?}");
    assert!(started.elapsed() >= Duration::from_secs(4));
    drop(slow);

    // More at once than there are places.
    let crowd: Vec<TcpStream> = (0..30).map(|_| TcpStream::connect(http.0).unwrap()).collect();
    let turned_away = crowd.iter().filter(|stream| {
        let mut stream: &TcpStream = stream;
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut bytes = [0; 64];
        let count = stream.read(&mut bytes).unwrap_or(0);
        let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
        text.starts_with("HTTP/1.1 503 ") || text.starts_with("HTTP/1.1 429 ")
    });
    assert!(turned_away.count() >= 20);
    for stream in &crowd {
        let _ = stream.shutdown(Shutdown::Both);
    }
    drop(crowd);
    eventually("places to be free again", || {
        std::thread::sleep(Duration::from_millis(100));
        (http.get("/healthz").0 == 200).then_some(())
    });
    drop(agent);
}

#[test]
fn a_unix_socket_serves_as_well_and_a_taken_port_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("http.sock");
    let broker = site(&mosquittos()[0], &format!("unix:{}", path.display()), "");
    let agent = broker.agent();
    let answer = eventually("an answer", || {
        let stream = UnixStream::connect(&path).ok()?;
        let (status, body) = said(stream, b"GET /healthz HTTP/1.1\r\n\r\n");
        (status == 200).then_some(body)
    });
    assert_eq!(answer, "{\"status\":\"ok\"}\n");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o660);
    // Where someone is served, nobody else begins to listen; where something else lies, neither.
    let listen = format!("unix:{}", path.display());
    let second = site(&mosquittos()[0], &listen, "");
    let (code, _, err) = on(&second.config, &["run"]);
    assert!(code == 2 && err.contains("someone listens there"), "{code}: {err}");
    drop(agent);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    let (code, _, err) = on(&second.config, &["run"]);
    assert!(code == 2 && err.contains("something else than a socket"), "{code}: {err}");
    assert_eq!(fs::read(&path).unwrap(), b"precious");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let site = site(&mosquittos()[0], &taken.local_addr().unwrap().to_string(), "");
    let (code, _, err) = on(&site.config, &["run"]);
    assert!(code == 2 && err.contains("http.listen: 127.0.0.1:"), "{code}: {err}");
}
