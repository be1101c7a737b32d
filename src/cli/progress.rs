//! A bar for long work on images, for a person who watches.

use super::table::Args;
use crate::image::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often it is drawn, and how long work may take before it is.
const TICK: Duration = Duration::from_millis(100);

/// A bar that is there until it is dropped.
pub(super) struct Bar {
    drawing: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

impl Bar {
    /// Shows progress on standard error, when that is a terminal and nobody asked for silence.
    pub fn start(progress: &Arc<Progress>, args: &Args) -> Bar {
        if args.is_on("quiet") || args.value("format") == Some("json") || !std::io::stderr().is_terminal() {
            return Bar { drawing: None };
        }
        let (progress, ended) = (progress.clone(), Arc::new(AtomicBool::new(false)));
        let told = ended.clone();
        let thread = std::thread::spawn(move || draw(&progress, &ended));
        Bar { drawing: Some((told, thread)) }
    }
}

fn draw(progress: &Progress, ended: &AtomicBool) {
    std::thread::park_timeout(TICK);
    // What is quick needs no bar, and before it is known how much there is there can be none.
    while progress.total.load(Ordering::Relaxed) == 0 {
        if ended.load(Ordering::Acquire) {
            return;
        }
        std::thread::park_timeout(TICK);
    }
    if ended.load(Ordering::Acquire) {
        return;
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let template = "{wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}";
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    while !ended.load(Ordering::Acquire) {
        bar.set_length(progress.total.load(Ordering::Relaxed));
        bar.set_position(progress.read.load(Ordering::Relaxed));
        std::thread::park_timeout(TICK);
    }
    bar.finish_and_clear();
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some((told, thread)) = self.drawing.take() {
            told.store(true, Ordering::Release);
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
