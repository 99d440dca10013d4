//! What a configuration means on this machine: secrets read, addresses found, the broker's files
//! looked at.

use std::ffi::OsString;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration as StdDuration;

use brokertuner_core::controller::Rules;
use brokertuner_core::features::{Schema, Targets};
use brokertuner_core::knobs::{Apply, Tuned};
use brokertuner_core::{Duration, Envelope, Knob, KnobSet};

use crate::apply::{Applier, Paths};
use crate::clock;
use crate::config::{Config, Tune, bounds};
use crate::connack::Credentials;
use crate::control::{Flaw, LiveBroker, Method, MethodName};
use crate::elsewhere::{self, Elsewhere};
use crate::fs::{self, FileError, RealFiles};
use crate::helper::Client;
use crate::pid::{PID_VARIABLE, PidFinder};
use crate::quiet::{QuietHours, Window};
use crate::sampler::SamplerOptions;
use crate::state::StateError;
use crate::tls::{Tls, TlsError, TlsFiles};

/// The environment variable that may name the drop-in.
pub const DROP_IN_VARIABLE: &str = "MOSQUITTO_TUNER_CONFIG";
/// Set by systemd for services with credentials.
const CREDENTIALS_VARIABLE: &str = "CREDENTIALS_DIRECTORY";
/// What a path begins with that is the name of a credential.
const CREDENTIAL_PREFIX: &str = "credential:";
/// Where systemd keeps the credentials of the agent while it runs: for orders and `doctor` beside it.
const CREDENTIALS_OF_SERVICE: &str = "/run/credentials/brokertuner.service";
/// Where the drop-in lies on Debian.
pub const DROP_IN_DEFAULT: &str = "/etc/mosquitto/conf.d/zz-brokertuner.conf";
const ANSWER_TIMEOUT: StdDuration = StdDuration::from_secs(2);

/// The environment variables that count, read once.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// `MOSQUITTO_PID`
    pub pid: Option<String>,
    /// `MOSQUITTO_TUNER_CONFIG`
    pub drop_in: Option<OsString>,
    /// `CREDENTIALS_DIRECTORY`, where systemd puts the credentials of a service.
    pub credentials: Option<PathBuf>,
}

impl Environment {
    /// That of this process; an empty variable counts as none.
    #[must_use]
    pub fn of_process() -> Self {
        Self {
            pid: std::env::var(PID_VARIABLE).ok().filter(|text| !text.is_empty()),
            drop_in: std::env::var_os(DROP_IN_VARIABLE).filter(|text| !text.is_empty()),
            credentials: std::env::var_os(CREDENTIALS_VARIABLE)
                .map(PathBuf::from)
                .or_else(|| Some(PathBuf::from(CREDENTIALS_OF_SERVICE)).filter(|dir| dir.exists())),
        }
    }

    /// The file that `path` means: itself, or a credential.
    ///
    /// # Errors
    /// [`SiteError::NoCredentials`].
    pub fn file(&self, key: &'static str, path: PathBuf) -> Result<PathBuf, SiteError> {
        let name = path.to_str().and_then(|text| text.strip_prefix(CREDENTIAL_PREFIX));
        let Some(name) = name else { return Ok(path) };
        match &self.credentials {
            // systemd's names have no slash; a path would lead out of the directory.
            Some(dir) if !name.contains('/') => Ok(dir.join(name)),
            _ => Err(SiteError::NoCredentials { key, name: name.into() }),
        }
    }
}

