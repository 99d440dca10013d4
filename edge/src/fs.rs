//! The file-system seam: the few operations that applying needs, replaceable by a faulty set.
//!
//! A file is only ever replaced whole: written aside, synced, renamed, its directory synced.
//! Whoever reads the path sees the old content or the new, at every instant and after a power cut.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use sha2::{Digest as _, Sha256};

/// Largest file that is read whole: configuration, state and secrets are far smaller.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a file written for the broker may be read by: everyone, for it holds no secret.
pub const MODE_CONF: u32 = 0o644;

/// SHA-256 of a file.
pub type Digest = [u8; 32];

/// Mode of the agent's own records.
pub const MODE_STATE: u32 = 0o640;

/// The file operations of an apply, one fault point each.
pub trait Files: Send {
    /// The whole content, or `None` where nothing lies at `path`.
    ///
    /// # Errors
    /// Any I/O error but "not found"; `InvalidData` above [`FILE_BYTES_MAX`].
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>>;

    /// SHA-256 of the content, without keeping it.
    ///
    /// # Errors
    /// As [`Files::read`].
    fn sha256(&self, path: &Path) -> io::Result<Option<Digest>> {
        Ok(self.read(path)?.map(|bytes| Sha256::digest(bytes).into()))
    }

    /// Whether anything lies at `path`.
    ///
    /// # Errors
    /// Where that can't be seen.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Makes `path` anew, in place of whatever lies there, writes `bytes`, sets `mode` whatever the
    /// umask, and syncs it. Follows no link.
    ///
    /// # Errors
    /// Any I/O error; the file may then hold a part of `bytes`.
    fn write_synced(&self, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()>;

    /// Renames over whatever lies at `to`.
    ///
    /// # Errors
    /// Any I/O error; `to` is then as it was.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file; one that is not there is no error.
    ///
    /// # Errors
    /// Any other I/O error.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes renames and removals in `dir` survive a power cut.
    ///
    /// # Errors
    /// Any I/O error.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// Opens one of the agent's own records to be read and added to, and makes it where it is missing.
/// Follows no link, which could lead root's pen elsewhere, and refuses a file that has another name.
///
/// # Errors
/// Any I/O error.
pub fn open_own(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(MODE_STATE);
    let file = options.custom_flags(nix::libc::O_NOFOLLOW).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() || found.nlink() != 1 {
        let what = "it is no plain file of its own: look at it, and remove it";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    }
    hand_over(&file, path);
    Ok(file)
}

/// Writes a file that was not there; what lay at its name is removed, never followed. Not synced.
pub(crate) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<File> {
    RealFiles.remove(path)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    if mode == MODE_STATE {
        hand_over(&file, path);
    }
    file.write_all(bytes)?;
    Ok(file)
}

/// What root writes among the records of an agent without rights is the agent's: it could not read it
/// else. A root that may not do that, as in a container, leaves it as it is.
fn hand_over(file: &File, path: &Path) {
    if nix::unistd::geteuid().is_root()
        && let Ok(dir) = fs::metadata(dir_of(path))
    {
        let _ = std::os::unix::fs::fchown(file, Some(dir.uid()), Some(dir.gid()));
    }
}

/// What of a file is hashed at a time.
const CHUNK_BYTES: usize = 1024;

/// The operating system's files.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealFiles;

impl Files for RealFiles {
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = open_there(path)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        within_limit(bytes.len() as u64)?;
        Ok(Some(bytes))
    }

    /// At each decision, so on the stack.
    fn sha256(&self, path: &Path) -> io::Result<Option<Digest>> {
        let Some(mut file) = open_there(path)? else { return Ok(None) };
        let (mut hash, mut chunk, mut length) = (Sha256::new(), [0; CHUNK_BYTES], 0);
        loop {
            match file.read(&mut chunk)? {
                0 => return Ok(Some(hash.finalize().into())),
                read => {
                    length += read as u64;
                    within_limit(length)?;
                    hash.update(&chunk[..read]);
                }
            }
        }
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        fs::exists(path)
    }

    fn write_synced(&self, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
        // A link that someone laid there must not lead a root's pen elsewhere.
        write_new(path, bytes, mode)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}

/// `None` where nothing lies at `path`.
fn open_there(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

fn within_limit(length: u64) -> io::Result<()> {
    if length <= FILE_BYTES_MAX {
        return Ok(());
    }
    let said = format!("larger than {FILE_BYTES_MAX} bytes");
    Err(io::Error::new(io::ErrorKind::InvalidData, said))
}

/// The whole content of a file that has to be there.
///
/// # Errors
/// As [`Files::read`], and where nothing lies at `path`.
pub(crate) fn read_there(path: &Path) -> Result<Vec<u8>, FileError> {
    let found = RealFiles.read(path);
    found.and_then(|found| found.ok_or(Errno::ENOENT.into())).map_err(at("read", path))
}

/// A file operation that failed, and on what.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}: {source}; {}", path.display(), remedy(what, source))]
pub struct FileError {
    /// What was being done, as a verb.
    pub what: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// The system's answer.
    pub source: io::Error,
}

fn remedy(what: &str, source: &io::Error) -> &'static str {
    let is_read = matches!(what, "read" | "list");
    match source.kind() {
        io::ErrorKind::PermissionDenied if is_read => "run edge as a user who may read it",
        io::ErrorKind::NotFound if what == "read" => "correct the path in the configuration",
        io::ErrorKind::PermissionDenied => {
            "run edge as a user who may write there, or point the configuration elsewhere"
        }
        io::ErrorKind::NotFound => "create the directory, or point the configuration elsewhere",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space there",
        io::ErrorKind::ReadOnlyFilesystem => {
            "mount it writable, or point the configuration elsewhere"
        }
        _ => "check the path and the disk",
    }
}

/// Attaches the operation and the path to an I/O error.
pub(crate) fn at<'p>(
    what: &'static str,
    path: &'p Path,
) -> impl FnOnce(io::Error) -> FileError + use<'p> {
    move |source| FileError { what, path: path.to_path_buf(), source }
}

