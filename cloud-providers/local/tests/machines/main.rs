//! Real machines of both levels, each test in a network namespace of its own.
//!
//! No test harness, because the program must also be the machine helper, the stand-in guest, and a provider that dies half way.

mod cases;
mod crashes;
mod guest;
mod kernel;
mod measured;
mod microvm;
mod sandbox;
mod world;

use std::ffi::OsString;
use std::process::ExitCode;

use peerpods_cloud_local::{MACHINE_HELPER, machine_helper_main};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    match args.as_slice() {
        [init, ..] if init == "/init" => guest::main(),
        [child, ..] if child == guest::CHILD => guest::wait_for_ever(),
        [_, role, rest @ ..] if role == MACHINE_HELPER => machine_helper_main(rest.to_vec()),
        [_, role, state_dir, level, step, operation] if role == crashes::ROLE => crashes::die_after(state_dir, level, step, operation),
        [_, rest @ ..] => cases::run(rest),
        [] => ExitCode::FAILURE,
    }
}
