//! `proxy.toml`: everything that the proxy can be told, in one file that can be checked before it is
//! used.
//!
//! Invariant: a key that means nothing and a limit that cannot work are errors; all are said at once,
//! with the file and, where it is known, the line.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use hone_shared::data_dir::DataDir;
use hone_shared::policy::{PolicySet, PolicyWatch};
use serde::Deserialize;

use super::feedback::FeedbackFile;
use super::{Limits, ListenTls, ProxyConfig, Upstream};
use crate::admin::guard;
use crate::admin::tokens::Tokens;
use crate::pem::KeyFiles;
use crate::upstream::EngineTls;

/// Largest file, bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Longest time that can be set: 30 days, milliseconds.
const TIME_MS_MAX: u64 = 30 * 86_400_000;
/// Largest size that can be set: 1 TiB, bytes.
const BYTES_MAX: u64 = 1 << 40;
/// Largest number of things that can be set.
const COUNT_MAX: u64 = 10_000_000;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}", problems.join("\n"))]
pub struct ConfigFileError {
    /// All that is wrong.
    pub problems: Vec<String>,
}

/// The file as written. What is not given has its default.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs, reason = "the keys are those of ProxyConfig, which describes them")]
pub struct ProxyFile {
    pub listen: Option<SocketAddr>,
    pub admin: Option<SocketAddr>,
    pub admin_token_file: Option<PathBuf>,
    pub admin_hosts: Vec<String>,
    pub paths_allowed: Vec<String>,
    pub engines: Vec<String>,
    pub engine_health_path: Option<String>,
    pub engine_tls: EngineTlsFile,
    pub tls: TlsFile,
    pub feedback: FeedbackFile,
    pub reserve: Option<PathBuf>,
    /// Empty: none.
    pub tail: Option<PathBuf>,
    pub grace_ms: Option<u64>,
    pub threads: Option<usize>,
    pub limits: Limits,
}

/// `[engine_tls]`: how TLS is spoken to engines with `https`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs, reason = "the keys are those of EngineTls, which describes them")]
pub struct EngineTlsFile {
    pub ca_file: Option<PathBuf>,
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub verify: Option<bool>,
    pub h2: bool,
}

/// `[tls]`: where clients connect with TLS; all three keys or none.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs, reason = "the keys are those of ListenTls, which describes them")]
pub struct TlsFile {
    pub listen: Option<SocketAddr>,
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

impl ProxyFile {
    /// Reads a file. Errors: unreadable, not TOML, unknown keys, values of the wrong type.
    pub fn read(path: &Path) -> Result<Self, ConfigFileError> {
        let name = path.display();
        let fail = |problem: String| ConfigFileError { problems: vec![problem] };
        let unreadable = |error: std::io::Error| fail(format!("{name}: {error}"));
        if fs::metadata(path).map_err(unreadable)?.len() > FILE_BYTES_MAX {
            return Err(fail(format!("{name}: it is larger than {FILE_BYTES_MAX} bytes")));
        }
        let text = fs::read_to_string(path).map_err(unreadable)?;
        toml::from_str(&text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let line = text.bytes().take(start).filter(|byte| *byte == b'\n').count() + 1;
            fail(format!("{name}, line {line}: {}", error.message()))
        })
    }

