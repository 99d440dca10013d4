//! Ranges and what belongs together: everything that can be said of a file without looking around.

use std::ops::RangeInclusive;

use brokertuner_core::Knob;
use brokertuner_core::envelope::Bounds;

use super::read::Reader;
use super::{Config, KnobRules};
use crate::control::MethodName;
use crate::pid::PidSource;
use crate::quiet::Window;
use crate::service::Listen;

const LOG_LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

pub(super) fn check(config: &Config, reader: &mut Reader<'_>) {
    check_ranges(config, reader);
    check_broker(config, reader);
    check_methods(config, reader);
    check_http(config, reader);
    for (&key, rules) in &config.knobs {
        if let Some(knob) = Knob::from_key(key) {
            check_knob(knob, rules, reader);
        }
    }
}

fn check_ranges(config: &Config, reader: &mut Reader<'_>) {
    let (control, decide, targets) = (&config.control, &config.decide, &config.targets);
    let mut range = |key: &str, value: u32, range: RangeInclusive<u32>| {
        if !range.contains(&value) {
            let (min, max) = (range.start(), range.end());
            reader.wrong(key, format!("{value} is out of range; use {min} to {max}"));
        }
    };
    // The services' watchdog bites after ten minutes, and the helper may take two commands' time.
    range("control.command_timeout_s", control.command_timeout_s, 1..=240);
    range("control.ready_timeout_s", control.ready_timeout_s, 1..=240);
    range("targets.deadline_ms", targets.deadline_ms, 1..=600_000);
    range("targets.rss_limit_mib", targets.rss_limit_mib, 1..=65_536);
    range("decide.interval_ms", decide.interval_ms, 250..=3_600_000);
    if decide.probe_interval_ms != 0 {
        range("decide.probe_interval_ms", decide.probe_interval_ms, 250..=3_600_000);
    }
    range("decide.dwell_s", decide.dwell_s, 0..=86_400);
    range("decide.verify_window_s", decide.verify_window_s, 1..=86_400);
    range("decide.restarts_per_hour_max", decide.restarts_per_hour_max.into(), 0..=32);
    range("decide.back_off_s", decide.back_off_s, 1..=86_400);
    range("decide.restart_gain_min_percent", decide.restart_gain_min_percent.into(), 0..=100);
    range("decide.restarts_per_day_max", decide.restarts_per_day_max.into(), 0..=64);
    for text in &decide.quiet_hours {
        if Window::parse(text).is_none() {
            let what = format!("`{text}` is no time of day; write it as in \"22:00-06:00\"");
            reader.wrong("decide.quiet_hours", what);
        }
    }
    if !LOG_LEVELS.contains(&config.agent.log_level.as_str()) {
        let what = format!("`{}` is none of {}", config.agent.log_level, LOG_LEVELS.join(", "));
        reader.wrong("agent.log_level", what);
    }
}

fn check_broker(config: &Config, reader: &mut Reader<'_>) {
    let broker = &config.broker;
    if broker.host.trim().is_empty() {
        reader.wrong("broker.host", "is empty; name the host, as in \"127.0.0.1\"".into());
    }
    if broker.port == 0 {
        reader.wrong("broker.port", "0 is no port; Mosquitto's own is 1883".into());
    }
    // The probe's identifier is longer by a suffix; 2.0 takes any length, 3.1.1 guarantees 23.
    let id = broker.client_id.as_bytes();
    if id.is_empty() || id.len() > 200 || !id.iter().all(u8::is_ascii_graphic) {
        let what = "must be 1 to 200 printable ASCII characters without blanks".into();
        reader.wrong("broker.client_id", what);
    }
    let no_path = std::path::PathBuf::new();
    if broker.password_file != no_path && broker.user_file == no_path {
        reader.wrong("broker.password_file", "needs broker.user_file beside it".into());
    }
    for (key, file, beside, other) in [
        ("broker.cert_file", &broker.cert_file, "broker.ca_file", &broker.ca_file),
        ("broker.cert_file", &broker.cert_file, "broker.key_file", &broker.key_file),
        ("broker.key_file", &broker.key_file, "broker.cert_file", &broker.cert_file),
    ] {
        if *file != no_path && *other == no_path {
            reader.wrong(key, format!("needs {beside} beside it"));
        }
    }
    if !broker.tls_name.is_empty() && broker.ca_file == no_path {
        reader.wrong("broker.tls_name", "needs broker.ca_file beside it".into());
    }
    if broker.drop_in != no_path {
        let name = broker.drop_in.file_name().map(std::ffi::OsStr::as_encoded_bytes);
        if !name.is_some_and(|name| name.len() > 5 && name.ends_with(b".conf")) {
            let what = "must end in .conf, or the broker does not load it".into();
            reader.wrong("broker.drop_in", what);
        } else if !broker.drop_in.is_absolute() {
            reader.wrong("broker.drop_in", "must be an absolute path".into());
        }
    }
    let kill_switch = &config.agent.kill_switch_file;
    if *kill_switch != no_path && !kill_switch.is_absolute() {
        reader.wrong("agent.kill_switch_file", "must be an absolute path".into());
    }
    if !config.agent.state_dir.is_absolute() {
        reader.wrong("agent.state_dir", "must be an absolute path".into());
    }
}

