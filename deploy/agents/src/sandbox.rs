//! A scratch directory and a way to run programs that can reach nothing else.
//!
//! `bwrap` (Debian package `bubblewrap`) gives each program namespaces of its own: it sees the
//! system's programs read-only, its scratch directory as `/work`, no network, no other process, no
//! variable of ours, and is an unprivileged user. `prlimit` bounds time, memory, files and
//! processes.
//!
//! Invariants: without `bwrap` nothing is run; nothing that was started outlives
//! [`Sandbox::run`]; the host never follows a link out of the scratch directory.

use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use crate::environment::{EnvironmentError, io};

/// What one program may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Wall clock.
    pub time: Duration,
    /// Output that is kept, bytes; a program that writes more is stopped.
    pub output_bytes_max: usize,
    /// Processor time, seconds.
    pub cpu_s_max: u32,
    /// Address space of each process, bytes.
    pub memory_bytes_max: u64,
    /// Size of a file, bytes.
    pub file_bytes_max: u64,
    /// Processes and threads at once.
    pub processes_max: u32,
    /// Entries in the scratch directory; with more, nothing is run any more.
    pub entries_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(5),
            output_bytes_max: 2_000,
            cpu_s_max: 4,
            memory_bytes_max: 512 << 20,
            file_bytes_max: 1 << 20,
            processes_max: 32,
            entries_max: 200,
        }
    }
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Its exit code; `None` when it was stopped.
    pub exit: Option<i32>,
    /// What it wrote, standard output and error together.
    pub output: String,
    /// Why it was stopped.
    pub stopped: Option<&'static str>,
}

impl Ran {
    /// As a shell would show it: the output, then the exit code.
    pub fn shown(&self) -> String {
        let output = self.output.trim_end();
        let gap = if output.is_empty() { "" } else { "\n" };
        match (self.exit, self.stopped) {
            (Some(code), _) => format!("{output}{gap}exit code: {code}"),
            (None, why) => format!("{output}{gap}error: {}", why.unwrap_or("stopped")),
        }
    }
}

/// A scratch directory; gone when this is dropped.
#[derive(Debug)]
pub struct Sandbox {
    scratch: TempDir,
    limits: Limits,
}

impl Sandbox {
    /// A fresh, empty one.
    ///
    /// # Errors
    /// `bwrap` or `prlimit` is not installed or may not make namespaces, or there is no place for
    /// temporary files.
    pub async fn new(limits: Limits) -> Result<Self, EnvironmentError> {
        let scratch = tempfile::Builder::new()
            .prefix("hone-agents-")
            .tempdir()
            .map_err(io("a scratch directory"))?;
        give(scratch.path())?;
        let sandbox = Self { scratch, limits };
        let ran = sandbox.run(&["true"]).await?;
        match ran.exit {
            Some(0) => Ok(sandbox),
            _ => Err(EnvironmentError::Missing(format!(
                "programs cannot be confined here (bwrap: {}); nothing is run without that",
                ran.output.trim()
            ))),
        }
    }

    /// Removes it, and says so when that fails.
    ///
    /// # Errors
    /// Something in it cannot be removed.
    pub fn destroy(self) -> Result<(), EnvironmentError> {
        self.scratch.close().map_err(io("removing the scratch directory"))
    }

    /// The directory, as the host sees it.
    pub fn path(&self) -> &Path {
        self.scratch.path()
    }

    /// Writes a file before or between runs.
    ///
    /// # Errors
    /// The name leads out of the scratch directory, or through a link; or the disk is full.
    pub fn write(&self, name: &str, text: &str) -> Result<(), EnvironmentError> {
        let path = self.inside(name).ok_or_else(|| outside(name))?;
        std::fs::write(&path, text).map_err(io("a scratch file"))?;
        give(&path)
    }

    /// The text of a plain file; `None` if it is none, is a link, or is too large.
    pub fn read(&self, name: &str) -> Option<String> {
        let path = self.inside(name)?;
        let file = std::fs::symlink_metadata(&path).ok().filter(std::fs::Metadata::is_file)?;
        let fits = file.len() <= self.limits.file_bytes_max;
        std::fs::read_to_string(path).ok().filter(|_| fits)
    }

    /// Whether there is a directory of this name, and not a link to one.
    pub fn is_dir(&self, name: &str) -> bool {
        let found = self.inside(name).and_then(|path| std::fs::symlink_metadata(path).ok());
        found.is_some_and(|found| found.is_dir())
    }

