//! The agent, killed at random moments of its applies: the broker starts with a whole file every
//! time.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use brokertuner_core::settings::SiteValues;
use brokertuner_core::{Knob, render};
use brokertuner_edge::apply::{Applier, Paths};
use brokertuner_edge::control::{Broker as _, LiveBroker, Method};
use brokertuner_edge::fs::RealFiles;
use brokertuner_edge::mqtt::ProtocolChoice;
use brokertuner_edge::pid::PidFinder;
use brokertuner_edge::ready;
use brokertuner_edge::state::How;

use super::apply::settings;
use super::broker::{Broker, PATIENCE, eventually, program};

const KILLS: u64 = 40;
const DIR: &str = "EDGE_TEST_DIR";
const PORT: &str = "EDGE_TEST_PORT";
/// The file by which the process says that it begins, which takes a busy machine a while.
const AT_WORK: &str = "at-work";

#[test]
fn killed_at_random_moments_the_broker_always_has_a_whole_file() {
    let broker = Broker::start("");
    let at_work = broker.path(AT_WORK);
    let mut midway = 0;
    for kill in 0..KILLS {
        let _ = fs::remove_file(&at_work);
        let mut child = program(std::env::current_exe().unwrap())
            .args(["--exact", "kill::applies_for_ever", "--ignored"])
            .env(DIR, broker.dir.path())
            .env(PORT, broker.address.port().to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        eventually("it to be at work", || at_work.exists().then_some(()));
        // Not a wait for something: the moment of death is what is varied.
        thread::sleep(Duration::from_millis(kill * 37 % 400));
        child.kill().unwrap();
        child.wait().unwrap();
        if let Ok(text) = fs::read_to_string(broker.drop_in()) {
            let read = render::parse(&text).unwrap_or_else(|e| panic!("kill {kill}: {e}: {text}"));
            assert_eq!(render::render(&read).as_str(), text, "kill {kill}: the file is whole");
        }
        let mut applier = broker.applier();
        midway += u64::from(applier.state().intent.is_some());
        let recovered = applier.recover();
        assert!(recovered.is_ok(), "kill {kill}: {recovered:?}");
        applier.check_ours().unwrap();
        let ready = ready::wait(&broker.live(), None, PATIENCE);
        assert!(ready.is_ok(), "kill {kill}: {recovered:?}: {ready:?}\n{}", broker.log());
    }
    assert!(midway > 0, "no kill met an apply: the moments are badly chosen");
    // And with all of that behind it, the broker starts once more with the file as it is.
    let before = broker.live().process().unwrap();
    broker.live().restart().unwrap();
    ready::wait(&broker.live(), Some(before), PATIENCE).unwrap();
}

#[test]
#[ignore = "run by killed_at_random_moments_the_broker_always_has_a_whole_file, in a process of its own"]
fn applies_for_ever() {
    let (Some(dir), Ok(port)) = (std::env::var_os(DIR).map(PathBuf::from), std::env::var(PORT))
    else {
        return;
    };
    let address = format!("127.0.0.1:{port}").parse().unwrap();
    let pid_file = dir.join("mosquitto.pid");
    let kill = format!("kill -TERM $(cat {})", pid_file.display());
    let broker = LiveBroker {
        address,
        client_id: "victim".into(),
        credentials: None,
        tls: None,
        mqtt: ProtocolChoice::default(),
        finder: PidFinder::pid_file(&pid_file, address),
        reload: Method::Signal,
        restart: Method::Command(vec!["/bin/sh".into(), "-c".into(), kill]),
        command_timeout: PATIENCE,
        answer_timeout: Duration::from_secs(2),
    };
    let state_dir = dir.join("state");
    fs::create_dir_all(&state_dir).unwrap();
    let paths =
        Paths { drop_in: dir.join("conf.d/zz-brokertuner.conf"), state_dir, database: None };
    let (mut applier, _) = Applier::open(Box::new(RealFiles), Box::new(broker), paths).unwrap();
    let site = SiteValues::default();
    fs::write(dir.join(AT_WORK), "").unwrap();
    for round in 0.. {
        let wanted = settings(&[
            (Knob::InflightMessagesMax, 100 + round % 7 * 100),
            (Knob::QueuedMessagesMax, 2000 + round),
            (Knob::AutosaveInterval, 60 + round % 1000),
        ]);
        let how = if round % 3 == 0 { How::Reload } else { How::Restart };
        applier.apply(wanted, how, &site).unwrap();
    }
}
