//! Model files: verified before use, replaced under a running agent, held back by counter and range.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use brokertuner_core::Knob;
use brokertuner_core::features::Schema;
use brokertuner_core::model::{InputParts, Model, ModelParts};
use brokertuner_edge::agent::Report;
use brokertuner_edge::keys::SigningKey;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::broker::{Broker, eventually};
use super::cli::{Running, edge, on, run};
use super::model;

const NARROW: [(Knob, u64); 1] = [(Knob::AutosaveInterval, 100)];
const WIDE: [(Knob, u64); 1] = [(Knob::AutosaveInterval, 3000)];

/// A model that wants `values`, with that counter, signed where there is a key.
fn model_bytes(values: &[(Knob, u64)], counter: u64, key: Option<&SigningKey>) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("plain.btm");
    model::write(&path, values);
    let plain = fs::read(path).unwrap();
    let parts = *Model::parse(&plain).unwrap().parts();
    written(ModelParts { counter, signed: key.is_some(), ..parts }, key)
}

fn written(parts: ModelParts<'_>, key: Option<&SigningKey>) -> Vec<u8> {
    let mut bytes = vec![0; 64 * 1024];
    let length = Model::new(parts).unwrap().write(&mut bytes).unwrap();
    bytes.truncate(length);
    if let Some(key) = key {
        let signature = key.sign(&bytes);
        bytes.extend_from_slice(&signature);
    }
    bytes
}

/// As a careful operator does it; a careless copy is refused until it is whole.
fn put(path: &Path, bytes: &[u8]) {
    let aside = path.with_extension("new");
    fs::write(&aside, bytes).unwrap();
    fs::rename(aside, path).unwrap();
}

/// A key, and the configuration's lines that trust it.
fn key_in(dir: &Path) -> (SigningKey, String) {
    let key = SigningKey::of_seed([9; 32]);
    let path = dir.join("site.pub");
    fs::write(&path, key.public_line()).unwrap();
    (key, format!("public_keys = [{path:?}]\n"))
}

fn config(dir: &Path, model: &Path, lines: &str) -> PathBuf {
    let path = dir.join("verify.toml");
    let state = dir.join("state");
    let text = format!("[model]\npath = {model:?}\n{lines}[agent]\nstate_dir = {state:?}\n");
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn verify_model_says_what_is_wrong_with_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.btm");
    let name = file.to_str().unwrap();
    let (key, keys) = key_in(dir.path());
    let free = config(dir.path(), &file, "");
    let (code, _, err) = on(&free, &["verify-model", name]);
    assert!(code == 2 && err.contains("no such file"), "{err}");

    let plain = model_bytes(&WIDE, 0, None);
    fs::write(&file, &plain).unwrap();
    let (code, out, err) = on(&free, &["verify-model", name]);
    assert!(code == 0 && out.contains("accepted, counter 0; no signature"), "{out}{err}");
    let (code, out, _) = on(&free, &["verify-model", name, "--json"]);
    let found: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, found["accepted"].as_bool()), (0, Some(true)));

    fs::write(&file, &plain[..plain.len() - 1]).unwrap();
    let (code, out, _) = on(&free, &["verify-model", name]);
    assert!(code == 1 && out.contains("refused: ") && out.contains("copy it again"), "{out}");

    let strict = config(dir.path(), &file, &keys);
    let refusal = |bytes: &[u8]| {
        fs::write(&file, bytes).unwrap();
        let (code, out, err) = on(&strict, &["verify-model", name]);
        assert_eq!(code, 1, "{out}{err}");
        out
    };
    assert!(refusal(&plain).contains("not signed"));
    let stranger = SigningKey::of_seed([8; 32]);
    assert!(refusal(&model_bytes(&WIDE, 4, Some(&stranger))).contains("signed by none of"));
    let good = model_bytes(&WIDE, 4, Some(&key));
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert!(refusal(&forged).contains("signed by none of"));

    fs::write(&file, &good).unwrap();
    let (code, out, err) = on(&strict, &["verify-model", name]);
    assert!(code == 0 && out.contains("counter 4, signed by "), "{out}{err}");
    assert!(!dir.path().join("state").exists(), "verifying leaves nothing behind");

    fs::create_dir(dir.path().join("state")).unwrap();
    fs::write(dir.path().join("state/accepted.btm"), model_bytes(&WIDE, 5, Some(&key))).unwrap();
    let said = refusal(&good);
    assert!(said.contains("its counter is 4, but 5 was accepted"), "{said}");

    // What can't be read may hold any counter.
    fs::write(dir.path().join("state/accepted.btm"), "damaged").unwrap();
    let said = refusal(&good);
    assert!(said.contains("it is not known which counter was accepted last"), "{said}");
    fs::remove_file(dir.path().join("state/accepted.btm")).unwrap();
    fs::create_dir(dir.path().join("state/accepted.btm")).unwrap();
    let (code, out, err) = on(&strict, &["verify-model", name]);
    assert!(code == 2 && err.contains("cannot read"), "{code}: {out}{err}");

    fs::write(dir.path().join("site.pub"), key.secret_line()).unwrap();
    let (code, _, err) = on(&strict, &["verify-model", name]);
    assert!(code == 2 && err.contains("this is the secret key"), "{err}");
}

