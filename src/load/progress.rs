//! How far the rush is, for somebody who watches: one line on a terminal, nothing elsewhere.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::buyer::Crowd;
use crate::limits;

/// The line; it ends when this is dropped.
pub(super) struct Shown {
    over: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Characters of the bar.
const WIDTH: usize = 30;

/// Shows it, if standard error is a terminal.
pub(super) fn show(crowd: &Arc<Crowd>) -> Option<Shown> {
    if !std::io::stderr().is_terminal() {
        return None;
    }
    let (over, is_over) = sync_channel(limits::LOAD_PROGRESS_MESSAGES);
    let crowd = Arc::clone(crowd);
    let thread = std::thread::spawn(move || {
        while is_over.recv_timeout(limits::LOAD_PROGRESS_EVERY) == Err(RecvTimeoutError::Timeout) {
            tell(&line(&crowd));
        }
        tell("");
    });
    Some(Shown { over: Some(over), thread: Some(thread) })
}

impl Drop for Shown {
    fn drop(&mut self) {
        drop(self.over.take());
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// Over the line before; a terminal that is gone is no reason to stop.
fn tell(line: &str) {
    let mut terminal = std::io::stderr();
    let told = write!(terminal, "\r\x1b[K{line}").and_then(|()| terminal.flush());
    drop(told);
}

fn line(crowd: &Crowd) -> String {
    let all = crowd.schedule.requests();
    let taken = crowd.next.load(Ordering::Relaxed).min(all);
    let seconds = crowd.start.get().map_or(0.0, |start| start.elapsed().as_secs_f64());
    let full = (taken as f64 / all.max(1) as f64 * WIDTH as f64) as usize;
    format!(
        "[{:<WIDTH$}] {taken} of {all}, {seconds:.0} s, {:.0}/s",
        "=".repeat(full),
        taken as f64 / seconds.max(0.001)
    )
}
