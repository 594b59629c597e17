//! Flags of the commands that operate a running system: routes, audit trail, turns.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::DataArgs;

/// `hone route`
#[derive(Debug, Clone, Args)]
pub struct RouteArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(subcommand)]
    pub action: RouteAction,
}

/// What to do with routes.
#[derive(Debug, Clone, Subcommand)]
pub enum RouteAction {
    /// Show every route, its learning mode, and who set it when it is not its file's.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Set the learning mode of a route, now and through restarts.
    Set {
        /// Name of the route.
        route: String,
        /// The mode.
        mode: ModeName,
        /// For how long, such as 90s, 30m, 12h or 7d [default: until it is reset].
        #[arg(long = "for", value_name = "TIME")]
        duration: Option<String>,
        /// Why; it stands in the audit trail.
        #[arg(long, default_value = "")]
        reason: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Return a route to the mode of its policy file.
    Reset {
        /// Name of the route.
        route: String,
        /// Why; it stands in the audit trail.
        #[arg(long, default_value = "")]
        reason: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// A learning mode on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ModeName {
    /// Pass through, store nothing.
    Off,
    /// Store only.
    Observe,
    /// Store, judge, train and gate; never serve the result.
    Shadow,
    /// As shadow, and serve what passes the gate.
    Learn,
}

/// `hone audit`
#[derive(Debug, Clone, Args)]
pub struct AuditArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// Most rows.
    #[arg(long, default_value_t = 50)]
    pub limit: usize,
    /// Only rows before this number.
    #[arg(long)]
    pub before: Option<i64>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `hone policy`
#[derive(Debug, Clone, Args)]
pub struct PolicyArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(subcommand)]
    pub action: PolicyAction,
}

/// What to do with policies.
#[derive(Debug, Clone, Subcommand)]
pub enum PolicyAction {
    /// Read policy files as proxy and trainer will, and say everything that is wrong with them.
    Check {
        /// Directory to check [default: the data directory's policies].
        dir: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// What samples are drawn from.
#[derive(Debug, Clone, Args)]
pub struct DrawArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// The route.
    #[arg(long)]
    pub route: String,
    /// Model that the engine serves: a known name or a local Hugging Face directory.
    #[arg(long, default_value = "smollm2-135m")]
    pub model: String,
}

/// `hone samples`: reads only.
#[derive(Debug, Clone, Args)]
pub struct SamplesArgs {
    #[command(flatten)]
    pub from: DrawArgs,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `hone export`: the files hold users' texts and are out of reach of `hone forget`.
#[derive(Debug, Clone, Args)]
pub struct ExportArgs {
    #[command(flatten)]
    pub from: DrawArgs,
    /// An empty or new directory.
    #[arg(long)]
    pub out: std::path::PathBuf,
}

/// `hone turns`
#[derive(Debug, Clone, Args)]
pub struct TurnsArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(subcommand)]
    pub action: TurnsAction,
}

/// What to do with turns.
#[derive(Debug, Clone, Subcommand)]
pub enum TurnsAction {
    /// List turns, newest first.
    List(TurnsListArgs),
    /// Show one turn with its texts, verdict and hints.
    Show {
        /// Its id.
        id: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// `hone turns list`: all conditions must hold.
#[derive(Debug, Clone, Args)]
pub struct TurnsListArgs {
    /// Name of the route.
    #[arg(long)]
    pub route: Option<String>,
    /// Name of the tenant.
    #[arg(long)]
    pub tenant: Option<String>,
    /// The session.
    #[arg(long)]
    pub session: Option<String>,
    /// How the turn ended, such as complete or client_abort.
    #[arg(long)]
    pub outcome: Option<String>,
    /// The model that was asked for.
    #[arg(long)]
    pub model: Option<String>,
    /// What the judge said: 1, 0, -1, or none.
    #[arg(long, allow_hyphen_values = true)]
    pub verdict: Option<String>,
    /// Most turns of this page.
    #[arg(long, default_value_t = 20)]
    pub limit: usize,
    /// Where to go on: what the page before said.
    #[arg(long)]
    pub cursor: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}