fn check_http(config: &Config, reader: &mut Reader<'_>) {
    let http = &config.http;
    if http.listen.is_empty() {
        return;
    }
    let is_remote = match Listen::parse(&http.listen) {
        Some(listen) => !listen.is_local(),
        None => {
            let what =
                "must be as in \"unix:/var/lib/brokertuner/http.sock\" or \"127.0.0.1:9188\"";
            return reader.wrong("http.listen", what.into());
        }
    };
    let has_token = !http.token_file.as_os_str().is_empty();
    if is_remote && !(http.allow_remote && has_token) {
        let what = format!(
            "{} can be reached from elsewhere; listen on a Unix socket or loopback, or set allow_remote = true and token_file",
            http.listen
        );
        reader.wrong("http.listen", what);
    }
}

fn check_methods(config: &Config, reader: &mut Reader<'_>) {
    let (control, pid) = (&config.control, &config.pid);
    if control.restart == MethodName::Signal {
        let what = "no signal restarts Mosquitto; use \"systemd\", \"command\" or \"none\"".into();
        reader.wrong("control.restart", what);
    }
    for (name, method, command) in [
        ("reload", control.reload, &control.reload_command),
        ("restart", control.restart, &control.restart_command),
    ] {
        if method == MethodName::Systemd && control.unit.is_empty() {
            reader.wrong(&format!("control.{name}"), "\"systemd\" needs control.unit".into());
        }
        if method == MethodName::Command && command.is_empty() {
            let what = format!(
                "\"command\" needs control.{name}_command, as in [\"/usr/local/bin/{name}-broker\"]"
            );
            reader.wrong(&format!("control.{name}"), what);
        }
    }
    let is_named = pid.pid > 0 || !pid.unit.is_empty() || !pid.pid_file.as_os_str().is_empty();
    let by_port = match pid.source {
        PidSource::Listener => true,
        PidSource::Auto => !is_named,
        PidSource::Config | PidSource::Env | PidSource::File | PidSource::Systemd => false,
    };
    if config.helper.r#use && by_port {
        let what = "the helper's sandbox hides who listens on broker.port; set pid.pid_file or pid.unit, and pid.source to \"auto\", \"file\" or \"systemd\"";
        reader.wrong("pid.source", what.into());
    }
    if config.helper.r#use && pid.source == PidSource::Env {
        let what = "the helper does not know the agent's environment; use \"auto\", \"file\", \"systemd\" or \"config\"";
        reader.wrong("pid.source", what.into());
    }
    if pid.pid < 0 {
        reader.wrong("pid.pid", "is negative; use 0 for none".into());
    }
    let missing = match pid.source {
        PidSource::Config => (pid.pid == 0).then_some("pid.pid"),
        PidSource::File => pid.pid_file.as_os_str().is_empty().then_some("pid.pid_file"),
        PidSource::Systemd => pid.unit.is_empty().then_some("pid.unit"),
        PidSource::Auto | PidSource::Env | PidSource::Listener => None,
    };
    if let Some(missing) = missing {
        reader.wrong("pid.source", format!("needs {missing}"));
    }
}

fn check_knob(knob: Knob, rules: &KnobRules, reader: &mut Reader<'_>) {
    let (spec, key) = (knob.spec(), knob.spec().key);
    for (name, value) in [("min", rules.min), ("max", rules.max)] {
        let Some(value) = value else { continue };
        if !(spec.min..=spec.max).contains(&value) {
            let what = format!("{value} is out of range; use {} to {}", spec.min, spec.max);
            reader.wrong(&format!("knobs.{key}.{name}"), what);
        }
    }
    if let (Some(min), Some(max)) = (rules.min, rules.max)
        && max < min
    {
        reader.wrong(&format!("knobs.{key}.max"), format!("{max} is below min = {min}"));
    }
}

/// The operator's bounds of one option; the table's where the file says nothing.
pub(crate) fn bounds(knob: Knob, rules: &KnobRules) -> Bounds {
    let table = Bounds::of(knob);
    let (min, max) = (rules.min.unwrap_or(table.min()), rules.max.unwrap_or(table.max()));
    // A lowered maximum means that "no limit" is not meant either.
    let unlimited = max == table.max();
    Bounds::narrowed(knob, min, max, unlimited).unwrap_or(table)
}
