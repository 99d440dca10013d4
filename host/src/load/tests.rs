#![allow(clippy::unwrap_used, reason = "tests")]
//! Loads on a real Mosquitto, and on listeners that misbehave.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// A Mosquitto of its own on a free port; ends with the test.
struct Broker {
    child: Child,
    dir: tempfile::TempDir,
    addr: SocketAddr,
}

impl Broker {
    fn start(settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // The port is free a moment later too: the system hands out others first.
        let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let state = dir.path().display();
        let user = if nix::unistd::geteuid().is_root() { "user root" } else { "" };
        let conf = format!(
            "listener {} 127.0.0.1\nallow_anonymous true\n{user}\npersistence true\npersistence_location {state}/\n\
             log_dest none\nmax_inflight_messages 1000\nmax_queued_messages 20000\n{settings}\n",
            addr.port()
        );
        std::fs::write(dir.path().join("m.conf"), conf).unwrap();
        let child = Self::spawn(&dir);
        let broker = Self { child, dir, addr };
        broker.wait_until_ready();
        broker
    }

    fn spawn(dir: &tempfile::TempDir) -> Child {
        let paths = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "/usr/bin/mosquitto"];
        let path = paths.iter().map(PathBuf::from).find(|path| path.is_file());
        let path = path.expect("these tests need a broker: apt-get install mosquitto");
        let mut command = Command::new(path);
        command
            .arg("-c")
            .arg(dir.path().join("m.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn wait_until_ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(self.addr).is_err() {
            assert!(Instant::now() < deadline, "mosquitto does not listen on {}", self.addr);
            std::thread::yield_now();
        }
    }

