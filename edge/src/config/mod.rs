//! The configuration file: what the operator said, checked but not yet looked up ([`crate::site`]).

mod check;
mod read;
mod section;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use brokertuner_core::features::Schema;
use brokertuner_core::knobs::Tuned;
use brokertuner_core::{KNOBS, Knob};
use serde::{Deserialize, Serialize};

use crate::control::MethodName;
use crate::fs::{self, FileError, Files, RealFiles};
use crate::mqtt::ProtocolChoice;
use crate::pid::PidSource;
use crate::quiet::MACHINES_ZONE;
use section::{Section, sections};

pub(crate) use check::bounds;

sections! {
    /// The broker to tune.
    Broker {
        /// Where the broker listens. Loopback: the agent sits beside it.
        host: String = "127.0.0.1".into(),
        /// The broker's port; its TLS one where ca_file is set.
        port: u16 = 1883,
        /// Certificates (PEM) that the broker's own must be signed by: connect by TLS, and verify it.
        /// Empty: connect plainly.
        ca_file: PathBuf = PathBuf::new(),
        /// The agent's certificate and key (PEM), where the broker demands one.
        cert_file: PathBuf = PathBuf::new(),
        /// Readable by the agent only. This file and those of user and password may also be systemd
        /// credentials: "credential:NAME" is the file NAME in $CREDENTIALS_DIRECTORY.
        key_file: PathBuf = PathBuf::new(),
        /// The name in the broker's certificate; empty: host.
        tls_name: String = String::new(),
        /// MQTT client identifier; two agents on one broker need two.
        client_id: String = "brokertuner-edge".into(),
        /// auto, "5" or "3.1.1"; auto speaks MQTT 5, and 3.1.1 where the broker refuses that. By 3.1.1
        /// it can't be read back from the broker which settings are in force.
        mqtt: ProtocolChoice = ProtocolChoice::Auto,
        /// File with the user name on its first line; empty: the broker asks for none.
        user_file: PathBuf = PathBuf::new(),
        /// File with the password on its first line; readable by the agent only.
        password_file: PathBuf = PathBuf::new(),
        /// The one configuration file that the agent writes. Empty: the environment variable
        /// MOSQUITTO_TUNER_CONFIG, else /etc/mosquitto/conf.d/zz-brokertuner.conf.
        drop_in: PathBuf = PathBuf::new(),
        /// The broker's main file: looked at for what overrides the drop-in and for what the site
        /// sets itself. Empty: not looked at.
        main_conf: PathBuf = PathBuf::from("/etc/mosquitto/mosquitto.conf"),
        /// The broker's database file. Empty: as persistence_location in main_conf says.
        database: PathBuf = PathBuf::new(),
    }

    /// How the broker's process is found.
    Pid {
        /// auto, config (pid below), env (MOSQUITTO_PID), file, systemd or listener (the owner of
        /// the listening socket). auto takes the listener; where that may not be seen, what the
        /// others agree on.
        source: PidSource = PidSource::Auto,
        /// A fixed process id; 0: none. A restart changes it: for containers and tests.
        pid: i32 = 0,
        /// The pid_file of mosquitto.conf; empty: none.
        pid_file: PathBuf = PathBuf::new(),
        /// The systemd unit of the broker; empty: none.
        unit: String = "mosquitto.service".into(),
    }

    /// How the broker is made to reload and restart.
    Control {
        /// systemd, signal (SIGHUP), command or none; with none, options that need it are left alone.
        reload: MethodName = MethodName::Systemd,
        /// systemd, command or none; with none, options that need it are left alone.
        restart: MethodName = MethodName::Systemd,
        /// The unit for systemd.
        unit: String = "mosquitto.service".into(),
        /// Program and arguments for reload = "command"; no shell unless you name one.
        reload_command: Vec<String> = Vec::new(),
        /// Program and arguments for restart = "command".
        restart_command: Vec<String> = Vec::new(),
        /// Longest run of a command, in seconds. 1 to 240.
        command_timeout_s: u32 = 30,
        /// How long the broker may take to be ready after a reload or restart, in seconds. 1 to 240.
        ready_timeout_s: u32 = 20,
    }

    /// The privileged helper (`edge helper`), so that the agent itself needs no rights.
    Helper {
        /// Have it write the drop-in, and reload and restart the broker in the ways that `control` sets.
        r#use: bool = false,
        /// Where it listens.
        socket: PathBuf = PathBuf::from("/run/brokertuner/helper.sock"),
        /// The user that the agent runs as: the helper answers nobody else, and root.
        user: String = "brokertuner".into(),
    }

    /// What decides.
    Model {
        /// The model file, made by `host train` and `host export`.
        path: PathBuf = PathBuf::from("/var/lib/brokertuner/model.btm"),
        /// The state vector that the model must be made for: edge or seed5.
        schema: Schema = Schema::Edge,
        /// Public keys of `host keygen`: the model must be signed by one of these, and no older than
        /// the last one that was. Empty: any sound model is taken.
        public_keys: Vec<PathBuf> = Vec::new(),
        /// Change nothing while an input lies beyond what the model's training saw.
        hold_beyond_training: bool = true,
    }

    /// What the site asks of the broker.
    Targets {
        /// A delivery is worth something within this time, in milliseconds. 1 to 600000.
        deadline_ms: u32 = 250,
        /// Memory that the broker may take, in MiB. 1 to 65536.
        rss_limit_mib: u32 = 64,
    }

    /// When a change is made.
    Decide {
        /// How often to sample and decide, in milliseconds. 250 to 3600000.
        interval_ms: u32 = 5000,
        /// How often a pair of small messages measures the broker's latency, in milliseconds.
        /// 250 to 3600000; 0: never.
        probe_interval_ms: u32 = 3000,
        /// Wanted settings must have been alike for this long before a restart, in seconds.
        /// 0 to 86400.
        dwell_s: u32 = 60,
        /// How long the effect of a change is watched before the next, in seconds. 1 to 86400.
        verify_window_s: u32 = 30,
        /// Restarts in any 60 minutes. 0 to 32; 0: nothing is changed that takes a restart.
        restarts_per_hour_max: u8 = 4,
        /// Restarts in any 24 hours. 0 to 64; 0: nothing is changed that takes a restart.
        restarts_per_day_max: u8 = 12,
        /// A broker that runs on the agent's settings already is restarted for others only where this
        /// share of its deliveries is dropped, in percent, its memory is short, or the probe takes more
        /// than a quarter of targets.deadline_ms. 0 to 100; 0: whenever others are wanted.
        restart_gain_min_percent: u8 = 1,
        /// Times of day without restarts, as in ["22:00-06:00", "12:00-13:00"], by the clock on
        /// the wall.
        quiet_hours: Vec<String> = Vec::new(),
        /// The zone of that clock: localtime (the machine's own), or as in "Europe/Berlin" or
        /// "UTC0".
        time_zone: String = MACHINES_ZONE.into(),
        /// Restart although offline sessions or stored messages would be lost.
        allow_state_loss: bool = false,
        /// Wait after a change that had to be taken back, in seconds; doubles with each further one.
        /// 1 to 86400.
        back_off_s: u32 = 60,
    }

    /// The agent itself.
    Agent {
        /// Directory of its own records, writable by it.
        state_dir: PathBuf = PathBuf::from("/var/lib/brokertuner"),
        /// While this file exists, nothing is changed at all. Empty: kill-switch in state_dir.
        kill_switch_file: PathBuf = PathBuf::new(),
        /// error, warn, info, debug or trace; the environment variable RUST_LOG goes before it.
        log_level: String = "info".into(),
    }

    /// Reading and setting over HTTP: POST /apply_knobs, GET /status, /healthz, /metrics.
    Http {
        /// Where to listen: "unix:/var/lib/brokertuner/http.sock", or as in "127.0.0.1:9188". Empty:
        /// nowhere.
        listen: String = String::new(),
        /// File with the token that every write needs, on its first line; readable by the agent
        /// only. Empty: nothing can be written.
        token_file: PathBuf = PathBuf::new(),
        /// Listen on another address than loopback; then reading needs the token too.
        allow_remote: bool = false,
    }

    /// The rules of one option.
    KnobRules {
        /// auto: tuned unless the site sets it itself; yes: tuned all the same; no: left alone.
        tune: Tune = Tune::Auto,
        /// Smallest value that the agent may write.
        min: Option<u64> = None,
        /// Largest value that the agent may write; "no limit" too where it is the table's own.
        max: Option<u64> = None,
        /// What holds where the agent writes no line; else as main_conf says, or the broker's default.
        site: Option<u64> = None,
    }
}

