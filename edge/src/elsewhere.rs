//! What the rest of the broker's configuration says of our options: who overrides the drop-in, and
//! what the administrator set.
//!
//! Mosquitto takes the last value that it parses. Drop-ins are parsed where the main file's
//! `include_dir` stands, in an order of their own, and lines after `include_dir` beat them all.

use std::cmp::Ordering;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use brokertuner_core::knobs::Scale;
use brokertuner_core::settings::SiteValues;
use brokertuner_core::{Knob, KnobSet};
use nix::errno::Errno;

use crate::fs::{self as seam, FileError, Files, RealFiles};

/// Where Mosquitto listens without a word about it.
const PORT_DEFAULT: u16 = 1883;
/// Drop-ins that are looked at; a directory with more is refused rather than half read.
const DROP_INS_MAX: usize = 256;

/// A line about one of our options in a file that is not ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The option; `autosave_on_changes true` counts as one about `autosave_interval`.
    pub knob: Knob,
    /// The file.
    pub path: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// What it says, trimmed.
    pub text: String,
    /// It is parsed after the drop-in, so that ours has no effect.
    pub overrides: bool,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let effect = if self.overrides { "overrides the drop-in" } else { "is set by the site" };
        write!(f, "{}:{}: `{}` {effect}", self.path.display(), self.line, self.text)
    }
}

/// The configuration around the drop-in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Elsewhere {
    /// Every line about one of our options, in the order in which the broker parses them.
    pub lines: Vec<Line>,
    /// `include_dir` names the drop-in's directory; without that the broker never loads it.
    pub is_included: bool,
    /// `persistence_location` and `persistence_file`, where the database lies.
    pub database: Option<PathBuf>,
    /// TCP ports of its listeners; empty: none is set, which is 1883.
    pub ports: Vec<u16>,
    pub(crate) location: Option<PathBuf>,
    pub(crate) file: Option<String>,
}

impl Elsewhere {
    /// Whether this configuration makes a broker listen on `port`.
    #[must_use]
    pub fn listens_on(&self, port: u16) -> bool {
        self.ports.contains(&port) || (self.ports.is_empty() && port == PORT_DEFAULT)
    }

    /// Options that are set after the drop-in: writing them would have no effect.
    #[must_use]
    pub fn overridden(&self) -> KnobSet {
        knobs(self.lines.iter().filter(|line| line.overrides))
    }

    /// Options that the administrator sets anywhere: theirs.
    #[must_use]
    pub fn set_by_site(&self) -> KnobSet {
        knobs(self.lines.iter())
    }

    /// What holds for options that the drop-in leaves out.
    #[must_use]
    pub fn site_values(&self) -> SiteValues {
        let mut site = SiteValues::default();
        for line in &self.lines {
            let mut words = line.text.split(' ').filter(|word| !word.is_empty());
            let (Some(key), Some(value)) = (words.next(), words.next()) else { continue };
            if is_key(line.knob, key) {
                site.0[line.knob as usize] = number(line.knob, value);
            }
        }
        site
    }
}

fn knobs<'l>(lines: impl Iterator<Item = &'l Line>) -> KnobSet {
    lines.fold(KnobSet::EMPTY, |set, line| set.with(line.knob))
}

/// A value as 2.0 reads it: the leading digits; a switch is on for `true` and `1`.
fn number(knob: Knob, value: &str) -> u64 {
    if knob.spec().scale == Scale::Switch {
        return u64::from(value == "true" || value == "1");
    }
    let digits = value.bytes().take_while(u8::is_ascii_digit).count();
    value[..digits].parse().unwrap_or(0)
}

fn is_key(knob: Knob, key: &str) -> bool {
    key == knob.spec().key || (knob == Knob::Persistence && key == "retained_persistence")
}

fn knob_of(key: &str, rest: &str) -> Option<Knob> {
    match key {
        "autosave_on_changes" => matches!(rest, "true" | "1").then_some(Knob::AutosaveInterval),
        "retained_persistence" => Some(Knob::Persistence),
        _ => Knob::from_key(key),
    }
}

/// Reads the broker's main file and the other drop-ins beside ours.
///
/// # Errors
/// [`FileError`] where the main file, the directory or a drop-in can't be read.
pub fn look(main: &Path, drop_in: &Path) -> Result<Elsewhere, FileError> {
    let mut found = Elsewhere::default();
    let text = read(main)?;
    let directory = seam::dir_of(drop_in);
    for (number, line) in text.lines().enumerate() {
        let Some((key, rest)) = split(line) else { continue };
        match key {
            "include_dir" if is_same(Path::new(rest), directory) => {
                read_directory(directory, drop_in, &mut found)?;
                found.is_included = true;
            }
            "include_dir" => read_directory(Path::new(rest), drop_in, &mut found)?,
            _ => note(&mut found, main, number + 1, line),
        }
    }
    found.database = found
        .location
        .as_ref()
        .map(|location| location.join(found.file.as_deref().unwrap_or("mosquitto.db")));
    Ok(found)
}

