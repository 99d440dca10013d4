//! The broker as a client sees it: login, version and its traps, `$SYS`, process.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use brokertuner_core::sample::{Sample, Sys, Version};
use procfs::process::Process;

use super::{Check, limits};
use crate::agent::NO_READ_BACK;
use crate::control::Broker as _;
use crate::pid::mosquittos;
use crate::sampler::{Link, Sampler, SysStatus};
use crate::site::Site;

/// Retained values come at once; silence is told after 5 s.
const PATIENCE: Duration = Duration::from_secs(8);
const POLL: Duration = Duration::from_millis(50);

/// What of a version a person should know: below the first number, from the second on.
const TRAPS: [(Version, Version, &str, &str); 6] = [
    (
        Version(0, 0, 0),
        Version(2, 0, 12),
        "the inflight window grows while acknowledgements come back: little is gained from tuning it, and max_inflight_bytes is inexact",
        "a newer Mosquitto has more to tune",
    ),
    (
        Version(0, 0, 0),
        Version(2, 0, 16),
        "an unchanged $SYS value expires after 60 s: who subscribes later misses it",
        "edge stays subscribed; monitors of your own should too",
    ),
    (
        Version(0, 0, 0),
        Version(2, 0, 22),
        "max_queued_messages 0 disconnects publishers whose message is refused",
        "edge never writes it; do not set it yourself",
    ),
    (
        Version(2, 1, 0),
        Version(255, 0, 0),
        "`mosquitto --test-config` and a failed start empty the persistence database",
        "never run it on the live configuration",
    ),
    (
        Version(2, 1, 0),
        Version(255, 0, 0),
        "a reload ends the broker where its password_file or ACL file can't be read at that moment",
        "keep those files readable for the broker's user",
    ),
    (
        Version(2, 1, 0),
        Version(255, 0, 0),
        "max_packet_size is 2000000 where nothing else is set",
        "set it yourself where clients send more",
    ),
];

pub(super) fn examine(site: &Site, checks: &mut Vec<Check>) {
    let connack = match site.broker.answer() {
        Ok(connack) => connack,
        Err(error) => {
            checks.push(Check::error("broker", &error));
            return;
        }
    };
    let address = site.broker.address;
    checks.push(if connack.accepted() && !connack.shows_limits() {
        let remedy = "set broker.mqtt to \"auto\", and let the listener accept MQTT 5 (accept_protocol_versions)";
        Check::note("broker", format!("answers on {address}; {NO_READ_BACK}"), remedy)
    } else if connack.accepted() {
        let window = connack.receive_maximum.map_or("no limit".into(), |n| n.to_string());
        Check::good("broker", format!("answers on {address}; inflight window {window}"))
    } else {
        let found = format!("the broker at {address} refuses this login ({:#04x})", connack.reason);
        Check::wrong("broker", found, "set broker.user_file and broker.password_file")
    });
    process(site, checks);
    let mut sampler = match Sampler::start(site.sampler_options(), site.broker.finder.clone()) {
        Ok(sampler) => sampler,
        Err(error) => return checks.push(Check::error("sampler", &error)),
    };
    let sample = look(&mut sampler);
    sys(&sampler, &sample, checks);
    probe(site, &sampler, checks);
    if let Some(version) = sampler.version() {
        checks.push(Check::good("version", version.to_string()));
        let has = |from: &Version, to: &Version| (*from..*to).contains(&version);
        for (_, _, found, remedy) in TRAPS.iter().filter(|(from, to, ..)| has(from, to)) {
            checks.push(Check::note("version", *found, *remedy));
        }
    }
    let clients = sample.sys.get(Sys::ClientsConnected);
    if let Ok(process) = site.broker.process() {
        limits::examine(process, clients, checks);
    }
}

/// Waits for `$SYS`, or until it is known that none comes.
fn look(sampler: &mut Sampler) -> Sample {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let sample = sampler.sample();
        let is_known = sample.sys.get(Sys::ClientsConnected).is_some();
        let is_denied = matches!(sampler.sys_status(), SysStatus::Refused | SysStatus::Silent);
        let is_lost = matches!(sampler.link(), Link::Lost(_));
        if is_known || is_denied || is_lost || Instant::now() >= deadline {
            return sample;
        }
        thread::sleep(POLL);
    }
}

/// Other Mosquittos on this machine: whoever looks for a fault should know of them.
fn others(site: &Site, checks: &mut Vec<Check>) {
    let own = site.broker.process().ok();
    for other in mosquittos().iter().filter(|one| Some(one.process) != own) {
        let found = format!("another Mosquitto runs on this machine: {other}");
        checks.push(Check::good("others", found));
    }
}

