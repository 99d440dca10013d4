//! What must hold for any bytes that come from outside: a model file, `$SYS`, `/proc`, the broker's
//! configuration and the agent's, HTTP.
//!
//! Each target takes bytes and panics where something does not hold. `targets/` hands them to
//! libFuzzer, and the test below the files of `corpus/`, the regressions among them.
#![forbid(unsafe_code)]

use std::cell::OnceCell;
use std::fs;

use brokertuner_core::controller::Health;
use brokertuner_core::features::{self, Schema, Targets, View};
use brokertuner_core::model::{CHECKSUM_BYTES, Model, checksum};
use brokertuner_core::sample::{
    Meter, OwnTraffic, ProbeSample, ProcSample, SYS_PREFIX, SYS_TOPICS, Sample, SysTree,
};
use brokertuner_core::{Envelope, Instant, KNOB_COUNT, Knob, Settings, render};
use brokertuner_edge::config::Config;
use brokertuner_edge::elsewhere;
use brokertuner_edge::knobs_request::KnobsRequest;
use brokertuner_edge::sampler::{Stat, figures};
use brokertuner_edge::service::read_http;
use procfs::FromReadSI;
use procfs::net::TcpNetEntries;
use tempfile::TempDir;

/// Magic, format version and length of the body.
const MODEL_HEADER_BYTES: usize = 10;

/// Reads a model as it is, and with length and checksum put right, which no mutation finds.
pub fn model(bytes: &[u8]) {
    exercise(bytes);
    if let Some(body) = bytes.len().checked_sub(MODEL_HEADER_BYTES + CHECKSUM_BYTES) {
        let mut mended = bytes[..MODEL_HEADER_BYTES + body].to_vec();
        let length = u32::try_from(body).unwrap_or(u32::MAX);
        mended[6..MODEL_HEADER_BYTES].copy_from_slice(&length.to_le_bytes());
        mended.extend(checksum(&mended).to_le_bytes());
        exercise(&mended);
    }
}

fn exercise(bytes: &[u8]) {
    let model = match Model::parse(bytes) {
        Ok(model) => model,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let mut action = vec![0; model.outputs()];
    for value in [0.0, -9.0, 9.0, f32::NAN, f32::MIN_POSITIVE, f32::INFINITY] {
        let inferred = model.infer(&vec![value; model.inputs()], &mut action);
        assert_eq!(inferred, Ok(()));
        assert!(action.iter().all(|&value| value != i8::MIN));
    }
    // A number may be written in more bytes than it needs: never the other way round.
    let once = rewritten(&model, bytes.len());
    let again = Model::parse(&once).map(|model| rewritten(&model, once.len()));
    assert_eq!(again.as_ref(), Ok(&once), "read, written and read again");
    if let Ok(model) = Model::read(bytes) {
        let answer = model.answer(&view(&Meter::default().measure(&sample())), &envelope());
        let settings = answer.map(|answer| answer.settings);
        assert!(settings.is_ok_and(|settings| envelope().check(&settings).is_empty()));
    }
}

fn rewritten(model: &Model<'_>, room: usize) -> Vec<u8> {
    let mut out = vec![0; room];
    let length = model.write(&mut out);
    assert!(length.is_ok(), "{length:?}");
    out.truncate(length.unwrap_or(0));
    out
}

fn envelope() -> Envelope {
    Envelope { heap_bytes_max: Some(1 << 20), packet_bytes_max: Some(100), ..Envelope::default() }
}

fn sample() -> Sample {
    Sample {
        at: Instant::from_secs(100),
        sys: brokertuner_core::sample::SysFrame::default(),
        proc: None,
        probe: ProbeSample::default(),
        own: OwnTraffic::default(),
    }
}

fn view(metrics: &brokertuner_core::sample::Metrics) -> View<'_> {
    static TARGETS: std::sync::LazyLock<Targets> = std::sync::LazyLock::new(Targets::default);
    static SITE: std::sync::LazyLock<Envelope> = std::sync::LazyLock::new(envelope);
    View { metrics, effective: &Settings::UNWRITTEN, site: &SITE.site, targets: &TARGETS }
}

/// Takes lines of `$SYS`: the first byte chooses the topic, the second how much later it comes, the
/// rest is the payload. Rates and features of all of it are numbers.
pub fn sys(bytes: &[u8]) {
    let (mut tree, mut meter, mut now_ms) = (SysTree::default(), Meter::default(), 1000u64);
    for line in bytes.split(|&byte| byte == b'\n') {
        let [topic, later, payload @ ..] = line else { continue };
        let names = SYS_TOPICS.map(|(_, name)| name);
        let name = names.get(usize::from(*topic) % (names.len() + 1)).unwrap_or(&"version");
        now_ms += u64::from(*later) * u64::from(*later);
        let now = Instant::from_millis(now_ms);
        // A payload that is none leaves the old value.
        let _ = tree.update(&format!("{SYS_PREFIX}{name}"), payload, now);
        let own = u64::from(*later);
        let sample = Sample {
            at: now,
            sys: tree.frame(now),
            own: OwnTraffic {
                connections: 1,
                subscriptions: u32::from(*later),
                publish_sent: own,
                publish_received: own,
                publish_bytes_sent: own,
                packets_sent: own,
                bytes_sent: own,
                bytes_received: own,
            },
            ..sample()
        };
        judge(&mut meter, &sample);
    }
}

