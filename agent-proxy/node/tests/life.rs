//! A sandbox's life against fakes: what each call does, alone and in the way of another.

mod support;

use std::time::{Duration, SystemTime};

use peerpods_node::call::CallError;
use support::{BRING_UP, Daemon, World, eventually, netns, new_sandbox};

#[tokio::test]
async fn create_start_stop_leaves_nothing() {
    let world = World::new();
    let daemon = Daemon::start(&world);
    let socket = daemon.create("s1").await.expect("recorded");
    assert_eq!(socket.to_str(), Some("/run/pods/s1/agent.ttrpc"));
    daemon.start_vm("s1").await.expect("ready");
    let file = world.file("s1");
    assert_eq!((&file["version"], &file["state"]["name"]), (&1.into(), &"ready".into()));
    let phases: Vec<&str> = file["phases"].as_array().expect("a list").iter().map(|p| p["phase"].as_str().expect("text")).collect();
    assert_eq!(phases, ["claim", "pod-vm-pending", "boot", "attest", "bind", "pod-network", "link", "total"]);
    daemon.stop("s1").await.expect("stopped");
    daemon.wait_until_clean().await;
    assert_eq!(world.state().released, ["node-1/default/web"]);
}

#[tokio::test]
async fn claiming_begins_with_create_and_does_not_wait_for_start() {
    let world = World::new();
    let daemon = Daemon::start(&world);
    daemon.create("s1").await.expect("recorded");
    world.reached("link.after").await;
    eventually("ready", || world.file("s1")["state"]["name"] == "ready").await;
}

#[tokio::test]
async fn create_is_idempotent_also_at_the_same_time() {
    let world = World::new();
    let daemon = Daemon::start(&world);
    let (a, b, c) = tokio::join!(daemon.create("s1"), daemon.create("s1"), daemon.create("s1"));
    let path = a.expect("recorded");
    assert_eq!((b.expect("the same"), c.expect("the same")), (path.clone(), path.clone()));
    daemon.start_vm("s1").await.expect("ready");
    assert_eq!(daemon.create("s1").await.expect("again"), path);
    assert_eq!(world.state().launched, 1);
    world.assert_no_faults();
}

#[tokio::test]
async fn missing_network_namespace_is_named_and_nothing_is_recorded() {
    let world = World::new();
    world.state().netns.clear();
    let daemon = Daemon::start(&world);
    let error = daemon.create("s1").await.expect_err("refused");
    assert!(error.to_string().contains("/run/netns/cni-1"), "{error}");
    assert!(world.files().is_empty());
    daemon.stop("s1").await.expect("also after a refused CreateVM");
    world.state().netns.insert(netns());
    daemon.create("s1").await.expect("the refusal is not remembered");
}

#[tokio::test]
async fn host_network_pod_has_no_pod_network() {
    let world = World::new();
    let daemon = Daemon::start(&world);
    let mut new = new_sandbox("s1");
    new.netns = None;
    daemon.registry.create(new).await.expect("recorded");
    daemon.start_vm("s1").await.expect("ready");
    assert!(world.state().wired.is_empty());
    let bound: serde_json::Value = serde_json::from_slice(world.state().pod_vms["i-1"].bound.as_ref().expect("bound")).expect("JSON");
    assert_eq!(bound["network"], serde_json::Value::Null);
}

#[tokio::test]
async fn three_stops_within_85_ms_are_answered_and_one_release_is_sent() {
    let world = World::new();
    let daemon = Daemon::start(&world);
    daemon.create("s1").await.expect("recorded");
    daemon.start_vm("s1").await.expect("ready");
    world.block("link-stop.before");
    let began = SystemTime::now();
    for _ in 0..3 {
        daemon.stop("s1").await.expect("stopped");
    }
    let took = began.elapsed().expect("forwards");
    assert!(took < Duration::from_millis(85), "{took:?}");
    assert_eq!(world.file("s1")["state"]["name"], "stopping", "on disk, although nothing is removed yet");
    world.unblock();
    daemon.wait_until_clean().await;
    assert_eq!(world.state().released.len(), 1);
    daemon.stop("s1").await.expect("and later");
    daemon.stop("unknown").await.expect("and for an unknown one");
}

#[tokio::test]
async fn stop_during_create_keeps_it_from_being_recorded() {
    let world = World::new();
    let daemon = Daemon::start(&world);
    world.block("inspect");
    let create = daemon.create("s1");
    let stop = async {
        world.reached("inspect").await;
        daemon.stop("s1").await.expect("stopped");
        world.unblock();
    };
    let (created, ()) = tokio::join!(create, stop);
    assert!(matches!(created, Err(CallError::Stopped(_))), "{created:?}");
    assert!(matches!(daemon.create("s1").await, Err(CallError::Stopped(_))), "a late CreateVM does not bring it back");
    world.assert_clean();
    assert_eq!(world.state().launched, 0);
}

#[tokio::test]
async fn shim_that_hangs_up_during_create_does_not_stop_it() {
    let world = World::new();
    let daemon = Daemon::start(&world);
    world.block("inspect");
    tokio::select! {
        _ = daemon.create("s1") => panic!("blocked"),
        () = world.reached("inspect") => {}
    }
    world.unblock();
    daemon.create("s1").await.expect("joins what the first call began");
    daemon.start_vm("s1").await.expect("ready");
    assert_eq!(world.state().launched, 1);
}

