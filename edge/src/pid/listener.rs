//! The owner of a listening TCP socket: `/proc/net/tcp` names the socket's inode, `/proc/PID/fd`
//! its holder.
//!
//! Found by socket and not by name: under a loader or in a container the process has another name.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;

use procfs::net::{TcpNetEntry, TcpState};
use procfs::process::{FDTarget, Process};

use super::{PidError, ProcessId};
use crate::sampler::with_stat;

/// Words of a command line that may name the program: a loader's come before it.
const WORDS_MAX: usize = 6;
/// Programs that take connections for a broker which runs elsewhere.
const PROXIES: [&str; 11] = [
    "docker-proxy",
    "rootlessport",
    "rootlesskit",
    "conmon",
    "slirp4netns",
    "pasta",
    "passt",
    "haproxy",
    "nginx",
    "socat",
    "stunnel",
];

/// A process that holds a socket, or that is a Mosquitto.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The process.
    pub process: ProcessId,
    /// Its parent's process id.
    pub parent: i32,
    /// The kernel's name for it.
    pub name: String,
    /// A Mosquitto, by its name or its command line.
    pub is_mosquitto: bool,
    /// Ports that it listens on; empty where its descriptors may not be looked at.
    pub ports: Vec<u16>,
}

impl Holder {
    fn of(process: &Process, ports: Vec<u16>) -> Option<Self> {
        let words = process.cmdline().unwrap_or_default();
        let is_named = |word: &String| Path::new(word).file_name() == Some("mosquitto".as_ref());
        let holder = with_stat(process.pid, |stat| {
            let of_stat = Self {
                process: ProcessId { pid: stat.pid, start_ticks: stat.start_ticks },
                parent: stat.parent,
                name: String::from_utf8_lossy(stat.name).into_owned(),
                is_mosquitto: stat.name == b"mosquitto"
                    || words.iter().take(WORDS_MAX).any(is_named),
                ports,
            };
            Ok((!stat.is_dead()).then_some(of_stat))
        });
        holder.ok()?
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({}", self.process.pid, self.name)?;
        for (index, port) in self.ports.iter().enumerate() {
            write!(f, "{}{port}", if index == 0 { ", port " } else { ", " })?;
        }
        f.write_str(")")
    }
}

/// Several of them, for a message.
pub(super) fn listed(holders: &[Holder]) -> String {
    holders.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The process that listens on the port of `address`.
pub(super) fn owner(address: SocketAddr) -> Result<ProcessId, PidError> {
    let port = address.port();
    let sockets = listening(Some(address))?;
    if sockets.is_empty() {
        return Err(PidError::NobodyListens { port });
    }
    let mut holders = Vec::new();
    for process in procfs::process::all_processes()?.flatten() {
        // Processes come and go, and those of other users are closed to us: both are passed over.
        let ports = held(&process, &sockets);
        if !ports.is_empty() {
            holders.extend(Holder::of(&process, ports));
        }
    }
    if holders.is_empty() {
        return Err(PidError::Hidden { port, running: running() });
    }
    choose(port, &holders)
}

/// Of those that hold the socket, the broker.
fn choose(port: u16, holders: &[Holder]) -> Result<ProcessId, PidError> {
    let is_child = |child: &&Holder| {
        // A child that has yet to become another program.
        holders.iter().any(|one| one.process.pid == child.parent && one.name == child.name)
    };
    let holders: Vec<&Holder> = holders.iter().filter(|holder| !is_child(holder)).collect();
    let brokers: Vec<&Holder> = holders.iter().copied().filter(|one| one.is_mosquitto).collect();
    match (brokers.as_slice(), holders.as_slice()) {
        // Whoever made the socket for it (systemd) may hold it, too.
        ([broker], _) => Ok(broker.process),
        ([], [one]) if PROXIES.contains(&one.name.as_str()) => {
            Err(PidError::Proxy { port, name: one.name.clone(), pid: one.process.pid })
        }
        ([], [one]) => Ok(one.process),
        _ => {
            let found: Vec<Holder> = holders.into_iter().cloned().collect();
            Err(PidError::Ambiguous { port, found: listed(&found) })
        }
    }
}

/// Whether the process listens on any TCP port of its own network namespace; `None` where it may not
/// be looked at.
pub(super) fn listens_at_home(pid: i32) -> Option<bool> {
    let process = Process::new(pid).ok()?;
    let mut entries = process.tcp().ok()?;
    entries.extend(process.tcp6().unwrap_or_default());
    entries.retain(|entry| entry.state == TcpState::Listen);
    let inodes: Vec<u64> = entries.iter().map(|entry| entry.inode).collect();
    // Root without CAP_SYS_PTRACE may list them and read none; procfs passes over those.
    let mut descriptors = process.fd().ok()?.flatten().peekable();
    descriptors.peek()?;
    Some(
        descriptors
            .any(|fd| matches!(fd.target, FDTarget::Socket(inode) if inodes.contains(&inode))),
    )
}

/// Every Mosquitto that this process can see, with the ports that it may see of each.
#[must_use]
pub fn mosquittos() -> Vec<Holder> {
    let Ok(processes) = procfs::process::all_processes() else { return Vec::new() };
    let sockets = listening(None).unwrap_or_default();
    let found = processes.flatten().filter_map(|process| {
        let mut holder = Holder::of(&process, Vec::new()).filter(|one| one.is_mosquitto)?;
        holder.ports = held(&process, &sockets);
        Some(holder)
    });
    // What started one has its name among its words, and listens on nothing.
    let found: Vec<Holder> = found.collect();
    let is_starter = |one: &Holder| {
        one.ports.is_empty() && found.iter().any(|child| child.parent == one.process.pid)
    };
    found.iter().filter(|one| !is_starter(one)).cloned().collect()
}

/// A process that can be seen to listen: where it does not own the port that is looked for, it is
/// another broker's.
pub(super) fn listens(pid: i32) -> bool {
    let sockets = listening(None).unwrap_or_default();
    Process::new(pid).is_ok_and(|process| !held(&process, &sockets).is_empty())
}

/// Those, for a message about one that is not found.
fn running() -> String {
    let found = mosquittos();
    if found.is_empty() {
        return String::new();
    }
    format!("; Mosquittos that can be seen: {}", listed(&found))
}

/// The ports of `sockets` (by inode) that `process` holds, each once.
fn held(process: &Process, sockets: &BTreeMap<u64, u16>) -> Vec<u16> {
    let Ok(descriptors) = process.fd() else { return Vec::new() };
    let port = |target: FDTarget| match target {
        FDTarget::Socket(inode) => sockets.get(&inode).copied(),
        _ => None,
    };
    let mut ports: Vec<u16> = descriptors.flatten().filter_map(|fd| port(fd.target)).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Listening sockets and their ports: those that take connections to `address`, of these the ones
/// bound to exactly that address where there are any; without an address all of them.
fn listening(address: Option<SocketAddr>) -> Result<BTreeMap<u64, u16>, PidError> {
    let mut entries: Vec<TcpNetEntry> = procfs::net::tcp()?;
    // A kernel without IPv6 has no tcp6.
    entries.extend(procfs::net::tcp6().unwrap_or_default());
    entries.retain(|entry| entry.state == TcpState::Listen);
    if let Some(address) = address {
        entries.retain(|entry| {
            entry.local_address.port() == address.port() && serves(entry.local_address, address)
        });
        entries.sort_by_key(|entry| entry.local_address.ip() != address.ip());
        // Another program may listen on the same port of another address: only the best match
        // counts.
        let best = entries.first().map(|entry| entry.local_address);
        entries.retain(|entry| Some(entry.local_address) == best);
    }
    Ok(entries.iter().map(|entry| (entry.inode, entry.local_address.port())).collect())
}

fn serves(local: SocketAddr, wanted: SocketAddr) -> bool {
    local.ip() == wanted.ip()
        || local.ip().is_unspecified() && (local.is_ipv6() || wanted.is_ipv4())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn holder(pid: i32, parent: i32, name: &str) -> Holder {
        Holder {
            process: ProcessId { pid, start_ticks: 1 },
            parent,
            name: name.into(),
            is_mosquitto: name == "mosquitto",
            ports: vec![1883],
        }
    }

    #[test]
    fn the_broker_is_told_from_those_that_hold_its_socket_too() {
        let chosen = |holders: &[Holder]| choose(1883, holders).map(|process| process.pid);
        let broker = holder(7, 1, "mosquitto");
        assert_eq!(chosen(&[holder(1, 0, "systemd"), broker.clone()]).unwrap(), 7);
        assert_eq!(chosen(&[holder(9, 1, "ld-linux-x86-64")]).unwrap(), 9, "by a loader");
        let fork = holder(8, 7, "mosquitto");
        assert_eq!(chosen(&[fork, broker.clone()]).unwrap(), 7);

        let said = chosen(&[holder(12, 1, "docker-proxy")]).unwrap_err();
        assert!(said.is_hidden() && said.to_string().contains("docker-proxy"), "{said}");
        for others in [["mosquitto", "mosquitto"], ["a", "b"]] {
            let both = [holder(7, 1, others[0]), holder(70, 1, others[1])];
            let said = chosen(&both).unwrap_err();
            let text = said.to_string();
            assert!(
                said.is_hidden() && text.contains("process 7 (") && text.contains("process 70 ("),
                "{text}"
            );
        }
    }
}