/// Where `path` is written before it is renamed: beside it, with a name the broker does not load.
pub(crate) fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(".new");
    PathBuf::from(name)
}

/// The directory of `path`; `.` for a bare name.
pub(crate) fn dir_of(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    }
}

/// Replaces `path` by `bytes`, or makes it absent for `None`, so that a crash leaves old or new.
///
/// # Errors
/// [`FileError`]. Up to the rename the old content stands; when only the last sync of the directory
/// failed, the new content is in place and may be lost by a power cut.
pub fn replace(
    files: &dyn Files,
    path: &Path,
    bytes: Option<&[u8]>,
    mode: u32,
) -> Result<(), FileError> {
    let Some(bytes) = bytes else {
        // Whoever was killed before the rename left it, and nobody writes over it now.
        files.remove(&aside(path)).map_err(at("remove", &aside(path)))?;
        files.remove(path).map_err(at("remove", path))?;
        return files.sync_dir(dir_of(path)).map_err(at("sync", dir_of(path)));
    };
    let new = aside(path);
    let renamed = files
        .write_synced(&new, bytes, mode)
        .map_err(at("write", &new))
        .and_then(|()| files.rename(&new, path).map_err(at("replace", path)));
    if let Err(error) = renamed {
        // A leftover is harmless to the broker and overwritten next time: its removal may fail too.
        let _ = files.remove(&new);
        return Err(error);
    }
    files.sync_dir(dir_of(path)).map_err(at("sync", dir_of(path)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn replaced_whole_with_the_mode_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("zz.conf");
        replace(&RealFiles, &path, Some(b"one\n"), MODE_CONF).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        replace(&RealFiles, &path, Some(b"two\n"), MODE_CONF).unwrap();
        assert_eq!(RealFiles.read(&path).unwrap().unwrap(), b"two\n");
        assert!(!aside(&path).exists(), "nothing is left aside");
        fs::write(aside(&path), "left by one that was killed").unwrap();
        replace(&RealFiles, &path, None, MODE_CONF).unwrap();
        assert_eq!(RealFiles.read(&path).unwrap(), None);
        assert!(!aside(&path).exists(), "nothing is left aside");
    }

    #[test]
    fn a_link_laid_in_the_way_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("zz.conf"), dir.path().join("other"));
        fs::write(&other, "precious").unwrap();
        fs::set_permissions(&other, Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&other, aside(&path)).unwrap();
        replace(&RealFiles, &path, Some(b"one\n"), MODE_CONF).unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"precious");
        assert_eq!(fs::metadata(&other).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
    }

    #[test]
    fn records_are_followed_through_no_link_and_are_the_agents() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("other"), "precious").unwrap();
        std::os::unix::fs::symlink(path("other"), path("journal.jsonl")).unwrap();
        fs::hard_link(path("other"), path("lock")).unwrap();
        let owner = fs::metadata(dir.path()).unwrap().uid();
        // Only root may give a directory away; the agent's records are its own all the same.
        let agent = if nix::unistd::geteuid().is_root() { 65534 } else { owner };
        std::os::unix::fs::chown(dir.path(), Some(agent), None).unwrap();
        for name in ["journal.jsonl", "lock"] {
            assert!(open_own(&path(name)).is_err(), "{name}");
        }
        let other = fs::metadata(path("other")).unwrap();
        assert_eq!((other.uid(), fs::read(path("other")).unwrap()), (owner, b"precious".to_vec()));

        open_own(&path("own")).unwrap();
        replace(&RealFiles, &path("edge.state"), Some(b"one\n"), MODE_STATE).unwrap();
        for name in ["own", "edge.state"] {
            assert_eq!(fs::metadata(path(name)).unwrap().uid(), agent, "{name}");
        }
    }

    #[test]
    fn the_name_aside_is_not_loaded_by_the_broker() {
        let new = aside(Path::new("/etc/mosquitto/conf.d/zz-brokertuner.conf"));
        assert!(!new.to_str().unwrap().ends_with(".conf"));
    }

    #[test]
    fn errors_name_the_path_and_a_way_out() {
        let error = replace(&RealFiles, Path::new("/nonexistent/zz.conf"), Some(b""), MODE_CONF)
            .unwrap_err()
            .to_string();
        assert!(error.contains("/nonexistent/zz.conf.new"), "{error}");
        assert!(error.contains("create the directory"), "{error}");
    }

    #[test]
    fn a_huge_file_is_refused_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("huge");
        File::create(&path).unwrap().set_len(FILE_BYTES_MAX + 1).unwrap();
        assert_eq!(RealFiles.read(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(RealFiles.sha256(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_file_is_hashed_as_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert_eq!(RealFiles.sha256(&path).unwrap(), None);
        for length in [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * CHUNK_BYTES] {
            let bytes = vec![7; length];
            fs::write(&path, &bytes).unwrap();
            let whole: Digest = Sha256::digest(&bytes).into();
            assert_eq!(RealFiles.sha256(&path).unwrap(), Some(whole), "{length}");
        }
    }
}
