//! Where everything lives on disk: one data directory, shared by backend, proxy and trainer.
//!
//! ```text
//! models/<name>/  policies/{routes,judges,gates}/*.toml  spool/<boot>/NNNNNN.seg  store.sqlite
//! registry/<generation>/  registry/aliases/<alias>.json  rounds/<round_id>/
//! run/<process>.json  run/proxy.sock  secret  admin.token  overrides.json  reserves/<hash>
//! ```
//! Invariant: a secret is created once, with mode 0600, and is never overwritten; small files are
//! replaced whole; nobody but its owner reads anything here.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Why the data directory could not be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// A file or directory could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

type Result<T> = std::result::Result<T, DataDirError>;

fn at(path: &Path) -> impl FnOnce(io::Error) -> DataDirError + '_ {
    move |source| DataDirError::Io { path: path.to_owned(), source }
}

/// The data directory. Cheap to clone; touches the disk only where a method says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataDir(PathBuf);

impl DataDir {
    /// Names a data directory; nothing is created.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The SQLite database.
    pub fn store_path(&self) -> PathBuf {
        self.0.join("store.sqlite")
    }

    /// Where segments go while the spool is full or cannot be written.
    pub fn reserve_dir(&self) -> PathBuf {
        self.path().join("reserve")
    }

    /// The directory of all processes' spools.
    pub fn spool_dir(&self) -> PathBuf {
        self.0.join("spool")
    }

    /// Adapter generations and aliases.
    pub fn registry_dir(&self) -> PathBuf {
        self.0.join("registry")
    }

    /// Work files of rounds.
    pub fn rounds_dir(&self) -> PathBuf {
        self.0.join("rounds")
    }

    /// Policy files of the operator.
    pub fn policies_dir(&self) -> PathBuf {
        self.0.join("policies")
    }

    /// Learning modes that were set at run time: [`crate::policy::Overrides`].
    pub fn overrides_path(&self) -> PathBuf {
        self.0.join("overrides.json")
    }

    /// Where a running proxy hands its listeners to its successor.
    pub fn proxy_socket(&self) -> PathBuf {
        self.0.join("run").join("proxy.sock")
    }

    /// Downloaded base models.
    pub fn models_dir(&self) -> PathBuf {
        self.0.join("models")
    }

    /// Where process `name` (`backend`, `proxy`, `trainer`) says where it listens.
    pub fn run_file(&self, name: &str) -> PathBuf {
        self.0.join("run").join(format!("{name}.json"))
    }

    /// Notes that a proxy may spool to `reserve`, so that an erasure looks there too, and makes the
    /// directory, mode 0700. One that cannot be made now is not an error: its disk may come later.
    pub fn note_reserve(&self, reserve: &Path) -> Result<()> {
        let path = std::path::absolute(reserve).map_err(at(reserve))?;
        let bytes = path.as_os_str().as_bytes();
        let notes = self.reserves_dir();
        fs::create_dir_all(&notes).map_err(at(&notes))?;
        let note = notes.join(blake3::hash(bytes).to_hex().as_str());
        let temporary = note.with_extension(format!("{}.tmp", std::process::id()));
        fs::write(&temporary, bytes).map_err(at(&temporary))?;
        fs::rename(&temporary, &note).and_then(|()| sync_parent(&note)).map_err(at(&note))?;
        if let Err(error) = make_private(&path) {
            tracing::warn!(%error, "the reserve cannot be made now");
        }
        Ok(())
    }

    /// All places besides the spool that may hold segments: `<data>/reserve`, and those that were
    /// ever noted. The operator deletes the note of one that is gone for good.
    pub fn reserves(&self) -> Result<Vec<PathBuf>> {
        let (mut all, notes) = (vec![self.reserve_dir()], self.reserves_dir());
        let entries = match fs::read_dir(&notes) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(all),
            entries => entries.map_err(at(&notes))?,
        };
        for entry in entries {
            let note = entry.map_err(at(&notes))?.path();
            if note.extension().is_none() {
                let reserve = fs::read(&note).map_err(at(&note))?;
                all.push(PathBuf::from(OsString::from_vec(reserve)));
            }
        }
        Ok(all)
    }

    fn reserves_dir(&self) -> PathBuf {
        self.0.join("reserves")
    }

    /// Creates the directory (mode 0700; one of ours that others may look into gets it) and its
    /// fixed subdirectories; harmless when they exist.
    pub fn create(&self) -> Result<()> {
        make_private(&self.0)?;
        let run = self.0.join("run");
        let parts =
            [self.spool_dir(), self.registry_dir(), self.rounds_dir(), self.models_dir(), run];
        for part in parts {
            fs::create_dir_all(&part).map_err(at(&part))?;
        }
        Ok(())
    }

    /// The 32 secret bytes that key tenants and links; created on first use.
    pub fn secret(&self) -> Result<[u8; 32]> {
        let path = self.0.join("secret");
        let text = read_or_create(&path)?;
        let mut bytes = [0u8; 32];
        hex::decode_to_slice(text.trim(), &mut bytes).map_err(|_| DataDirError::Malformed {
            path,
            problem: "expected 64 hex digits".to_owned(),
        })?;
        Ok(bytes)
    }

    /// The bearer token of the admin listener, 64 hex digits; created on first use.
    pub fn admin_token(&self) -> Result<String> {
        let path = self.0.join("admin.token");
        let token = read_or_create(&path)?.trim().to_owned();
        if token.len() < 16 {
            let problem = "expected at least 16 characters".to_owned();
            return Err(DataDirError::Malformed { path, problem });
        }
        Ok(token)
    }
}

