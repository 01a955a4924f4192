//! A progress bar on standard error; where that is no terminal, nothing.

use crate::print;
use candle_rbe::archive::Progress;
use indicatif::{ProgressBar, ProgressStyle};
use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The bar on the screen, for an interrupt to take away.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

pub(crate) struct Bar(ProgressBar);

impl Bar {
    pub(crate) fn new(verb: &'static str) -> anyhow::Result<Self> {
        let style =
            ProgressStyle::with_template("{prefix} [{bar:24}] {percent:>3} %, {eta} left  {wide_msg}")?;
        let bar = ProgressBar::new(0).with_style(style.progress_chars("=> ")).with_prefix(verb);
        // The estimate keeps moving while one large matrix takes its time.
        bar.enable_steady_tick(Duration::from_millis(200));
        *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
        Ok(Self(bar))
    }

    /// For a conversion to tell its steps to; never stops it, since an interrupt does that by itself.
    pub(crate) fn step(&self, step: Progress<'_>) -> ControlFlow<()> {
        self.set(step.weights_done, step.weights, step.name.to_owned());
        if step.weights_kept > 0 && step.weights_kept == step.weights_done {
            // What an earlier run did says nothing of the time that is left.
            self.0.tick();
            self.0.reset_eta();
        }
        ControlFlow::Continue(())
    }

    pub(crate) fn set(&self, done: u64, of: u64, message: String) {
        self.0.set_length(of);
        self.0.set_position(done);
        self.0.set_message(print::harmless(&message));
    }
}

/// Takes away the bar that is shown.
pub(crate) fn clear() {
    if let Some(bar) = SHOWN.lock().unwrap_or_else(PoisonError::into_inner).take() {
        bar.finish_and_clear();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