/// No figure of a sample makes the state vector anything but numbers, or the bounds impossible.
fn judge(meter: &mut Meter, sample: &Sample) {
    let metrics = meter.measure(sample);
    for schema in [Schema::Edge, Schema::Seed5] {
        let features = features::state(schema, &view(&metrics));
        assert!(features.iter().all(|value| value.is_finite()), "{features:?} of {metrics:?}");
    }
    let health = Health::of(&metrics, &Targets::default(), true);
    assert!(health.dropped_share.is_none_or(|share| (0.0..=1.0).contains(&share)), "{health:?}");
    let measured = Envelope::default().measured(sample, meter);
    let settings = Settings::decode(&[127; KNOB_COUNT], &measured);
    assert!(measured.check(&settings).is_empty(), "{settings:?} in {measured:?}");
}

/// Reads `stat`, `status` and the socket table of a process, one after the other between zero
/// bytes, and measures with what they say.
pub fn proc(bytes: &[u8]) {
    let mut parts = bytes.splitn(3, |&byte| byte == 0);
    let mut next = || parts.next().unwrap_or_default();
    let (stat, status, tcp) = (next(), next(), next());
    let entries = TcpNetEntries::from_read(tcp, procfs::current_system_info());
    drop(entries);
    let Some(stat) = Stat::parse(stat) else { return };
    let Ok(found) = figures(&stat, status) else { return };
    let mut meter = Meter::default();
    judge(&mut meter, &Sample { proc: Some(found), ..sample() });
    let later = Instant::from_secs(101);
    judge(&mut meter, &Sample { at: later, proc: Some(found), ..sample() });
    let more = ProcSample { cpu_us: u64::MAX, context_switches: u64::MAX, ..found };
    judge(&mut meter, &Sample { at: later, proc: Some(more), ..sample() });
}

/// Reads the broker's main file, and a drop-in of ours.
pub fn conf(bytes: &[u8]) {
    thread_local! { static DIR: OnceCell<TempDir> = const { OnceCell::new() }; }
    if let Ok(settings) = render::parse(&String::from_utf8_lossy(bytes)) {
        let text = render::render(&settings);
        assert_eq!(render::parse(&text), Ok(settings), "{text}");
    }
    DIR.with(|dir| {
        // In memory, where the machine has such a place.
        let folder = || TempDir::new_in("/dev/shm").or_else(|_| TempDir::new());
        let dir = dir.get_or_init(|| folder().unwrap_or_else(|error| panic!("{error}")));
        let main = dir.path().join("mosquitto.conf");
        let written = fs::write(&main, bytes);
        assert!(written.is_ok(), "{written:?}");
        let drop_in = dir.path().join("conf.d/zz-brokertuner.conf");
        if let Ok(found) = elsewhere::look(&main, &drop_in) {
            let site = found.site_values();
            let _ = (found.overridden(), found.set_by_site(), found.listens_on(1883));
            for line in &found.lines {
                assert!(!line.to_string().is_empty());
            }
            let _ = Settings::UNWRITTEN.encode(&site);
        }
    });
}

/// Reads the agent's configuration; what is refused is refused in words.
pub fn config(bytes: &[u8]) {
    match Config::parse(&String::from_utf8_lossy(bytes)) {
        Ok(config) => {
            for knob in Knob::ALL {
                let _ = config.rules_of(knob);
            }
        }
        Err(faults) => {
            assert!(!faults.is_empty());
            assert!(faults.iter().all(|fault| !fault.what.is_empty()));
        }
    }
}

/// Reads a request, and the options that its body asks for.
pub fn http(bytes: &[u8]) {
    match read_http(bytes) {
        Ok((target, body)) => {
            assert!(target.len() <= 4096 && body.len() <= 4096);
            options(&body);
        }
        Err(status) => assert!(status == 0 || (400..600).contains(&status), "{status}"),
    }
    // Past the head, which few mutations get right.
    options(bytes);
}

fn options(body: &[u8]) {
    for skips_locked in [false, true] {
        match KnobsRequest::parse(body, skips_locked) {
            Ok(request) => {
                let named = request.settings.written().iter().count() + request.refused.len();
                assert!(named > 0, "{request:?}");
            }
            Err(reason) => assert!(!reason.is_empty()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use std::path::Path;

    /// A target and what it is called by.
    type Target = (&'static str, fn(&[u8]));

    const TARGETS: [Target; 6] = [
        ("model", model),
        ("sys", sys),
        ("proc", proc),
        ("conf", conf),
        ("config", config),
        ("http", http),
    ];

    #[test]
    fn the_corpora_pass() {
        for (name, target) in TARGETS {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
            let mut count = 0;
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                println!("{}", path.display());
                target(&fs::read(path).unwrap());
                count += 1;
            }
            assert!(count >= 2, "{} is next to empty", folder.display());
        }
    }

    /// A corpus that every parser refuses at once would lead nowhere.
    #[test]
    fn the_corpora_hold_what_is_accepted() {
        let read = |name: &str| {
            fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name)).unwrap()
        };
        assert!(Model::parse(&read("model/golden.btm")).is_ok());
        let config = String::from_utf8(read("config/default.toml")).unwrap();
        assert!(Config::parse(&config).is_ok());
        assert!(render::parse(&String::from_utf8(read("conf/drop-in.conf")).unwrap()).is_ok());
        assert_eq!(read_http(&read("http/status.bin")).unwrap().0, "/status");
        let (target, body) = read_http(&read("http/apply-knobs.bin")).unwrap();
        assert_eq!(target, "/apply_knobs?locked=skip");
        assert!(KnobsRequest::parse(&body, true).is_ok());
        let process = read("proc/broker.bin");
        let mut parts = process.splitn(3, |&byte| byte == 0);
        let stat = Stat::parse(parts.next().unwrap()).unwrap();
        let found = figures(&stat, parts.next().unwrap()).unwrap();
        assert!(found.rss_bytes > 0 && found.context_switches > 0, "{found:?}");
        let tcp = TcpNetEntries::from_read(parts.next().unwrap(), procfs::current_system_info());
        assert!(!tcp.unwrap().0.is_empty());
    }
}