    /// The configuration for a data directory. Errors: everything that cannot be.
    pub fn build(self, data: DataDir) -> Result<ProxyConfig, ConfigFileError> {
        let mut problems = limits(&self.limits);
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let default = vec!["http://127.0.0.1:8082".to_owned()];
        let engines = if self.engines.is_empty() { &default } else { &self.engines };
        let mut upstreams = Vec::new();
        for engine in engines {
            match Upstream::parse(engine) {
                Ok(upstream) => upstreams.push(upstream),
                Err(error) => problems.push(error.to_string()),
            }
        }
        let listen = self.listen.unwrap_or_else(|| local(8080));
        let admin = self.admin.unwrap_or_else(|| local(8081));
        let mut config = ProxyConfig::new(data, listen, admin, upstreams);
        let tls = &self.engine_tls;
        config.engine_tls = EngineTls {
            ca_file: tls.ca_file.clone(),
            client: pair("engine_tls", &tls.certificate, &tls.key, &mut problems),
            verify: tls.verify.unwrap_or(true),
            h2: tls.h2,
        };
        let files = pair("tls", &self.tls.certificate, &self.tls.key, &mut problems);
        config.listen_tls = match (self.tls.listen, files) {
            (Some(address), Some(files)) => Some(ListenTls { address, files }),
            (None, None) => None,
            _ => {
                problems.push("tls: listen, certificate and key belong together".to_owned());
                None
            }
        };
        config.feedback = self.feedback.build(&mut problems);
        for path in self.paths_allowed.iter().filter(|path| !is_plain_path(path)) {
            problems.push(format!(
                "paths_allowed: `{path}` is no plain path such as /v1/chat/completions"
            ));
        }
        if !problems.is_empty() {
            return Err(ConfigFileError { problems });
        }
        config.engine_health_path = self.engine_health_path.unwrap_or(config.engine_health_path);
        config.grace_ms = self.grace_ms.unwrap_or(config.grace_ms);
        config.threads = self.threads.unwrap_or(config.threads);
        config.admin_token_file = self.admin_token_file;
        config.admin_hosts = self.admin_hosts;
        config.paths_allowed = self.paths_allowed;
        config.reserve = self.reserve;
        if let Some(tail) = self.tail {
            config.tail = (!tail.as_os_str().is_empty()).then_some(tail);
        }
        config.limits = self.limits;
        Ok(config)
    }
}

/// Whether every reader of a path sees the same segments in it.
fn is_plain_path(path: &str) -> bool {
    path.starts_with('/')
        && !path.contains(['%', '?', '#', ';', '\\', ' '])
        && !path.split('/').any(|segment| matches!(segment, "." | ".."))
}

/// A certificate with its key; one without the other is a problem.
fn pair(
    section: &str,
    certificate: &Option<PathBuf>,
    key: &Option<PathBuf>,
    problems: &mut Vec<String>,
) -> Option<KeyFiles> {
    match (certificate.clone(), key.clone()) {
        (Some(certificate), Some(key)) => Some(KeyFiles { certificate, key }),
        (None, None) => None,
        _ => {
            problems.push(format!("{section}: certificate and key belong together"));
            None
        }
    }
}

/// Everything that would keep a proxy from starting with this configuration, as far as it can be
/// known without starting it: addresses, tokens, policies, overrides.
pub fn check(config: &ProxyConfig) -> Vec<String> {
    let mut problems = limits(&config.limits);
    problems.extend(guard::check_bind(config).err().map(|error| error.to_string()));
    let tokens = Tokens::load(&config.data, config.admin_token_file.as_deref());
    problems.extend(tokens.err().map(|error| error.to_string()));
    let day = std::time::Duration::from_secs(86_400);
    match PolicyWatch::follow(&config.data, day) {
        Ok(watch) => {
            problems.extend(watch.problems());
            problems.extend(learns_alone(config, &watch.current()));
        }
        Err(error) => problems.extend(error.each().iter().map(ToString::to_string)),
    }
    problems
}

/// An adapter is loaded into one engine; the others would be asked for what they do not have.
pub(crate) fn learns_alone(config: &ProxyConfig, policies: &PolicySet) -> Option<String> {
    let engines = config.upstreams.len();
    let route = policies.routes.iter().find(|route| route.mode.serves())?;
    (engines > 1).then(|| {
        format!(
            "route `{}` has mode learn, which serves adapters of one engine, and {engines} engines \
             are configured: use one, or mode shadow or observe",
            route.name
        )
    })
}