/// Why a configuration does not fit this machine.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    /// A file that it names.
    #[error("{key}: {source}")]
    File {
        /// The option.
        key: &'static str,
        /// What is wrong with the file.
        source: FileError,
    },
    /// A secret's file without a secret.
    #[error("{key}: {}: {what}", path.display())]
    Secret {
        /// The option.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A credential where systemd passed none.
    #[error(
        "{key}: credential:{name}: this process has no credentials ($CREDENTIALS_DIRECTORY), nor runs brokertuner.service, whose it could take; start it by systemd with LoadCredential={name}:FILE (for one command: systemd-run -P -p LoadCredential={name}:FILE edge ...), or name a file"
    )]
    NoCredentials {
        /// The option.
        key: &'static str,
        /// The credential.
        name: String,
    },
    /// TLS can't be used as configured.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The host has no address.
    #[error("broker.host: {host}: {reason}; write an address, as in \"127.0.0.1\"")]
    Host {
        /// The host.
        host: String,
        /// What the resolver said.
        reason: String,
    },
    /// The zone of the quiet hours.
    #[error(
        "decide.time_zone: {zone}: {reason}; write localtime, a name of the zone database as in \"Europe/Berlin\" (package tzdata), or \"UTC0\""
    )]
    Zone {
        /// The zone.
        zone: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The drop-in's path from the environment.
    #[error("{DROP_IN_VARIABLE}={}: must be an absolute path that ends in .conf", path.display())]
    DropIn {
        /// The path.
        path: PathBuf,
    },
    /// The drop-in's path from the environment, of which the helper knows nothing.
    #[error(
        "{DROP_IN_VARIABLE}: the helper goes by the configuration alone, and would write another file; set broker.drop_in there, and unset the variable"
    )]
    DropInBesideHelper,
    /// The broker never loads the directory.
    #[error("{}: no include_dir names {}, so the broker would never load the drop-in; add the line `include_dir {}`, or correct broker.drop_in and broker.main_conf", main.display(), dir.display(), dir.display())]
    NotIncluded {
        /// The broker's main file.
        main: PathBuf,
        /// The drop-in's directory.
        dir: PathBuf,
    },
}

/// Everything that the agent needs to know of its surroundings.
#[derive(Debug, Clone)]
pub struct Site {
    /// The broker.
    pub broker: LiveBroker,
    /// Where is written.
    pub paths: Paths,
    /// How long readiness may take.
    pub ready_timeout: StdDuration,
    /// The broker's main file, where it is looked at.
    pub main_conf: Option<PathBuf>,
    /// What the rest of the broker's configuration says of our options.
    pub elsewhere: Elsewhere,
    /// The bounds, before anything was measured.
    pub envelope: Envelope,
    /// How careful to be.
    pub rules: Rules,
    /// What the site asks for.
    pub targets: Targets,
    /// The state vector.
    pub schema: Schema,
    /// Time between decisions.
    pub interval: Duration,
    /// Time between probes.
    pub probe_interval: Option<StdDuration>,
    /// Times without restarts.
    pub quiet_hours: QuietHours,
    /// While it exists, nothing is changed.
    pub kill_switch: PathBuf,
    config: Config,
}

