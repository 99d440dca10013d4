//! The broker's folder: where its files lie, and what its main file says.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};

use super::process::{LogTypes, SpawnConfig};

/// Name of the file that holds the tuned settings, in the include directory.
const DROPIN: &str = "zz-brokertuner.conf";

/// Asks for a restart and returns when it is done, as `systemctl restart` does. A request that
/// comes while the broker starts has no process to end yet; the supervisor looks for it after the
/// start.
const RESTART_SCRIPT: &str = r#"#!/bin/sh
cd "${0%/*}" || exit 2
: >restart-request || exit 2
[ ! -s mosquitto.pid ] || kill -TERM "$(cat mosquitto.pid)" 2>/dev/null
tries=0
while [ -e restart-request ] || [ -e restart-running ]; do
    tries=$((tries + 1))
    if [ "$tries" -ge 1500 ]; then
        echo "restart: no answer from the supervisor within 30 s" >&2
        exit 1
    fi
    sleep 0.02
done
if [ ! -s mosquitto.pid ]; then
    echo "restart: the broker does not start:" >&2
    tail -n 5 output.log >&2
    exit 1
fi
"#;

/// Paths inside the broker's folder.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) dir: PathBuf,
    /// The main file.
    pub(super) conf: PathBuf,
    /// The include directory.
    pub(super) include_dir: PathBuf,
    pub(super) dropin: PathBuf,
    pub(super) data_dir: PathBuf,
    pub(super) pid_file: PathBuf,
    pub(super) log: PathBuf,
    /// Standard output and error: where errors of the configuration go at a start.
    pub(super) output: PathBuf,
    pub(super) restart: PathBuf,
    pub(super) restart_request: PathBuf,
    pub(super) restart_running: PathBuf,
}

impl Files {
    pub(super) fn new(dir: &Path) -> Self {
        let include_dir = dir.join("conf.d");
        Self {
            dir: dir.to_path_buf(),
            conf: dir.join("mosquitto.conf"),
            dropin: include_dir.join(DROPIN),
            include_dir,
            data_dir: dir.join("data"),
            pid_file: dir.join("mosquitto.pid"),
            log: dir.join("mosquitto.log"),
            output: dir.join("output.log"),
            restart: dir.join("restart"),
            restart_request: dir.join("restart-request"),
            restart_running: dir.join("restart-running"),
        }
    }

    /// Makes the folders, the drop-in and, for a supervised broker, the restart command.
    pub(super) fn create(&self, config: &SpawnConfig) -> io::Result<()> {
        fs::create_dir(&self.include_dir)?;
        fs::create_dir(&self.data_dir)?;
        if let Some(text) = &config.dropin {
            fs::write(&self.dropin, text)?;
        }
        if config.supervised {
            fs::write(&self.restart, RESTART_SCRIPT)?;
            fs::set_permissions(&self.restart, fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    }

    /// Writes the main file for a broker on `port`.
    pub(super) fn write_conf(&self, config: &SpawnConfig, port: u16) -> io::Result<()> {
        fs::write(&self.conf, self.conf_text(config, port, privileged_user().as_deref()))
    }

    fn conf_text(&self, config: &SpawnConfig, port: u16, user: Option<&str>) -> String {
        let mut text = format!("listener {port} 127.0.0.1\nallow_anonymous true\n");
        if let Some(user) = user {
            push(&mut text, &format!("user {user}"));
        }
        push(&mut text, &format!("persistence {}", config.persistence));
        push(&mut text, &format!("persistence_location {}/", self.data_dir.display()));
        push(&mut text, &format!("pid_file {}", self.pid_file.display()));
        push(&mut text, &format!("log_dest file {}", self.log.display()));
        match config.log_types {
            LogTypes::Default => {}
            LogTypes::Problems => text.push_str("log_type error\nlog_type warning\n"),
            LogTypes::All => text.push_str("log_type all\n"),
        }
        push(&mut text, &format!("sys_interval {}", config.sys_interval_s));
        for line in &config.main_conf_lines {
            push(&mut text, line);
        }
        // Last, so that a drop-in's line beats the main file's.
        push(&mut text, &format!("include_dir {}", self.include_dir.display()));
        text
    }

    /// The last lines that the broker wrote: at a failed start they name the file and the line at
    /// fault.
    pub(super) fn said(&self) -> String {
        const LINES_MAX: usize = 12;
        let mut said = String::new();
        for file in [&self.output, &self.log] {
            let text = fs::read(file).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            for line in &lines[lines.len().saturating_sub(LINES_MAX)..] {
                push(&mut said, line);
            }
        }
        if said.is_empty() { "(nothing)".to_owned() } else { said }
    }
}

fn push(text: &mut String, line: &str) {
    let _ = writeln!(text, "{line}"); // writing to a String cannot fail
}

/// The name to keep where the broker would drop root's privileges and then be unable to write its
/// folder.
fn privileged_user() -> Option<String> {
    let uid = Uid::effective();
    if !uid.is_root() {
        return None;
    }
    let user = User::from_uid(uid).ok().flatten();
    Some(user.map_or_else(|| "root".to_owned(), |user| user.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_main_file_ends_with_the_include_directory() {
        let files = Files::new(Path::new("/d"));
        let config = SpawnConfig {
            persistence: false,
            sys_interval_s: 2,
            main_conf_lines: vec!["max_queued_messages 500".to_owned()],
            log_types: LogTypes::Problems,
            ..SpawnConfig::default()
        };
        let expected = "listener 11883 127.0.0.1\nallow_anonymous true\nuser root\npersistence false\n\
            persistence_location /d/data/\npid_file /d/mosquitto.pid\nlog_dest file /d/mosquitto.log\n\
            log_type error\nlog_type warning\nsys_interval 2\nmax_queued_messages 500\ninclude_dir /d/conf.d\n";
        assert_eq!(files.conf_text(&config, 11_883, Some("root")), expected);
    }
}
