//! What Kata's Rust shim 4.1 sent to a daemon and an agent is accepted by ours, with answers of the same meaning.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use peerpods_e2e::{Image, Level, Replay, World, WorldOptions, read_recording, recordings_folder};

async fn replay(scenario: &str) {
    let Some(folder) = recordings_folder() else {
        println!("{scenario}: no recordings beside the repository and PEERPODS_VECTORS is not set; nothing is replayed");
        return;
    };
    let events = read_recording(&folder.join(format!("{scenario}.jsonl"))).unwrap();
    let mut world = World::start(&WorldOptions::new(Level::Sandbox)).unwrap();
    let image = format!("{}/recorded:1", world.registry_host());
    world.registry().push(world.netns(), "recorded", "1", &Image::busybox(&[]).unwrap()).unwrap();
    let compared = Replay::new(&mut world, &image).run(&events).await.unwrap();
    println!("{scenario}: {compared} answers compared");
    assert!(compared > 20, "only {compared} answers were compared");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod_basic_is_answered() {
    replay("pod-basic").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod_two_is_answered() {
    replay("pod-two").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod_annotations_is_answered() {
    replay("pod-annotations").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_bulk_is_answered() {
    replay("volumes-bulk").await;
}
