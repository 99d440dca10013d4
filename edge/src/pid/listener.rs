//! The owner of a listening TCP socket: `/proc/net/tcp` names the socket's inode, `/proc/PID/fd`
//! its holder.
//!
//! Found by socket and not by name: under a loader or in a container the process has another name.

use std::net::SocketAddr;

use procfs::net::{TcpNetEntry, TcpState};
use procfs::process::{FDTarget, Process};

use super::{PidError, ProcessId, alive};

/// The process that listens on the port of `address`.
pub(super) fn owner(address: SocketAddr) -> Result<ProcessId, PidError> {
    let inodes = listening_inodes(address)?;
    if inodes.is_empty() {
        return Err(PidError::NobodyListens { port: address.port() });
    }
    for process in procfs::process::all_processes()? {
        // Processes come and go, and those of other users are closed to us: both are passed over.
        let Ok(process) = process else { continue };
        if holds(&process, &inodes)
            && let Some(found) = alive(process.pid())?
        {
            return Ok(found);
        }
    }
    Err(PidError::Hidden { port: address.port() })
}

/// Whether the process listens on any TCP port of its own network namespace; `None` where it may not
/// be looked at.
pub(super) fn listens(pid: i32) -> Option<bool> {
    let process = Process::new(pid).ok()?;
    let mut entries = process.tcp().ok()?;
    entries.extend(process.tcp6().unwrap_or_default());
    entries.retain(|entry| entry.state == TcpState::Listen);
    let inodes: Vec<u64> = entries.iter().map(|entry| entry.inode).collect();
    process.fd().ok()?;
    Some(holds(&process, &inodes))
}

fn holds(process: &Process, inodes: &[u64]) -> bool {
    let Ok(descriptors) = process.fd() else { return false };
    descriptors
        .flatten()
        .any(|fd| matches!(fd.target, FDTarget::Socket(inode) if inodes.contains(&inode)))
}

/// Sockets that take connections to `address`, those bound to exactly that address first.
fn listening_inodes(address: SocketAddr) -> Result<Vec<u64>, PidError> {
    let mut entries: Vec<TcpNetEntry> = procfs::net::tcp()?;
    // A kernel without IPv6 has no tcp6.
    entries.extend(procfs::net::tcp6().unwrap_or_default());
    entries.retain(|entry| {
        entry.state == TcpState::Listen
            && entry.local_address.port() == address.port()
            && serves(entry.local_address, address)
    });
    entries.sort_by_key(|entry| entry.local_address.ip() != address.ip());
    // Another program may listen on the same port of another address: only the best match counts.
    let best = entries.first().map(|entry| entry.local_address);
    Ok(entries.iter().filter(|e| Some(e.local_address) == best).map(|e| e.inode).collect())
}

fn serves(local: SocketAddr, wanted: SocketAddr) -> bool {
    local.ip() == wanted.ip()
        || local.ip().is_unspecified() && (local.is_ipv6() || wanted.is_ipv4())
}
