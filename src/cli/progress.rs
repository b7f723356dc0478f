//! A progress bar on standard error, where that is a terminal. Plain text: there is nothing for NO_COLOR to switch off.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;

/// Whether anybody would see a bar.
pub fn visible() -> bool {
    std::io::stderr().is_terminal()
}

pub struct Progress(ProgressBar);

impl Progress {
    /// `total` in bytes; `None`: only what is done is shown. Without a terminal nothing is.
    pub fn new(total: Option<u64>) -> Self {
        if !visible() {
            return Self(ProgressBar::hidden());
        }
        let template = match total {
            Some(_) => "{bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta} {wide_msg}",
            None => "{bytes} {binary_bytes_per_sec} {wide_msg}",
        };
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("##-"));
        }
        Self(bar)
    }

    pub fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// There is more to do than was known.
    pub fn expect(&self, bytes: u64) {
        self.0.inc_length(bytes);
    }

    pub fn at(&self, what: &[u8]) {
        if !self.0.is_hidden() {
            self.0.set_message(super::printable(what));
        }
    }

    /// Runs something that prints lines, which stay above the bar.
    pub fn above(&self, print: impl FnOnce()) {
        self.0.suspend(print);
    }

    /// A line that stays above the bar.
    pub fn line(&self, text: &str) {
        self.0.suspend(|| super::note(text));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
