//! A broker, what it holds, and the agent beside it, for one row.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use brokertuner_core::envelope::Violation;
use brokertuner_core::{Envelope, Knob, render};
use brokertuner_edge::agent::Report;
use brokertuner_edge::config::Config;
use brokertuner_edge::site::{Environment, Site as EdgeSite};
use brokertuner_host::broker::{BrokerProcess, Mosquitto, SpawnConfig};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::{Holds, Row};
use crate::support::edge::{EdgeConfig, model, program};
use crate::support::mqtt::{Client, Level};
use crate::support::{PATIENCE, mosquitto, wait_for};

/// Options of both kinds: one that reloads, and some that take a restart.
pub(super) const WIDE: [(Knob, u64); 3] = [
    (Knob::InflightMessagesMax, 1000),
    (Knob::QueuedMessagesMax, 10_000),
    (Knob::AutosaveInterval, 100),
];
/// Decides and restarts as often as it may, and does not wait long for anything.
const QUICK: &str = "[decide]\ninterval_ms = 250\ndwell_s = 0\nverify_window_s = 1\nback_off_s = 1\n\
                     restarts_per_hour_max = 32\nrestarts_per_day_max = 64\n\
                     restart_gain_min_percent = 0\n";
/// A broker that waits at its start while a file `hold` is there, and does not start with a window
/// of four digits while a file `refuse` is; while a file `other` is there it reads a main file without
/// `include_dir`.
const WRAPPER: &str = "#!/bin/sh\nif [ \"$1\" = -c ]; then\n\
    dir=${2%/*}\nwhile [ -e \"$dir/hold\" ]; do sleep 0.05; done\n\
    [ ! -e \"$dir/refuse\" ] || ! grep -qs 'max_inflight_messages ....' \"$dir\"/conf.d/*.conf || exit 3\n\
    if [ -e \"$dir/other\" ]; then grep -v '^include_dir' \"$2\" >\"$dir/other\"; \
    shift 2; set -- -c \"$dir/other\" \"$@\"; fi\n\
    fi\nexec MOSQUITTO \"$@\"\n";
const KEPT: u16 = 10;
const TOPIC: &str = "kept/messages";
const RETAINED: &str = "kept/retained";

/// The agent, ended with the row.
pub(super) struct Agent(pub(super) Child);

impl Agent {
    pub(super) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), signal).unwrap();
    }

    pub(super) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) struct Site {
    pub(super) broker: BrokerProcess,
    pub(super) dir: TempDir,
    pub(super) config: EdgeConfig,
    pub(super) agent: Option<Agent>,
    /// Texts of the written configuration that are replaced.
    pub(super) replaced: Vec<(String, String)>,
    /// By what the agent's clock on the wall is ahead, where it has one of its own.
    ahead: Option<PathBuf>,
    /// What was said to others than the log.
    pub(super) heard: String,
}

