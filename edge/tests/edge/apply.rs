//! Applying to a real broker.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use brokertuner_core::settings::SiteValues;
use brokertuner_core::{Knob, Settings};
use brokertuner_edge::apply::ApplyError;
use brokertuner_edge::control::Broker as _;
use brokertuner_edge::elsewhere;
use brokertuner_edge::state::How;

use super::broker::{Broker, eventually};

pub(crate) fn settings(values: &[(Knob, u64)]) -> Option<Settings> {
    let mut settings = Settings::UNWRITTEN;
    for &(knob, value) in values {
        settings.set(knob, value).unwrap();
    }
    Some(settings)
}

fn window(broker: &Broker) -> Option<u16> {
    broker.live().answer().unwrap().receive_maximum
}

#[test]
fn a_restart_by_command_waits_for_another_process_and_reads_back() {
    let broker = Broker::start("");
    let (before, site) = (broker.pid(), SiteValues::default());
    assert_eq!(window(&broker), Some(20));
    let wanted = settings(&[(Knob::InflightMessagesMax, 1000), (Knob::QueuedMessagesMax, 2000)]);
    let applied = broker.applier().apply(wanted, How::Restart, &site).unwrap();
    assert_ne!(applied.ready.process.pid, before);
    assert_eq!(window(&broker), Some(1000));
    let mode = fs::metadata(broker.drop_in()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644, "the broker's user can read it");
    assert!(!broker.path("conf.d/zz-brokertuner.conf.new").exists());

    let applied = broker.applier().apply(None, How::Restart, &site).unwrap();
    assert_eq!(applied.ready.connack.receive_maximum, Some(20));
    assert!(!broker.drop_in().exists());
}

#[test]
fn a_reload_keeps_process_and_window() {
    let broker = Broker::start("");
    let before = broker.pid();
    let wanted = settings(&[(Knob::InflightMessagesMax, 1000), (Knob::AutosaveInterval, 600)]);
    let mut applier = broker.applier();
    let applied = applier.apply(wanted, How::Reload, &SiteValues::default()).unwrap();
    assert_eq!(applied.ready.process.pid, before);
    eventually("the reload in the log", || {
        broker.log().contains("Reloading config.").then_some(())
    });
    assert_eq!(window(&broker), Some(20), "restart-only");
    let effective = applier.state().effective.unwrap().settings;
    assert_eq!(Some(effective), settings(&[(Knob::AutosaveInterval, 600)]));
}

#[test]
fn a_refused_configuration_is_taken_back_and_the_broker_serves() {
    let broker = Broker::start("");
    let (site, good) = (SiteValues::default(), settings(&[(Knob::InflightMessagesMax, 500)]));
    let mut applier = broker.applier().with_ready_timeout(std::time::Duration::from_secs(2));
    applier.apply(good, How::Restart, &site).unwrap();
    let refused = settings(&[(Knob::InflightMessagesMax, 4000), (Knob::QueuedMessagesMax, 8000)]);
    let error = applier.apply(refused, How::Restart, &site).unwrap_err();
    assert!(matches!(error, ApplyError::NotReady { .. }), "{error}");
    assert!(error.is_restored(), "{error}");
    assert_eq!(window(&broker), Some(500));
    assert_eq!(applier.written().unwrap(), good);
}

#[test]
fn an_override_is_found_beforehand_and_afterwards() {
    let broker = Broker::start("");
    fs::write(broker.path("conf.d/zzz.conf"), "# site\nmax_inflight_messages 7\n").unwrap();
    let found = elsewhere::look(&broker.path("mosquitto.conf"), &broker.drop_in()).unwrap();
    assert!(found.overridden().contains(Knob::InflightMessagesMax));
    let said = found.lines[0].to_string();
    assert!(said.contains("zzz.conf:2: `max_inflight_messages 7` overrides"), "{said}");
    let wanted = settings(&[(Knob::InflightMessagesMax, 1000)]);
    let error = broker.applier().apply(wanted, How::Restart, &SiteValues::default()).unwrap_err();
    assert!(matches!(error, ApplyError::NotEffective { found: 7, .. }), "{error}");
    assert!(!broker.drop_in().exists(), "taken back");
    assert_eq!(window(&broker), Some(7));
}

#[test]
fn a_hand_edit_is_respected() {
    let broker = Broker::start("");
    let (site, wanted) = (SiteValues::default(), settings(&[(Knob::TcpNodelay, 1)]));
    let mut applier = broker.applier();
    applier.apply(wanted, How::Restart, &site).unwrap();
    let edited = "set_tcp_nodelay false\n";
    fs::write(broker.drop_in(), edited).unwrap();
    let error = applier.apply(None, How::Restart, &site).unwrap_err();
    assert!(matches!(error, ApplyError::EditedByHand { .. }), "{error}");
    assert_eq!(fs::read_to_string(broker.drop_in()).unwrap(), edited);
}

#[test]
fn persistence_is_saved_before_a_restart() {
    let broker = Broker::start("");
    let root = broker.dir.path().display();
    // The main file takes effect with the restart below.
    let main = fs::read_to_string(broker.path("mosquitto.conf")).unwrap();
    let location = format!("persistence_location {root}/\ninclude_dir");
    fs::write(broker.path("mosquitto.conf"), main.replace("include_dir", &location)).unwrap();
    let database = broker.path("mosquitto.db");
    fs::write(&database, "of long ago").unwrap();
    let live = Box::new(broker.live());
    let paths = brokertuner_edge::apply::Paths {
        drop_in: broker.drop_in(),
        state_dir: broker.path("state"),
        database: Some(database.clone()),
    };
    fs::create_dir(broker.path("state")).unwrap();
    let files = Box::new(brokertuner_edge::fs::RealFiles);
    let (mut applier, _) = brokertuner_edge::apply::Applier::open(files, live, paths).unwrap();
    let (site, on) = (SiteValues::default(), (Knob::Persistence, 1));
    applier.apply(settings(&[on]), How::Restart, &site).unwrap();
    let kept = fs::read_dir(broker.dir.path()).unwrap().flatten().any(|entry| {
        fs::read_to_string(entry.path()).is_ok_and(|text| text == "of long ago")
            && entry.path() != database
    });
    assert!(kept, "the stale database was moved aside and kept");
    // The next restart is preceded by a save: the file is there before the broker ends.
    let wider = settings(&[on, (Knob::InflightMessagesMax, 100)]);
    applier.apply(wider, How::Restart, &site).unwrap();
    assert!(fs::metadata(&database).unwrap().len() > 0);
    assert!(broker.log().contains("Saving in-memory database"), "{}", broker.log());
}
