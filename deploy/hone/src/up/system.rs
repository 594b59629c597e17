//! The running system: which children with which flags, when it is ready, and how it ends.

use std::ffi::OsString;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use hone_shared::data_dir::DataDir;
use hone_shared::policy::{self, PolicySet};

use super::child::Child;
use crate::cli::UpArgs;
use crate::model;
use crate::serve::data_dir;

/// Loading a model competes with whatever else the machine does.
const READY_MAX: Duration = Duration::from_secs(300);
/// A child that died this often before the system was ready will not become ready.
const DEATHS_MAX: u32 = 3;

/// Engine, proxy and trainer, running.
pub struct System {
    /// What clients put in front of `/v1`.
    pub base_url: String,
    /// Name of the served model.
    pub model_id: String,
    /// The data directory.
    pub data_path: PathBuf,
    /// The children's logs.
    pub log_dir: PathBuf,
    children: Vec<Child>,
    // Held for its lock: one `hone up` per data directory.
    _lock: File,
}

impl System {
    /// Starts everything and returns when it is ready, or with the reason why it is not.
    pub async fn start(args: &UpArgs, model_dir: PathBuf) -> anyhow::Result<System> {
        let data = data_dir(&args.data)?;
        let data_path = data.path().to_path_buf();
        let lock = lock(&data_path)?;
        policy::install_builtin(&data.policies_dir())?;
        PolicySet::load(&data.policies_dir())
            .with_context(|| format!("bad policies in {}", data.policies_dir().display()))?;
        let log_dir = data_path.join("log");
        std::fs::create_dir_all(&log_dir)?;

        let addresses = Addresses::choose(args)?;
        let model_id = model::name_of(&model_dir);
        let mut system = System {
            base_url: format!("http://{}", addresses.listen),
            model_id,
            data_path,
            log_dir,
            children: Vec::new(),
            _lock: lock,
        };
        system.start_children(args, &addresses, &data, &model_dir)?;
        system.wait_until_ready(args, &addresses).await?;
        Ok(system)
    }

    fn start_children(
        &mut self,
        args: &UpArgs,
        at: &Addresses,
        data: &DataDir,
        model_dir: &Path,
    ) -> anyhow::Result<()> {
        let data_path = data.path();
        let flags = |name: &str, pairs: &[(&str, OsString)]| {
            let mut all: Vec<OsString> = vec![name.into(), "--supervised".into()];
            all.extend(["--data".into(), data_path.into()]);
            pairs.iter().for_each(|(flag, value)| all.extend([(*flag).into(), value.clone()]));
            all
        };
        let mut start = |name: &'static str, pairs: &[(&str, OsString)]| -> anyhow::Result<()> {
            self.children.push(Child::start(name, flags(name, pairs), data, &self.log_dir)?);
            Ok(())
        };
        if args.engine.is_none() {
            let listen = at.engine.to_string().into();
            start("backend", &[("--model-dir", model_dir.into()), ("--listen", listen)])?;
        }
        start(
            "proxy",
            &[
                ("--listen", at.listen.to_string().into()),
                ("--admin", at.admin.to_string().into()),
                ("--engine", at.engine_url.clone().into()),
                ("--grace-ms", args.grace_ms.to_string().into()),
            ],
        )?;
        start(
            "trainer",
            &[
                ("--model-dir", model_dir.into()),
                ("--engine", at.engine_url.clone().into()),
                ("--proxy-admin", format!("http://{}", at.admin).into()),
            ],
        )
    }

    async fn wait_until_ready(&self, args: &UpArgs, at: &Addresses) -> anyhow::Result<()> {
        if args.engine.is_none() {
            self.wait_for("backend", &format!("{}/health", at.engine_url)).await?;
        }
        self.wait_for("proxy", &format!("http://{}/readyz", at.admin)).await
    }

    async fn wait_for(&self, name: &str, url: &str) -> anyhow::Result<()> {
        let started = Instant::now();
        let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).build()?;
        loop {
            if client.get(url).send().await.is_ok_and(|reply| reply.status().is_success()) {
                return Ok(());
            }
            if let Some(child) = self.children.iter().find(|child| child.deaths() >= DEATHS_MAX) {
                anyhow::bail!(
                    "{} does not start; its log ends:\n{}",
                    child.name,
                    child.log_tail(12)
                );
            }
            if started.elapsed() > READY_MAX {
                anyhow::bail!(
                    "{name} was not ready after {READY_MAX:?}; see {}",
                    self.log_dir.display()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stops the children: trainer, proxy, engine.
    pub async fn stop(mut self, grace: Duration) -> anyhow::Result<()> {
        let patience = grace + Duration::from_secs(20);
        let mut result = Ok(());
        while let Some(child) = self.children.pop() {
            let stopped = child.stop(patience).await;
            result = result.and(stopped);
        }
        result
    }
}

struct Addresses {
    listen: SocketAddr,
    admin: SocketAddr,
    engine: SocketAddr,
    engine_url: String,
}

impl Addresses {
    /// Fixes every port now: a child that is started again must come back under the same address.
    fn choose(args: &UpArgs) -> anyhow::Result<Addresses> {
        let listen = free(args.listen).with_context(|| {
            format!("cannot listen on {}: choose another --listen", args.listen)
        })?;
        let admin = free(args.admin)
            .with_context(|| format!("cannot listen on {}: choose another --admin", args.admin))?;
        let engine = free(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let engine_url = args.engine.clone().unwrap_or_else(|| format!("http://{engine}"));
        Ok(Addresses { listen, admin, engine, engine_url: engine_url.trim_end_matches('/').into() })
    }
}

/// The address itself if it is free, or one with a free port if the port is 0.
fn free(wanted: SocketAddr) -> std::io::Result<SocketAddr> {
    TcpListener::bind(wanted)?.local_addr()
}

fn lock(data_path: &Path) -> anyhow::Result<File> {
    let path = data_path.join("run").join("up.lock");
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let file = File::options().create(true).truncate(false).write(true).open(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => anyhow::bail!(
            "`hone up` runs already in {}: use `hone status`, or another --data",
            data_path.display()
        ),
        Err(std::fs::TryLockError::Error(error)) => {
            Err(error).context("cannot lock the data directory")
        }
    }
}