impl Site {
    /// Looks up what `config` names; reads files, opens no connection, writes nothing.
    ///
    /// # Errors
    /// [`SiteError`], naming option, file and remedy.
    pub fn look(config: &Config, environment: &Environment) -> Result<Self, SiteError> {
        let address = resolve(&config.broker.host, config.broker.port)?;
        let drop_in = drop_in_path(&config.broker.drop_in, environment)?;
        let is_by_environment =
            environment.drop_in.is_some() && some_path(&config.broker.drop_in).is_none();
        if config.helper.r#use && is_by_environment {
            return Err(SiteError::DropInBesideHelper);
        }
        let main_conf = some_path(&config.broker.main_conf);
        let elsewhere = match &main_conf {
            Some(main) => look_around(main, &drop_in)?,
            None => Elsewhere { is_included: true, ..Elsewhere::default() },
        };
        let database = some_path(&config.broker.database).or_else(|| elsewhere.database.clone());
        let broker = live_broker(config, environment, address)?;
        let decide = &config.decide;
        Ok(Self {
            paths: Paths { drop_in, state_dir: config.agent.state_dir.clone(), database },
            ready_timeout: StdDuration::from_secs(config.control.ready_timeout_s.into()),
            main_conf,
            envelope: envelope(config, &elsewhere, &broker),
            rules: Rules { can_reload: broker.reload != Method::None, ..rules(config) },
            broker,
            elsewhere,
            targets: Targets {
                deadline_ms: config.targets.deadline_ms,
                rss_limit_mib: config.targets.rss_limit_mib,
            },
            schema: config.model.schema,
            interval: Duration::from_millis(decide.interval_ms.into()),
            probe_interval: (decide.probe_interval_ms > 0)
                .then(|| StdDuration::from_millis(decide.probe_interval_ms.into())),
            quiet_hours: quiet_hours(config)?,
            kill_switch: config.kill_switch(),
            config: config.clone(),
        })
    }

    /// That `main_conf` belongs to another broker than the one on `broker.port`, as far as its
    /// listeners tell.
    #[must_use]
    pub fn other_broker(&self) -> Option<Flaw> {
        let (main, port) = (self.main_conf.as_ref()?, self.broker.address.port());
        if self.elsewhere.listens_on(port) {
            return None;
        }
        let ports: Vec<_> = self.elsewhere.ports.iter().map(u16::to_string).collect();
        let ports = if ports.is_empty() { "1883, by default".into() } else { ports.join(", ") };
        Some(Flaw {
            found: format!(
                "broker.main_conf: {} listens on {ports}, not on broker.port = {port}: it may be another broker's",
                main.display()
            ),
            remedy: "correct broker.port, or set broker.main_conf and broker.drop_in to the files of the broker that listens there".into(),
        })
    }

    /// Why nothing can be changed as things are configured, in words; `None` where something can.
    #[must_use]
    pub fn barred(&self) -> Option<String> {
        if !self.envelope.opted_in.is_empty() {
            return None;
        }
        let is_none = |method: &Method| *method == Method::None;
        Some(if is_none(&self.broker.reload) && is_none(&self.broker.restart) {
            "no option may be changed: control.reload and control.restart are \"none\"; set a way for at least one of them".into()
        } else {
            "no option may be changed: each is set elsewhere, left alone by tune = \"no\", or needs what control.reload or control.restart does not offer; `edge doctor` has more".into()
        })
    }

    /// What of the configuration can't be right here, though it may get right while the agent runs:
    /// each with its remedy. Asks systemd, for at most some seconds.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let ways = [("reload", &self.broker.reload), ("restart", &self.broker.restart)];
        // The helper has rights and a view of its own.
        let ways = ways.into_iter().filter(|_| self.broker.finder.helper.is_none());
        let flaws = ways.filter_map(|(verb, method)| method.flaw(verb)).chain(self.other_broker());
        flaws.map(|flaw| flaw.to_string()).chain(self.barred()).collect()
    }

    /// What changes this broker, by the helper where one is to, with what is wrong with the agent's
    /// memory.
    ///
    /// # Errors
    /// As [`Applier::open`].
    pub fn open_applier(&self) -> Result<(Applier, Option<StateError>), StateError> {
        let (paths, broker) = (self.paths.clone(), self.broker.clone());
        let (applier, damage) = match self.broker.finder.helper.clone() {
            None => Applier::open(Box::new(RealFiles), Box::new(broker), paths)?,
            Some(helper) => {
                let database = paths.database.as_deref();
                let (files, broker) = helper.seams(broker, &paths.drop_in, database);
                Applier::open(Box::new(files), Box::new(broker), paths)?
            }
        };
        Ok((applier.with_ready_timeout(self.ready_timeout), damage))
    }

    /// Looks at the broker's other files again: lets go of what is set there by now, and takes over
    /// the values.
    ///
    /// # Errors
    /// As [`Site::look`] for those files.
    pub fn look_again(&mut self) -> Result<(), SiteError> {
        if let Some(main) = &self.main_conf {
            self.elsewhere = look_around(main, &self.paths.drop_in)?;
            self.envelope = envelope(&self.config, &self.elsewhere, &self.broker);
        }
        Ok(())
    }

    /// How to sample this broker.
    #[must_use]
    pub fn sampler_options(&self) -> SamplerOptions {
        SamplerOptions {
            address: self.broker.address,
            // Not the CONNACK probe's: the same one would end this connection.
            client_id: format!("{}-sampler", self.broker.client_id),
            credentials: self.broker.credentials.clone(),
            tls: self.broker.tls.clone(),
            mqtt: self.broker.mqtt,
            probe_interval: self.probe_interval,
            clock: clock::now,
        }
    }
}

