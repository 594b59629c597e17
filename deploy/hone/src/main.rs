//! The one binary: parse the command line, set up logging, run one command, map its result to an
//! exit code.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.

mod audit;
mod bench;
mod cli;
mod demo;
mod feedback;
mod forget;
mod judge;
mod logging;
mod memory;
mod model;
mod os;
mod policy;
mod rollback;
mod route;
mod samples;
mod serve;
mod status;
mod turns;
mod up;

use std::process::ExitCode;

use clap::Parser;
use cli::{Bench, Cli, Command};

/// glibc kept hundreds of megabytes after each dropped engine generation; jemalloc returns them.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::start(&cli);
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hone: {error:#}");
            ExitCode::from(if error.is::<cli::UsageError>() { 2 } else { 1 })
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Up(args) => up::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Status(args) => status::run(&args),
        Command::Rollback(args) => rollback::run(&args),
        Command::Route(args) => route::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Turns(args) => turns::run(&args),
        Command::Samples(args) => samples::show(&args),
        Command::Export(args) => samples::export(&args),
        Command::Feedback(args) => feedback::run(&args),
        Command::Forget(args) => forget::run(&args),
        Command::Model(args) => model::run(args),
        Command::Judge(args) => judge::run(&args),
        Command::Policy(args) => policy::run(&args),
        Command::Proxy(args) => serve::proxy(args),
        Command::Trainer(args) => serve::trainer(args),
        Command::Backend(args) => serve::backend(args),
        Command::Bench(Bench::Proxy(args)) => bench::proxy::run(args),
        Command::Bench(Bench::Trainer(args)) => bench::trainer::run(&args),
        Command::Bench(Bench::TrainerWorker(args)) => bench::trainer::work(&args),
        Command::Bench(Bench::Learning(args)) => bench::learning::run(&args),
        Command::Bench(Bench::Serving(args)) => bench::serving::run(&args),
        Command::Bench(Bench::Judging(args)) => bench::judging::run(&args),
        Command::Bench(Bench::PlainProxy(args)) => bench::plain::run(args),
    }
}

/// `hone status | head` closes our pipe; that is not a failure.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
    })
}