fn process(site: &Site, checks: &mut Vec<Check>) {
    others(site, checks);
    let found = match site.broker.process() {
        Ok(process) => process,
        Err(error) => return checks.push(Check::error("pid", &error)),
    };
    if let (Some(main), Ok(entry)) = (&site.main_conf, Process::new(found.pid)) {
        checks.extend(configuration(main, &entry));
    }
    checks.push(match site.broker.finder.read(found) {
        Ok(sample) => {
            let mib = sample.rss_bytes >> 20;
            Check::good("pid", format!("process {}, {mib} MiB resident", found.pid))
        }
        Err(error) => {
            let what = format!("process {} is hidden from this user: {error}", found.pid);
            Check::wrong(
                "pid",
                what,
                "run edge as a user who may read /proc of the broker (mount option hidepid)",
            )
        }
    });
}

/// Whether the process reads the main file that is looked at: by its `-c`, where it is a Mosquitto.
fn configuration(main: &Path, process: &Process) -> Option<Check> {
    let words = process.cmdline().ok()?;
    if !words.first()?.ends_with("mosquitto") {
        return None;
    }
    let remedy = "set broker.main_conf and broker.drop_in to the files of the broker that listens on broker.port";
    let Some(file) = named(&words) else {
        let found = format!(
            "process {} was started without -c: it reads no configuration file",
            process.pid()
        );
        return Some(Check::wrong(
            "main_conf",
            found,
            "start it with -c, and set broker.main_conf",
        ));
    };
    // Its own view, where that is another one (a container's), and its directory at the start.
    let dir = process.cwd().unwrap_or_default();
    let own = dir.join(file);
    let rooted = format!("/proc/{}/root{}", process.pid(), own.display());
    let is_main = [Path::new(&rooted), &own].iter().any(|path| is_same(path, main));
    Some(if is_main {
        Check::good("main_conf", format!("{} is what the broker reads", main.display()))
    } else {
        let found =
            format!("process {} reads {}, not {}", process.pid(), own.display(), main.display());
        Check::wrong("main_conf", found, remedy)
    })
}

/// The file that a Mosquitto's command line names.
fn named(words: &[String]) -> Option<&str> {
    let at = words.iter().position(|word| word == "-c" || word == "--config-file")?;
    words.get(at + 1).map(String::as_str)
}

fn is_same(a: &Path, b: &Path) -> bool {
    let of = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    of(a).is_some_and(|a| of(b) == Some(a))
}

fn sys(sampler: &Sampler, sample: &Sample, checks: &mut Vec<Check>) {
    if let Link::Lost(reason) = sampler.link() {
        return checks.push(Check::wrong("sys", reason, "as it says"));
    }
    match (sampler.sys_status().complaint(), sample.sys.get(Sys::ClientsConnected)) {
        (Some(complaint), _) => checks.push(Check::wrong("sys", complaint, "as it says")),
        (None, Some(_)) => checks.push(Check::good("sys", "$SYS comes")),
        (None, None) => {
            let remedy = "wait for an update (sys_interval and a second), then look again";
            checks.push(Check::note("sys", "$SYS says nothing of the clients yet", remedy));
            return;
        }
    }
    if sample.sys.get(Sys::ClientsConnected).is_some() {
        checks.push(match sample.sys.get(Sys::HeapBytesMax).or(sample.sys.get(Sys::HeapBytes)) {
            Some(_) => Check::good("memory", "the broker tracks its memory"),
            None => Check::note(
                "memory",
                "$SYS has no heap: the broker was built without memory tracking, or has not said yet",
                "memory_limit does nothing then; leave it held",
            ),
        });
    }
}

fn probe(site: &Site, sampler: &Sampler, checks: &mut Vec<Check>) {
    match (site.probe_interval, sampler.is_probe_allowed()) {
        (None, _) => {
            let found =
                "decide.probe_interval_ms = 0: a change that slows clients down is not noticed";
            checks.push(Check::note("probe", found, ""));
        }
        (_, Some(false)) => {
            let remedy = "grant this user `topic readwrite brokertuner/probe/#`";
            checks.push(Check::wrong(
                "probe",
                "the broker refuses the latency probe's topic",
                remedy,
            ));
        }
        (_, Some(true)) => checks.push(Check::good("probe", "the latency probe may be sent")),
        (_, None) => {}
    }
}
