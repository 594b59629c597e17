//! Sources, and what is left on disk when they fail, with a real pip stand-in and a real server.

mod hub;
mod pip;

use std::sync::Mutex;

use super::*;
use crate::gguf::tests::tiny_gguf;
use crate::progress::Silent;
use crate::testing::tiny_model_dir;

/// Every name in a directory, ascending.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Remembers the stages that it heard of and checks that they only move forward.
#[derive(Default)]
struct Heard(Mutex<Vec<(String, u64)>>);

impl Progress for Heard {
    fn update(&self, stage: &str, bytes_done: u64, bytes_total: Option<u64>) {
        let mut heard = self.0.lock().unwrap();
        assert!(bytes_total.is_none_or(|total| bytes_done <= total), "{stage}");
        heard.push((stage.to_owned(), bytes_done));
    }
}

#[test]
fn a_source_is_a_known_name_a_path_or_a_hub_id() {
    let dir = tempfile::tempdir().unwrap();
    let gguf = dir.path().join("m.GGUF");
    std::fs::write(&gguf, "x").unwrap();
    let parse = |text: &str| ModelSource::parse(text);
    assert_eq!(parse("smollm2-135m").unwrap(), ModelSource::Package(&SMOLLM2_135M));
    let local = parse(dir.path().to_str().unwrap()).unwrap();
    assert_eq!(local, ModelSource::Directory(dir.path().to_owned()));
    assert_eq!(parse(gguf.to_str().unwrap()).unwrap(), ModelSource::Gguf(gguf.clone()));
    let hub =
        |id: &str, revision: &str| ModelSource::Hub { id: id.into(), revision: revision.into() };
    assert_eq!(parse("Qwen/Qwen2.5-0.5B").unwrap(), hub("Qwen/Qwen2.5-0.5B", "main"));
    assert_eq!(parse("org/name@v1.0").unwrap(), hub("org/name", "v1.0"));
}

#[test]
fn anything_else_is_refused_with_the_choices() {
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("notes.txt");
    std::fs::write(&other, "x").unwrap();
    let other = other.to_str().unwrap();
    for text in
        ["", "smollm", "a/b/c", "../x", "org/..", "org/na me", "no/such.gguf", "-a/b", other]
    {
        let error = ModelSource::parse(text).unwrap_err().to_string();
        assert!(error.contains("smollm2-135m") && error.contains("hub id"), "{text}: {error}");
    }
}

#[test]
fn a_local_directory_is_checked_and_used_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (model, models) = (dir.path().join("mine"), dir.path().join("models"));
    tiny_model_dir(&model, 1).unwrap();
    let source = ModelSource::Directory(model.clone());
    assert_eq!(get(&source, &models, &Silent).unwrap(), model);
    assert!(!models.exists(), "nothing was copied");
    for (file, says) in [
        ("model.safetensors", "model.safetensors"),
        ("tokenizer_config.json", "tokenizer_config.json"),
        ("tokenizer.json", "tokenizer.json"),
        ("config.json", "config.json"),
    ] {
        std::fs::remove_file(model.join(file)).unwrap();
        let error = get(&source, &models, &Silent).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("not a usable model"), "{error}");
    }
}

#[test]
fn a_gguf_file_is_converted_once() {
    let dir = tempfile::tempdir().unwrap();
    let models = dir.path().join("models");
    let source = ModelSource::Gguf(tiny_gguf(dir.path()));
    let heard = Heard::default();
    let made = get(&source, &models, &heard).unwrap();
    assert!(heard.0.lock().unwrap().iter().any(|(stage, done)| stage == "dequantise" && *done > 0));
    assert_eq!(
        names(&made),
        [
            "config.json",
            "generation_config.json",
            MANIFEST,
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    let manifest = Manifest::read(&made).unwrap();
    assert_eq!(manifest.files.len(), 5);
    let weights = made.join("model.safetensors");
    let written = std::fs::metadata(&weights).unwrap().modified().unwrap();
    assert_eq!(get(&source, &models, &Silent).unwrap(), made);
    assert_eq!(std::fs::metadata(&weights).unwrap().modified().unwrap(), written);
    assert_eq!(names(&models), [".lock", made.file_name().unwrap().to_str().unwrap()]);
}

#[test]
fn a_damaged_directory_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let models = dir.path().join("models");
    let source = ModelSource::Gguf(tiny_gguf(dir.path()));
    let made = get(&source, &models, &Silent).unwrap();
    let weights = made.join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &whole[..100]).unwrap();
    get(&source, &models, &Silent).unwrap();
    assert_eq!(std::fs::read(&weights).unwrap(), whole);
    std::fs::remove_file(made.join(MANIFEST)).unwrap();
    get(&source, &models, &Silent).unwrap();
    assert!(Manifest::read(&made).is_some());
    assert_eq!(names(&models).len(), 2, "nothing else is left");
}

#[test]
fn what_an_interrupted_run_left_is_swept() {
    let dir = tempfile::tempdir().unwrap();
    let models = dir.path().join("models");
    let left = models.join(format!("{TEMPORARY_PREFIX}smollm2-135m"));
    std::fs::create_dir_all(left.join("model")).unwrap();
    std::fs::write(left.join("model/config.json"), "{").unwrap();
    let made = get(&ModelSource::Gguf(tiny_gguf(dir.path())), &models, &Silent).unwrap();
    assert!(!left.exists());
    assert!(made.exists());
}

#[test]
fn a_file_that_cannot_be_converted_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let models = dir.path().join("models");
    let bad = dir.path().join("bad.gguf");
    std::fs::write(&bad, b"GGUF but not really").unwrap();
    assert!(matches!(get(&ModelSource::Gguf(bad), &models, &Silent), Err(FetchError::Gguf(_))));
    assert_eq!(names(&models), [".lock"]);
}

#[test]
fn two_at_once_make_one_directory() {
    let dir = tempfile::tempdir().unwrap();
    let models = dir.path().join("models");
    let source = ModelSource::Gguf(tiny_gguf(dir.path()));
    let made: Vec<PathBuf> = std::thread::scope(|scope| {
        let run = || get(&source, &models, &Silent).unwrap();
        let threads = [scope.spawn(run), scope.spawn(run), scope.spawn(run)];
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(made.iter().all(|path| *path == made[0]));
    assert_eq!(names(&models).len(), 2);
    validate(&made[0]).unwrap();
}