impl Site {
    pub(super) fn new(row: &Row, version: &'static str) -> Self {
        let dir = TempDir::new().unwrap();
        let wrapper = dir.path().join("mosquitto");
        let real = mosquitto(version).path().display().to_string();
        let text = WRAPPER.replace("MOSQUITTO", &real);
        install(&wrapper, &text);
        let spawn = SpawnConfig {
            persistence: row.holds == Holds::Saved,
            main_conf_lines: row.main_conf.iter().map(ToString::to_string).collect(),
            supervised: true,
            ..SpawnConfig::default()
        };
        let found = Mosquitto::find(Some(&wrapper)).unwrap();
        let broker = BrokerProcess::spawn(&found, &spawn).unwrap();
        let mut config = EdgeConfig::of(&broker, dir.path());
        config.extra = format!("{QUICK}{}", row.config);
        model::write(&config.model, &WIDE);
        let (agent, replaced, heard) = (None, Vec::new(), String::new());
        let site = Self { broker, dir, config, agent, replaced, ahead: None, heard };
        if row.holds != Holds::Nothing {
            site.leave_messages();
        }
        if row.holds == Holds::Saved {
            site.broker.save().unwrap();
            let database = site.broker.data_dir().join("mosquitto.db");
            wait_for("the save", || fs::metadata(&database).ok().filter(|found| found.len() > 400));
        }
        site
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file in the broker's own folder.
    pub(super) fn beside_broker(&self, name: &str) -> PathBuf {
        self.broker.conf_path().with_file_name(name)
    }

    pub(super) fn state(&self, name: &str) -> PathBuf {
        self.config.state_dir.join(name)
    }

    pub(super) fn include_dir(&self) -> &Path {
        self.config.drop_in.parent().unwrap()
    }

    pub(super) fn replace(&mut self, from: &str, to: &str) {
        self.replaced.push((from.to_owned(), to.to_owned()));
    }

    pub(super) fn write_config(&self) -> PathBuf {
        let file = self.config.write(self.dir.path());
        let mut text = fs::read_to_string(&file).unwrap();
        for (from, to) in &self.replaced {
            assert!(text.contains(from), "{from} in {text}");
            text = text.replace(from, to);
        }
        fs::write(&file, text).unwrap();
        file
    }

    /// `edge VERB` with the configuration.
    pub(super) fn edge(&self, verb: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(verb).arg("--config").arg(self.write_config());
        for variable in ["MOSQUITTO_PID", "MOSQUITTO_TUNER_CONFIG", "RUST_LOG"] {
            command.env_remove(variable);
        }
        if let Some(ahead) = &self.ahead {
            command.envs(super::clock::environment(ahead));
        }
        command.stdin(Stdio::null());
        command
    }

    /// Steps the clock on the wall of the agents of this row.
    pub(super) fn set_clock_ahead(&mut self, by_s: i64) {
        let ahead = self.path("ahead");
        let new = ahead.with_extension("new");
        fs::write(&new, format!("{by_s:+}")).unwrap();
        fs::rename(new, &ahead).unwrap();
        self.ahead = Some(ahead);
    }

    /// Runs to its end and gives the exit status; what it says is heard.
    pub(super) fn run(&mut self, mut command: Command) -> i32 {
        let output = command.output().unwrap();
        for bytes in [&output.stdout, &output.stderr] {
            self.heard.push_str(&String::from_utf8_lossy(bytes));
        }
        output.status.code().unwrap_or(-1)
    }

    pub(super) fn run_edge(&mut self, verb: &[&str]) -> i32 {
        self.run(self.edge(verb))
    }

    pub(super) fn start_agent(&mut self) {
        let log = File::options().create(true).append(true).open(self.path("edge.log")).unwrap();
        let child = self.edge(&["run"]).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.agent = Some(Agent(child));
    }

    pub(super) fn take_agent(&mut self) -> Agent {
        self.agent.take().expect("the agent was started")
    }

    /// Ends the agent in good order.
    pub(super) fn stop_agent(&mut self) {
        let mut agent = self.take_agent();
        agent.signal(Signal::SIGTERM);
        let end = wait_for("the agent's end", || agent.0.try_wait().unwrap());
        assert!(end.success(), "{end}");
    }

    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.path("edge.log")).unwrap_or_default()
    }

    pub(super) fn until_said(&self, phrase: &str) {
        wait_for(format!("the agent to say: {phrase}"), || {
            self.log().contains(phrase).then_some(())
        });
    }

    /// As [`Site::until_said`], after another phrase.
    pub(super) fn until_said_after(&self, first: &str, phrase: &str) {
        wait_for(format!("the agent to say: {phrase}"), || {
            self.log().split_once(first)?.1.contains(phrase).then_some(())
        });
    }

    /// As [`Site::until_said`], once more than now.
    pub(super) fn until_said_again(&self, phrase: &str) {
        let count = || self.log().matches(phrase).count();
        let before = count();
        wait_for(format!("the agent to say again: {phrase}"), || (count() > before).then_some(()));
    }

    pub(super) fn report(&self) -> Option<Report> {
        serde_json::from_slice(&fs::read(self.state("status.json")).ok()?).ok()
    }

    pub(super) fn until(&self, what: &str, is_it: impl Fn(&Report) -> bool) -> Report {
        wait_for(what, || self.report().filter(|report| is_it(report)))
    }

    /// Every change that the model wants was made and stood its verification.
    pub(super) fn until_tuned(&self) -> Report {
        wait_for("the settings to fit", || self.tuned())
    }

    /// As [`Site::until_tuned`], now.
    pub(super) fn tuned(&self) -> Option<Report> {
        self.report().filter(|report| {
            report.verdict.why == "the settings fit"
                && report.options[Knob::InflightMessagesMax as usize].effective.is_some()
                && report.last.as_ref().is_some_and(|last| last.after.is_some())
        })
    }

    /// The agent, at work and content.
    pub(super) fn tune(&mut self) {
        self.start_agent();
        self.until_tuned();
    }

    /// Gives the agent other models, two of them: when it has taken the second, it has decided with the
    /// first, and done what it would do.
    pub(super) fn let_decide(&self) {
        for window in [20, 60] {
            let count = || self.log().matches("A new model is in use.").count();
            let before = count();
            let values =
                [(Knob::InflightMessagesMax, window), (Knob::QueuedMessagesMax, 10 * window)];
            model::write(&self.config.model, &values);
            wait_for("another model", || (count() > before).then_some(()));
        }
    }

    pub(super) fn kill_broker(&self) {
        let pid = i32::try_from(self.broker.pid()).unwrap();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }

    /// Ends the broker and keeps it from its next start, until the file is removed.
    pub(super) fn hold_broker(&self) -> PathBuf {
        let hold = self.beside_broker("hold");
        fs::write(&hold, "").unwrap();
        self.kill_broker();
        wait_for("the port to be free", || {
            std::net::TcpStream::connect(self.broker.addr()).is_err().then_some(())
        });
        hold
    }

    /// A session with messages, and a retained message.
    fn leave_messages(&self) {
        let addr = self.broker.addr();
        let mut keeper = Client::connect_durable(addr, "keeper");
        keeper.subscribe(TOPIC, 1);
        drop(keeper);
        let mut publisher = Client::connect(addr, Level::V311, "publisher");
        publisher.publish_acked(TOPIC, b"kept", KEPT);
        publisher.publish_retained(RETAINED, b"retained");
        publisher.receive_until_ping();
    }

    fn assert_kept(&self) {
        let addr = self.broker.addr();
        let mut keeper = Client::connect_durable(addr, "keeper");
        assert!(keeper.session_present, "the session was lost");
        for index in 0..KEPT {
            let (_, body) = keeper.receive_kind(0x30);
            let at = 2 + TOPIC.len();
            assert_eq!(&body[at + 2..], b"kept", "message {index}");
            keeper.acknowledge([body[at], body[at + 1]]);
        }
        let mut reader = Client::connect(addr, Level::V311, "reader");
        reader.subscribe(RETAINED, 1);
        reader.receive_kind(0x30);
    }

    /// What holds after every fault.
    pub(super) fn judge(&mut self, row: &Row) {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = Client::open(self.broker.addr(), Level::V5, "judge", true) {
            assert!(Instant::now() < deadline, "the broker does not serve: {error}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        for phrase in row.says {
            wait_for(format!("the agent to say: {phrase}"), || {
                (self.log().contains(phrase) || self.heard.contains(phrase)).then_some(())
            });
        }
        // Whatever it still does would be judged half done.
        if self.agent.is_some() {
            self.stop_agent();
        }
        if !row.theirs {
            self.assert_inside();
        }
        match row.holds {
            Holds::Saved => self.assert_kept(),
            Holds::Unsaved => {
                assert_eq!(self.broker.start_count(), 1, "restarted though it held something");
                self.assert_kept();
            }
            Holds::Nothing => {}
        }
    }

    /// The drop-in is whole, and says nothing outside the envelope of this site.
    fn assert_inside(&self) {
        let Ok(text) = fs::read_to_string(&self.config.drop_in) else { return };
        let settings = render::parse(&text).unwrap_or_else(|error| panic!("{error} in\n{text}"));
        assert_eq!(render::render(&settings).as_str(), text);
        let config = Config::load(&self.path("edge.toml")).unwrap();
        let site = EdgeSite::look(&config, &Environment::default()).unwrap();
        // The agent's own bounds are the same or narrower: it sees more of the packets, and twice
        // the heap was below the limit when that was written.
        let heap_bytes_max = Some(heap_bytes_max(&self.broker).unwrap_or(0) / 2);
        let envelope = Envelope { heap_bytes_max, packet_bytes_max: Some(64), ..site.envelope };
        let mut violations = envelope.check(&settings);
        // An option that was given back to the site says what the site says.
        let is_given_back =
            |knob: Knob| settings.get(knob).value() == Some(envelope.site.get(knob));
        violations.retain(|found| !matches!(found, Violation::Held(knob) if is_given_back(*knob)));
        assert!(violations.is_empty(), "{violations:?} in\n{text}");
    }

    /// All that was said, for a failed row.
    pub(super) fn story(&self) -> String {
        let mut story = format!("-- edge:\n{}{}\n-- broker:\n", self.log(), self.heard);
        for file in ["output.log", "mosquitto.log"] {
            let text = fs::read_to_string(self.beside_broker(file)).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            for line in &lines[lines.len().saturating_sub(12)..] {
                let _ = writeln!(story, "{line}");
            }
        }
        story
    }
}

/// `$SYS/broker/heap/maximum`; 2.0.11 forgets it after a minute without a change.
fn heap_bytes_max(broker: &BrokerProcess) -> Option<u64> {
    let mut reader = Client::connect(broker.addr(), Level::V311, "heap");
    reader.subscribe("$SYS/broker/heap/maximum", 0);
    let packets = reader.receive_until_ping();
    let (_, body) = packets.iter().find(|(kind, _)| kind & 0xf0 == 0x30)?;
    let text = &body[2 + "$SYS/broker/heap/maximum".len()..];
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Writes a program. Not by this process: a file that it has open for writing may be passed on to
/// what another test starts, and can't be executed until that has ended.
pub(super) fn install(path: &Path, text: &str) {
    let source = path.with_extension("text");
    fs::write(&source, text).unwrap();
    copy(&source, path);
}

/// Copies a file by another process, executable.
pub(super) fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg(from).arg(to).status().unwrap().success());
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).unwrap();
}
