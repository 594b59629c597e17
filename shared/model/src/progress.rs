//! How long work on model files tells where it is.
//!
//! One callback, so that a terminal, a log or a test can listen. Invariant: within one stage the
//! bytes done never fall and never exceed a known total.

use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressStyle};

/// A listener. Called from one thread at a time, at most a few hundred times per stage.
pub trait Progress: Send + Sync {
    /// `stage` (such as `download`) has got `bytes_done` of `bytes_total`, if that is known.
    fn update(&self, stage: &str, bytes_done: u64, bytes_total: Option<u64>);
}

/// Listens to nothing.
pub struct Silent;

impl Progress for Silent {
    fn update(&self, _stage: &str, _bytes_done: u64, _bytes_total: Option<u64>) {}
}

/// One bar per stage on standard error; nothing when that is not a terminal.
#[derive(Default)]
pub struct Bars {
    current: Mutex<Option<(String, ProgressBar)>>,
}

impl Progress for Bars {
    fn update(&self, stage: &str, bytes_done: u64, bytes_total: Option<u64>) {
        let Ok(mut current) = self.current.lock() else { return };
        if current.as_ref().is_none_or(|(name, _)| name != stage) {
            if let Some((_, bar)) = current.take() {
                bar.finish();
            }
            *current = Some((stage.to_owned(), bar(stage)));
        }
        let Some((_, bar)) = current.as_ref() else { return };
        if let Some(total) = bytes_total {
            bar.set_length(total);
        }
        bar.set_position(bytes_done);
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        if let Ok(Some((_, bar))) = self.current.get_mut().map(Option::take) {
            bar.finish();
        }
    }
}

fn bar(stage: &str) -> ProgressBar {
    let bar = ProgressBar::new(0).with_message(stage.to_owned());
    let template = "{msg:12} {wide_bar} {binary_bytes:>11} / {binary_total_bytes:11} {eta:>4}";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
