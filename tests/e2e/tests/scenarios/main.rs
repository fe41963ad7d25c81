//! Every scenario on both containerds: on runc and on peer pods, the transcripts compared.
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

/// Scenarios told at once: on two cores more would only wait for each other.
const AT_ONCE: usize = 4;

/// The issue's own number.
const AT_LEAST: usize = 40;

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
    for version in Version::ALL {
        let chosen: VecDeque<Scenario> =
            all().into_iter().filter(|s| s.is_for(version) && title(version, s.name).contains(&filter)).collect();
        if chosen.is_empty() {
            continue;
        }
        let before = Leftovers::now().unwrap();
        let rig = Arc::new(Rig::start(&RigOptions::new(version, WorldOptions::new(Level::Sandbox))).unwrap());
        let outcomes = runtime.block_on(tell_all(&rig, version, chosen, is_runc_alone));
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
            Err(error) => failed.push((title(version, "the_rig_leaves_nothing"), format!("{error:#}"))),
        }
    }
    for (name, text) in &failed {
        println!("\n---- {name}\n{text}");
    }
    println!("\n{count} scenarios in {:.0} s", begin.elapsed().unwrap_or_default().as_secs_f64());
    println!("test result: {passed} passed; {} failed", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn title(version: Version, name: &str) -> String {
    format!("{}::{name}", version.name())
}

type Outcome = (String, Result<(), String>);

async fn tell_all(rig: &Arc<Rig>, version: Version, scenarios: VecDeque<Scenario>, is_runc_alone: bool) -> Vec<Outcome> {
    let waiting = Arc::new(Mutex::new(scenarios));
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    let mut workers = Vec::new();
    for _ in 0..AT_ONCE {
        let (rig, waiting, outcomes) = (Arc::clone(rig), Arc::clone(&waiting), Arc::clone(&outcomes));
        workers.push(tokio::spawn(async move {
            loop {
                let Some(scenario) = waiting.lock().unwrap().pop_front() else { return };
                let begin = SystemTime::now();
                let name = title(version, scenario.name);
                let told = {
                    let rig = Arc::clone(&rig);
                    tokio::spawn(async move {
                        if is_runc_alone {
                            let text = scenario.tell_on(&rig, Handler::Runc).await?;
                            println!("{text}");
                            Ok(())
                        } else {
                            scenario.compare(&rig).await
                        }
                    })
                };
                let outcome = told.await.unwrap_or_else(|error| Err(format!("the story panicked: {error}")));
                let word = if outcome.is_ok() { "ok" } else { "FAILED" };
                println!("test {name} ... {word} ({:.1} s)", begin.elapsed().unwrap_or_default().as_secs_f64());
                outcomes.lock().unwrap().push((name, outcome));
            }
        }));
    }
    for worker in workers {
        worker.await.unwrap();
    }
    std::mem::take(&mut *outcomes.lock().unwrap())
}
