//! The daemon is killed at every step and started again on the same folder.

mod support;

use support::{BRING_UP, Daemon, World, eventually};

const TAKE_DOWN: [&str; 8] = [
    "link-stop.before",
    "link-stop.after",
    "network-remove.before",
    "network-remove.after",
    "release.before",
    "release.after",
    "folder.before",
    "folder.after",
];

#[tokio::test]
async fn killed_at_any_step_of_bring_up_the_next_daemon_makes_it_ready_with_the_same_pod_vm() {
    for point in BRING_UP {
        let world = World::new();
        let daemon = Daemon::start(&world);
        world.block(point);
        daemon.create("s1").await.expect("recorded");
        world.reached(point).await;
        let world = daemon.kill().await;
        world.unblock();
        let daemon = Daemon::start(&world);
        daemon.start_vm("s1").await.unwrap_or_else(|error| panic!("{point}: {error}"));
        {
            let state = world.state();
            assert_eq!((state.launched, state.pod_vms.len(), state.links_started), (1, 1, 1), "{point}");
            assert!(state.released.is_empty(), "{point}");
        }
        world.assert_no_faults();
        daemon.stop("s1").await.expect("stopped");
        daemon.wait_until_clean().await;
    }
}

#[tokio::test]
async fn killed_again_and_again_it_still_converges() {
    let world = World::new();
    let mut daemon = Daemon::start(&world);
    daemon.create("s1").await.expect("recorded");
    for point in BRING_UP {
        world.unblock();
        world.block(point);
        let world = daemon.kill().await;
        daemon = Daemon::start(&world);
        world.reached(point).await;
    }
    world.unblock();
    daemon.start_vm("s1").await.expect("ready");
    assert_eq!(world.state().launched, 1);
    world.assert_no_faults();
}

#[tokio::test]
async fn killed_at_any_step_of_take_down_the_next_daemon_finishes_it() {
    for point in TAKE_DOWN {
        let world = World::new();
        let daemon = Daemon::start(&world);
        daemon.create("s1").await.expect("recorded");
        daemon.start_vm("s1").await.expect("ready");
        world.block(point);
        daemon.stop("s1").await.expect("stopped");
        world.reached(point).await;
        let world = daemon.kill().await;
        world.unblock();
        let daemon = Daemon::start(&world);
        daemon.wait_until_clean().await;
        assert_eq!(world.state().launched, 1, "{point}");
    }
}

#[tokio::test]
async fn killed_right_after_stop_was_answered_the_stop_holds() {
    for point in BRING_UP {
        let world = World::new();
        let daemon = Daemon::start(&world);
        world.block(point);
        daemon.create("s1").await.expect("recorded");
        world.reached(point).await;
        daemon.stop("s1").await.expect("stopped");
        let world = daemon.kill().await;
        world.unblock();
        let daemon = Daemon::start(&world);
        daemon.wait_until_clean().await;
    }
}

#[tokio::test]
async fn ready_sandboxes_are_left_alone_and_can_be_stopped_by_the_next_daemon() {
    let world = World::new();
    let daemon = Daemon::start(&world);
    daemon.create("s1").await.expect("recorded");
    daemon.start_vm("s1").await.expect("ready");
    let before = world.file("s1");
    let world = daemon.kill().await;
    let daemon = Daemon::start(&world);
    daemon.start_vm("s1").await.expect("still ready");
    assert_eq!(daemon.create("s1").await.expect("known").to_str(), Some("/run/pods/s1/agent.ttrpc"));
    assert_eq!(world.file("s1"), before);
    {
        let state = world.state();
        assert_eq!((state.launched, state.links_started), (1, 1));
    }
    daemon.stop("s1").await.expect("stopped");
    daemon.wait_until_clean().await;
}

#[tokio::test]
async fn failed_sandbox_still_tells_why_after_a_restart() {
    let world = World::new();
    world.state().claim_failure = Some("no capacity".to_owned());
    let daemon = Daemon::start(&world);
    daemon.create("s1").await.expect("recorded");
    let text = daemon.start_vm("s1").await.expect_err("failed").to_string();
    let world = daemon.kill().await;
    let daemon = Daemon::start(&world);
    assert_eq!(daemon.start_vm("s1").await.expect_err("failed").to_string(), text);
    eventually("released", || world.state().claims.is_empty()).await;
}

#[tokio::test]
async fn vxlan_numbers_are_unique_across_restarts() {
    let world = World::new();
    let daemon = Daemon::start(&world);
    for id in ["s1", "s2"] {
        daemon.registry.create(other_pod(id)).await.expect("recorded");
    }
    let world = daemon.kill().await;
    let daemon = Daemon::start(&world);
    for id in ["s3", "s4"] {
        daemon.registry.create(other_pod(id)).await.expect("recorded");
    }
    let mut numbers: Vec<u64> = ["s1", "s2", "s3", "s4"].map(|id| world.file(id)["vni"].as_u64().expect("a number")).into();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 4);
}

fn other_pod(id: &str) -> peerpods_node::call::NewSandbox {
    let mut new = support::new_sandbox(id);
    new.pod = peerpods_controller_api::PodRef::new("default", id, None).expect("valid");
    new.netns = None;
    new
}
