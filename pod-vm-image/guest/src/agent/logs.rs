//! Log lines, until Bind.
//!
//! The console is the host's. Until a tenant has said anything, log lines there help the operator; from [`hush`] on they may quote a
//! tenant and are dropped. In a sandbox, which protects nothing, they go on.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::boot::Level;

static IS_HUSHED: AtomicBool = AtomicBool::new(false);

/// Sends log lines to the console.
pub(super) fn start() {
    let filter = EnvFilter::new("info");
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).without_time().with_writer(Console).init();
}

/// Ends log lines for this process's life.
pub(super) fn hush() {
    if Level::detect() == Level::Machine {
        IS_HUSHED.store(true, Ordering::Relaxed);
    }
}

struct Console;

impl<'a> MakeWriter<'a> for Console {
    type Writer = Box<dyn io::Write>;

    fn make_writer(&'a self) -> Self::Writer {
        if IS_HUSHED.load(Ordering::Relaxed) { Box::new(io::sink()) } else { Box::new(io::stdout()) }
    }
}
