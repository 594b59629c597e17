//! The ways to reach the origin that `hone bench proxy` compares: directly, through nginx, through
//! a plain pingora, and through hone in each mode. Each proxy is a process of its own with one
//! worker thread, and is killed when the benchmark ends, in whatever way.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::load::{self, Until};
use super::origin::Shape;
use super::proc_stat::Usage;

const START_MAX: Duration = Duration::from_secs(20);
/// The ingest counts as idle when its threads used less than this...
const IDLE_CPU: f64 = 0.002;
/// ... in this time.
const IDLE_TIME: Duration = Duration::from_millis(250);
/// Longest wait for that.
const SETTLE_MAX: Duration = Duration::from_secs(20);

/// Names, in the order of the table.
pub const NAMES: [&str; 6] =
    ["direct", "nginx", "plain pingora", "hone off", "hone observing", "hone learning"];

/// One way to reach the origin.
pub struct Target {
    /// One of [`NAMES`].
    pub name: &'static str,
    /// Where clients connect.
    pub address: SocketAddr,
    process: Option<Process>,
}

/// A process that is ended when this is dropped.
pub(super) struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Nginx's master takes its workers along only when asked politely.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until && matches!(self.0.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        // It may be gone already; both calls then fail, which is as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Target {
    /// Starts the target called `name` in a directory of its own under `home`, and waits until it
    /// answers. `None`: nginx is not installed.
    pub fn start(
        name: &'static str,
        origin: SocketAddr,
        home: &Path,
    ) -> anyhow::Result<Option<Self>> {
        let address = if name == "direct" { origin } else { free_port()? };
        let home = home.join(name.replace(' ', "-"));
        std::fs::create_dir_all(&home)?;
        let process = match name {
            "direct" => None,
            "nginx" => match nginx(address, origin, &home)? {
                None => return Ok(None),
                started => started,
            },
            "plain pingora" => Some(plain(address, origin)?),
            "hone off" => Some(hone("off", address, origin, &home)?),
            "hone learning" => Some(hone("learn", address, origin, &home)?),
            _ => Some(hone("observe", address, origin, &home)?),
        };
        let target = Self { name, address, process };
        target.wait()?;
        Ok(Some(target))
    }

    /// CPU and memory of the process so far; `None` for direct.
    pub fn usage(&self) -> anyhow::Result<Option<Usage>> {
        self.process.as_ref().map(|process| Usage::of(process.0.id())).transpose()
    }

    /// Waits until what the requests left behind is done: the spool's and the ingest's work belongs
    /// to the requests that caused it.
    pub fn settle(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        let Some(mut before) = self.usage()? else { return Ok(()) };
        while before.background() > 0.0 && started.elapsed() < SETTLE_MAX {
            std::thread::sleep(IDLE_TIME);
            let Some(now) = self.usage()? else { break };
            if now.background() - before.background() < IDLE_CPU {
                break;
            }
            before = now;
        }
        Ok(())
    }

    fn wait(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            let seen = load::run(self.address, Shape::Json, 1, Until::Seconds(0.05))?;
            if !seen.latencies.is_empty() {
                return Ok(());
            }
            anyhow::ensure!(started.elapsed() < START_MAX, "{} does not answer", self.name);
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn plain(address: SocketAddr, origin: SocketAddr) -> anyhow::Result<Process> {
    let (listen, upstream) = (address.to_string(), origin.to_string());
    let own = std::env::current_exe()?;
    spawn(&own, &["bench", "plain-proxy", "--listen", &listen, "--upstream", &upstream])
}

/// Hone with the built-in policies, but for the mode of the chat route.
fn hone(
    mode: &str,
    address: SocketAddr,
    origin: SocketAddr,
    home: &Path,
) -> anyhow::Result<Process> {
    let data = hone_shared::data_dir::DataDir::new(home);
    data.create()?;
    hone_shared::policy::install_builtin(&data.policies_dir())?;
    let route = data.policies_dir().join("routes/chat.toml");
    let text = std::fs::read_to_string(&route)?;
    let lines = text.lines().map(|line| match line.trim_start().starts_with("mode") {
        true => format!("mode = \"{mode}\""),
        false => line.to_owned(),
    });
    std::fs::write(&route, lines.collect::<Vec<_>>().join("\n"))?;
    let (listen, admin, path) = (address.to_string(), free_port()?.to_string(), data.path());
    let (path, engine) = (path.display().to_string(), format!("http://{origin}"));
    spawn(
        &std::env::current_exe()?,
        &[
            "proxy",
            "--data",
            &path,
            "--listen",
            &listen,
            "--admin",
            &admin,
            "--engine",
            &engine,
            "--threads",
            "1",
            "--request-mib-max",
            "8192",
        ],
    )
}

/// Nginx as one would configure it for streams: no buffering, connections kept on both sides.
fn nginx(address: SocketAddr, origin: SocketAddr, home: &Path) -> anyhow::Result<Option<Process>> {
    let places = ["/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/bin/nginx"];
    let Some(program) = places.iter().map(PathBuf::from).find(|path| path.exists()) else {
        return Ok(None);
    };
    let dir = home.display();
    let config = format!(
        "daemon off; worker_processes 1; pid {dir}/pid; error_log {dir}/error.log warn;\n\
         worker_rlimit_nofile 8192; events {{ worker_connections 4096; }}\n\
         http {{ access_log off; keepalive_requests 1000000000; client_max_body_size 0;\n\
           client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;\n\
           fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;\n\
           upstream origin {{ server {origin}; keepalive 256; keepalive_requests 1000000000; }}\n\
           server {{ listen {address} backlog=4096; tcp_nodelay on; location / {{\n\
             proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
             proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 600s; }} }} }}\n"
    );
    let file = home.join("nginx.conf");
    std::fs::write(&file, config)?;
    let (file, log) = (file.display().to_string(), home.join("error.log"));
    let log = log.display().to_string();
    spawn(&program, &["-c", &file, "-e", &log, "-p", &home.display().to_string()]).map(Some)
}

pub(super) fn spawn(program: &Path, args: &[&str]) -> anyhow::Result<Process> {
    let child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok(Process(child))
}

pub(super) fn free_port() -> std::io::Result<SocketAddr> {
    std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()
}
