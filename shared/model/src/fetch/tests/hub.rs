//! A model hub on a real socket, speaking the few answers that `hf-hub` asks for.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use hf_hub::api::sync::ApiBuilder;

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves one repository, `org/tiny`, on a free port for as long as the test runs.
fn serve(files: BTreeMap<String, Vec<u8>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let files = Arc::new(files);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let files = Arc::clone(&files);
            std::thread::spawn(move || while answer(&stream, &files).is_some() {});
        }
    });
    format!("http://{address}")
}

/// Answers one request; `None` when the connection is done.
fn answer(stream: &TcpStream, files: &BTreeMap<String, Vec<u8>>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut range = None;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        if header.trim().is_empty() {
            break;
        }
        let header = header.to_lowercase();
        if let Some(value) = header.strip_prefix("range: bytes=") {
            let (from, to) = value.trim().split_once('-')?;
            range = Some((from.parse::<usize>().ok()?, to.parse::<usize>().ok()));
        }
    }
    let (status, extra, body) = respond(&path, range, files);
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\n{extra}x-repo-commit: {COMMIT}\r\n\r\n",
        body.len()
    );
    let mut stream = stream;
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(&body).ok()
}

fn respond(
    path: &str,
    range: Option<(usize, Option<usize>)>,
    files: &BTreeMap<String, Vec<u8>>,
) -> (&'static str, String, Vec<u8>) {
    if path == "/api/models/org/tiny/revision/main" {
        let siblings: Vec<_> = files.keys().map(|f| serde_json::json!({"rfilename": f})).collect();
        let info = serde_json::json!({"sha": COMMIT, "siblings": siblings});
        return ("200 OK", String::new(), info.to_string().into_bytes());
    }
    let prefix = format!("/org/tiny/resolve/{COMMIT}/");
    let Some(content) = path.strip_prefix(&prefix).and_then(|name| files.get(name)) else {
        return ("404 Not Found", String::new(), Vec::new());
    };
    let etag = format!("etag: \"{:x}-{}\"\r\n", content.len(), path.len());
    let (from, to) = range.unwrap_or((0, None));
    let to = to.unwrap_or(usize::MAX).min(content.len() - 1);
    let extra = format!("{etag}content-range: bytes {from}-{to}/{}\r\n", content.len());
    ("206 Partial Content", extra, content[from..=to].to_vec())
}

/// The files of a tiny model, with a README that nobody needs.
fn repository(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let source = dir.join("source");
    tiny_model_dir(&source, 1).unwrap();
    let read = |name: String| (name.clone(), std::fs::read(source.join(name)).unwrap());
    let mut files: BTreeMap<_, _> = names(&source).into_iter().map(read).collect();
    files.insert("README.md".to_owned(), b"hello".to_vec());
    files
}

fn fetch(
    endpoint: &str,
    id: &str,
    models: &Path,
    progress: &dyn Progress,
) -> Result<PathBuf, FetchError> {
    make_once(models, "org--tiny", "hub", progress, &|work, out| {
        let api = ApiBuilder::new().with_endpoint(endpoint.to_owned()).with_token(None);
        crate::fetch::hub::download(api, id, "main", work, out, progress)
    })
}

#[test]
fn a_repository_is_downloaded_without_what_is_not_needed() {
    let dir = tempfile::tempdir().unwrap();
    let models = dir.path().join("models");
    let files = repository(dir.path());
    let endpoint = serve(files.clone());
    let heard = Heard::default();
    let made = fetch(&endpoint, "org/tiny", &models, &heard).unwrap();
    assert!(!made.join("README.md").exists());
    for name in ["config.json", "model.safetensors", "generation_config.json"] {
        assert_eq!(std::fs::read(made.join(name)).unwrap(), files[name], "{name}");
        assert!(std::fs::symlink_metadata(made.join(name)).unwrap().is_file(), "no link");
    }
    let heard = heard.0.into_inner().unwrap();
    let total = files["model.safetensors"].len() as u64;
    assert!(heard.contains(&("model.safetensors".to_owned(), total)));
    assert_eq!(names(&models), [".lock", "org--tiny"]);
}

#[test]
fn shards_are_downloaded_by_their_index() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = repository(dir.path());
    let whole = files.remove("model.safetensors").unwrap();
    files.insert("model-00001-of-00001.safetensors".to_owned(), whole);
    let map = serde_json::json!({
        "model.embed_tokens.weight": "model-00001-of-00001.safetensors",
    });
    let index = serde_json::json!({"weight_map": map}).to_string().into_bytes();
    files.insert("model.safetensors.index.json".to_owned(), index);
    let made = fetch(&serve(files), "org/tiny", &dir.path().join("models"), &Silent).unwrap();
    assert!(made.join("model-00001-of-00001.safetensors").exists());
    weights::Weights::load(&made).unwrap();
}

#[test]
fn a_repository_that_lacks_a_file_or_is_not_there_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let models = dir.path().join("models");
    for missing in ["tokenizer.json", "model.safetensors", "config.json"] {
        let mut files = repository(dir.path());
        files.remove(missing);
        let error = fetch(&serve(files), "org/tiny", &models, &Silent).unwrap_err().to_string();
        assert!(error.contains(missing) && error.contains("org/tiny"), "{error}");
    }
    let endpoint = serve(repository(dir.path()));
    let error = fetch(&endpoint, "org/other", &models, &Silent).unwrap_err();
    assert!(matches!(error, FetchError::Hub { id, .. } if id == "org/other"));
    let error = fetch("http://127.0.0.1:9", "org/tiny", &models, &Silent).unwrap_err();
    assert!(matches!(error, FetchError::Hub { .. }), "{error}");
    assert_eq!(names(&models), [".lock"]);
}
