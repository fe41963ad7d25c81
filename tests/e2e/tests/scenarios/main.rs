//! Every scenario on both containerds: on runc and on peer pods, the transcripts compared. A few of them in pod VMs of QEMU too.
//!
//! `cargo test --test scenarios -- [--runc] [FILTER]`; `--runc` tells them on runc alone, for who writes one.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod files;
mod images;
mod lifecycle;
mod output;
mod process;
mod sharing;
mod sight;
mod streams;
mod users;

use std::collections::VecDeque;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use peerpods_e2e::{Handler, Leftovers, Level, Rig, RigOptions, Scenario, Version, WorldOptions, eventually};
use tokio::task::JoinSet;

/// Scenarios told at once: on two cores more would only wait for each other.
const AT_ONCE: usize = 4;

/// The issue's own number.
const AT_LEAST: usize = 40;

/// Scenarios told in real pod VMs: one for each way that something reaches a container.
const CORE: [&str; 7] = [
    "exit_codes_and_reasons_are_told",
    "an_image_says_user_command_folder_and_variables",
    "a_config_map_is_read_and_its_update_seen",
    "a_terminal_of_exec_has_the_size_it_is_given",
    "the_pods_address_answers_and_it_reaches_others",
    "port_forward_reaches_a_port_of_the_pod",
    "a_container_that_heeds_sigterm_ends_by_itself",
];

/// A rig and the scenarios told on it.
struct Stage {
    name: &'static str,
    version: Version,
    level: Level,
    at_once: usize,
}

const STAGES: [Stage; 3] = [
    Stage { name: "1.7", version: Version::V1, level: Level::Sandbox, at_once: AT_ONCE },
    Stage { name: "2", version: Version::V2, level: Level::Sandbox, at_once: AT_ONCE },
    // Without KVM each pod VM keeps a core busy while it boots.
    Stage { name: "qemu", version: Version::V2, level: Level::Qemu, at_once: 1 },
];

impl Stage {
    fn options(&self) -> RigOptions {
        let mut options = RigOptions::new(self.version, WorldOptions::new(self.level));
        options.is_dual_stack = self.version == Version::V2;
        options
    }

    fn chosen(&self, filter: &str) -> VecDeque<Scenario> {
        let is_here = |s: &Scenario| s.is_for(self.version) && (self.level == Level::Sandbox || CORE.contains(&s.name));
        all().into_iter().filter(|s| is_here(s) && self.title(s.name).contains(filter)).collect()
    }

    fn title(&self, name: &str) -> String {
        format!("{}::{name}", self.name)
    }
}

fn all() -> Vec<Scenario> {
    let files = [
        output::scenarios(),
        process::scenarios(),
        users::scenarios(),
        files::scenarios(),
        sharing::scenarios(),
        sight::scenarios(),
        lifecycle::scenarios(),
        streams::scenarios(),
        images::scenarios(),
    ];
    files.into_iter().flatten().collect()
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let is_runc_alone = args.iter().any(|arg| arg == "--runc");
    let filter = args.iter().find(|arg| !arg.starts_with('-')).cloned().unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let begin = SystemTime::now();
    let count = all().len();
    assert!(count >= AT_LEAST, "{count} scenarios are too few");
    let (mut passed, mut failed) = (0, Vec::new());
    for stage in &STAGES {
        let chosen = stage.chosen(&filter);
        if chosen.is_empty() {
            continue;
        }
        let before = Leftovers::now().unwrap();
        let rig = Arc::new(Rig::start(&stage.options()).unwrap());
        let outcomes = runtime.block_on(tell_all(&rig, stage, chosen, is_runc_alone));
        for (name, outcome) in outcomes {
            match outcome {
                Ok(()) => passed += 1,
                Err(text) => failed.push((name, text)),
            }
        }
        if !failed.is_empty() {
            println!("{}", rig.logs());
        }
        // Tasks of streams that a story left open hold the rig for a moment.
        let rig = eventually("nobody holds the rig", Duration::from_secs(10), || {
            anyhow::ensure!(Arc::strong_count(&rig) == 1, "{} do", Arc::strong_count(&rig));
            Ok(())
        })
        .map(|()| rig);
        drop(rig);
        let left = eventually("the rig leaves nothing", Duration::from_secs(20), || {
            let left = Leftovers::now()?.since(&before);
            anyhow::ensure!(left.is_empty(), "{left}");
            Ok(())
        });
        match left {
            Ok(()) => passed += 1,
            Err(error) => failed.push((stage.title("the_rig_leaves_nothing"), format!("{error:#}"))),
        }
    }
    for (name, text) in &failed {
        println!("\n---- {name}\n{text}");
    }
    println!("\n{count} scenarios in {:.0} s", begin.elapsed().unwrap_or_default().as_secs_f64());
    println!("test result: {passed} passed; {} failed", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

type Outcome = (String, Result<(), String>);

async fn tell_all(rig: &Arc<Rig>, stage: &'static Stage, scenarios: VecDeque<Scenario>, is_runc_alone: bool) -> Vec<Outcome> {
    let waiting = Arc::new(Mutex::new(scenarios));
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    let mut workers = Vec::new();
    for _ in 0..stage.at_once {
        let (rig, waiting, outcomes) = (Arc::clone(rig), Arc::clone(&waiting), Arc::clone(&outcomes));
        workers.push(tokio::spawn(async move {
            loop {
                let Some(scenario) = waiting.lock().unwrap().pop_front() else { return };
                let begin = SystemTime::now();
                let name = stage.title(scenario.name);
                // A task of its own, so that a story that panics is one story; a set, so that it ends with this one.
                let (mut told, rig) = (JoinSet::new(), Arc::clone(&rig));
                told.spawn(async move {
                    if is_runc_alone {
                        println!("{}", scenario.tell_on(&rig, Handler::Runc).await?);
                        Ok(())
                    } else {
                        scenario.compare(&rig).await
                    }
                });
                let outcome = told.join_next().await.unwrap().unwrap_or_else(|error| Err(format!("the story panicked: {error}")));
                let word = if outcome.is_ok() { "ok" } else { "FAILED" };
                println!("test {name} ... {word} ({:.1} s)", begin.elapsed().unwrap_or_default().as_secs_f64());
                outcomes.lock().unwrap().push((name, outcome));
            }
        }));
    }
    let all = async {
        for worker in &mut workers {
            worker.await.unwrap();
        }
    };
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
    let is_over = tokio::select! {
        () = all => true,
        _ = terminated.recv() => false,
        _ = tokio::signal::ctrl_c() => false,
    };
    if !is_over {
        // Dropping the rig ends everything that the scenarios made.
        workers.iter().for_each(tokio::task::JoinHandle::abort);
        outcomes.lock().unwrap().push((stage.title("told_to_its_end"), Err("interrupted".to_owned())));
    }
    std::mem::take(&mut *outcomes.lock().unwrap())
}
