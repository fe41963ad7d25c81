//! The upstream profile, with small programs in the place of upstream's: the guest as PID 1 of namespaces, bound as a node does it.
//!
//! This program is also the four stand-ins, which must come to be without a test harness; it knows them by its name. It needs root.

mod ends;
mod serves;
mod stand_in;
mod world;

use std::ffi::OsString;
use std::panic::catch_unwind;
use std::process::ExitCode;

/// Lists tests by the names of their functions.
macro_rules! tests {
    ($($module:ident::$name:ident),* $(,)?) => {
        &[$((concat!(stringify!($module), "::", stringify!($name)), $module::$name)),*]
    };
}

const TESTS: &[(&str, fn())] = tests![
    serves::programs_are_started_in_order_with_upstreams_sockets_and_files,
    serves::requests_reach_katas_agent_with_the_pods_network,
    serves::resources_reach_the_pod_and_nobody_else,
    ends::missing_program_ends_the_machine_before_it_is_bound,
    ends::marker_of_another_release_is_refused,
    ends::program_that_does_not_answer_is_named_and_nothing_is_left,
    ends::program_that_exits_at_once_is_named_with_its_code,
    ends::agent_without_policy_is_refused,
    ends::disk_with_initdata_does_not_replace_what_was_measured,
    ends::program_that_dies_ends_the_machine_and_is_named,
    ends::destroyed_sandbox_ends_the_machine,
];

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let program = args.next().unwrap_or_default();
    let args: Vec<String> = args.map(OsString::into_string).filter_map(Result::ok).collect();
    if let Some(result) = stand_in::main(&program, &args) {
        return result;
    }
    if args.iter().any(|arg| arg == "--list") {
        TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: namespaces need root");
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let is_wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(*filter));
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in TESTS.iter().filter(|(name, _)| is_wanted(name)) {
        if catch_unwind(*test).is_ok() {
            passed += 1;
            println!("test {name} ... ok");
        } else {
            failed += 1;
            println!("test {name} ... FAILED");
        }
    }
    println!("\ntest result: {passed} passed; {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
