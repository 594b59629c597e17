//! How people see the updates of a round: a bar on a terminal, one line of the log each elsewhere.
//!
//! Invariant: what is shown is what `metrics.jsonl` holds; nothing else depends on it.

use super::update::Measured;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;

/// Listens to a round's updates; the bar goes with it.
pub struct Progress {
    of: u64,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// `done` of `of` updates were made before.
    pub fn begin(done: u64, of: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| bar(done, of));
        Self { of, bar }
    }

    /// Shows an update that is done.
    pub fn tell(&self, seen: &Measured) {
        let Some(bar) = &self.bar else { return log(seen, self.of) };
        bar.set_message(format!(
            "loss {:.3}, {:.0} tokens per reply, KL {:.3}",
            seen.loss, seen.reply_tokens_mean, seen.kl
        ));
        bar.set_position(seen.update + 1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(done: u64, of: u64) -> ProgressBar {
    let bar = ProgressBar::new(of).with_position(done);
    let template = "training {wide_bar} update {pos} of {len}, {elapsed}, {eta} left; {msg}";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn log(seen: &Measured, updates: u64) {
    tracing::info!(
        update = seen.update + 1,
        of = updates,
        loss = format_args!("{:.4}", seen.loss),
        log_ratio = format_args!("{:.3}", seen.log_ratio),
        kl = format_args!("{:.4}", seen.kl),
        entropy = format_args!("{:.3}", seen.entropy),
        reply_tokens = format_args!("{:.1}", seen.reply_tokens_mean),
        ended = format_args!("{:.2}", seen.ended_share),
        grad_norm = format_args!("{:.3}", seen.grad_norm),
        update_norm = format_args!("{:.4}", seen.update_norm),
        seconds = format_args!("{:.1}", seen.seconds),
        "update"
    );
}