#[tokio::test]
async fn stop_at_every_step_of_bring_up_ends_start_and_leaves_nothing() {
    for point in BRING_UP {
        let world = World::new();
        let daemon = Daemon::start(&world);
        world.block(point);
        daemon.create("s1").await.expect("recorded");
        let stop = async {
            world.reached(point).await;
            daemon.stop("s1").await.expect("stopped");
            world.unblock();
        };
        let (started, ()) = tokio::join!(daemon.start_vm("s1"), stop);
        assert!(matches!(started, Err(CallError::Stopped(_))), "{point}: {started:?}");
        daemon.wait_until_clean().await;
    }
}

#[tokio::test]
async fn start_of_a_sandbox_that_is_not_there_says_what_to_do() {
    let daemon = Daemon::start(&World::new());
    let error = daemon.start_vm("s1").await.expect_err("unknown");
    assert!(error.to_string().contains("CreateVM"), "{error}");
}

#[tokio::test]
async fn failed_claim_is_told_by_start_and_released_before_stop() {
    let world = World::new();
    world.state().claim_failure = Some("quota of 4 vCPUs is used up".to_owned());
    let daemon = Daemon::start(&world);
    daemon.create("s1").await.expect("recorded");
    for _ in 0..2 {
        let text = daemon.start_vm("s1").await.expect_err("failed").to_string();
        assert!(text.contains("claim a pod VM (launch)") && text.contains("quota of 4 vCPUs") && text.contains("next:"), "{text}");
    }
    eventually("released", || world.state().claims.is_empty()).await;
    daemon.stop("s1").await.expect("stopped");
    daemon.wait_until_clean().await;
    assert_eq!(world.state().released.len(), 1);
}

#[tokio::test]
async fn pod_vm_that_never_answers_fails_the_sandbox_with_step_cause_and_advice() {
    let world = World::new();
    world.state().bind_failure = Some("connection refused");
    let daemon = Daemon::start(&world);
    daemon.create("s1").await.expect("recorded");
    let text = daemon.start_vm("s1").await.expect_err("failed").to_string();
    assert!(text.contains("cannot reach the pod VM: connection refused; next: look"), "{text}");
    assert_eq!(world.file("s1")["state"]["instance_id"], "i-1");
}

#[tokio::test(start_paused = true)]
async fn start_that_takes_too_long_tells_state_and_trouble() {
    let world = World::new();
    world.state().is_claim_held = true;
    let daemon = Daemon::start(&world);
    daemon.create("s1").await.expect("recorded");
    let text = daemon.start_vm("s1").await.expect_err("too long").to_string();
    assert!(text.contains("not ready after 20 s: the controller has not given a pod VM yet, the controller says: launching"), "{text}");
    world.assign("node-1/default/web", 1);
    daemon.start_vm("s1").await.expect("it went on");
}

#[tokio::test(start_paused = true)]
async fn controller_that_is_away_is_asked_again_on_the_way_up_and_down() {
    let world = World::new();
    world.state().unavailable = 5;
    let daemon = Daemon::start(&world);
    daemon.create("s1").await.expect("recorded");
    daemon.start_vm("s1").await.expect("ready");
    world.state().unavailable = 7;
    daemon.stop("s1").await.expect("answered although the controller is away");
    daemon.wait_until_clean().await;
}

#[tokio::test]
async fn claim_left_by_a_lost_record_is_released_first() {
    let world = World::new();
    let daemon = Daemon::start(&world);
    daemon.create("s1").await.expect("recorded");
    daemon.start_vm("s1").await.expect("ready");
    let world = daemon.kill().await;
    std::fs::remove_file(world.folder.path().join("sandboxes/s1.json")).expect("removed");
    world.state().wired.clear();
    let daemon = Daemon::start(&world);
    let mut new = new_sandbox("s2");
    new.request.vcpus = 4.0;
    daemon.registry.create(new).await.expect("recorded");
    daemon.start_vm("s2").await.expect("ready with a new pod VM");
    assert_eq!(world.state().pod_vms.keys().collect::<Vec<_>>(), ["i-2"]);
    world.assert_no_faults();
}

#[tokio::test(start_paused = true)]
async fn sandbox_without_namespace_and_shim_is_found_dead_and_one_with_either_is_not() {
    let world = World::new();
    let daemon = Daemon::start(&world);
    daemon.create("s1").await.expect("recorded");
    daemon.start_vm("s1").await.expect("ready");
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(world.files(), ["s1.json"], "the namespace is there");
    world.state().links.insert("s1".to_owned(), 1);
    world.state().netns.clear();
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(world.files(), ["s1.json"], "a shim is connected");
    world.state().links.insert("s1".to_owned(), 0);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(world.files(), ["s1.json"], "not dead for 30 s");
    tokio::time::sleep(Duration::from_secs(60)).await;
    daemon.wait_until_clean().await;
}

#[tokio::test(start_paused = true)]
async fn link_that_died_is_started_again() {
    let world = World::new();
    let daemon = Daemon::start(&world);
    daemon.create("s1").await.expect("recorded");
    daemon.start_vm("s1").await.expect("ready");
    world.state().links.clear();
    eventually("a new link", || world.state().links_started == 2).await;
}
