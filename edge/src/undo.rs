//! The commands that undo a change by hand, where edge is not to be asked.

use brokertuner_core::{Settings, render};

use crate::apply::interim;
use crate::control::Method;
use crate::plan::Plan;
use crate::site::Site;
use crate::state::How;

/// Shell commands, in their order. `pid`: the broker's, for a reload by signal.
#[must_use]
pub fn commands(site: &Site, plan: &Plan, pid: Option<i32>) -> Vec<String> {
    let drop_in = quoted(&site.paths.drop_in.display().to_string());
    let back = (plan.from != Settings::UNWRITTEN).then_some(plan.from);
    // A reload leaves `memory_limit` as it is where its line is only removed.
    let stated = match plan.how {
        How::Reload => interim(Some(plan.to), back, &site.envelope.site).or(back),
        How::Restart => back,
    };
    let write = match stated {
        None => format!("sudo rm {drop_in}"),
        Some(settings) => {
            let text = render::render(&settings);
            let lines: Vec<_> = text.lines().map(quoted).collect();
            format!("printf '%s\\n' {} | sudo tee {drop_in}", lines.join(" "))
        }
    };
    let take_over = match (plan.how, &site.broker.reload, &site.broker.restart) {
        (How::Reload, Method::Signal, _) => pid.map_or_else(
            || "sudo kill -HUP $(pidof mosquitto)".into(),
            |pid| format!("sudo kill -HUP {pid}"),
        ),
        (How::Reload, method, _) => by(method, How::Reload),
        (How::Restart, _, method) => by(method, How::Restart),
    };
    vec!["edge rollback".into(), "or by hand: edge pause".into(), write, take_over]
}

fn by(method: &Method, how: How) -> String {
    match method {
        Method::Systemd(unit) => format!("sudo systemctl {how} {}", quoted(unit)),
        Method::Command(words) => {
            words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
        }
        Method::Signal | Method::None => format!("{how} the broker"),
    }
}

/// A word as a POSIX shell reads it back.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-@:+=%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::site::Environment;
    use brokertuner_core::Knob;
    use std::process::Command;

    fn plan(from: &[(Knob, u64)], to: &[(Knob, u64)], how: How) -> Plan {
        let settings = |values: &[(Knob, u64)]| {
            let mut settings = Settings::UNWRITTEN;
            values.iter().for_each(|&(knob, value)| settings.set(knob, value).unwrap());
            settings
        };
        let (from, to) = (settings(from), settings(to));
        Plan {
            from,
            to,
            how,
            why: String::new(),
            is_roll_back: false,
            is_asked_for: false,
            is_unloading: false,
        }
    }

    fn site(drop_in: &str) -> Site {
        let text = format!("[broker]\nmain_conf = \"\"\ndrop_in = {drop_in:?}\n");
        Site::look(&Config::parse(&text).unwrap(), &Environment::default()).unwrap()
    }

    #[test]
    fn a_first_change_is_undone_by_removing_the_file() {
        let site = site("/etc/mosquitto/conf.d/zz-brokertuner.conf");
        let plan = plan(&[], &[(Knob::InflightMessagesMax, 1000)], How::Restart);
        assert_eq!(
            commands(&site, &plan, None),
            [
                "edge rollback",
                "or by hand: edge pause",
                "sudo rm /etc/mosquitto/conf.d/zz-brokertuner.conf",
                "sudo systemctl restart mosquitto.service",
            ]
        );
    }

    /// What the shell writes is word for word the drop-in of before, memory_limit's 0 included.
    #[test]
    fn the_shell_writes_the_file_of_before() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("it's here.conf");
        let site = site(file.to_str().unwrap());
        let from = [(Knob::QueuedMessagesMax, 300)];
        let plan = plan(&from, &[(Knob::MemoryLimit, 1 << 28)], How::Reload);
        let command = commands(&site, &plan, None)[2].replace("sudo ", "");
        assert!(Command::new("/bin/sh").args(["-c", &command]).output().unwrap().status.success());
        let written = std::fs::read_to_string(&file).unwrap();
        let header = render::HEADER;
        assert_eq!(written, format!("{header}\nmax_queued_messages 300\nmemory_limit 0\n"));
    }

    #[test]
    fn every_way_to_reload_has_its_command() {
        let mut site = site("/x/zz-brokertuner.conf");
        let plan = plan(&[], &[(Knob::AutosaveInterval, 300)], How::Reload);
        site.broker.reload = Method::Signal;
        assert_eq!(commands(&site, &plan, Some(7))[3], "sudo kill -HUP 7");
        site.broker.reload = Method::Command(vec!["/bin/sh".into(), "-c".into(), "a b".into()]);
        assert_eq!(commands(&site, &plan, None)[3], "/bin/sh -c 'a b'");
    }
}
