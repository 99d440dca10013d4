//! `edge doctor` on brokers that are well and on ones that are not.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::broker::{Broker, copy_of_edge, mosquittos};
use super::cli::{WIDE, on};
use super::model;

/// The exit status and the checks, by name: how each came out, what was found, the remedy.
fn examine(config: &Path) -> (i32, Vec<(String, String, String)>) {
    let (code, out, err) = on(config, &["doctor", "--json"]);
    let said: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}"));
    assert_eq!(said["healthy"].as_bool(), Some(code == 0), "{out}");
    let text = |check: &Value, key: &str| check[key].as_str().unwrap().to_owned();
    let checks = said["checks"].as_array().unwrap().iter().map(|check| {
        let name = format!("{} {}", text(check, "state"), text(check, "check"));
        (name, text(check, "found"), text(check, "remedy"))
    });
    let checks: Vec<_> = checks.collect();
    for (name, found, remedy) in &checks {
        let is_told = !found.is_empty() && (!name.starts_with("wrong") || !remedy.is_empty());
        assert!(is_told, "{name}: {found}: {remedy}");
    }
    (code, checks)
}

fn of<'c>(checks: &'c [(String, String, String)], name: &str) -> &'c (String, String, String) {
    checks.iter().find(|check| check.0 == name).unwrap_or_else(|| panic!("no {name}: {checks:#?}"))
}

#[test]
fn a_sound_machine_has_nothing_wrong() {
    for mosquitto in mosquittos() {
        let broker = Broker::start_with(&mosquitto, "");
        let model = broker.path("model.btm");
        model::write(&model, &WIDE);
        let config = broker.edge_config(&model, "");
        fs::create_dir(broker.path("state")).unwrap();
        let before = fs::read_dir(broker.path("state")).unwrap().count();
        let (code, checks) = examine(&config);
        assert_eq!(code, 0, "{checks:#?}");
        for name in [
            "configuration",
            "state_dir",
            "model",
            "include_dir",
            "elsewhere",
            "reload",
            "restart",
            "signals",
            "broker",
            "pid",
            "sys",
            "probe",
            "version",
            "descriptors",
        ] {
            of(&checks, &format!("good {name}"));
        }
        let version = &of(&checks, "good version").1;
        let has_trap = checks.iter().any(|(_, found, _)| found.contains("inflight window grows"));
        assert_eq!(has_trap, version == "2.0.11", "{version}: {checks:#?}");
        let after = fs::read_dir(broker.path("state")).unwrap().count();
        assert_eq!((before, broker.drop_in().exists()), (after, false), "nothing was written");
        let (_, out, _) = on(&config, &["doctor"]);
        assert!(out.ends_with("nothing is wrong\n"), "{out}");
    }
}

#[test]
fn what_is_wrong_is_named_with_its_remedy() {
    let broker = Broker::start("set_tcp_nodelay true\nallow_anonymous false\n");
    fs::write(broker.path("conf.d/zzz.conf"), "max_queued_messages 500\n").unwrap();
    let model = broker.path("none.btm");
    let config = broker.edge_config(&model, "[http]\nlisten = \"127.0.0.1:1\"\n");
    let text = fs::read_to_string(&config).unwrap();
    let [user, password] = ["user", "password"].map(|name| broker.path(name));
    let login = format!("[broker]\nuser_file = {user:?}\npassword_file = {password:?}\n");
    fs::write(&config, text.replace("[broker]\n", &login)).unwrap();
    for file in [&user, &password] {
        fs::write(file, "who\n").unwrap();
        fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    }
    let (code, checks) = examine(&config);
    assert_eq!(code, 1);
    assert_eq!(of(&checks, "wrong secrets").2, format!("chmod o= {}", password.display()));
    assert!(of(&checks, "wrong state_dir").2.contains("install -d"), "{checks:#?}");
    assert!(of(&checks, "wrong model").1.contains("host train"), "{checks:#?}");
    assert!(of(&checks, "wrong broker").2.contains("broker.user_file"), "{checks:#?}");
    let elsewhere: Vec<_> = checks.iter().filter(|check| check.0 == "note elsewhere").collect();
    assert_eq!(elsewhere.len(), 2, "{checks:#?}");
    let is_told = |file: &str, part: &str| {
        elsewhere.iter().any(|(_, found, remedy)| found.contains(file) && remedy.contains(part))
    };
    assert!(is_told("mosquitto.conf:", "tune = \"yes\""), "{elsewhere:#?}");
    assert!(is_told("zzz.conf:1", "remove that line"), "{elsewhere:#?}");
    of(&checks, "note http");
    let (_, out, _) = on(&config, &["doctor"]);
    assert!(out.contains("WRONG state_dir") && out.contains("things are wrong"), "{out}");

    fs::write(&config, "[broker]\nprot = 1\n").unwrap();
    let (code, checks) = examine(&config);
    assert!(code == 1 && of(&checks, "wrong configuration").1.contains("broker.prot"));
}

