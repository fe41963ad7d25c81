//! The guest: one binary, three roles: init, agent, runner.
//!
//! | role | process | is |
//! |---|---|---|
//! | `init` | PID 1, single-threaded | makes a machine out of a kernel: mounts, modules, encrypted scratch disk; starts the agent; reaps; powers off |
//! | `agent` | its child, tokio | boot configuration, network, attested channel, Bind, containers |
//! | `runner` | the agent's children, single-threaded | libcontainer; one for each first process and each exec of a container |
//!
//! PID 1 is `init`; the others are named by the first argument. One binary, because it is nearly all of the initrd and two would
//! carry most code twice.
//!
//! **Static**, against glibc (`crt-static`): the initrd contains no loader and no library, and the same file runs in the namespaces
//! of another distribution's kernel. The price is that nothing may call `getaddrinfo`, `getpwnam` or `dlopen`, which would look for
//! glibc's plugins at run time: names are resolved by hickory, users are numbers. musl would not have that trap, but it is one
//! more target to install, and its allocator is known to be slow with threads, which image pulls and the channel use.
//!
//! **What leaves the machine by its console** is read by the host: fixed event names, numbers, and before Bind also log lines. From
//! Bind on log lines stop, because they may quote what a tenant sent; errors then travel inside the attested channel. `panic` prints
//! a place in the source, never its message.

mod agent;
mod boot;
mod console;
mod init;
mod scratch;
mod seccomp;
mod sev_guest;
mod upstream;

use std::process::ExitCode;

fn main() -> ExitCode {
    console::hide_panic_messages();
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next() {
        Some(role) if role == "agent" => agent::main(),
        Some(role) if role == "runner" => {
            let_writers_of_closed_pipes_end();
            peerpods_agent::runner::main(arguments, seccomp::load)
        }
        _ if std::process::id() == 1 => init::main(),
        _ => {
            eprintln!("peerpods-guest is PID 1 of a pod VM; its other roles are `agent` and `runner`");
            ExitCode::FAILURE
        }
    }
}

/// Rust ignores SIGPIPE, and a program inherits that: in `yes | head` the first would write for ever. A container starts as it does
/// with runc.
#[allow(unsafe_code, reason = "the disposition of a signal has no safe interface")]
fn let_writers_of_closed_pipes_end() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: the default disposition runs no code of ours, and this process has one thread.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
}
