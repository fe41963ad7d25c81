//! containerd-shim-peerpods-v2: containerd's task API over the agent of one pod VM.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Mutex;

use peerpods_shim::start::PeerShim;

/// containerd's name of the runtime.
const RUNTIME: &str = "io.containerd.peerpods.v2";

fn main() -> std::process::ExitCode {
    log_to_containerd();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{RUNTIME}: cannot start the runtime: {error}");
            return std::process::ExitCode::FAILURE;
        }
    };
    runtime.block_on(containerd_shim::asynchronous::run::<PeerShim>(RUNTIME, None));
    std::process::ExitCode::SUCCESS
}

/// containerd reads a FIFO called `log` in the bundle. Opened both ways it never blocks the shim: without a reader lines are lost.
fn log_to_containerd() {
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    if let Ok(log) = OpenOptions::new().read(true).write(true).custom_flags(nonblocking).open("log") {
        tracing_subscriber::fmt().with_writer(Mutex::new(log)).with_ansi(false).with_max_level(tracing::Level::INFO).init();
    }
}
