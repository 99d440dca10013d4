//! The agent beside a broker of these tests: its configuration, its program, a model.

// The agent's own tests write it in the same way.
#[path = "../../edge/tests/edge/model.rs"]
pub(crate) mod model;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use brokertuner_host::broker::BrokerProcess;

use super::build_program;

/// What the agent's configuration says; changed by a test before it is written.
#[derive(Debug, Clone)]
pub(crate) struct EdgeConfig {
    pub(crate) port: u16,
    pub(crate) drop_in: PathBuf,
    pub(crate) main_conf: PathBuf,
    pub(crate) pid_file: PathBuf,
    pub(crate) restart: PathBuf,
    pub(crate) model: PathBuf,
    pub(crate) state_dir: PathBuf,
    /// Further lines, at the end.
    pub(crate) extra: String,
}

impl EdgeConfig {
    /// For a supervised broker: reload by signal, restart by its command. Model and records lie in
    /// `dir`.
    pub(crate) fn of(broker: &BrokerProcess, dir: &Path) -> Self {
        Self {
            port: broker.addr().port(),
            drop_in: broker.dropin_path().into(),
            main_conf: broker.conf_path().into(),
            pid_file: broker.pid_path().into(),
            restart: broker.restart_command().expect("a supervised broker").into(),
            model: dir.join("model.btm"),
            state_dir: dir.join("state"),
            extra: String::new(),
        }
    }

    /// Writes it as `edge.toml` in `dir`.
    pub(crate) fn write(&self, dir: &Path) -> PathBuf {
        let text = format!(
            "[broker]\nport = {}\ndrop_in = {:?}\nmain_conf = {:?}\n\
             [pid]\nsource = \"file\"\npid_file = {:?}\n\
             [control]\nreload = \"signal\"\nrestart = \"command\"\nrestart_command = [{:?}]\n\
             command_timeout_s = 10\n[model]\npath = {:?}\n[agent]\nstate_dir = {:?}\n{}",
            self.port,
            self.drop_in,
            self.main_conf,
            self.pid_file,
            self.restart,
            self.model,
            self.state_dir,
            self.extra
        );
        let file = dir.join("edge.toml");
        fs::write(&file, text).unwrap();
        file
    }
}

/// The `edge` program.
pub(crate) fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| build_program("edge"))
}
