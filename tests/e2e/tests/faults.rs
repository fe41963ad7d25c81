//! Each fault gives an error that names the thing, the cause and the next step.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use anyhow::ensure;
use peerpods_e2e::{ContainerRequest, Image, KataShim, Level, World, WorldOptions, eventually};
use ttrpc::context::Context;
use ttrpc::proto::{Code, Request};

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

async fn sandbox(world: &mut World, seed: u64) -> (KataShim, std::path::PathBuf) {
    let netns = world.add_pod().unwrap().netns().path();
    let mut shim = world.shim(&format!("pod-{seed}"), seed);
    let socket = shim.create_vm(&netns, &[("cc_init_data", &world.initdata())]).await.unwrap();
    shim.start_vm(&socket).await.unwrap();
    shim.create_sandbox().await.unwrap();
    (shim, socket)
}

/// The whole chain of an error, and that it names every one of `words`.
fn names(error: &anyhow::Error, words: &[&str]) {
    let text = format!("{error:#}").to_lowercase();
    for word in words {
        assert!(text.contains(&word.to_lowercase()), "{word:?} is missing in: {text}");
    }
    println!("{error:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_netns_is_named_at_create_vm() {
    let world = World::start(&WorldOptions::new(Level::Sandbox)).unwrap();
    let shim = world.shim("lost", 1);
    let error = shim.create_vm(std::path::Path::new("/run/netns/no-such-netns"), &[]).await.unwrap_err();
    names(&error, &["/run/netns/no-such-netns", "network namespace"]);
    shim.stop_vm().await.unwrap();
    assert!(world.machines().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_that_cannot_be_pulled_are_explained() {
    let mut world = World::start(&WorldOptions::new(Level::Sandbox)).unwrap();
    let (shim, _) = sandbox(&mut world, 2).await;
    let host = world.registry_host();

    let missing = ContainerRequest::new(A, &format!("{host}/nowhere:1"), &["/bin/true"]);
    names(&shim.create_container(&missing).await.unwrap_err(), &["nowhere", "has no image"]);

    let image = Image::busybox(&[]).unwrap();
    world.registry().push(world.netns(), "damaged", "1", &image).unwrap();
    damage_layer(&world, &image);
    let damaged = ContainerRequest::new(A, &format!("{host}/damaged:1"), &["/bin/true"]);
    names(&shim.create_container(&damaged).await.unwrap_err(), &["digest"]);

    let unreachable = ContainerRequest::new(A, "10.93.0.1:9/none:1", &["/bin/true"]);
    names(&shim.create_container(&unreachable).await.unwrap_err(), &["10.93.0.1:9"]);
    shim.stop_vm().await.unwrap();
}

/// Changes one byte of the layer in the registry's storage, so that it no longer has its digest.
fn damage_layer(world: &World, image: &Image) {
    let hex = image.layers[0].digest();
    let hex = hex.trim_start_matches("sha256:");
    let path = world.registry().folder().join(format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]));
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(&path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_not_there_is_named_and_the_pod_goes_on() {
    let mut world = World::start(&WorldOptions::new(Level::Sandbox)).unwrap();
    world.registry().push(world.netns(), "app", "1", &Image::busybox(&[]).unwrap()).unwrap();
    let (shim, _) = sandbox(&mut world, 3).await;
    let image = format!("{}/app:1", world.registry_host());
    let bad = ContainerRequest::new(A, &image, &["/no/such/command"]);
    let error = match shim.create_container(&bad).await {
        Err(error) => error,
        Ok(()) => shim.start_container(A).await.unwrap_err(),
    };
    names(&error, &["/no/such/command"]);
    let _ = shim.remove_container(A).await;
    shim.create_container(&ContainerRequest::new(A, &image, &["/bin/true"])).await.unwrap();
    shim.start_container(A).await.unwrap();
    assert_eq!(shim.finish(A, "").await.unwrap().status, 0);
    shim.stop_vm().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_rpc_is_unimplemented_and_a_huge_frame_is_refused() {
    let mut world = World::start(&WorldOptions::new(Level::Sandbox)).unwrap();
    let (shim, socket) = sandbox(&mut world, 4).await;
    let client = ttrpc::asynchronous::Client::connect(&format!("unix://{}", socket.display())).await.unwrap();
    let request = |method: &str, payload: Vec<u8>| Request {
        service: "grpc.AgentService".to_owned(),
        method: method.to_owned(),
        payload,
        ..Request::default()
    };
    for method in ["NoSuchCall", "AddSwap"] {
        match client.request(request(method, Vec::new())).await {
            Err(ttrpc::Error::RpcStatus(status)) => {
                assert!(matches!(status.code(), Code::UNIMPLEMENTED | Code::INVALID_ARGUMENT | Code::NOT_FOUND), "{method}: {status:?}")
            }
            other => panic!("{method}: {other:?}"),
        }
    }
    huge_frame(&socket);
    shim.check().await.unwrap();
    shim.stop_vm().await.unwrap();
}

/// Sends 5 MiB on a connection of its own: the answer is an error or the end.
fn huge_frame(socket: &std::path::Path) {
    use std::io::{Read as _, Write as _};
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut frame = (5u32 << 20).to_be_bytes().to_vec();
    frame.extend([0, 0, 0, 1, 1, 0]);
    frame.extend(vec![0; 5 << 20]);
    let _ = stream.write_all(&frame);
    let mut answer = [0; 10];
    match stream.read(&mut answer) {
        Ok(0) => {}
        Ok(_) => assert_eq!(answer[8], 2, "a response"),
        Err(error) => panic!("no answer to an oversize frame: {error}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_that_never_answers_fails_start_vm_with_a_reason() {
    let mut options = WorldOptions::new(Level::Sandbox);
    options.guest = Some("/usr/bin/busybox".into());
    options.node_extra = "start_timeout_secs = 10".to_owned();
    let mut world = World::start(&options).unwrap();
    let netns = world.add_pod().unwrap().netns().path();
    let mut shim = world.shim("deaf", 5);
    let socket = shim.create_vm(&netns, &[]).await.unwrap();
    let error = shim.start_vm(&socket).await.unwrap_err();
    names(&error, &["pod VM"]);
    shim.stop_vm().await.unwrap();
    world.wait_for_no_machines(Duration::from_secs(30)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_that_dies_ends_its_pod_and_no_other() {
    let mut world = World::start(&WorldOptions::new(Level::Sandbox)).unwrap();
    world.registry().push(world.netns(), "app", "1", &Image::busybox(&[]).unwrap()).unwrap();
    let image = format!("{}/app:1", world.registry_host());
    let (doomed, _) = sandbox(&mut world, 6).await;
    let before = world.machines();
    let (other, _) = sandbox(&mut world, 7).await;
    other.create_container(&ContainerRequest::new(A, &image, &["/bin/sleep", "600"])).await.unwrap();
    other.start_container(A).await.unwrap();
    kill_machine(before.first().unwrap());
    eventually_lost(&doomed).await;
    other.check().await.unwrap();
    assert_eq!(other.exec(A, "e", &["/bin/echo", "alive"], None).await.unwrap().stdout, b"alive\n");
    doomed.stop_vm().await.unwrap();
    other.stop_vm().await.unwrap();
    world.wait_for_no_machines(Duration::from_secs(30)).unwrap();
}

/// Kills the machine's process as its record names it.
fn kill_machine(folder: &std::path::Path) {
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("machine.json")).unwrap()).unwrap();
    let pid = find_number(&record, "pid").expect("machine.json names a pid");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap()), nix::sys::signal::Signal::SIGKILL).unwrap();
}

fn find_number(value: &serde_json::Value, key: &str) -> Option<i64> {
    match value {
        serde_json::Value::Object(map) => {
            map.get(key).and_then(serde_json::Value::as_i64).or_else(|| map.values().find_map(|inner| find_number(inner, key)))
        }
        _ => None,
    }
}

async fn eventually_lost(shim: &KataShim) {
    let begin = std::time::SystemTime::now();
    loop {
        let mut request = peerpods_protos::agent::GuestDetailsRequest::new();
        request.mem_block_size = true;
        let call = shim.agent_rpc().unwrap().get_guest_details(Context::default(), &request);
        if let Ok(Err(_)) = tokio::time::timeout(Duration::from_secs(100), call).await {
            return;
        }
        assert!(begin.elapsed().unwrap() < Duration::from_secs(120), "the dead VM's agent still answers");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_that_vanishes_leaves_no_pod_vm() {
    let mut world = World::start(&WorldOptions::new(Level::Sandbox)).unwrap();
    let pod = world.add_pod().unwrap();
    let (netns, address) = (pod.netns().path(), pod.address());
    let mut shim = world.shim("crashed", 8);
    let socket = shim.create_vm(&netns, &[("cc_init_data", &world.initdata())]).await.unwrap();
    shim.start_vm(&socket).await.unwrap();
    shim.create_sandbox().await.unwrap();
    drop(shim);
    world.remove_pod(address);
    eventually("the orphan is collected", Duration::from_secs(90), || {
        ensure!(world.machines().is_empty(), "{:?}", world.machines());
        Ok(())
    })
    .unwrap();
}