/// Makes a directory that only its owner may look into. An existing one is closed to others if it is
/// ours.
fn make_private(dir: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at(dir))?;
    let found = fs::metadata(dir).map_err(at(dir))?;
    let ours = found.uid() == rustix::process::geteuid().as_raw();
    if ours && found.mode() & 0o077 != 0 {
        let mode = format!("{:o}", found.mode() & 0o7777);
        tracing::warn!(dir = %dir.display(), mode, "others could look into it: its mode is now 700");
        fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(at(dir))?;
    }
    Ok(())
}

/// Reads a secret file, or creates it with 64 random hex digits. Safe when several processes race:
/// a hard link of a finished temporary file either takes the name or finds it taken, so nobody ever
/// reads half a secret.
fn read_or_create(path: &Path) -> Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other.map_err(at(path)),
    }
    let mut random = [0u8; 40];
    getrandom::fill(&mut random).map_err(|e| at(path)(io::Error::other(e.to_string())))?;
    let (name, secret) = random.split_at(8);
    let temporary = path.with_extension(format!("{}.tmp", hex::encode(name)));
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(at(parent))?;
    }
    let written = write_new(&temporary, hex::encode(secret).as_bytes());
    let linked = written.and_then(|()| match fs::hard_link(&temporary, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    });
    let removed = fs::remove_file(&temporary);
    linked.and(removed).map_err(at(path))?;
    sync_parent(path).map_err(at(path))?;
    fs::read_to_string(path).map_err(at(path))
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes a created, renamed or removed name in the parent directory of `path` durable.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Where a running process listens, written to `run/<name>.json` once it is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFile {
    /// Process id.
    pub pid: u32,
    /// `host:port` of the main listener.
    pub address: String,
    /// `host:port` of the admin listener, where there is one.
    pub admin_address: Option<String>,
    /// When it started, milliseconds since 1970.
    pub started_ms: i64,
}

impl RunFile {
    /// Replaces `run/<name>.json` whole: a reader sees the old or the new file, never half of one.
    pub fn write(&self, data: &DataDir, name: &str) -> Result<()> {
        let path = data.run_file(name);
        let temporary = path.with_extension(format!("{}.tmp", self.pid));
        let text = serde_json::to_vec_pretty(self).map_err(|error| DataDirError::Malformed {
            path: path.clone(),
            problem: error.to_string(),
        })?;
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(at(parent))?;
        }
        fs::write(&temporary, text).map_err(at(&temporary))?;
        fs::rename(&temporary, &path).map_err(at(&path))
    }

    /// Reads `run/<name>.json`; `None` when the process never wrote one.
    pub fn read(data: &DataDir, name: &str) -> Result<Option<Self>> {
        let path = data.run_file(name);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(at(&path))?,
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| DataDirError::Malformed { path, problem: error.to_string() })
    }

    /// Removes `run/<name>.json`; harmless when there is none.
    pub fn remove(data: &DataDir, name: &str) -> Result<()> {
        let path = data.run_file(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(at(&path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_ours_is_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let (data, reserve) = (DataDir::new(dir.path().join("data")), dir.path().join("reserve"));
        for open in [data.path(), &reserve] {
            fs::create_dir(open).unwrap();
            fs::set_permissions(open, Permissions::from_mode(0o755)).unwrap();
        }
        data.create().unwrap();
        data.note_reserve(&reserve).unwrap();
        data.note_reserve(&reserve).unwrap();
        for closed in [data.path(), &reserve] {
            assert_eq!(fs::metadata(closed).unwrap().mode() & 0o777, 0o700, "{closed:?}");
        }
        assert_eq!(data.reserves().unwrap(), [data.reserve_dir(), reserve]);
    }

    #[test]
    fn a_secret_is_created_once_and_only_its_owner_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::new(dir.path().join("new"));
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let data = data.clone();
                std::thread::spawn(move || (data.secret().unwrap(), data.admin_token().unwrap()))
            })
            .collect();
        let seen: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        assert!(seen.iter().all(|pair| *pair == seen[0]));
        assert_ne!(hex::encode(seen[0].0), seen[0].1);
        let mode = fs::metadata(data.path().join("secret")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let names = fs::read_dir(data.path()).unwrap().count();
        assert_eq!(names, 2, "no temporary file stays behind");
    }

    #[test]
    fn a_damaged_secret_is_an_error_and_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("secret"), "short").unwrap();
        let data = DataDir::new(dir.path());
        assert!(matches!(data.secret(), Err(DataDirError::Malformed { .. })));
        assert_eq!(fs::read_to_string(dir.path().join("secret")).unwrap(), "short");
    }

    #[test]
    fn a_run_file_says_where_a_process_listens_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::new(dir.path());
        data.create().unwrap();
        assert_eq!(RunFile::read(&data, "proxy").unwrap(), None);
        let address = "127.0.0.1:8080".to_owned();
        let file = RunFile { pid: 7, address, admin_address: None, started_ms: 1 };
        file.write(&data, "proxy").unwrap();
        assert_eq!(RunFile::read(&data, "proxy").unwrap(), Some(file));
        RunFile::remove(&data, "proxy").unwrap();
        RunFile::remove(&data, "proxy").unwrap();
        assert_eq!(RunFile::read(&data, "proxy").unwrap(), None);
    }
}