fn resolve(host: &str, port: u16) -> Result<SocketAddr, SiteError> {
    let failed = |reason: String| SiteError::Host { host: host.into(), reason };
    let mut found = (host, port).to_socket_addrs().map_err(|e| failed(e.to_string()))?;
    found.next().ok_or_else(|| failed("no address".into()))
}

/// The file that the agent writes: the configured one, else that of the environment, else Debian's.
///
/// # Errors
/// [`SiteError`] where the environment names a file that a broker would not load.
pub fn drop_in_path(configured: &Path, environment: &Environment) -> Result<PathBuf, SiteError> {
    if let Some(path) = some_path(configured) {
        return Ok(path);
    }
    let Some(path) = environment.drop_in.as_ref().map(PathBuf::from) else {
        return Ok(DROP_IN_DEFAULT.into());
    };
    let name = path.file_name().map(std::ffi::OsStr::as_encoded_bytes).unwrap_or_default();
    if path.is_absolute() && name.len() > 5 && name.ends_with(b".conf") {
        Ok(path)
    } else {
        Err(SiteError::DropIn { path })
    }
}

fn some_path(path: &Path) -> Option<PathBuf> {
    (!path.as_os_str().is_empty()).then(|| path.to_path_buf())
}

fn some_text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn look_around(main: &Path, drop_in: &Path) -> Result<Elsewhere, SiteError> {
    let failed = |source| SiteError::File { key: "broker.main_conf", source };
    let found = elsewhere::look(main, drop_in).map_err(failed)?;
    if found.is_included {
        return Ok(found);
    }
    Err(SiteError::NotIncluded { main: main.into(), dir: fs::dir_of(drop_in).into() })
}

fn live_broker(
    config: &Config,
    environment: &Environment,
    address: SocketAddr,
) -> Result<LiveBroker, SiteError> {
    let (control, pid) = (&config.control, &config.pid);
    let method = |name: MethodName, command: &[String]| match name {
        MethodName::Systemd => Method::Systemd(control.unit.clone()),
        MethodName::Signal => Method::Signal,
        MethodName::Command => Method::Command(command.to_vec()),
        MethodName::None => Method::None,
    };
    let file = |key, path: &Path| match some_path(path) {
        Some(path) => environment.file(key, path).map(Some),
        None => Ok(None),
    };
    let credentials = match file("broker.user_file", &config.broker.user_file)? {
        Some(user_file) => Some(Credentials {
            user: secret("broker.user_file", &user_file)?,
            password: match file("broker.password_file", &config.broker.password_file)? {
                Some(path) => secret("broker.password_file", &path)?,
                None => String::new(),
            },
        }),
        None => None,
    };
    let command_timeout = StdDuration::from_secs(control.command_timeout_s.into());
    let helper = config.helper.r#use.then(|| Client {
        socket: config.helper.socket.clone(),
        // A save and a restart, and some.
        timeout: command_timeout * 2 + ANSWER_TIMEOUT,
    });
    Ok(LiveBroker {
        address,
        // `edge advise` beside `edge run` must not take its connection over.
        client_id: format!("{}-{}", config.broker.client_id, std::process::id()),
        credentials,
        tls: tls(config, environment)?,
        mqtt: config.broker.mqtt,
        finder: PidFinder {
            source: pid.source,
            pid: (pid.pid > 0).then_some(pid.pid),
            env: environment.pid.clone(),
            pid_file: some_path(&pid.pid_file),
            unit: some_text(&pid.unit),
            address,
            helper,
        },
        reload: method(control.reload, &control.reload_command),
        restart: method(control.restart, &control.restart_command),
        command_timeout,
        answer_timeout: ANSWER_TIMEOUT,
    })
}