/// Whether an option is tuned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tune {
    /// As the knob table says, and not where the site sets it itself.
    Auto,
    /// In any case, but where another file overrides the drop-in.
    Yes,
    /// Never.
    No,
}

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Config {
    /// `[broker]`
    pub broker: Broker,
    /// `[pid]`
    pub pid: Pid,
    /// `[control]`
    pub control: Control,
    /// `[helper]`
    pub helper: Helper,
    /// `[model]`
    pub model: Model,
    /// `[targets]`
    pub targets: Targets,
    /// `[decide]`
    pub decide: Decide,
    /// `[agent]`
    pub agent: Agent,
    /// `[http]`
    pub http: Http,
    /// `[knobs.NAME]`, for options with rules of their own.
    pub knobs: BTreeMap<&'static str, KnobRules>,
}

/// One thing wrong with a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The line, from 1, where there is one.
    pub line: Option<usize>,
    /// The option, as `section.key`; empty for the file as a whole.
    pub key: String,
    /// What is wrong, and what to do.
    pub what: String,
}

/// Why a configuration can't be used: every fault at once.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It can't be read.
    #[error("{0}; `edge default-config` prints one to start from")]
    File(#[from] FileError),
    /// It is not there.
    #[error("{}: no such file; `edge default-config` prints one to start from", path.display())]
    Absent {
        /// The file.
        path: PathBuf,
    },
    /// It can't be used as it is.
    #[error("{}", Listing(path, faults))]
    Faults {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, in the file's order.
        faults: Vec<Fault>,
    },
}

