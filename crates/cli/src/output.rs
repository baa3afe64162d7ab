//! Standard output, in one place: whole lines, and a closed pipe ends the process quietly.

use std::io::Write;

/// Writes a line to standard output. Where the reader is gone the process ends, as other commands do.
pub(crate) fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
        std::process::exit(141);
    }
}

/// Writes a line to standard error; nobody reading it is no reason to stop.
pub(crate) fn note(text: &str) {
    // The result is of no use: there is nowhere else to say it.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