#[test]
fn verify_model_needs_no_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.btm");
    model::write(&file, &WIDE);
    let (code, out, err) = run(&["verify-model", file.to_str().unwrap()]);
    assert!(code == 0 && out.contains("accepted"), "{out}{err}");
    let (code, _, err) = run(&["verify-model", file.to_str().unwrap(), "--config", "/nonexistent"]);
    assert!(code == 2 && err.contains("no such file"), "{err}");
}

/// The agent under test, its log and what it says of itself.
struct Agent<'b> {
    process: Running,
    broker: &'b Broker,
    config: PathBuf,
}

impl<'b> Agent<'b> {
    fn start(broker: &'b Broker, config: &Path) -> Self {
        let log = fs::File::options().create(true).append(true).open(broker.path("edge.log"));
        let mut command = edge(&["run", "--config", config.to_str().unwrap()]);
        let command = command.stderr(log.unwrap()).stdout(Stdio::null());
        let process = Running(command.spawn().unwrap());
        Self { process, broker, config: config.into() }
    }

    fn said(&self) -> String {
        fs::read_to_string(self.broker.path("edge.log")).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.process.0.id()).unwrap()), signal).unwrap();
    }

    fn until(&mut self, what: &str, is_it: impl Fn(&Report) -> bool) -> Report {
        eventually(what, || {
            let ended = self.process.0.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", self.said());
            let (_, out, _) = on(&self.config, &["status", "--json"]);
            let report: Report = serde_json::from_str(&out).ok()?;
            is_it(&report).then_some(report)
        })
    }

    fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let end = eventually("its end", || self.process.0.try_wait().unwrap());
        assert!(end.success(), "{end}: {}", self.said());
    }
}

fn written_interval(report: &Report) -> u64 {
    report.options[Knob::AutosaveInterval as usize].written.unwrap_or(0)
}

const QUICK: &str = "[decide]\ninterval_ms = 250\ndwell_s = 0\nverify_window_s = 1\n";