/// Limits that cannot work. The unit at the end of a name says what is possible.
fn limits(limits: &Limits) -> Vec<String> {
    let Ok(serde_json::Value::Object(all)) = serde_json::to_value(limits) else {
        return vec!["limits: they cannot be written down".to_owned()];
    };
    let wrong = |(key, value): (String, serde_json::Value)| {
        let most = match key.as_str() {
            key if key.ends_with("_ms") => TIME_MS_MAX,
            key if key.contains("bytes") => BYTES_MAX,
            _ => COUNT_MAX,
        };
        let found = value.as_u64()?;
        let problem = format!("limits.{key} is {found}; allowed: from 1 to {most}");
        (found == 0 || found > most).then_some(problem)
    };
    all.into_iter().filter_map(wrong).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ProxyConfig, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("proxy.toml");
        fs::write(&file, text).unwrap();
        let read = ProxyFile::read(&file).and_then(|file| file.build(DataDir::new(dir.path())));
        read.map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_in_the_file_has_its_default() {
        let config = read("listen = \"0.0.0.0:80\"\n[limits]\nconnections_max = 7\n").unwrap();
        assert_eq!((config.listen.port(), config.limits.connections_max), (80, 7));
        assert_eq!(config.limits.watch_ms, Limits::default().watch_ms);
        assert_eq!((config.admin.port(), config.grace_ms), (8081, 30_000));
        assert!(limits(&Limits::default()).is_empty());
    }

    #[test]
    fn a_mistake_is_said_with_its_line_and_what_is_allowed() {
        let unknown = read("grace_ms = 1\n[limits]\nconnection_max = 7\n").unwrap_err();
        assert!(unknown.contains("proxy.toml, line 3"), "{unknown}");
        assert!(unknown.contains("connections_max"), "{unknown}");
        let several = read("[limits]\nconnections_max = 0\nwatch_ms = 9999999999\n").unwrap_err();
        assert_eq!(several.lines().count(), 2, "{several}");
        assert!(several.contains("limits.watch_ms is 9999999999; allowed"), "{several}");
        assert!(read("engines = [\"ftp://x\"]").unwrap_err().contains("http://host:port"));
        let odd =
            "[feedback]\npaths = [\"v1\"]\nanonymous_weight = 2\n[feedback.scales]\nx = [1, 1]\n";
        let odd = read(odd).unwrap_err();
        assert!(odd.contains("no exact path") && odd.contains("from 0 to 1"), "{odd}");
        assert!(odd.contains("feedback.scales.x"), "{odd}");
        let odd = read("paths_allowed = [\"/v1\", \"v1\", \"/v1/../x\", \"/a%20b\"]").unwrap_err();
        assert_eq!(odd.matches("is no plain path").count(), 3, "{odd}");
        let half = read("[tls]\ncertificate = \"c.pem\"\n").unwrap_err();
        assert!(half.contains("belong together"), "{half}");
    }

    #[test]
    fn several_engines_and_a_route_that_learns_do_not_go_together() {
        let route = |mode: &str| {
            let dir = tempfile::tempdir().unwrap();
            hone_shared::policy::install_builtin(dir.path()).unwrap();
            for file in fs::read_dir(dir.path().join("routes")).unwrap() {
                let path = file.unwrap().path();
                let text = fs::read_to_string(&path).unwrap();
                let own = text.lines().filter(|line| !line.starts_with("mode"));
                let own: Vec<&str> = own.collect();
                fs::write(&path, format!("mode = \"{mode}\"\n{}", own.join("\n"))).unwrap();
            }
            PolicySet::load(dir.path()).unwrap()
        };
        let engines = |list: &str| read(&format!("engines = [{list}]\nreserve = \"/r\"")).unwrap();
        let two = engines("\"http://a:1\", \"http://b:1\"");
        assert_eq!(two.reserve.as_deref(), Some(Path::new("/r")));
        assert!(learns_alone(&two, &route("learn")).unwrap().contains("mode learn"));
        assert_eq!(learns_alone(&two, &route("shadow")), None);
        assert_eq!(learns_alone(&engines("\"http://a:1\""), &route("learn")), None);
    }

    /// The table of all limits: names and meanings from the source, defaults from the program.
    fn table() -> String {
        let source = include_str!("../config.rs");
        let fields =
            source.split("pub struct Limits {").nth(1).unwrap().split("\n}").next().unwrap();
        let defaults = serde_json::to_value(Limits::default()).unwrap();
        let (mut rows, mut said) = (String::new(), String::new());
        for line in fields.lines().map(str::trim) {
            if let Some(words) = line.strip_prefix("///") {
                said = format!("{said}{words}");
            } else if let Some(name) = line.strip_prefix("pub ").and_then(|l| l.split(':').next()) {
                rows += &format!("| `{name}` | {} |{said} |\n", defaults[name]);
                said.clear();
            }
        }
        assert_eq!(rows.lines().count(), defaults.as_object().unwrap().len());
        format!("| limit | default | meaning |\n|---|---|---|\n{rows}")
    }

    #[test]
    fn limits_are_documented() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/README.md");
        let text = fs::read_to_string(path).unwrap();
        let (before, found) = text.split_once("limits_are_documented` -->\n").unwrap();
        if std::env::var_os("HONE_WRITE_DOCS").is_some() {
            fs::write(path, format!("{before}limits_are_documented` -->\n{}", table())).unwrap();
            return;
        }
        assert_eq!(found, table(), "run this test with HONE_WRITE_DOCS=1");
    }
}