fn read(path: &Path) -> Result<String, FileError> {
    let bytes = RealFiles.read(path).map_err(seam::at("read", path))?;
    let absent = || seam::at("read", path)(Errno::ENOENT.into());
    Ok(String::from_utf8_lossy(&bytes.ok_or_else(absent)?).into_owned())
}

fn is_same(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}

/// Key and rest of a line; `None` for comments and empty lines. Only blanks separate.
fn split(line: &str) -> Option<(&str, &str)> {
    let line = line.trim_matches([' ', '\r']);
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let (key, rest) = line.split_once(' ').unwrap_or((line, ""));
    Some((key, rest.trim_matches(' ')))
}

fn note(found: &mut Elsewhere, path: &Path, number: usize, line: &str) {
    let Some((key, rest)) = split(line) else { return };
    match key {
        "persistence_location" => found.location = Some(PathBuf::from(rest)),
        "persistence_file" => found.file = Some(rest.to_owned()),
        "listener" | "port" => {
            // Port 0 is a Unix socket.
            let port = rest.split(' ').next().and_then(|word| word.parse().ok());
            found.ports.extend(port.filter(|&port: &u16| port > 0));
        }
        _ => {}
    }
    let Some(knob) = knob_of(key, rest) else { return };
    let text = format!("{key} {rest}");
    // Filled while parsing on: whatever comes after the drop-in's own place overrides it.
    let overrides = found.is_included;
    found.lines.push(Line { knob, path: path.into(), line: number, text, overrides });
}

/// Notes the lines of every drop-in in the broker's order; ours is passed over.
fn read_directory(dir: &Path, drop_in: &Path, found: &mut Elsewhere) -> Result<(), FileError> {
    for path in drop_ins(dir).map_err(seam::at("list", dir))? {
        if path.file_name() == drop_in.file_name() && is_same(dir, seam::dir_of(drop_in)) {
            // Our own file, present or not: what sorts after it overrides it.
            found.is_included = true;
            continue;
        }
        if is_same(dir, seam::dir_of(drop_in)) && order(&path, drop_in) == Ordering::Greater {
            found.is_included = true;
        }
        for (number, line) in read(&path)?.lines().enumerate() {
            note(found, &path, number + 1, line);
        }
    }
    Ok(())
}

/// The files that Mosquitto loads from `dir`, in its order.
fn drop_ins(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().map(OsStrExt::as_bytes).unwrap_or_default();
        if name.len() > 5 && name.ends_with(b".conf") {
            found.push(path);
        }
        if found.len() > DROP_INS_MAX {
            return Err(io::Error::other(format!("more than {DROP_INS_MAX} files")));
        }
    }
    found.sort_by(|a, b| order(a, b));
    Ok(found)
}

