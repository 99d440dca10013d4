//! A quota on the broker's processor time, by control group: version 1 (`cpu.cfs_*`) or version 2
//! (`cpu.max`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use procfs::process::Process;

use super::error::BrokerError;

/// Starts the name of every group made here; the process id of the maker follows.
const PREFIX: &str = "brokertuner-";
/// The kernel takes no quota below this.
const QUOTA_US_MIN: f64 = 1_000.0;
const PERIOD_US_MIN: f64 = 10_000.0;
/// A group can be removed shortly after its last process was waited for.
const REMOVE_TRIES_MAX: u32 = 100;

/// A control group that grants a share of one core; removed when dropped.
#[derive(Debug)]
pub(super) struct CpuGroup {
    dir: PathBuf,
}

/// Period and quota in microseconds: a period of max(10 ms, 1 ms / share), so that the quota is at
/// least 1 ms.
fn period_and_quota_us(share: f64) -> (u32, u32) {
    let period = PERIOD_US_MIN.max(QUOTA_US_MIN / share);
    // A share is checked to be at least 0.01, so the period is at most 100 ms.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "10,000 to 100,000")]
    let whole = |us: f64| us.round() as u32;
    (whole(period), whole((period * share).max(QUOTA_US_MIN)))
}

impl CpuGroup {
    /// Makes a group with `share` (0.01 to 1) of one core.
    pub(super) fn new(share: f64) -> Result<Self, BrokerError> {
        let refuse = |reason: String| BrokerError::CpuShare { share, reason };
        if !(0.01..=1.0).contains(&share) {
            return Err(refuse("it must lie between 0.01 and 1".to_owned()));
        }
        let parents = parents().map_err(|error| refuse(error.to_string()))?;
        let mut reason = "no cgroup hierarchy with the cpu controller is mounted".to_owned();
        for parent in parents {
            remove_orphans(&parent.dir);
            match Self::below(&parent, share) {
                Ok(group) => return Ok(group),
                Err(error) => reason = format!("{}: {error}", parent.dir.display()),
            }
        }
        Err(refuse(reason))
    }

    fn below(parent: &Parent, share: f64) -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        if parent.unified && !controllers(&parent.dir, "cgroup.subtree_control")?.contains("cpu") {
            fs::write(parent.dir.join("cgroup.subtree_control"), "+cpu")?;
        }
        let dir = parent.dir.join(format!("{PREFIX}{}-{number}", process::id()));
        fs::create_dir(&dir)?;
        let group = Self { dir };
        let (period_us, quota_us) = period_and_quota_us(share);
        if parent.unified {
            fs::write(group.dir.join("cpu.max"), format!("{quota_us} {period_us}"))?;
        } else {
            fs::write(group.dir.join("cpu.cfs_period_us"), period_us.to_string())?;
            fs::write(group.dir.join("cpu.cfs_quota_us"), quota_us.to_string())?;
        }
        Ok(group)
    }

    /// Moves a process into the group.
    pub(super) fn add(&self, pid: u32) -> io::Result<()> {
        fs::write(self.dir.join("cgroup.procs"), pid.to_string())
    }

    pub(super) fn path(&self) -> &Path {
        &self.dir
    }
}

impl Drop for CpuGroup {
    fn drop(&mut self) {
        for _ in 0..REMOVE_TRIES_MAX {
            match fs::remove_dir(&self.dir) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    thread::sleep(Duration::from_millis(1));
                }
                _ => return,
            }
        }
        tracing::warn!(group = %self.dir.display(), "The control group is still in use and stays behind.");
    }
}

/// A folder below which a group may be made.
struct Parent {
    dir: PathBuf,
    unified: bool,
}

/// This process's own group and the groups above it, the nearest first.
///
/// Inside a container the path in `/proc/self/cgroup` may lie outside what is mounted; what does
/// not exist is left out.
fn parents() -> procfs::ProcResult<Vec<Parent>> {
    let me = Process::myself()?;
    let groups = me.cgroups()?;
    let mounts: Vec<_> = me.mountinfo()?.into_iter().collect();
    let mut parents = Vec::new();
    for group in groups {
        let unified = group.controllers.iter().all(String::is_empty);
        if !unified && !group.controllers.iter().any(|controller| controller == "cpu") {
            continue;
        }
        let mount = mounts.iter().find(|mount| {
            if unified {
                mount.fs_type == "cgroup2"
            } else {
                mount.fs_type == "cgroup" && mount.super_options.contains_key("cpu")
            }
        });
        let Some(mount) = mount else { continue };
        let own = Path::new(group.pathname.trim_start_matches('/'));
        for below in own.ancestors() {
            let dir = mount.mount_point.join(below);
            let has_cpu = !unified
                || controllers(&dir, "cgroup.controllers").is_ok_and(|list| list.contains("cpu"));
            if dir.is_dir() && has_cpu {
                parents.push(Parent { dir, unified });
            }
        }
    }
    Ok(parents)
}

/// The words of a list such as `cgroup.controllers`; `cpuset` is not `cpu`.
fn controllers(dir: &Path, file: &str) -> io::Result<std::collections::BTreeSet<String>> {
    Ok(fs::read_to_string(dir.join(file))?.split_whitespace().map(str::to_owned).collect())
}

/// Removes the empty groups of makers that were killed before they could.
fn remove_orphans(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let maker = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
        if maker.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // One that still holds a process refuses.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is the test's failure")]
mod tests {
    use super::*;

    #[test]
    fn the_quota_is_never_below_the_kernels_least() {
        assert_eq!(period_and_quota_us(1.0), (10_000, 10_000));
        assert_eq!(period_and_quota_us(0.25), (10_000, 2_500));
        assert_eq!(period_and_quota_us(0.1), (10_000, 1_000));
        assert_eq!(period_and_quota_us(0.05), (20_000, 1_000));
        assert_eq!(period_and_quota_us(0.01), (100_000, 1_000));
    }

    #[test]
    fn a_share_out_of_range_is_refused() {
        for share in [0.0, 0.009, 1.1, f64::NAN, -1.0] {
            let error = CpuGroup::new(share).unwrap_err();
            assert!(error.to_string().contains("between 0.01 and 1"), "{error}");
        }
    }
}
