//! The command line, only parsed here and never acted upon: every flag, its default and its help
//! text.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

mod judge;
mod operate;

pub use judge::*;
pub use operate::*;

/// A mistake of the caller: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Your model gets better by being used.
#[derive(Debug, Parser)]
#[command(name = "hone", version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Say more: -v for progress of every stage, -vv for debugging.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
    /// Write logs as JSON, one object per line.
    #[arg(long, global = true, env = "HONE_LOG_JSON")]
    pub log_json: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start engine, proxy and trainer, and keep them running.
    Up(UpArgs),
    /// Show a model learning from a scripted user, and prove it on questions it never saw.
    Demo(DemoArgs),
    /// Show what each stage has done, and which generation each route serves.
    Status(StatusArgs),
    /// Make an alias serve the previous generation, the base model, or a named one.
    Rollback(RollbackArgs),
    /// Show and change what routes learn, while everything runs.
    Route(RouteArgs),
    /// Show who changed what, when and why.
    Audit(AuditArgs),
    /// Show what was recorded.
    Turns(TurnsArgs),
    /// Say what an answer or an episode was worth.
    Feedback(crate::feedback::FeedbackArgs),
    /// Show what a route's next round would learn from, and why the rest is left out.
    Samples(SamplesArgs),
    /// Write what a route's next round would learn from as JSON Lines and Parquet.
    Export(ExportArgs),
    /// Remove a session, a tenant, a turn or a text, and everything that was learned from it.
    Forget(crate::forget::ForgetArgs),
    /// Obtain and list models.
    Model(ModelArgs),
    /// Measure the judge, and replay it over what was recorded.
    Judge(JudgeArgs),
    /// Check policy files.
    Policy(PolicyArgs),
    /// Run only the proxy.
    Proxy(ProxyArgs),
    /// Run only the trainer.
    Trainer(TrainerArgs),
    /// Run only the engine.
    Backend(BackendArgs),
    /// Measure, as ratios within one run.
    #[command(subcommand)]
    Bench(Bench),
}

/// Where everything is kept.
#[derive(Debug, Clone, Args)]
pub struct DataArgs {
    /// Data directory [default: $XDG_DATA_HOME/hone or ~/.local/share/hone].
    #[arg(long, env = "HONE_DATA")]
    pub data: Option<PathBuf>,
}

/// `hone up`
#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// Model: a known name, a local Hugging Face directory, a local GGUF file, or a hub id.
    #[arg(long, default_value = "smollm2-135m")]
    pub model: String,
    /// Address that clients use.
    #[arg(long, default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Address of the admin listener (port 0: any free one).
    #[arg(long, default_value = "127.0.0.1:0")]
    pub admin: SocketAddr,
    /// Use this OpenAI-compatible engine that runs already, instead of starting one.
    #[arg(long, value_name = "URL")]
    pub engine: Option<String>,
    /// Milliseconds that streams in flight get to finish at shutdown.
    #[arg(long, default_value_t = 30_000)]
    pub grace_ms: u64,
}

/// `hone demo`
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// Model, when the demo starts the system itself.
    #[arg(long, default_value = "smollm2-135m")]
    pub model: String,
    /// Give up when one round takes longer than this.
    #[arg(long, default_value_t = 300)]
    pub round_seconds_max: u64,
    /// Corrections that the scripted user will make at most.
    #[arg(long, default_value_t = 12)]
    pub corrections_max: usize,
    /// Print the result as JSON on stdout (progress stays on stderr).
    #[arg(long)]
    pub json: bool,
}

/// `hone status`
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `hone rollback`
#[derive(Debug, Clone, Args)]
pub struct RollbackArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// Alias to move.
    #[arg(long, default_value = "chat")]
    pub alias: String,
    /// Where to: `previous`, `base`, or a generation (a unique beginning of at least 6 characters
    /// is enough).
    #[arg(long, default_value = "previous")]
    pub to: String,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `hone model`
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(subcommand)]
    pub action: ModelAction,
}