/// How to connect by TLS, where a CA is configured.
fn tls(config: &Config, environment: &Environment) -> Result<Option<Tls>, SiteError> {
    let broker = &config.broker;
    let Some(ca) = some_path(&broker.ca_file) else { return Ok(None) };
    let client = match (some_path(&broker.cert_file), some_path(&broker.key_file)) {
        (Some(cert), Some(key)) => Some((
            environment.file("broker.cert_file", cert)?,
            environment.file("broker.key_file", key)?,
        )),
        _ => None,
    };
    let ca = environment.file("broker.ca_file", ca)?;
    let files = TlsFiles { ca, client, name: some_text(&broker.tls_name) };
    Ok(Some(Tls::load(&files, &broker.host)?))
}

/// The first line of a secret's file.
fn secret(key: &'static str, path: &Path) -> Result<String, SiteError> {
    let bytes = fs::read_there(path).map_err(|source| SiteError::File { key, source })?;
    let wrong = |what| SiteError::Secret { key, path: path.into(), what };
    let text = String::from_utf8(bytes).map_err(|_| wrong("is not UTF-8"))?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() { Err(wrong("its first line is empty")) } else { Ok(line.to_owned()) }
}

/// The options that may be written: as the operator said, not where another file has the last word,
/// and only where there is a way to make them effective.
fn opted_in(config: &Config, elsewhere: &Elsewhere, broker: &LiveBroker) -> KnobSet {
    let (set_by_site, overridden) = (elsewhere.set_by_site(), elsewhere.overridden());
    let has_way = |knob: Knob| match knob.spec().apply {
        Apply::Reload => broker.reload != Method::None,
        Apply::Restart => broker.restart != Method::None,
    };
    Knob::ALL
        .into_iter()
        .filter(|&knob| has_way(knob))
        .filter(|&knob| match config.rules_of(knob).tune {
            Tune::Auto => knob.spec().tuned == Tuned::ByDefault && !set_by_site.contains(knob),
            Tune::Yes => !overridden.contains(knob),
            Tune::No => false,
        })
        .fold(KnobSet::EMPTY, KnobSet::with)
}

fn envelope(config: &Config, elsewhere: &Elsewhere, broker: &LiveBroker) -> Envelope {
    let mut site = elsewhere.site_values();
    for knob in Knob::ALL {
        if let Some(value) = config.rules_of(knob).site {
            site.0[knob as usize] = value;
        }
    }
    Envelope {
        opted_in: opted_in(config, elsewhere, broker),
        bounds: Knob::ALL.map(|knob| bounds(knob, &config.rules_of(knob))),
        site,
        ..Envelope::default()
    }
}

fn quiet_hours(config: &Config) -> Result<QuietHours, SiteError> {
    let zone = &config.decide.time_zone;
    let windows = config.decide.quiet_hours.iter().filter_map(|text| Window::parse(text)).collect();
    let failed = |reason| SiteError::Zone { zone: zone.clone(), reason };
    QuietHours::new(windows, zone).map_err(failed)
}

