//! What the machine says on its console: lines of the form `peerpods: <event>`, made of fixed words and numbers.
//!
//! The host reads it. So an event is a word from this crate's source, never text from elsewhere; tests and the local provider wait
//! for these lines, which makes them an interface.

use std::io::Write as _;

use nix::time::{ClockId, clock_gettime};

/// Prints `peerpods: <event> <milliseconds since the kernel started>`.
pub(crate) fn event(event: &'static str) {
    line(format_args!("{event} {}", uptime_ms()));
}

/// Prints `peerpods: <event> <number> <milliseconds>`.
pub(crate) fn event_with(event: &'static str, number: u64) {
    line(format_args!("{event} {number} {}", uptime_ms()));
}

/// The last line of a machine: `peerpods: stopped: <cause>`.
pub(crate) fn stopped(cause: impl std::fmt::Display) {
    line(format_args!("stopped: {cause}"));
}

/// From now on a panic prints where it happened and not its message, which may quote a tenant's data.
pub(crate) fn hide_panic_messages() {
    std::panic::set_hook(Box::new(|info| {
        let (file, number) = info.location().map_or(("unknown", 0), |l| (l.file(), l.line()));
        line(format_args!("panic {file}:{number}"));
    }));
}

fn line(text: std::fmt::Arguments<'_>) {
    // One write, so that lines of several processes do not mix. A console that is gone is no reason to stop.
    let _ = std::io::stdout().lock().write_all(format!("peerpods: {text}\n").as_bytes());
}

fn uptime_ms() -> i64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |now| now.tv_sec() * 1000 + now.tv_nsec() / 1_000_000)
}
