//! What an interrupt (Ctrl-C, or being told to end) does to a command that writes: what it had begun is taken back, whatever
//! it is in the midst of, and the process ends at once. What a calibration goes on from stays, and is named.

use crate::{bar, print};
use candle_rbe::archive::{abandon_outputs, kept_layers};
use std::process;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// What shells expect of a process that was interrupted.
const INTERRUPTED: i32 = 130;

static ASKED: AtomicBool = AtomicBool::new(false);

/// From now on an interrupt takes back what was begun.
pub(crate) fn install() -> anyhow::Result<()> {
    static HANDLER: Once = Once::new();
    let mut set = Ok(());
    HANDLER.call_once(|| set = ctrlc::set_handler(interrupt));
    Ok(set?)
}

/// Runs in a thread of its own.
fn interrupt() {
    ASKED.store(true, Ordering::SeqCst);
    let _last = Exit;
    let abandoned = abandon_outputs();
    bar::clear();
    if abandoned > 0 {
        print::note("error: stopped on request; nothing is written");
        print::kept(&kept_layers());
    }
}

/// Ends the process when it is dropped: a panic in this thread too, on which the others would wait for ever.
struct Exit;

impl Drop for Exit {
    fn drop(&mut self) {
        process::exit(INTERRUPTED);
    }
}

/// Leaves the last word to an interrupt where there is one: the error of a command whose files were taken away is not what
/// happened.
pub(crate) fn has_the_last_word() {
    while ASKED.load(Ordering::SeqCst) {
        thread::park();
    }
}