    /// Stops it orderly, so that it saves its state, and starts it again.
    fn restart(&mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.child.wait().unwrap();
        self.child = Self::spawn(&self.dir);
        self.wait_until_ready();
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const HEAD: &str = "schema = 1\nname = \"t\"\nsummary = \"t\"\nrss_limit_mib = 64\n";

fn scenario(body: &str) -> Scenario {
    Scenario::parse(&format!("{HEAD}{body}"), "test").unwrap()
}

fn play_on(broker: &Broker, body: &str) -> LoadResult {
    LoadGenerator::start(LoadConfig::new(scenario(body), broker.addr)).unwrap().join().unwrap()
}

/// Polls until the condition holds.
fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// Everything was delivered once; in time unless the machine was busy with something else.
fn assert_delivered(result: &LoadResult, expected: u64) {
    assert!(result.is_complete, "{result:?}");
    assert_eq!(result.tally.expected, expected, "{result:?}");
    assert_eq!(result.tally.in_time, expected, "{result:?}");
    assert_eq!((result.duplicates, result.connections_lost, result.malformed_packets), (0, 0, 0));
}

#[test]
fn every_qos_and_protocol_delivers_everything() {
    let broker = Broker::start("");
    let mut body = "deadline_ms = 2000\n[[phase]]\nname = \"p\"\nduration_s = 1\n".to_owned();
    for (i, (qos, protocol)) in
        [0, 1, 2].into_iter().flat_map(|qos| [(qos, 4), (qos, 5)]).enumerate()
    {
        body += &format!(
            "[[phase.publish]]\nname = \"w{i}\"\nclients = 3\nrate_hz = 50\nqos = {qos}\nprotocol = {protocol}\n\
             payload_bytes = [16, 3000]\ntopic = \"{{group}}/{{client}}\"\n\
             [[phase.subscribe]]\nname = \"r{i}\"\nclients = 2\nfilter = \"w{i}/#\"\nqos = {qos}\nprotocol = {protocol}\n\
             [[phase.subscribe]]\nname = \"own{i}\"\nclients = 2\nfilter = \"w{i}/{{client}}\"\nqos = {qos}\n\
             protocol = {protocol}\n"
        );
    }
    let result = play_on(&broker, &body);
    // Per pair 150 messages to 2 readers, and to the 2 that take one client's 50 each.
    assert_delivered(&result, 6 * (300 + 100));
    assert_eq!(result.phases[0].groups.len(), 12);
    assert!(result.phases[0].groups.iter().all(|group| group.latency_us_p50 > 0), "{result:?}");
    let json = serde_json::to_value(&result).unwrap();
    assert_eq!(json["version"], 1);
    assert_eq!(json["phases"][0]["groups"][0]["seconds"][0]["tally"]["expected"], 300);
}

#[test]
fn the_same_seed_sends_the_same_sizes() {
    let of = |seed| payload::Sizes { seed, min: 16, max: 3000 };
    let sizes = |seed| (0..20).map(|k| of(seed).of(1, k)).collect::<Vec<_>>();
    assert_eq!(sizes(1), sizes(1));
    assert_ne!(sizes(1), sizes(2));
}

#[test]
fn clients_come_back_after_a_restart_and_acknowledged_messages_survive() {
    let mut broker = Broker::start("");
    let body = "deadline_ms = 3000\n[[phase]]\nname = \"p\"\nduration_s = 3\n\
         [[phase.publish]]\nname = \"a\"\nclients = 5\nrate_hz = 40\nqos = 1\npayload_bytes = 64\ntopic = \"a/{client}\"\n\
         [[phase.publish]]\nname = \"b\"\nclients = 5\nrate_hz = 40\nqos = 2\nprotocol = 5\npayload_bytes = 64\ntopic = \"b/{client}\"\n\
         [[phase.subscribe]]\nname = \"ra\"\nclients = 2\nfilter = \"a/#\"\nqos = 1\nclean_session = false\n\
         [[phase.subscribe]]\nname = \"rb\"\nclients = 2\nfilter = \"b/#\"\nqos = 2\nprotocol = 5\nclean_session = false\n";
    let generator = LoadGenerator::start(LoadConfig::new(scenario(body), broker.addr)).unwrap();
    wait_for("a second of load", || generator.scored_start().elapsed() > Duration::from_secs(1));
    broker.restart();
    let result = generator.join().unwrap();
    assert_eq!(result.connections_lost, 14, "{result:?}");
    assert_eq!(result.tally.expected, 2 * 2 * 600, "{result:?}");
    // Durable sessions, saved state, and publishers that send again: nothing is lost, and 3 s are
    // enough.
    assert_eq!(result.tally.in_time, result.tally.expected, "{result:?}");
}

#[test]
fn a_clean_subscriber_loses_to_the_outage_and_it_is_called_that() {
    let mut broker = Broker::start("");
    let body = "deadline_ms = 100\n[[phase]]\nname = \"p\"\nduration_s = 3\n\
         [[phase.publish]]\nname = \"a\"\nclients = 5\nrate_hz = 40\nqos = 1\npayload_bytes = 64\ntopic = \"a/{client}\"\n\
         [[phase.subscribe]]\nname = \"ra\"\nclients = 2\nfilter = \"a/#\"\nqos = 1\n";
    let generator = LoadGenerator::start(LoadConfig::new(scenario(body), broker.addr)).unwrap();
    wait_for("a second of load", || generator.scored_start().elapsed() > Duration::from_secs(1));
    broker.restart();
    let tally = generator.join().unwrap().tally;
    // At least reconnect_ms of 200 messages/s to two subscribers.
    assert!(tally.lost_outage >= 40, "{tally:?}");
    let sum =
        tally.in_time + tally.lost_late + tally.lost_queue + tally.lost_outage + tally.lost_memory;
    assert_eq!(sum, tally.expected, "{tally:?}");
}

#[test]
fn a_durable_subscriber_that_was_offline_loses_nothing() {
    let broker = Broker::start("");
    let body = "deadline_ms = 1500\n[[phase]]\nname = \"p\"\nduration_s = 4\n\
         [[phase.publish]]\nname = \"a\"\nclients = 5\nrate_hz = 20\nqos = 1\npayload_bytes = 64\ntopic = \"a/{client}\"\n\
         [[phase.subscribe]]\nname = \"durable\"\nclients = 2\nfilter = \"a/#\"\nqos = 1\nclean_session = false\n\
         ack_delay_ms = 10\noffline = { at_s = 1, for_s = 2 }\n\
         [[phase.subscribe]]\nname = \"clean\"\nclients = 1\nfilter = \"a/#\"\nqos = 1\n\
         offline = { at_s = 1, for_s = 2 }\n";
    let result = play_on(&broker, body);
    let [durable, clean] = &result.phases[0].groups[..] else { panic!("{result:?}") };
    assert_eq!((durable.tally.expected, durable.tally.in_time), (800, 800), "{result:?}");
    assert!(durable.latency_us_max > 1_500_000, "some waited for its return: {durable:?}");
    // 100 messages/s for 4 s, of which 2 s and reconnect_ms are exempt.
    assert_eq!(clean.tally.expected, 180, "{clean:?}");
    assert!(clean.tally.in_time >= 178, "{clean:?}");
    assert_eq!(result.connections_lost, 0, "scheduled absences are not lost connections");
}

#[test]
fn the_acknowledgement_delay_throttles_a_small_window() {
    // Receive Maximum 1 and 100 ms per acknowledgement: 10 messages/s of the 100/s on offer. Not 2:
    // Mosquitto 2.0.11 lets every window but 1 grow.
    let broker = Broker::start("");
    let body = "deadline_ms = 200\n[[phase]]\nname = \"p\"\nduration_s = 2\n\
         [[phase.publish]]\nname = \"a\"\nclients = 1\nrate_hz = 100\nqos = 1\npayload_bytes = 64\ntopic = \"a\"\n\
         [[phase.subscribe]]\nname = \"slow\"\nclients = 1\nfilter = \"a\"\nqos = 1\nprotocol = 5\n\
         receive_maximum = 1\nack_delay_ms = 100\n";
    let result = play_on(&broker, body);
    let delivered = result.delivered_per_s * result.seconds as f64;
    // 2.2 s including the stay, a message per 100 ms and the first at once.
    assert!((10.0..=23.0).contains(&delivered), "{delivered} {result:?}");
    assert!(result.tally.lost_queue + result.tally.lost_late > 150, "{result:?}");
}

#[test]
fn bursts_arrive_and_phases_keep_their_connections() {
    let broker = Broker::start("");
    let phase = |name: &str, clients: u32| {
        format!(
            "[[phase]]\nname = \"{name}\"\nduration_s = 2\n\
             [[phase.publish]]\nname = \"a\"\nclients = {clients}\nrate_hz = 50\nqos = 1\npayload_bytes = 64\n\
             topic = \"a/{{client}}\"\nburst = {{ period_s = 0.5, duty = 0.1 }}\n\
             [[phase.subscribe]]\nname = \"r\"\nclients = 2\nfilter = \"a/#\"\nqos = 1\n"
        )
    };
    let body =
        format!("deadline_ms = 1000\n{}{}{}", phase("one", 4), phase("two", 6), phase("three", 4));
    let generator = LoadGenerator::start(LoadConfig {
        lead_in: Some(Duration::from_millis(500)),
        ..LoadConfig::new(scenario(&body), broker.addr)
    })
    .unwrap();
    assert!(generator.scored_start() > Instant::now());
    let mut windows = Vec::new();
    let mut stages = Vec::new();
    wait_for("the end of the load", || {
        generator.rss_sample(Instant::now(), 1 << 20);
        stages.push(generator.stage());
        let window = generator.window();
        windows.extend((window.seconds > 0).then_some(window));
        !generator.is_alive()
    });
    stages.dedup();
    for wanted in
        [Stage::LeadIn, Stage::Phase { index: 0 }, Stage::Phase { index: 2 }, Stage::Draining]
    {
        assert!(stages.contains(&wanted), "{wanted:?} in {stages:?}");
    }
    // A second of lead-in and six of phases; each closes once.
    assert_eq!(windows.iter().map(|window| window.seconds).sum::<u64>(), 7, "{windows:?}");
    assert_eq!(
        windows.iter().map(|window| window.tally.expected).sum::<u64>(),
        200 * 2 + (400 + 600 + 400) * 2
    );
    assert!(
        windows.iter().all(|window| window.score.is_none_or(|score| score > 0.99)),
        "{windows:?}"
    );
    let result = generator.join().unwrap();
    assert_delivered(&result, (400 + 600 + 400) * 2);
    assert_eq!(result.rss_bytes_max, Some(1 << 20));
}

#[test]
fn memory_above_the_limit_voids_what_arrives() {
    let broker = Broker::start("");
    let body = "deadline_ms = 1000\n[[phase]]\nname = \"p\"\nduration_s = 2\n\
         [[phase.publish]]\nname = \"a\"\nclients = 1\nrate_hz = 100\nqos = 1\npayload_bytes = 64\ntopic = \"a\"\n\
         [[phase.subscribe]]\nname = \"r\"\nclients = 1\nfilter = \"a\"\nqos = 1\n";
    let generator = LoadGenerator::start(LoadConfig::new(scenario(body), broker.addr)).unwrap();
    generator.rss_sample(generator.scored_start() + Duration::from_millis(100), 65 << 20);
    generator.rss_sample(generator.scored_start() + Duration::from_millis(1100), 63 << 20);
    let result = generator.join().unwrap();
    assert_eq!(result.rss_seconds_over, 1);
    assert!((95..=105).contains(&result.tally.lost_memory), "{result:?}");
    assert_eq!(result.tally.in_time + result.tally.lost_memory, 200, "{result:?}");
}

#[test]
fn a_stall_of_the_generator_is_not_counted_against_the_broker() {
    let broker = Broker::start("");
    let body = "deadline_ms = 100\n[[phase]]\nname = \"p\"\nduration_s = 4\n\
         [[phase.publish]]\nname = \"a\"\nclients = 1\nrate_hz = 100\nqos = 1\npayload_bytes = 64\ntopic = \"a\"\n\
         [[phase.subscribe]]\nname = \"r\"\nclients = 1\nfilter = \"a\"\nqos = 1\n";
    let generator = LoadGenerator::start(LoadConfig::new(scenario(body), broker.addr)).unwrap();
    let is_past = |ms| generator.scored_start().elapsed() > Duration::from_millis(ms);
    wait_for("a second of load", || is_past(1_100));
    {
        // The thread wants the lock for its next report, and has to wait.
        let _handover = generator.shared.handover();
        wait_for("the end of the stall", || is_past(3_300));
    }
    let mut voids = 0;
    wait_for("the end of the load", || {
        voids += generator.window().seconds_void;
        !generator.is_alive()
    });
    voids += generator.window().seconds_void;
    let result = generator.join().unwrap();
    let seconds = &result.phases[0].groups[0].seconds;
    assert!(seconds[1..4].iter().all(|second| second.is_void), "{seconds:?}");
    assert_eq!(voids, result.seconds_void, "the windows leave out the same seconds");
    assert!(result.is_void, "{result:?}");
}

#[test]
fn a_stopped_run_ends_at_once_and_repeats_until_then() {
    let broker = Broker::start("");
    let body = "deadline_ms = 100\n[[phase]]\nname = \"p\"\nduration_s = 1\n\
         [[phase.publish]]\nname = \"a\"\nclients = 2\nrate_hz = 50\npayload_bytes = 64\ntopic = \"a\"\n\
         [[phase.subscribe]]\nname = \"r\"\nclients = 1\nfilter = \"a\"\n";
    let config = LoadConfig { repeat: true, ..LoadConfig::new(scenario(body), broker.addr) };
    let generator = LoadGenerator::start(config).unwrap();
    let mut seconds = 0;
    wait_for("more seconds than the scenario has", || {
        seconds += generator.window().seconds;
        seconds >= 3
    });
    assert!(generator.is_alive());
    let asked = Instant::now();
    generator.stop();
    let result = generator.join().unwrap();
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    assert!(result.phases.len() >= 3 && result.seconds >= 3, "{result:?}");
}

#[test]
fn a_run_that_is_dropped_takes_its_thread_along() {
    let broker = Broker::start("");
    let body = "deadline_ms = 100\n[[phase]]\nname = \"p\"\nduration_s = 600\n\
         [[phase.publish]]\nname = \"a\"\nclients = 2\nrate_hz = 50\npayload_bytes = 64\ntopic = \"a\"\n\
         [[phase.subscribe]]\nname = \"r\"\nclients = 1\nfilter = \"a\"\n";
    let generator = LoadGenerator::start(LoadConfig::new(scenario(body), broker.addr)).unwrap();
    let shared = Arc::downgrade(&generator.shared);
    drop(generator);
    assert!(shared.upgrade().is_none());
}

#[test]
fn a_missing_broker_is_an_error_that_says_so() {
    let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut config = LoadConfig::new(Scenario::load("link-50ms").unwrap(), addr);
    config.start_timeout = Duration::from_millis(100);
    let message = LoadGenerator::start(config).unwrap_err().to_string();
    assert!(message.contains("11 of 11") && message.contains("refused"), "{message}");
}

#[test]
fn a_capacity_that_is_needed_is_asked_for() {
    let mut scenario = Scenario::load("link-50ms").unwrap();
    scenario.phases[0].publish[0].rate = crate::scenario::Rate::TimesCapacity(1.0);
    let addr = SocketAddr::from(([127, 0, 0, 1], 1));
    let error = LoadGenerator::start(LoadConfig::new(scenario, addr)).unwrap_err();
    assert!(matches!(error, LoadError::CapacityNeeded { .. }), "{error}");
}

/// Takes connections; a subscriber gets a message and, with it, the end of the connection.
fn hang_up_on_subscribers(listener: TcpListener, hung_up: Arc<AtomicU32>) {
    let serve = |mut stream: TcpStream, hung_up: &AtomicU32| {
        let mut bytes = [0; 512];
        let _ = stream.read(&mut bytes).and_then(|_| stream.write_all(&[0x20, 2, 0, 0]));
        while stream.read(&mut bytes).is_ok_and(|length| length > 0) {
            if bytes[0] == 0x82 {
                let suback = [0x90, 3, bytes[2], bytes[3], 0];
                let message = [0x30, 4, 0, 1, b'a', 0];
                let _ = stream.write_all(&[&suback[..], &message].concat());
                hung_up.fetch_add(1, Ordering::SeqCst);
                return;
            }
        }
    };
    for stream in listener.incoming() {
        let (Ok(stream), hung_up) = (stream, Arc::clone(&hung_up)) else { return };
        std::thread::spawn(move || serve(stream, &hung_up));
    }
}

#[test]
fn a_subscriber_that_only_reads_sees_its_connection_end() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let hung_up = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&hung_up);
    std::thread::spawn(move || hang_up_on_subscribers(listener, seen));
    let body = "deadline_ms = 100\n[[phase]]\nname = \"p\"\nduration_s = 600\n\
         [[phase.publish]]\nname = \"a\"\nclients = 1\nrate_hz = 1\npayload_bytes = 64\ntopic = \"a\"\n\
         [[phase.subscribe]]\nname = \"r\"\nclients = 4\nfilter = \"a\"\nqos = 0\nreconnect_ms = 1\n";
    let config = LoadConfig::new(scenario(body), addr);
    let (enough, until_enough) = std::sync::mpsc::channel::<()>();
    // Whether it ever starts does not matter: one of them is away nearly always.
    let generator = std::thread::spawn(move || {
        let generator = LoadGenerator::start(config);
        let _ = until_enough.recv();
        drop(generator);
    });
    wait_for("subscribers come back", || hung_up.load(Ordering::SeqCst) >= 400);
    drop(enough);
    generator.join().unwrap();
}

#[test]
fn a_listener_that_talks_nonsense_is_survived() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut bytes = [0; 256];
            // Accepts, then answers with a packet that no broker sends.
            let _ = stream
                .read(&mut bytes)
                .and_then(|_| stream.write_all(&[0x20, 2, 0, 0, 0xf0, 0, 0x90, 1, 1]));
        }
    });
    let mut config = LoadConfig::new(Scenario::load("link-50ms").unwrap(), addr);
    config.start_timeout = Duration::from_millis(300);
    let message = LoadGenerator::start(config).unwrap_err().to_string();
    assert!(message.contains("not connected"), "{message}");
}