/// What to do with models.
#[derive(Debug, Clone, Subcommand)]
pub enum ModelAction {
    /// Obtain a model and make an ordinary Hugging Face directory of it.
    Get {
        /// `smollm2-135m`, a local directory, a local GGUF file, or a hub id such as `org/name`.
        source: String,
    },
    /// List the models in the data directory.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// `hone proxy`: flags win over the file, the file over the defaults.
#[derive(Debug, Clone, Args)]
pub struct ProxyArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// File with everything that can be set, limits included; see deploy/README.md.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check the configuration and the policies, say everything that is wrong, and end.
    #[arg(long)]
    pub check: bool,
    /// Take the listeners of the proxy that runs in the data directory over; it drains and ends.
    #[arg(long)]
    pub upgrade: bool,
    /// Address that clients use [default: 127.0.0.1:8080].
    #[arg(long)]
    pub listen: Option<SocketAddr>,
    /// Address of the admin listener [default: 127.0.0.1:8081].
    #[arg(long)]
    pub admin: Option<SocketAddr>,
    /// Further admin tokens, one `NAME TOKEN` per line; needed for an --admin address that is not
    /// a loopback one.
    #[arg(long, value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,
    /// A name by which operators may call the admin listener (may be repeated).
    #[arg(long = "admin-host", value_name = "NAME")]
    pub admin_hosts: Vec<String>,
    /// An engine behind the proxy; repeat it for several that serve the same model
    /// [default: http://127.0.0.1:8082].
    #[arg(long = "engine", value_name = "URL")]
    pub engines: Vec<String>,
    /// PEM file with the authorities to trust for engines with https, instead of the system's.
    #[arg(long, value_name = "FILE")]
    pub engine_ca: Option<PathBuf>,
    /// Address that clients use with TLS, besides --listen; needs --tls-cert and --tls-key.
    #[arg(long, value_name = "ADDRESS")]
    pub tls_listen: Option<SocketAddr>,
    /// PEM file with the certificate chain shown to clients; read again when it changes.
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with its key.
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Milliseconds that streams in flight get to finish at shutdown [default: 30000].
    #[arg(long)]
    pub grace_ms: Option<u64>,
    /// Largest request body, MiB; a larger one is answered with 413 [default: 64].
    #[arg(long)]
    pub request_mib_max: Option<u64>,
    /// Worker threads (0: as many as there are cores) [default: 0].
    #[arg(long)]
    pub threads: Option<usize>,
    /// End when standard input ends: set by `hone up`, whose death must not leave children behind.
    #[arg(long, hide = true)]
    pub supervised: bool,
}

/// `hone trainer`
#[derive(Debug, Clone, Args)]
pub struct TrainerArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// The Hugging Face model directory that the engine serves.
    #[arg(long)]
    pub model_dir: PathBuf,
    /// The engine, for judging and for loading adapters.
    #[arg(long, default_value = "http://127.0.0.1:8082")]
    pub engine: String,
    /// The proxy's admin listener, told after a promotion.
    #[arg(long)]
    pub proxy_admin: Option<String>,
    /// How often to look for new turns, in milliseconds.
    #[arg(long, default_value_t = 500)]
    pub poll_ms: u64,
    /// What trains: `cpu`; `cuda`, `cuda:N`, `metal` or `metal:N` in a build with that feature; `auto`
    /// is a GPU where build and machine have one.
    #[arg(long, env = "HONE_DEVICE", default_value = "auto")]
    pub device: String,
    /// Niceness of the process: serving goes first.
    #[arg(long, default_value_t = TRAINER_NICE)]
    pub nice: i32,
    /// End when standard input ends.
    #[arg(long, hide = true)]
    pub supervised: bool,
}

/// `hone backend`
#[derive(Debug, Clone, Args)]
pub struct BackendArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// The Hugging Face model directory to serve.
    #[arg(long)]
    pub model_dir: PathBuf,
    /// Name under which the model is served [default: the directory's name].
    #[arg(long)]
    pub model_id: Option<String>,
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1:8082")]
    pub listen: SocketAddr,
    /// Engines held in memory at once: the base model, adapter generations, and those still
    /// draining.
    #[arg(long, default_value_t = 4)]
    pub residents_max: usize,
    /// Sequences decoded at the same time.
    #[arg(long, default_value_t = 16)]
    pub sequences_max: usize,
    /// End when standard input ends.
    #[arg(long, hide = true)]
    pub supervised: bool,
}

/// `hone bench`
#[derive(Debug, Clone, Subcommand)]
pub enum Bench {
    /// Direct, nginx, plain pingora, and hone off, observing and learning, side by side.
    Proxy(BenchProxyArgs),
    /// Tokens per second of scoring, training and sampling, beside PyTorch + PEFT where a Python
    /// with them is given.
    Trainer(BenchTrainerArgs),
    /// Sessions until a scripted user is content, for every way of learning, beside no learning and
    /// beside remembering the corrections in the prompt.
    Learning(BenchLearningArgs),
    /// Tokens per second that a client gets while the trainer computes, beside those without it.
    Serving(BenchServingArgs),
    /// Time to the first token that a client gets while a judge asks the same engine in the
    /// background, beside that without a judge.
    Judging(BenchJudgingArgs),
    /// A pingora proxy that does nothing else: the yardstick that `bench proxy` starts.
    #[command(hide = true)]
    PlainProxy(PlainProxyArgs),
    /// Does what `bench trainer` asks for on standard input, in a process of its own.
    #[command(hide = true)]
    TrainerWorker(BenchTrainerWorkerArgs),
}

/// `hone bench proxy`
#[derive(Debug, Clone, Args)]
pub struct BenchProxyArgs {
    /// Seconds per measurement.
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
    /// Interleaved repetitions; medians are reported.
    #[arg(long, default_value_t = 5)]
    pub repeats: usize,
    /// Concurrent clients.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64])]
    pub concurrency: Vec<usize>,
    /// Workloads: json (2 KiB), burst (50 SSE chunks at once), paced (50 SSE chunks, 5 ms apart).
    #[arg(long, value_delimiter = ',', value_parser = ["json", "burst", "paced"],
        default_values = ["json", "burst", "paced"])]
    pub workloads: Vec<String>,
    /// Only targets whose name contains one of these words (direct, nginx, plain, off, observing,
    /// learning).
    #[arg(long, value_delimiter = ',')]
    pub targets: Vec<String>,
    /// Measure memory instead: many open streams, and one enormous body in each direction.
    #[arg(long)]
    pub memory: bool,
    /// Streams of the memory measurement.
    #[arg(long, default_value_t = 800)]
    pub streams: usize,
    /// Size of the enormous body, MiB.
    #[arg(long, default_value_t = 4096)]
    pub bulk_mib: u64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

