//! Runs the tests one after the other, as the standard harness would with one thread.

use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use crate::{crashes, measured, microvm, sandbox};

type Case = (&'static str, fn());

const CASES: [Case; 18] = [
    ("sandbox_machine_has_its_own_world_and_is_deleted_without_trace", sandbox::machine_has_its_own_world_and_is_deleted_without_trace),
    ("sandbox_machine_outlives_its_provider_and_is_found_by_another", sandbox::machine_outlives_its_provider_and_is_found_by_another),
    (
        "sandbox_machine_that_ends_by_itself_is_stopped_with_its_last_words",
        sandbox::machine_that_ends_by_itself_is_stopped_with_its_last_words,
    ),
    ("sandbox_machines_reach_the_host_and_not_each_other", sandbox::machines_reach_the_host_and_not_each_other),
    ("sandbox_provider_conforms", sandbox::provider_conforms),
    ("launch_refuses_what_local_machines_do_not_have", sandbox::launch_refuses_what_local_machines_do_not_have),
    ("foreign_link_of_the_bridges_name_is_left_alone", sandbox::foreign_link_of_the_bridges_name_is_left_alone),
    ("concurrent_launches_and_deletes_leave_nothing", sandbox::concurrent_launches_and_deletes_leave_nothing),
    ("sandbox_launch_survives_a_crash_after_every_step", crashes::sandbox_launch_survives_a_crash_after_every_step),
    ("sandbox_delete_survives_a_crash_after_every_step", crashes::sandbox_delete_survives_a_crash_after_every_step),
    ("microvm_boots_and_is_deleted_without_trace", microvm::boots_and_is_deleted_without_trace),
    ("microvm_launch_survives_a_crash_after_every_step", crashes::microvm_launch_survives_a_crash_after_every_step),
    ("microvm_with_a_bogus_kernel_fails_with_qemus_own_words", microvm::with_a_bogus_kernel_fails_with_qemus_own_words),
    ("measured_machine_has_a_tpm_that_goes_with_it", measured::machine_has_a_tpm_that_goes_with_it),
    ("measured_launch_survives_crashes_while_its_tpm_is_made", measured::launch_survives_crashes_while_its_tpm_is_made),
    (
        "first_process_of_a_namespace_does_nothing_without_its_parent",
        measured::first_process_of_a_namespace_does_nothing_without_its_parent,
    ),
    ("measured_making_a_tpm_ends_with_the_program", measured::making_a_tpm_ends_with_the_program),
    ("measured_settings_without_firmware_are_refused", measured::settings_without_firmware_are_refused),
];

/// Runs those whose name contains one of the arguments, or all.
pub(crate) fn run(args: &[OsString]) -> ExitCode {
    let args: Vec<String> = args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    if !nix::unistd::geteuid().is_root() {
        println!("no machine was tested: making machines needs root");
        return ExitCode::SUCCESS;
    }
    let (mut passed, mut failed) = (0, 0);
    for (name, case) in CASES {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
            continue;
        }
        if args.iter().any(|arg| arg == "--list") {
            println!("{name}: test");
            continue;
        }
        let begin = std::time::Instant::now();
        let is_ok = catch_unwind(AssertUnwindSafe(case)).is_ok();
        println!("test {name} ... {} ({:.2?})", if is_ok { "ok" } else { "FAILED" }, begin.elapsed());
        *(if is_ok { &mut passed } else { &mut failed }) += 1;
    }
    println!("\ntest result: {passed} passed; {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
