//! Flags of `hone judge`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::DataArgs;

/// `hone judge`
#[derive(Debug, Clone, Args)]
pub struct JudgeArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(subcommand)]
    pub action: JudgeAction,
}

/// What to do with judges.
#[derive(Debug, Clone, Subcommand)]
pub enum JudgeAction {
    /// Measure agreement with a file of labelled next states.
    Eval(JudgeEvalArgs),
    /// Judge stored turns again and show where the verdict would differ; changes nothing.
    Replay(JudgeReplayArgs),
}

/// `hone judge eval`
#[derive(Debug, Clone, Args)]
pub struct JudgeEvalArgs {
    /// JSON lines; the format is in trainer/cases/README.md.
    pub file: PathBuf,
    /// The judge: a name, or `auto` for the rubric of the detected kind.
    #[arg(long, default_value = "auto")]
    pub judge: String,
    /// Policy directory [default: that of the data directory, else the built-in policies].
    #[arg(long, value_name = "DIR")]
    pub policies: Option<PathBuf>,
    /// Ask no model (default).
    #[arg(long, conflicts_with = "llm")]
    pub rules_only: bool,
    /// Ask the judge's model where the rules are silent, whether or not its policy is `enabled`.
    #[arg(long)]
    pub llm: bool,
    /// With --llm: ask the model about every case.
    #[arg(long, requires = "llm")]
    pub no_rules: bool,
    /// The engine that is asked where the judge names no endpoint.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8082")]
    pub engine: String,
    /// Only so many cases of each kind, drawn by --seed: a model may need seconds for each.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub sample: Option<u64>,
    /// With --sample: which cases; the same file and seed give the same ones.
    #[arg(long, default_value_t = 1, requires = "sample")]
    pub seed: u64,
    /// List the cases that were judged wrongly.
    #[arg(long)]
    pub wrong: bool,
    /// Fail when the precision over all cases is below this.
    #[arg(long, value_name = "SHARE")]
    pub precision_min: Option<f64>,
    /// Fail when the coverage over all cases is below this.
    #[arg(long, value_name = "SHARE")]
    pub coverage_min: Option<f64>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `hone judge replay`
#[derive(Debug, Clone, Args)]
pub struct JudgeReplayArgs {
    /// Only turns of this route.
    #[arg(long)]
    pub route: Option<String>,
    /// So many of the newest judged turns.
    #[arg(long, default_value_t = 1_000)]
    pub limit: usize,
    /// Judge by this judge instead of each route's own: a name, or `auto`.
    #[arg(long)]
    pub judge: Option<String>,
    /// Policy directory to try [default: that of the data directory].
    #[arg(long, value_name = "DIR")]
    pub policies: Option<PathBuf>,
    /// Ask the judge's model where the rules are silent, `enabled` or not, instead of leaving those
    /// verdicts alone.
    #[arg(long)]
    pub llm: bool,
    /// The engine that is asked where the judge names no endpoint.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8082")]
    pub engine: String,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `hone bench judging`
#[derive(Debug, Clone, Args)]
pub struct BenchJudgingArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// Model to serve and to judge with.
    #[arg(long, default_value = "smollm2-135m")]
    pub model: String,
    /// Requests per measurement.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..))]
    pub requests: u64,
    /// Milliseconds between a client's requests; beyond 5,000 the judge gets its turn in each.
    #[arg(long, default_value_t = 500)]
    pub pause_ms: u64,
    /// Interleaved pairs, after one measurement that warms up.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub pairs: u64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}
