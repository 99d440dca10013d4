//! A loopback port that stays the broker's.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};

const TRIES_MAX: u32 = 64;
/// Below this, ports tend to belong to services.
const FLOOR: u16 = 10_000;

/// A port on which nothing listens now.
///
/// It lies below the kernel's ephemeral range where there is room: while a broker restarts,
/// hundreds of clients reconnect, and the kernel may give one of them the broker's own port as its
/// source. On loopback such a connection even succeeds, with itself, and the broker cannot bind any
/// more.
pub(super) fn free_port() -> io::Result<u16> {
    let ceiling = ephemeral_start().unwrap_or(0);
    if ceiling > FLOOR {
        for _ in 0..TRIES_MAX {
            let port = rand::random_range(FLOOR..ceiling);
            if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Ok(port);
            }
        }
    }
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn ephemeral_start() -> Option<u16> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// Whether the listening socket on the loopback `port` belongs to process `pid`.
///
/// Another program may have taken the port between its choice and the broker's start, and answer in
/// its place.
pub(super) fn listens_on(pid: u32, port: u16) -> bool {
    use procfs::net::TcpState;
    use procfs::process::{FDTarget, Process};
    let Ok(entries) = procfs::net::tcp() else { return false };
    let inode = entries
        .iter()
        .find(|entry| entry.state == TcpState::Listen && entry.local_address.port() == port)
        .map(|entry| entry.inode);
    let Some(inode) = inode else { return false };
    let Ok(pid) = i32::try_from(pid) else { return false };
    Process::new(pid).and_then(|process| process.fd()).is_ok_and(|fds| {
        fds.flatten().any(|fd| matches!(fd.target, FDTarget::Socket(of) if of == inode))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is the test's failure")]
mod tests {
    use super::*;

    #[test]
    fn a_free_port_can_be_bound_and_its_owner_is_known() {
        let port = free_port().unwrap();
        assert!(!listens_on(std::process::id(), port));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        assert!(listens_on(std::process::id(), port));
        assert!(!listens_on(1, port), "process 1 does not own our socket");
        drop(listener);
    }
}
