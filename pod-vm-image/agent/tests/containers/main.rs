//! The agent with real containers: every test drives it over ttrpc as a shim does.
//!
//! The program is its own runner. It needs root, and busybox at `/usr/bin/busybox` for the root filesystems. Tests run one after
//! the other in a mount namespace of the program's own, with a fresh `/run`.

mod confinement;
mod lifecycle;
mod limits;
mod policy;
mod processes;
mod recorded;
#[path = "../../../guest/src/seccomp.rs"]
mod seccomp;
mod volumes;
mod world;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

type Test = fn() -> futures::future::BoxFuture<'static, Result<()>>;

/// Lists tests by the names of their functions.
macro_rules! tests {
    ($($module:ident::$name:ident),* $(,)?) => {
        &[$((concat!(stringify!($module), "::", stringify!($name)), || Box::pin($module::$name()))),*]
    };
}

const TESTS: &[(&str, Test)] = tests![
    lifecycle::pod_runs_from_sandbox_to_destruction,
    lifecycle::failed_creations_leave_nothing,
    lifecycle::creation_is_undone_when_its_client_gives_up,
    lifecycle::removal_meets_a_creation,
    lifecycle::containers_outlive_a_connection,
    lifecycle::methods_that_are_not_served_say_so,
    lifecycle::containers_die_with_their_agent,
    lifecycle::pod_runs_with_cgroup_v2,
    processes::all_output_arrives_before_its_end,
    processes::output_ends_though_a_child_keeps_the_pipe,
    processes::exec_reads_its_input_to_the_end,
    processes::execs_report_codes_and_missing_programs,
    processes::waits_run_in_parallel,
    processes::terminal_has_the_size_it_was_given,
    processes::signals_reach_their_process,
    processes::containers_share_what_the_pod_shares,
    processes::users_and_capabilities_are_as_asked,
    confinement::seccomp_profiles_hold_for_all_processes,
    confinement::profiles_that_cannot_be_applied_are_refused,
    confinement::capabilities_are_exactly_those_asked_for,
    confinement::processes_begin_as_with_runc,
    confinement::programs_that_cannot_run_are_told_as_by_runc,
    policy::policy_is_asked_before_anything_happens,
    policy::refused_duplicates_are_not_remembered,
    policy::policy_that_cannot_be_asked_about_output_is_an_error,
    limits::memory_limit_ends_in_an_oom_event,
    limits::statistics_and_updates_are_the_cgroups,
    limits::paused_containers_stand_still,
    volumes::copied_files_appear_and_change,
    volumes::volumes_are_shared_and_last,
    volumes::termination_message_is_told,
    volumes::bind_mounts_are_not_called_otherwise,
    volumes::mounts_from_elsewhere_are_refused,
    recorded::recorded_requests_are_accepted,
];

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).peekable();
    if args.next_if(|arg| arg == "runner").is_some() {
        return peerpods_agent::runner::main(args, seccomp::load);
    }
    let args: Vec<String> = args.map(OsString::into_string).filter_map(Result::ok).collect();
    if args.iter().any(|arg| arg == "--list") {
        TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: containers need root");
        return ExitCode::SUCCESS;
    }
    if let Err(error) = isolate() {
        println!("cannot make a mount namespace: {error:#}");
        return ExitCode::FAILURE;
    }
    if args.first().is_some_and(|arg| arg == lifecycle::ABANDON) {
        let left = run(|| Box::pin(lifecycle::abandon()));
        println!("not abandoned: {left:?}");
        return ExitCode::FAILURE;
    }
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let mut failed = Vec::new();
    let mut passed = 0;
    for (name, test) in TESTS.iter().filter(|(name, _)| filters.is_empty() || filters.iter().any(|filter| name.contains(*filter))) {
        let began = std::time::SystemTime::now();
        let result = run(*test);
        let millis = began.elapsed().unwrap_or_default().as_millis();
        match result {
            Ok(()) => {
                passed += 1;
                println!("test {name} ... ok ({millis} ms)");
            }
            Err(error) => {
                println!("test {name} ... FAILED ({millis} ms)\n    {error:#}");
                failed.push(name);
            }
        }
    }
    println!("\ntest result: {passed} passed; {} failed", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A mount namespace of our own whose changes nobody sees.
fn isolate() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("unshare")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>).context("making / private")
}

/// Each test finds an empty `/run`, whatever an earlier one has left.
fn run(test: Test) -> Result<()> {
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).context("mounting /run")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async { tokio::time::timeout(world::TEST_DEADLINE, tokio::spawn(test())).await.context("the test takes too long")?? })
}
