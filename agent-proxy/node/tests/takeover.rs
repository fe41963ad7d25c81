//! A kubelet's second try of a pod gets the pod VM of the first one, if that one was never bound; and nobody's release hits another's VM.

mod support;

use std::time::Duration;

use peerpods_node::call::{CallError, NewSandbox};
use support::{Daemon, World, eventually, netns, new_sandbox};

const OFFER: Duration = Duration::from_secs(3600);

/// Sandbox `s2`, as the kubelet's next try of the same pod.
fn in_second_netns(world: &World) -> NewSandbox {
    let mut new = new_sandbox("s2");
    new.netns = Some("/run/netns/cni-2".into());
    world.state().netns.extend(new.netns.clone());
    new
}

#[tokio::test]
async fn second_try_gets_the_pod_vm_that_is_coming() {
    let world = World::new();
    let daemon = Daemon::start_with(&world, OFFER);
    world.block("bind.before");
    daemon.create("s1").await.expect("recorded");
    world.reached("bind.before").await;
    daemon.stop("s1").await.expect("stopped");
    daemon.create("s2").await.expect("recorded");
    eventually("the first one is gone", || world.files() == ["s2.json"]).await;
    world.unblock();
    daemon.start_vm("s2").await.expect("ready");
    {
        let state = world.state();
        assert_eq!((state.launched, state.released.len()), (1, 0));
    }
    assert_eq!(world.file("s2")["state"]["instance_id"], "i-1");
    daemon.stop("s2").await.expect("stopped");
    daemon.wait_until_clean().await;
    assert_eq!(world.state().released, ["node-1/default/web"]);
}

#[tokio::test]
async fn pod_vm_that_may_be_bound_is_never_handed_over() {
    for point in ["bind.attested", "bind.after", "network.before", "link.after"] {
        let world = World::new();
        let daemon = Daemon::start_with(&world, OFFER);
        world.block(point);
        daemon.create("s1").await.expect("recorded");
        world.reached(point).await;
        world.block("link-stop.before");
        daemon.stop("s1").await.expect("stopped");
        world.reached("link-stop.before").await;
        daemon.registry.create(in_second_netns(&world)).await.expect("recorded");
        assert_eq!(world.file("s2")["claim_key"], "node-1/default/web/s2");
        world.unblock();
        daemon.start_vm("s2").await.expect("ready");
        eventually("the first one is gone", || world.files() == ["s2.json"]).await;
        {
            let state = world.state();
            assert_eq!(state.released, ["node-1/default/web"], "{point}");
            assert_eq!(state.pod_vms.keys().collect::<Vec<_>>(), ["i-2"], "{point}");
        }
        world.assert_no_faults();
    }
}

#[tokio::test]
async fn sandbox_that_is_alive_keeps_its_claim() {
    let world = World::new();
    let daemon = Daemon::start_with(&world, OFFER);
    world.block("bind.before");
    daemon.create("s1").await.expect("recorded");
    world.reached("bind.before").await;
    daemon.create("s2").await.expect("recorded");
    assert_eq!(world.file("s2")["claim_key"], "node-1/default/web/s2");
    assert_eq!(world.file("s1")["claim_key"], "node-1/default/web");
}

#[tokio::test]
async fn dead_sandbox_gives_its_claim_up_and_its_start_says_so() {
    let world = World::new();
    let daemon = Daemon::start_with(&world, OFFER);
    world.block("bind.before");
    daemon.create("s1").await.expect("recorded");
    world.reached("bind.before").await;
    world.state().netns.remove(&netns());
    let create = async {
        daemon.registry.create(in_second_netns(&world)).await.expect("recorded");
        world.unblock();
    };
    let (started, ()) = tokio::join!(daemon.start_vm("s1"), create);
    assert!(matches!(started, Err(CallError::Stopped(_))), "{started:?}");
    daemon.start_vm("s2").await.expect("ready");
    let state = world.state();
    assert_eq!((state.launched, state.released.len()), (1, 0));
}

#[tokio::test]
async fn other_sizes_get_a_claim_of_their_own() {
    let world = World::new();
    let daemon = Daemon::start_with(&world, OFFER);
    world.block("bind.before");
    daemon.create("s1").await.expect("recorded");
    world.reached("bind.before").await;
    daemon.stop("s1").await.expect("stopped");
    let mut new = new_sandbox("s2");
    new.request.vcpus = 8.0;
    daemon.registry.create(new).await.expect("recorded");
    assert_eq!(world.file("s2")["claim_key"], "node-1/default/web/s2");
}

#[tokio::test]
async fn release_on_its_way_keeps_the_claim_from_being_taken() {
    let world = World::new();
    let daemon = Daemon::start(&world);
    world.block("bind.before");
    daemon.create("s1").await.expect("recorded");
    world.reached("bind.before").await;
    world.block("release.before");
    daemon.stop("s1").await.expect("stopped");
    world.reached("release.before").await;
    daemon.create("s2").await.expect("recorded");
    assert_eq!(world.file("s2")["claim_key"], "node-1/default/web/s2");
    world.unblock();
    daemon.start_vm("s2").await.expect("ready");
    eventually("the first one is gone", || world.files() == ["s2.json"]).await;
    assert_eq!(world.state().pod_vms.keys().collect::<Vec<_>>(), ["i-2"]);
}

#[tokio::test(start_paused = true)]
async fn offer_ends_and_the_pod_vm_is_released() {
    let world = World::new();
    let daemon = Daemon::start_with(&world, Duration::from_secs(15));
    world.block("bind.before");
    daemon.create("s1").await.expect("recorded");
    world.reached("bind.before").await;
    daemon.stop("s1").await.expect("stopped");
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(world.state().released.len(), 0);
    daemon.wait_until_clean().await;
    assert_eq!(world.state().released.len(), 1);
}

#[tokio::test]
async fn kill_between_the_two_writes_of_a_hand_over_leaves_one_owner() {
    let world = World::new();
    let daemon = Daemon::start_with(&world, OFFER);
    world.block("bind.before");
    daemon.create("s1").await.expect("recorded");
    world.reached("bind.before").await;
    daemon.stop("s1").await.expect("stopped");
    let before = std::fs::read(world.folder.path().join("sandboxes/s1.json")).expect("there");
    daemon.create("s2").await.expect("recorded");
    let world = daemon.kill().await;
    // As it was after the first write and before the second.
    std::fs::write(world.folder.path().join("sandboxes/s1.json"), before).expect("written");
    world.unblock();
    let daemon = Daemon::start(&world);
    daemon.start_vm("s2").await.expect("ready");
    eventually("the first one is gone", || world.files() == ["s2.json"]).await;
    {
        let state = world.state();
        assert_eq!((state.launched, state.released.len()), (1, 0));
    }
    daemon.stop("s2").await.expect("stopped");
    daemon.wait_until_clean().await;
}

#[tokio::test]
async fn pod_vm_that_did_not_come_in_time_is_released_and_not_offered() {
    let world = World::new();
    let daemon = Daemon::start_timed(&world, OFFER, Duration::ZERO);
    world.state().is_claim_held = true;
    daemon.create("s1").await.expect("recorded");
    world.reached("claim.after").await;
    daemon.stop("s1").await.expect("stopped");
    daemon.wait_until_clean().await;
    assert_eq!(world.state().released.len(), 1);
}
