//! The commands that undo a change by hand, where edge is not to be asked.

use brokertuner_core::{Knob, Settings, render};

use crate::apply::interim;
use crate::control::Method;
use crate::plan::Plan;
use crate::site::Site;
use crate::state::How;

/// Shell commands, in their order. They may be read days later: none names a process that may have
/// ended since.
#[must_use]
pub fn commands(site: &Site, plan: &Plan) -> Vec<String> {
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
        (How::Reload, Method::Signal, _) => signal(site),
        (How::Reload, method, _) => by(method, How::Reload),
        (How::Restart, _, method) => by(method, How::Restart),
    };
    let mut commands = vec!["edge rollback".into(), "or by hand: edge pause".into(), write];
    let is_on =
        |settings: &Settings| settings.effective(Knob::Persistence, &site.envelope.site) != 0;
    if let Some(database) = site.paths.database.as_ref()
        && is_on(&plan.from)
        && !is_on(&plan.to)
    {
        // It is as old as the change: the broker would bring back what was delivered since.
        let database = quoted(&database.display().to_string());
        commands.push(format!("sudo mv {database} {database}.old"));
    }
    commands.push(take_over);
    commands
}

fn signal(site: &Site) -> String {
    match &site.broker.finder.pid_file {
        Some(path) => format!("sudo kill -HUP $(cat {})", quoted(&path.display().to_string())),
        None => "sudo kill -HUP $(pidof mosquitto)".into(),
    }
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
            commands(&site, &plan),
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
        let command = commands(&site, &plan)[2].replace("sudo ", "");
        assert!(Command::new("/bin/sh").args(["-c", &command]).output().unwrap().status.success());
        let written = std::fs::read_to_string(&file).unwrap();
        let header = render::HEADER;
        assert_eq!(written, format!("{header}\nmax_queued_messages 300\nmemory_limit 0\n"));
    }

    /// As the agent itself does where it switches persistence on.
    #[test]
    fn a_database_that_is_stale_is_not_read_again() {
        let mut site = site("/x/zz-brokertuner.conf");
        site.paths.database = Some("/var/lib/mosquitto/mosquitto.db".into());
        let on = [(Knob::Persistence, 1)];
        let aside = "sudo mv /var/lib/mosquitto/mosquitto.db /var/lib/mosquitto/mosquitto.db.old";
        assert_eq!(commands(&site, &plan(&on, &[], How::Restart))[3], aside);
        assert!(!commands(&site, &plan(&[], &on, How::Restart)).contains(&aside.to_owned()));
    }

    #[test]
    fn every_way_to_reload_has_its_command() {
        let mut site = site("/x/zz-brokertuner.conf");
        let plan = plan(&[], &[(Knob::AutosaveInterval, 300)], How::Reload);
        site.broker.reload = Method::Signal;
        site.broker.finder.pid_file = Some("/run/mosquitto.pid".into());
        assert_eq!(commands(&site, &plan)[3], "sudo kill -HUP $(cat /run/mosquitto.pid)");
        site.broker.finder.pid_file = None;
        assert_eq!(commands(&site, &plan)[3], "sudo kill -HUP $(pidof mosquitto)");
        site.broker.reload = Method::Command(vec!["/bin/sh".into(), "-c".into(), "a b".into()]);
        assert_eq!(commands(&site, &plan)[3], "/bin/sh -c 'a b'");
    }
}
