//! Pods on AWS: the controller's real SDK, the mock cloud's EC2, DHCP and metadata service, and pod VMs made of namespaces.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use peerpods_e2e::{Cloud, ContainerRequest, Image, KataShim, Level, World, WorldOptions, eventually};

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const LIMIT: Duration = Duration::from_secs(30);

fn world(mock_extra: &[&str]) -> World {
    let mock_extra = mock_extra.iter().map(|one| (*one).to_owned()).collect();
    let world = World::start(&WorldOptions { cloud: Cloud::MockAws, mock_extra, ..WorldOptions::new(Level::Sandbox) }).unwrap();
    world.registry().push(world.netns(), "app", "1", &Image::busybox(&[("www/index.html", b"hello\n")]).unwrap()).unwrap();
    world
}

/// A pod up to its pause container.
async fn sandbox(world: &mut World, name: &str, seed: u64) -> (KataShim, SocketAddr) {
    let pod = world.add_pod().unwrap();
    let (netns, address) = (pod.netns().path(), SocketAddr::from((pod.address(), 8080)));
    let mut shim = world.shim(name, seed);
    let socket = shim.create_vm(&netns, &[("cc_init_data", &world.initdata())]).await.unwrap();
    shim.start_vm(&socket).await.unwrap();
    shim.create_sandbox().await.unwrap();
    (shim, address)
}

fn wait_until_nothing_exists(world: &World) {
    eventually("EC2 has nothing left", LIMIT, || {
        let left = world.mock().unwrap().existing(world.netns())?;
        ensure!(left == (0, 0), "{left:?} instances and parts");
        Ok(())
    })
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_runs_in_an_instance_that_renews_its_lease_and_is_terminated() {
    let mut world = world(&["--lease-secs", "4"]);
    let (shim, address) = sandbox(&mut world, "web", 1).await;
    let image = format!("{}/app:1", world.registry_host());
    shim.create_container(&ContainerRequest::new(A, &image, &["/bin/sh", "-c", "exec httpd -f -p 8080 -h /www"])).await.unwrap();
    shim.start_container(A).await.unwrap();
    let answer = eventually("the pod answers", LIMIT, || world.netns().http_get(address, "/")).unwrap();
    assert!(answer.ends_with("hello\n"), "{answer}");

    let list = world.peerpodctl(&["vm", "list", "--json"]).unwrap();
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let id = list[0]["instance_id"].as_str().unwrap();
    assert!(id.starts_with("i-"), "{list}");
    eventually("the machine renews its lease", LIMIT, || {
        let console = world.peerpodctl(&["vm", "console", id])?;
        ensure!(console.contains("peerpods: lease-renewed"), "{console}");
        Ok(())
    })
    .unwrap();
    // With the address that it has renewed.
    assert!(world.netns().http_get(address, "/").unwrap().ends_with("hello\n"));
    // What a workload asks of the metadata service, nobody answers.
    let ask = "wget -T 2 -q -O - http://169.254.169.254/latest/api/token || echo nobody";
    let exec = shim.exec(A, "e", &["/bin/sh", "-c", ask], None).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&exec.stdout), "nobody\n");

    let calls = world.mock().unwrap().get(world.netns(), "/calls").unwrap();
    let of = |action: &str| calls.as_array().unwrap().iter().filter(|call| call["action"] == action).cloned().collect::<Vec<_>>();
    let launches: Vec<_> = of("RunInstances").into_iter().filter(|call| call["outcome"] == "ok").collect();
    assert_eq!(launches.len(), 1, "{launches:?}");
    assert!(launches[0]["parameters"]["UserData"].as_str().unwrap().starts_with("sha256:"));

    shim.stop_vm().await.unwrap();
    wait_until_nothing_exists(&world);
    assert!(world.machines().is_empty());
}