#[test]
fn a_silent_sys_and_a_missing_broker_are_told() {
    let broker = Broker::start("sys_interval 0\n");
    let model = broker.path("model.btm");
    model::write(&model, &WIDE);
    let config = broker.edge_config(&model, "");
    fs::create_dir(broker.path("state")).unwrap();
    let (code, checks) = examine(&config);
    assert_eq!(code, 1);
    assert!(of(&checks, "wrong sys").1.contains("sys_interval is 0"), "{checks:#?}");
    let text = fs::read_to_string(&config).unwrap();
    let port = broker.address.port().to_string();
    fs::write(&config, text.replace(&format!("port = {port}"), "port = 1")).unwrap();
    let (code, checks) = examine(&config);
    assert_eq!(code, 1);
    of(&checks, "wrong broker");
}

/// Two brokers on one machine: the files of one, the port of the other.
#[test]
fn the_files_of_another_broker_are_told() {
    let (broker, other) = (Broker::start(""), Broker::start(""));
    let model = broker.path("model.btm");
    model::write(&model, &WIDE);
    let config = broker.edge_config(&model, "");
    fs::create_dir(broker.path("state")).unwrap();
    assert!(of(&examine(&config).1, "good main_conf").1.contains("mosquitto.conf"));
    let (_, out, _) = on(&config, &["check-config"]);
    assert!(out.ends_with(": valid\n"), "{out}");
    let text = fs::read_to_string(&config).unwrap();
    let (own, its) = (broker.address.port().to_string(), other.address.port().to_string());
    fs::write(&config, text.replace(&format!("port = {own}"), &format!("port = {its}"))).unwrap();
    let (code, checks) = examine(&config);
    assert_eq!(code, 1);
    let told: Vec<_> = checks.iter().filter(|check| check.0 == "wrong main_conf").collect();
    assert!(told[0].1.contains(&own) && told[0].1.contains(&its), "{checks:#?}");
    let (code, out, _) = on(&config, &["check-config"]);
    assert!(code == 0 && out.contains("note: broker.main_conf: "), "{out}");
    // Not by its ports, but by its command line.
    let main = fs::read_to_string(broker.path("mosquitto.conf")).unwrap();
    fs::write(broker.path("mosquitto.conf"), main + &format!("listener {its}\n")).unwrap();
    let text = fs::read_to_string(&config).unwrap();
    let (from, to) = (broker.path("mosquitto.pid"), other.path("mosquitto.pid"));
    fs::write(&config, text.replace(from.to_str().unwrap(), to.to_str().unwrap())).unwrap();
    let told = examine(&config).1;
    let its = other.path("mosquitto.conf").display().to_string();
    assert!(of(&told, "wrong main_conf").1.contains(&its), "{told:#?}");
}

/// Run as nobody, where a check of rights means something.
#[test]
fn rights_are_those_of_the_user_who_asks() {
    let broker = Broker::start("");
    let model = broker.path("model.btm");
    model::write(&model, &WIDE);
    let config = broker.edge_config(&model, "");
    fs::create_dir(broker.path("state")).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(broker.dir.path(), open).unwrap();
    let program = copy_of_edge(broker.dir.path());
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(program.get_program())
        .args(program.get_args())
        .args(["doctor", "--config", config.to_str().unwrap()])
        .output()
        .expect("sudo apt-get install -y util-linux");
    let out = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{out}");
    for part in ["WRONG state_dir", "WRONG include_dir", "WRONG signals", "-o 65534"] {
        assert!(out.contains(part), "{part}: {out}");
    }
}