fn rules(config: &Config) -> Rules {
    let decide = &config.decide;
    Rules {
        dwell: Duration::from_secs(decide.dwell_s.into()),
        verify_window: Duration::from_secs(decide.verify_window_s.into()),
        restarts_per_hour_max: decide.restarts_per_hour_max,
        restarts_per_day_max: decide.restarts_per_day_max,
        restart_gain_min: f32::from(decide.restart_gain_min_percent) / 100.0,
        allow_state_loss: decide.allow_state_loss,
        back_off: Duration::from_secs(decide.back_off_s.into()),
        ..Rules::for_deadline(config.targets.deadline_ms)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn config(dir: &Path, main: &str, extra: &str) -> Config {
        std::fs::create_dir_all(dir.join("conf.d")).unwrap();
        let text = main.replace("DIR", dir.to_str().unwrap());
        std::fs::write(dir.join("mosquitto.conf"), text).unwrap();
        let dir = dir.display();
        Config::parse(&format!(
            "[broker]\nmain_conf = \"{dir}/mosquitto.conf\"\n\
             drop_in = \"{dir}/conf.d/zz-brokertuner.conf\"\n{extra}"
        ))
        .unwrap()
    }

    #[test]
    fn what_the_site_sets_is_the_sites() {
        let dir = tempfile::tempdir().unwrap();
        let main = "set_tcp_nodelay true\nmax_queued_messages 300\nmax_queued_bytes 70000\n\
                    include_dir DIR/conf.d\nmax_inflight_messages 9\n";
        let extra = "[knobs.max_queued_messages]\ntune = \"yes\"\nmin = 200\n\
                     [knobs.max_inflight_messages]\ntune = \"yes\"\n\
                     [knobs.max_inflight_bytes]\ntune = \"no\"\n\
                     [knobs.memory_limit]\ntune = \"yes\"\nsite = 5\n";
        let site = Site::look(&config(dir.path(), main, extra), &Environment::default()).unwrap();
        let tuned: Vec<_> = site.envelope.opted_in.iter().collect();
        assert_eq!(tuned, [Knob::QueuedMessagesMax, Knob::MemoryLimit, Knob::AutosaveInterval]);
        assert_eq!(site.envelope.bounds[Knob::QueuedMessagesMax as usize].min(), 200);
        assert_eq!(site.envelope.site.get(Knob::QueuedBytesMax), 70_000);
        assert_eq!(site.envelope.site.get(Knob::MemoryLimit), 5);
    }

    #[test]
    fn what_has_no_way_to_take_effect_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(
            dir.path(),
            "include_dir DIR/conf.d\n",
            "[control]\nrestart = \"none\"\nreload = \"signal\"\n",
        );
        let site = Site::look(&config, &Environment::default()).unwrap();
        let tuned: Vec<_> = site.envelope.opted_in.iter().collect();
        assert_eq!(tuned, [Knob::AutosaveInterval]);
    }

    #[test]
    fn a_directory_that_the_broker_does_not_load_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), "include_dir /nonexistent/elsewhere\n", "");
        let error = Site::look(&config, &Environment::default()).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/elsewhere"), "{error}");
        std::fs::write(dir.path().join("mosquitto.conf"), "persistence true\n").unwrap();
        let error = Site::look(&config, &Environment::default()).unwrap_err().to_string();
        assert!(error.contains("add the line `include_dir"), "{error}");
    }

    #[test]
    fn secrets_come_from_files_and_are_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let files =
            format!("user_file = \"{0}/user\"\npassword_file = \"{0}/password\"\n", path.display());
        let config = config(path, "include_dir DIR/conf.d\n", &files);
        let look = || Site::look(&config, &Environment::default());
        let error = look().unwrap_err().to_string();
        assert!(error.starts_with("broker.user_file: ") && error.contains("/user"), "{error}");
        std::fs::write(path.join("user"), "tuner\n").unwrap();
        std::fs::write(path.join("password"), "\n").unwrap();
        assert!(matches!(look(), Err(SiteError::Secret { key: "broker.password_file", .. })));
        std::fs::write(path.join("password"), "s3cret\n").unwrap();
        let site = look().unwrap();
        assert_eq!(site.broker.credentials.as_ref().unwrap().password, "s3cret");
        assert!(!format!("{site:?}").contains("s3cret"));
    }

    #[test]
    fn the_environment_names_the_drop_in_only_where_the_file_does_not() {
        let environment = |path: &str| Environment {
            drop_in: Some(OsString::from(path)),
            ..Environment::default()
        };
        let none = Path::new("");
        let path = |configured: &Path, environment: &Environment| {
            drop_in_path(configured, environment).map(|path| path.display().to_string())
        };
        assert_eq!(path(none, &Environment::default()).unwrap(), DROP_IN_DEFAULT);
        assert_eq!(path(none, &environment("/a/b.conf")).unwrap(), "/a/b.conf");
        assert_eq!(path(Path::new("/c/d.conf"), &environment("/a/b.conf")).unwrap(), "/c/d.conf");
        let beside = Config::parse("[broker]\nmain_conf = \"\"\n[helper]\nuse = true\n").unwrap();
        let found = Site::look(&beside, &environment("/a/b.conf"));
        assert!(matches!(found, Err(SiteError::DropInBesideHelper)), "{found:?}");
        assert!(path(none, &environment("b.conf")).is_err());
        assert!(path(none, &environment("/a/b.txt")).is_err());
    }
}