#[test]
fn a_model_is_replaced_while_the_agent_runs_and_a_bad_one_is_not() {
    let broker = Broker::start("");
    let file = broker.path("model.btm");
    let (key, keys) = key_in(broker.dir.path());
    put(&file, &model_bytes(&NARROW, 1, Some(&key)));
    let config = broker.edge_config(&file, "");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("[agent]", &format!("{keys}[agent]")) + QUICK).unwrap();

    let mut agent = Agent::start(&broker, &config);
    agent.until("the first model's setting", |report| (1..300).contains(&written_interval(report)));
    put(&file, &model_bytes(&WIDE, 2, Some(&key)));
    let report = agent.until("the second's", |report| written_interval(report) > 1000);
    let model = report.model.unwrap();
    assert_eq!((model.counter, &model.refused), (2, &None));
    assert!(model.replaced_unix_s.is_some(), "{model:?}");
    assert!(agent.said().contains("A new model is in use."), "{}", agent.said());

    put(&file, &model_bytes(&NARROW, 1, Some(&key)));
    let refused = |report: &Report| report.model.as_ref().unwrap().refused.clone();
    let report = agent.until("the older one's refusal", |report| refused(report).is_some());
    assert!(refused(&report).unwrap().contains("its counter is 1"), "{report:?}");
    put(&file, b"BTM1 and nothing else");
    let is_other = |report: &Report| refused(report).is_some_and(|why| !why.contains("counter"));
    agent.until("the broken one's refusal", is_other);
    agent.signal(Signal::SIGHUP);
    eventually("the refusal again", || {
        (agent.said().matches("The new model was refused").count() >= 3).then_some(())
    });
    agent.stop();
    let (_, told, _) = on(&config, &["explain"]);
    let replaced = "another model is in use: ";
    let of_both =
        |line: &str| line.contains("counter 2, signed by ") && line.contains("counter 1,");
    assert!(told.lines().any(|line| line.contains(replaced) && of_both(line)), "{told}");
    assert_eq!(told.matches("a new model was refused: ").count(), 3, "{told}");

    // The accepted one was kept: the agent starts with it, and says so, once.
    put(&file, &model_bytes(&NARROW, 0, Some(&key)));
    for _ in 0..2 {
        let mut agent = Agent::start(&broker, &config);
        let pid = agent.process.0.id();
        agent.until("a look of its own", |report| report.agent_pid == pid);
        agent.stop();
        let (_, told, _) = on(&config, &["explain"]);
        assert_eq!(told.matches("a new model was refused: ").count(), 4, "{told}");
    }
    let mut agent = Agent::start(&broker, &config);
    let report = agent.until("the kept model", |report| {
        report.model.as_ref().is_some_and(|model| model.file.ends_with("accepted.btm"))
    });
    assert_eq!(report.model.as_ref().unwrap().counter, 2);
    assert!(refused(&report).is_some());
    put(&file, &model_bytes(&NARROW, 3, Some(&key)));
    agent.until("the third model", |report| {
        refused(report).is_none() && (1..300).contains(&written_interval(report))
    });
    agent.stop();
}

#[test]
fn beyond_what_training_saw_nothing_is_changed() {
    let broker = Broker::start("");
    let file = broker.path("model.btm");
    model::write(&file, &NARROW);
    let plain = fs::read(&file).unwrap();
    let parts = *Model::parse(&plain).unwrap().parts();
    let inputs = Schema::Edge.len();
    let (zeros, ones) = (0f32.to_le_bytes().repeat(inputs), 1f32.to_le_bytes().repeat(inputs));
    // All that it saw were zeros: the fresh flags alone are beyond that.
    let input =
        InputParts { mean: &zeros, inv_std: &ones, observed_min: &zeros, observed_max: &zeros };
    fs::write(&file, written(ModelParts { input, ..parts }, None)).unwrap();
    let config = broker.edge_config(&file, "[decide]\ninterval_ms = 250\nverify_window_s = 1\n");
    let (code, out, err) = on(&config, &["once"]);
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.contains("hold: the model was not trained for this: "), "{out}");
    assert!(out.contains("training saw 0.00 to 0.00"), "{out}");
    assert!(!broker.drop_in().exists());

    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("[agent]", "hold_beyond_training = false\n[agent]")).unwrap();
    let (code, out, err) = on(&config, &["once"]);
    assert!(code == 0 && out.contains("changed: "), "{out}{err}");
}
