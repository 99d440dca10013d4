//! Descriptors and queues of the kernel against the number of connections.

use procfs::process::{LimitValue, Process};

use super::Check;
use crate::pid::ProcessId;

/// Descriptors of a broker besides its connections: listeners, logs, the database.
const OWN_DESCRIPTORS: u64 = 64;
/// Everyone comes back at once after a restart: fewer places than this share of them are too few.
const BACKLOG_SHARE: u64 = 4;
/// Mosquitto asks for a backlog of this many.
const BACKLOG_ASKED: u64 = 100;

pub(super) fn examine(process: ProcessId, clients: Option<u64>, checks: &mut Vec<Check>) {
    let limits = Process::new(process.pid).and_then(|process| process.limits());
    match limits {
        Ok(limits) => {
            let max = match limits.max_open_files.soft_limit {
                LimitValue::Unlimited => u64::MAX,
                LimitValue::Value(max) => max,
            };
            checks.push(descriptors(max, clients));
        }
        Err(error) => checks.push(Check::note(
            "descriptors",
            format!("the broker's limits can't be read: {error}"),
            "run edge doctor as root",
        )),
    }
    for (name, path) in [
        ("net.core.somaxconn", "/proc/sys/net/core/somaxconn"),
        ("net.ipv4.tcp_max_syn_backlog", "/proc/sys/net/ipv4/tcp_max_syn_backlog"),
    ] {
        if let Some(value) = number(path) {
            checks.push(backlog(name, value, clients));
        }
    }
    if let Some(file_max) = number("/proc/sys/fs/file-max") {
        let needed = clients.unwrap_or(0).saturating_mul(2) + 1024;
        if file_max < needed {
            let found = format!("fs.file-max is {file_max}, for {needed} that may be open");
            checks.push(Check::wrong(
                "sysctl",
                found,
                format!("sysctl -w fs.file-max={}", needed * 2),
            ));
        }
    }
}

/// A connection needs a descriptor; half of them are kept for growth.
fn descriptors(max: u64, clients: Option<u64>) -> Check {
    let Some(clients) = clients else {
        let found = format!("{max} descriptors, for a number of clients that is not known yet");
        return Check::note("descriptors", found, "");
    };
    let needed = clients + OWN_DESCRIPTORS;
    if max < needed + needed / 2 {
        let found =
            format!("{max} descriptors for {clients} connections: new ones are refused soon");
        let remedy = format!(
            "LimitNOFILE={} in the broker's unit (systemctl edit mosquitto), then restart it",
            (needed * 4).next_power_of_two()
        );
        return Check::wrong("descriptors", found, remedy);
    }
    let shown = if max == u64::MAX { "unlimited".into() } else { max.to_string() };
    Check::good("descriptors", format!("{shown} for {clients} connections"))
}

fn backlog(name: &str, value: u64, clients: Option<u64>) -> Check {
    let clients = clients.unwrap_or(0);
    let needed = (clients / BACKLOG_SHARE).clamp(BACKLOG_ASKED, 4096);
    if value < needed {
        let found = format!(
            "{name} is {value}: {clients} clients that come back after a restart have to try again"
        );
        return Check::note(
            "sysctl",
            found,
            format!("sysctl -w {name}={}", needed.next_power_of_two()),
        );
    }
    Check::good("sysctl", format!("{name} is {value}"))
}

fn number(path: &str) -> Option<u64> {
    // Not all of them exist in every container.
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    #[test]
    fn descriptors_are_judged_by_the_connections() {
        for (max, clients, state) in [
            (1024, Some(10), State::Good),
            (1024, Some(619), State::Good),
            (1024, Some(620), State::Wrong),
            (1024, Some(5000), State::Wrong),
            (u64::MAX, Some(1_000_000), State::Good),
            (1024, None, State::Note),
        ] {
            let check = descriptors(max, clients);
            assert_eq!(check.state, state, "{max} for {clients:?}: {check:?}");
            assert_eq!(check.remedy.contains("LimitNOFILE"), state == State::Wrong);
        }
    }

    #[test]
    fn a_short_queue_is_told_where_many_come_back() {
        assert_eq!(backlog("net.core.somaxconn", 128, Some(10)).state, State::Good);
        let check = backlog("net.core.somaxconn", 128, Some(5000));
        assert_eq!(check.state, State::Note);
        assert!(check.remedy.contains("net.core.somaxconn=2048"), "{check:?}");
    }
}
