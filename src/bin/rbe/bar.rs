//! A progress bar on standard error; where that is no terminal, nothing. And what an interrupt (Ctrl-C) does meanwhile.

use candle_rbe::archive::Step;
use indicatif::{ProgressBar, ProgressStyle};
use std::ops::ControlFlow;
use std::process;
use std::sync::Once;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// What the process is in the midst of.
static STATE: AtomicU8 = AtomicU8::new(OTHER);
const OTHER: u8 = 0;
/// A conversion, which leaves nothing behind if it is told to stop.
const CONVERTING: u8 = 1;
/// A conversion that was told.
const STOPPING: u8 = 2;
/// What shells expect of a process that was interrupted.
const INTERRUPTED: i32 = 130;

pub(crate) struct Bar(ProgressBar);

impl Bar {
    pub(crate) fn new(verb: &'static str) -> anyhow::Result<Self> {
        let style =
            ProgressStyle::with_template("{prefix} [{bar:24}] {percent:>3} %, {eta} left  {wide_msg}")?;
        let bar = ProgressBar::new(0).with_style(style.progress_chars("=> ")).with_prefix(verb);
        // The estimate keeps moving while one large matrix takes its time.
        bar.enable_steady_tick(Duration::from_millis(200));
        Ok(Self(bar))
    }

    /// Over a conversion, which an interrupt stops at its next [step](Self::step), and a second one at once.
    pub(crate) fn converting(verb: &'static str) -> anyhow::Result<Self> {
        static HANDLER: Once = Once::new();
        let mut set = Ok(());
        HANDLER.call_once(|| set = ctrlc::set_handler(interrupt));
        set?;
        STATE.store(CONVERTING, Ordering::SeqCst);
        Self::new(verb)
    }

    pub(crate) fn step(&self, step: Step<'_>) -> ControlFlow<()> {
        self.set(step.weights_done, step.weights, step.name.to_owned());
        match STATE.load(Ordering::SeqCst) {
            STOPPING => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }

    pub(crate) fn set(&self, done: u64, of: u64, message: String) {
        self.0.set_length(of);
        self.0.set_position(done);
        self.0.set_message(message);
    }
}

fn interrupt() {
    let told = STATE.compare_exchange(CONVERTING, STOPPING, Ordering::SeqCst, Ordering::SeqCst);
    if told.is_err() {
        process::exit(INTERRUPTED);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        STATE.store(OTHER, Ordering::SeqCst);
        self.0.finish_and_clear();
    }
}