/// ASCII order, byte by byte: first of the upper-cased byte, then of the byte itself.
fn order(a: &Path, b: &Path) -> Ordering {
    let bytes = |path: &Path| path.file_name().map_or(Vec::new(), |name| name.as_bytes().to_vec());
    let weight = |byte: u8| (byte.to_ascii_uppercase(), byte);
    bytes(a).into_iter().map(weight).cmp(bytes(b).into_iter().map(weight))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Site {
        dir: tempfile::TempDir,
    }

    impl Site {
        fn new(main: &str, drop_ins: &[(&str, &str)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let conf_d = dir.path().join("conf.d");
            fs::create_dir(&conf_d).unwrap();
            let main = main.replace("CONF_D", conf_d.to_str().unwrap());
            fs::write(dir.path().join("mosquitto.conf"), main).unwrap();
            for (name, text) in drop_ins {
                fs::write(conf_d.join(name), text).unwrap();
            }
            Self { dir }
        }

        fn look(&self) -> Elsewhere {
            let dir = self.dir.path();
            look(&dir.join("mosquitto.conf"), &dir.join("conf.d/zz-brokertuner.conf")).unwrap()
        }
    }

    #[test]
    fn the_brokers_own_order_of_drop_ins() {
        let names = [".hid", "10-x", "9-x", "Ab", "a-b", "a", "aa", "B", "_z", "~t"];
        let files: Vec<_> = names.iter().rev().map(|name| format!("{name}.conf")).collect();
        let site = Site::new("", &files.iter().map(|f| (f.as_str(), "")).collect::<Vec<_>>());
        let found = drop_ins(&site.dir.path().join("conf.d")).unwrap();
        let found: Vec<_> = found.iter().map(|p| p.file_stem().unwrap().to_owned()).collect();
        assert_eq!(found, names, "as observed on the broker itself");
    }

    #[test]
    fn debians_own_files_set_persistence_and_override_nothing() {
        let main = "pid_file /run/mosquitto/mosquitto.pid\n\npersistence true\n\
                    persistence_location /var/lib/mosquitto/\n\n\
                    log_dest file /var/log/mosquitto/mosquitto.log\n\ninclude_dir CONF_D\n";
        let found = Site::new(main, &[("README", "max_queued_messages 1"), (".conf", "x")]).look();
        assert!(found.is_included && found.overridden().is_empty());
        assert_eq!(found.set_by_site(), KnobSet::EMPTY.with(Knob::Persistence));
        assert_eq!(found.site_values().get(Knob::Persistence), 1);
        assert_eq!(found.database, Some("/var/lib/mosquitto/mosquitto.db".into()));
    }

    #[test]
    fn whoever_is_parsed_after_us_is_named_with_file_and_line() {
        let found = Site::new(
            "max_queued_messages 500\ninclude_dir CONF_D\n# note\nmax_inflight_messages 7\n",
            &[
                ("00-site.conf", "set_tcp_nodelay true\r\n"),
                ("zz-brokertuner.conf", "max_inflight_messages 1000\n"),
                ("zzz.conf", "\nautosave_on_changes true\n"),
            ],
        )
        .look();
        let said: Vec<String> = found.lines.iter().map(ToString::to_string).collect();
        assert!(
            said[0].ends_with("mosquitto.conf:1: `max_queued_messages 500` is set by the site")
        );
        assert!(said[1].ends_with("00-site.conf:1: `set_tcp_nodelay true` is set by the site"));
        assert!(said[2].ends_with("zzz.conf:2: `autosave_on_changes true` overrides the drop-in"));
        assert!(
            said[3].ends_with("mosquitto.conf:4: `max_inflight_messages 7` overrides the drop-in")
        );
        let overridden = [Knob::AutosaveInterval, Knob::InflightMessagesMax];
        assert_eq!(found.overridden(), overridden.into_iter().fold(KnobSet::EMPTY, KnobSet::with));
        assert_eq!(found.site_values().get(Knob::QueuedMessagesMax), 500);
        assert_eq!(found.site_values().get(Knob::AutosaveInterval), 1800);
    }

    #[test]
    fn later_drop_ins_override_ours_even_before_ours_is_there() {
        let found = Site::new("include_dir CONF_D\n", &[("zzz.conf", "memory_limit 5\n")]).look();
        assert!(found.overridden().contains(Knob::MemoryLimit));
    }

    #[test]
    fn the_ports_of_the_listeners_are_those_of_every_file() {
        let ports = |main: &str| {
            let drop_ins = [("tls.conf", "listener 8883\n")];
            let found = Site::new(main, if main.is_empty() { &[] } else { &drop_ins }).look();
            [1883, 1884, 8883].map(|port| found.listens_on(port))
        };
        assert_eq!(ports(""), [true, false, false], "Mosquitto's own default");
        assert_eq!(ports("listener 1884 127.0.0.1\ninclude_dir CONF_D\n"), [false, true, true]);
        assert_eq!(ports("port 1884\nlistener 0 /run/mosquitto.sock\n"), [false, true, false]);
    }

    #[test]
    fn a_directory_that_is_not_included_is_noticed() {
        assert!(!Site::new("persistence true\n", &[]).look().is_included);
    }

    #[test]
    fn values_are_read_as_the_broker_reads_them() {
        for (knob, text, value) in [
            (Knob::QueuedMessagesMax, "12abc", 12),
            (Knob::QueuedMessagesMax, "abc", 0),
            (Knob::Persistence, "1", 1),
            (Knob::Persistence, "yes", 0),
        ] {
            assert_eq!(number(knob, text), value, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_main_file_panics(text in "(?s)((include_dir|persistence|max_queued_messages|[ -~]{0,9})[ \t]{0,2}[^\\x00]{0,12}\n){0,6}") {
            let site = Site::new("", &[]);
            let main = site.dir.path().join("mosquitto.conf");
            fs::write(&main, &text).unwrap();
            if let Ok(found) = look(&main, &site.dir.path().join("conf.d/zz-brokertuner.conf")) {
                let _ = found.site_values();
            }
        }
    }
}
