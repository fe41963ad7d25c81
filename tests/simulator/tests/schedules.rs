//! As many schedules as fit into every run; `cargo xtask soak` runs fifty times as many.

use std::time::Duration;

use peerpods_simulator::{Report, burst, run, run_killed_at};

const SCHEDULES: u64 = 2000;
/// How often the engine is polled in the schedules that are killed at every poll, at most.
const POLLS: u64 = 600;

#[test]
fn no_schedule_leaks_doubles_or_steals() {
    let mut all = Report::default();
    for seed in 0..SCHEDULES {
        match run(seed) {
            Ok(report) => all.add(&report),
            Err(error) => panic!("{error:#}; `peerpods-simulator --seed {seed} --schedules 1` replays it"),
        }
    }
    println!("{all}");
    // Schedules in which nothing happens would prove nothing.
    assert!(all.kills > SCHEDULES / 2 && all.instances > SCHEDULES && all.faults.len() >= 8, "{all}");
    assert!(["assigned", "failed", "pending"].iter().all(|state| all.states.contains(state)), "{all}");
}

#[test]
fn same_seed_gives_the_same_schedule() {
    for seed in 0..20 {
        let (one, other) = (run(seed), run(seed));
        assert_eq!(format!("{:?}", one.ok()), format!("{:?}", other.ok()), "seed {seed}");
    }
}

#[test]
fn an_engine_may_be_dropped_at_every_poll() {
    for seed in [3, 11] {
        let mut reached = 0;
        for poll in 0..POLLS {
            match run_killed_at(seed, poll) {
                Ok(report) if report.kills == 0 => break,
                Ok(_) => reached = poll,
                Err(error) => panic!("{error:#}"),
            }
        }
        println!("seed {seed}: dropped at every poll up to {reached}");
        assert!(reached > 100, "seed {seed} ends at poll {reached}");
    }
}

#[test]
fn a_burst_keeps_to_the_limits_of_the_cloud() {
    let burst = burst(1000).expect("ends");
    println!("{burst:?}");
    assert!(burst.accepted <= Duration::from_secs(15) && burst.calls["launch"] <= 20, "{burst:?}");
    assert!(burst.throttled == 0 && burst.failed == 0, "{burst:?}");
    assert!(burst.calls["read"] <= 1000, "one read for each pod VM at most: {burst:?}");
}