impl BenchProxyArgs {
    /// Whether the target called `name` is asked for.
    pub fn wants(&self, name: &str) -> bool {
        self.targets.is_empty() || self.targets.iter().any(|word| name.contains(word.as_str()))
    }
}

/// `hone bench trainer`
#[derive(Debug, Clone, Args)]
pub struct BenchTrainerArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// Model to measure with.
    #[arg(long, default_value = "smollm2-135m")]
    pub model: String,
    /// A Python that has torch, transformers and peft, to compare with.
    #[arg(long)]
    pub python: Option<PathBuf>,
    /// Threads (0: as many as there are cores).
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Precisions of the matrix products.
    #[arg(long, value_delimiter = ',', value_parser = ["f32", "bf16"],
        default_values = ["f32", "bf16"])]
    pub precision: Vec<String>,
    /// Tasks and shapes, as `train:4x256` (four sequences of 256 tokens); `score` and `sample` too.
    #[arg(long, value_delimiter = ',', value_parser = Task::parse, default_values =
        ["train:4x256", "train:1x512", "train:1x256", "score:1x512", "score:4x512", "sample:16x64"])]
    pub tasks: Vec<Task>,
    /// Interleaved pairs per row, after one that warms up.
    #[arg(long, default_value_t = 5)]
    pub pairs: usize,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `hone bench learning`
#[derive(Debug, Clone, Args)]
pub struct BenchLearningArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// Model to learn with.
    #[arg(long, default_value = "smollm2-135m")]
    pub model: String,
    /// Only these methods; `opd+updates=5` is one with another value in `[train]`,
    /// `opd+gate` one whose rounds hold samples out and pass the gate, `opd+gate+stay` one
    /// whose user goes on when content, `opd+sabotage` one whose later rounds are trained on the
    /// opposite [default: all].
    #[arg(long, value_delimiter = ',')]
    pub methods: Vec<String>,
    /// Lives per method.
    #[arg(long, default_value_t = 3)]
    pub seeds: u64,
    /// Sessions of one life at most.
    #[arg(long, default_value_t = 24)]
    pub sessions: usize,
    /// File of finished lives, one JSON object per line; what is in it is not done again.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Threads (0: as many as there are cores).
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `hone bench trainer-worker`
#[derive(Debug, Clone, Args)]
pub struct BenchTrainerWorkerArgs {
    /// Model directory.
    #[arg(long)]
    pub model_dir: PathBuf,
    /// Threads.
    #[arg(long)]
    pub threads: usize,
    /// f32 or bf16.
    #[arg(long)]
    pub precision: String,
    /// Niceness.
    #[arg(long, default_value_t = 0)]
    pub nice: i32,
}

/// Niceness of `hone trainer`, unless asked for another.
const TRAINER_NICE: i32 = 19;

/// `hone bench serving`
#[derive(Debug, Clone, Args)]
pub struct BenchServingArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// Model to serve and to train.
    #[arg(long, default_value = "smollm2-135m")]
    pub model: String,
    /// Niceness of the process that trains [default: that of `hone trainer`].
    #[arg(long, default_value_t = TRAINER_NICE)]
    pub nice: i32,
    /// Seconds per measurement.
    #[arg(long, default_value_t = 15.0)]
    pub seconds: f64,
    /// Interleaved pairs, after one measurement that warms up.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    pub pairs: u64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// What `hone bench trainer` measures in one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// `train`, `score` or `sample`.
    pub name: String,
    /// Sequences at a time.
    pub sequences: usize,
    /// Tokens of each.
    pub tokens: usize,
}

impl Task {
    fn parse(text: &str) -> Result<Task, String> {
        let wrong = || format!("{text:?} is not like train:4x256");
        let (name, shape) = text.split_once(':').ok_or_else(wrong)?;
        let (sequences, tokens) = shape.split_once('x').ok_or_else(wrong)?;
        let number = |word: &str| word.parse().ok().filter(|n| *n > 0).ok_or_else(wrong);
        match ["train", "score", "sample"].contains(&name) {
            true => Ok(Task {
                name: name.to_owned(),
                sequences: number(sequences)?,
                tokens: number(tokens)?,
            }),
            false => Err(wrong()),
        }
    }
}

/// `hone bench plain-proxy`
#[derive(Debug, Clone, Args)]
pub struct PlainProxyArgs {
    /// Address to listen on.
    #[arg(long)]
    pub listen: SocketAddr,
    /// Where to send everything.
    #[arg(long)]
    pub upstream: SocketAddr,
}