    /// Names in the scratch directory, sorted, with a `/` after directories.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path()).into_iter().flatten().flatten();
        let name = |entry: std::fs::DirEntry| {
            let slash = if entry.file_type().is_ok_and(|kind| kind.is_dir()) { "/" } else { "" };
            format!("{}{slash}", entry.file_name().to_string_lossy())
        };
        let mut names: Vec<String> = entries.take(self.limits.entries_max).map(name).collect();
        names.sort();
        names
    }

    /// The path of a plain name in here: no directories above it, so no link on the way.
    fn inside(&self, name: &str) -> Option<PathBuf> {
        let mut parts = Path::new(name).components();
        match (parts.next(), parts.next()) {
            (Some(Component::Normal(only)), None) => {
                let path = self.path().join(only);
                let link = std::fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink());
                (!link).then_some(path)
            }
            _ => None,
        }
    }

    /// Runs a command line in `sh`.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn shell(&self, command: &str) -> Result<Ran, EnvironmentError> {
        if command.contains('\0') {
            return Ok(Ran { exit: Some(2), output: "a NUL in the command".into(), stopped: None });
        }
        self.run(&["sh", "-c", &format!("exec 2>&1\n{command}")]).await
    }

    /// Runs a program in the scratch directory.
    ///
    /// # Errors
    /// It could not be started at all.
    pub async fn run(&self, program: &[&str]) -> Result<Ran, EnvironmentError> {
        if self.crowded() {
            let output = String::new();
            return Ok(Ran {
                exit: None,
                output,
                stopped: Some("too many files, nothing was run"),
            });
        }
        let mut child = self.command(program).spawn().map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => EnvironmentError::Missing(NO_BWRAP.into()),
            _ => EnvironmentError::Io { what: "bwrap", source },
        })?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let cap = self.limits.output_bytes_max;
        let ended = async {
            let (out, err) = both(out, err, cap).await;
            match out.len() > cap || err.len() > cap {
                true => (out, err, None),
                false => (out, err, child.wait().await.ok()),
            }
        };
        let late = tokio::time::timeout(self.limits.time, ended).await;
        // Ends the whole process namespace; a child that has ended is only reaped.
        let _ = child.kill().await;
        Ok(match late {
            Err(_) => Ran { exit: None, output: String::new(), stopped: Some("timed out") },
            Ok((out, err, None)) => {
                Ran { exit: None, output: text(&out, &err, cap), stopped: Some("too much output") }
            }
            Ok((out, err, Some(status))) => {
                let output = text(&out, &err, cap);
                Ran { exit: Some(status.code().unwrap_or(-1)), output, stopped: None }
            }
        })
    }

    /// The program, confined and bounded.
    fn command(&self, program: &[&str]) -> Command {
        let mut command = Command::new("bwrap");
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.args(CONFINED.split_whitespace()).arg("--bind").arg(self.path()).args([
            "/work",
            "--remount-ro",
            "/",
            "--chdir",
            "/work",
        ]);
        let limits = &self.limits;
        command.args(["--", "prlimit", "--core=0", "--nofile=64"]).args([
            format!("--cpu={}", limits.cpu_s_max),
            format!("--as={}", limits.memory_bytes_max),
            format!("--fsize={}", limits.file_bytes_max),
            format!("--nproc={}", limits.processes_max),
        ]);
        command.args(program).env_clear().kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn crowded(&self) -> bool {
        let mut left = self.limits.entries_max;
        let mut dirs = vec![self.path().to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                let Some(fewer) = left.checked_sub(1) else { return true };
                left = fewer;
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    dirs.push(entry.path());
                }
            }
        }
        false
    }
}

const NO_BWRAP: &str = "bwrap is not installed (Debian: apt-get install bubblewrap); programs are \
    not run without it";
/// Everything but the scratch directory: flags of `bwrap`.
const CONFINED: &str = "--unshare-all --unshare-user --die-with-parent --new-session --clearenv \
    --cap-drop ALL --uid 65534 --gid 65534 --hostname scratch \
    --setenv PATH /usr/bin:/bin --setenv HOME /work --setenv LANG C.UTF-8 --dev /dev \
    --ro-bind /usr /usr --symlink usr/bin /bin --symlink usr/lib /lib --symlink usr/lib64 /lib64";
/// Who runs programs when we are root: the kernel exempts root from the limit of processes.
const NOBODY: u32 = 65_534;

/// Gives a path to whoever runs the programs.
fn give(path: &Path) -> Result<(), EnvironmentError> {
    if !is_root() {
        return Ok(());
    }
    let owner = Some(NOBODY);
    std::os::unix::fs::chown(path, owner, owner).map_err(io("the scratch directory's owner"))
}

/// Whether this process is root.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

fn outside(name: &str) -> EnvironmentError {
    let kind = std::io::ErrorKind::PermissionDenied;
    EnvironmentError::Io {
        what: "a scratch file",
        source: std::io::Error::new(kind, format!("{name:?} is not a plain name")),
    }
}

/// Both streams, to their ends or until one is over its cap.
async fn both(
    out: Option<impl AsyncRead + Unpin>,
    err: Option<impl AsyncRead + Unpin>,
    cap: usize,
) -> (Vec<u8>, Vec<u8>) {
    let (mut out, mut err) = (Box::pin(up_to(out, cap)), Box::pin(up_to(err, cap)));
    tokio::select! {
        out = &mut out => match out.len() > cap {
            true => (out, Vec::new()),
            false => (out, err.await),
        },
        err = &mut err => match err.len() > cap {
            true => (Vec::new(), err),
            false => (out.await, err),
        },
    }
}

/// At most `cap` bytes and one more, which says that there was more.
async fn up_to(stream: Option<impl AsyncRead + Unpin>, cap: usize) -> Vec<u8> {
    let mut kept = Vec::new();
    if let Some(stream) = stream {
        let _ = stream.take(cap as u64 + 1).read_to_end(&mut kept).await;
    }
    kept
}

fn text(out: &[u8], err: &[u8], cap: usize) -> String {
    let all = [out, err].concat();
    String::from_utf8_lossy(all.get(..cap).unwrap_or(&all)).into_owned()
}