struct Listing<'e>(&'e Path, &'e [Fault]);

impl fmt::Display for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.1.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}", self.0.display())?;
            if let Some(line) = fault.line {
                write!(f, ":{line}")?;
            }
            if !fault.key.is_empty() {
                write!(f, ": {}", fault.key)?;
            }
            write!(f, ": {}", fault.what)?;
        }
        Ok(())
    }
}

impl Config {
    /// Reads and checks a file; touches nothing else.
    ///
    /// # Errors
    /// [`ConfigError`] with every fault of the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let bytes = RealFiles.read(path).map_err(fs::at("read", path))?;
        let bytes = bytes.ok_or_else(|| ConfigError::Absent { path: path.into() })?;
        let found = match String::from_utf8(bytes) {
            Ok(text) => Self::parse(&text),
            Err(_) => Err(vec![Fault {
                line: None,
                key: String::new(),
                what: "is not UTF-8; save it as UTF-8".into(),
            }]),
        };
        found.map_err(|faults| ConfigError::Faults { path: path.into(), faults })
    }

    /// The file that stops everything while it exists.
    #[must_use]
    pub fn kill_switch(&self) -> PathBuf {
        match self.agent.kill_switch_file.as_os_str().is_empty() {
            true => self.agent.state_dir.join("kill-switch"),
            false => self.agent.kill_switch_file.clone(),
        }
    }

    /// The rules of one option.
    #[must_use]
    pub fn rules_of(&self, knob: Knob) -> KnobRules {
        self.knobs.get(knob.spec().key).cloned().unwrap_or_default()
    }

    /// The default file, with every option, its meaning and its default.
    #[must_use]
    pub fn default_file() -> String {
        let config = Self::default();
        let mut out = String::from(
            "# Configuration of edge, the agent that tunes a Mosquitto broker.\n\
             # Every option stands here with its default; all of them may be left out.\n",
        );
        write_section(&mut out, "broker", "The broker to tune.", &config.broker);
        write_section(&mut out, "pid", "How the broker's process is found.", &config.pid);
        write_section(
            &mut out,
            "control",
            "How the broker is made to reload and restart.",
            &config.control,
        );
        write_section(
            &mut out,
            "helper",
            "Who does what needs rights; edge/README.md has the set-up.",
            &config.helper,
        );
        write_section(&mut out, "model", "What decides.", &config.model);
        write_section(&mut out, "targets", "What the site asks of the broker.", &config.targets);
        write_section(&mut out, "decide", "When a change is made.", &config.decide);
        write_section(&mut out, "agent", "The agent itself.", &config.agent);
        let about =
            "Reading and setting over HTTP: POST /apply_knobs, GET /status, /healthz, /metrics.";
        write_section(&mut out, "http", about, &config.http);
        write_knobs(&mut out);
        out
    }
}

fn write_section(out: &mut String, name: &str, about: &str, section: &impl Section) {
    out.push_str(&format!("\n# {about}\n[{name}]\n"));
    for shown in section.shown() {
        for line in shown.doc {
            out.push_str(&format!("#{line}\n"));
        }
        if let Some(value) = shown.value {
            out.push_str(&format!("{} = {value}\n", shown.key));
        }
    }
}

fn write_knobs(out: &mut String) {
    out.push_str("\n# Rules per option, each with the range of the table. The keys mean:\n");
    for shown in KnobRules::default().shown() {
        out.push_str(&format!("# {}:{}\n", shown.key, shown.doc.join("")));
    }
    for spec in &KNOBS {
        let held = match spec.tuned {
            Tuned::ByDefault => "",
            Tuned::OptIn => " Held at the site's value unless tune = \"yes\".",
        };
        out.push_str(&format!("\n# {}.{held}\n[knobs.{}]\ntune = \"auto\"\n", spec.why, spec.key));
        out.push_str(&format!("min = {}\nmax = {}\n", spec.min, spec.max));
        out.push_str(&format!("# site = {}\n", spec.default));
    }
}

#[cfg(test)]
mod tests;
