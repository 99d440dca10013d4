//! The agent killed at every system call that touches one of its files or the drop-in.
//!
//! `strace` lists the calls of one change, and then kills another run of the same change at the
//! entry of each of them: what was done by then is what a power cut would leave.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use brokertuner_core::render;
use brokertuner_edge::apply::Applier;
use brokertuner_edge::config::Config;
use brokertuner_edge::fs::RealFiles;
use brokertuner_edge::ready;
use brokertuner_edge::site::{Environment, Site as EdgeSite};

use super::site::Site;
use crate::support::PATIENCE;

pub(super) const INSTALL: &str = "strace is missing: sudo apt-get install -y strace";
/// A change has more calls than this; fewer were a trace that saw nothing.
const CALLS_MIN: usize = 30;

pub(super) fn kill_at_each(site: &mut Site) {
    let victim = Victim::new(site);
    for how in ["reload", "restart"] {
        let seed = victim.seed_of(how);
        let calls = victim.calls(seed);
        let all: usize = calls.values().sum();
        assert!(all >= CALLS_MIN, "{calls:?}");
        let (mut struck, mut midway) = (0, 0);
        for (call, &count) in &calls {
            for when in 1..=count {
                victim.reset();
                let inject = format!("inject={call}:signal=SIGKILL:when={when}");
                let (said, end) = victim.run(seed, &["-e", &inject]);
                let context = format!("{how}, killed at {call} {when} of {count}: {said:?}");
                struck += usize::from(end.signal().is_some());
                midway += usize::from(victim.recover(site, &context));
            }
        }
        // Polls may be more or fewer from one run to the next.
        assert!(struck * 10 >= all * 9, "{struck} of {all} kills: {calls:?}");
        assert!(midway * 8 >= all, "{midway} of {all} were in the middle of the change");
        let told = format!("a kill at every call of a {how}: {struck} of {all}, {midway} midway");
        println!("{told}");
        let _ = writeln!(site.heard, "{told}");
    }
}

/// One change of the `apply-loop` program, over and over.
struct Victim {
    config: PathBuf,
    trace: PathBuf,
    /// What belongs to the agent.
    paths: Vec<PathBuf>,
    state_dir: PathBuf,
    drop_in: PathBuf,
    edge: EdgeSite,
}

impl Victim {
    fn new(site: &Site) -> Self {
        let config = site.write_config();
        let edge = EdgeSite::look(&Config::load(&config).unwrap(), &Environment::default());
        let (drop_in, state_dir) = (site.config.drop_in.clone(), site.config.state_dir.clone());
        let aside = |path: &PathBuf| PathBuf::from(format!("{}.new", path.display()));
        let state = state_dir.join("edge.state");
        let mut paths = vec![aside(&drop_in), aside(&state), drop_in.clone(), state];
        paths.extend([site.include_dir().to_owned(), state_dir.clone(), state_dir.join("lock")]);
        Self { config, trace: site.path("trace"), paths, state_dir, drop_in, edge: edge.unwrap() }
    }

    fn reset(&self) {
        let _ = fs::remove_dir_all(&self.state_dir);
        let _ = fs::remove_file(&self.drop_in);
    }

    /// One change under `strace`: what was said, and how it ended.
    fn run(&self, seed: u64, options: &[&str]) -> (Vec<String>, ExitStatus) {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o"]).arg(&self.trace).args(options);
        for path in &self.paths {
            command.arg("-P").arg(path);
        }
        command.arg("--").arg(env!("CARGO_BIN_EXE_apply-loop")).arg(&self.config);
        command.arg(seed.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::null()).spawn().expect(INSTALL);
        let mut stdin = child.stdin.take();
        let mut said = Vec::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            if line.starts_with("begin ") {
                // Its only change.
                drop(stdin.take());
            }
            said.push(line);
        }
        (said, child.wait().unwrap())
    }

    /// A seed whose first change writes something and is made in that way.
    fn seed_of(&self, how: &str) -> u64 {
        let is_of = |seed: &u64| {
            self.reset();
            let (said, end) = self.run(*seed, &[]);
            assert!(end.success(), "{end}: {said:?}");
            let begun = said.iter().find_map(|line| line.strip_prefix("begin "));
            let begun = begun.and_then(|begun| begun.strip_prefix(how));
            begun.is_some_and(|settings| settings != " -")
        };
        (1..50).find(is_of).unwrap_or_else(|| panic!("no seed begins with a {how}"))
    }

    /// How often each call is made by the thread that applies.
    fn calls(&self, seed: u64) -> BTreeMap<String, usize> {
        self.reset();
        let (said, end) = self.run(seed, &[]);
        assert!(end.success(), "{end}: {said:?}");
        let trace = fs::read_to_string(&self.trace).unwrap();
        let mut calls = BTreeMap::new();
        let main = trace.split(' ').next().unwrap_or_default();
        for line in trace.lines() {
            let Some(call) = line.strip_prefix(main) else { continue };
            let Some((name, _)) = call.trim_start().split_once('(') else { continue };
            if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
                *calls.entry(name.to_owned()).or_default() += 1;
            }
        }
        calls
    }

    /// What the next agent makes of it; whether there was a change to be ended.
    fn recover(&self, site: &Site, context: &str) -> bool {
        self.assert_whole(context);
        // Where the restart command died before its signal, nobody is to find its note later.
        let _ = fs::remove_file(site.beside_broker("restart-request"));
        let _ = fs::create_dir_all(&self.state_dir);
        let (files, broker) = (Box::new(RealFiles), Box::new(self.edge.broker.clone()));
        let (applier, damage) = Applier::open(files, broker, self.edge.paths.clone()).unwrap();
        assert!(damage.is_none(), "{context}\n{damage:?}");
        let mut applier = applier.with_ready_timeout(self.edge.ready_timeout);
        let was_midway = applier.state().intent.is_some();
        let recovery = applier.recover();
        let recovery = recovery.unwrap_or_else(|error| panic!("{context}\n{error}"));
        assert_eq!(applier.state().intent, None, "{context}\n{recovery:?}");
        applier.check_ours().unwrap_or_else(|error| panic!("{context}\n{error}"));
        self.assert_whole(context);
        let ready = ready::wait(applier.broker(), None, PATIENCE);
        ready.unwrap_or_else(|missing| panic!("{context}\n{missing}"));
        was_midway
    }

    /// The broker could start at this very moment.
    fn assert_whole(&self, context: &str) {
        for entry in fs::read_dir(self.drop_in.parent().unwrap()).unwrap() {
            let path = entry.unwrap().path();
            let is_loaded = path.extension().is_some_and(|extension| extension == "conf");
            assert!(!is_loaded || path == self.drop_in, "{context}\n{path:?}");
        }
        let Ok(text) = fs::read_to_string(&self.drop_in) else { return };
        let settings = render::parse(&text).unwrap_or_else(|e| panic!("{context}\n{e} in\n{text}"));
        assert_eq!(render::render(&settings).as_str(), text, "{context}");
    }
}
