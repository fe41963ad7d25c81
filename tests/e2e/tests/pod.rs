//! A pod's life on machines made of namespaces: the same binaries and guest as in a VM, in seconds.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use peerpods_e2e::{ContainerRequest, Image, Level, World, WorldOptions, eventually};

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// A world with an image in its registry.
fn world() -> (World, String) {
    let world = World::start(&WorldOptions::new(Level::Sandbox)).unwrap();
    world.registry().push(world.netns(), "app", "1", &Image::busybox(&[("www/index.html", b"hello\n")]).unwrap()).unwrap();
    let image = format!("{}/app:1", world.registry_host());
    (world, image)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_of_two_containers_runs_and_answers_on_its_address() {
    let (mut world, image) = world();
    let (shim, address, _) = world.sandbox("web", 1).await.unwrap();
    let hosts = shim.copy_file(A, "hosts", b"127.0.0.1 localhost\n").await.unwrap();
    let mut web = ContainerRequest::new(A, &image, &["/bin/sh", "-c", "exec httpd -f -p 8080 -h /www"]);
    web.binds.push(("/etc/hosts".to_owned(), hosts));
    shim.create_container(&web).await.unwrap();
    shim.start_container(A).await.unwrap();
    let answer = eventually("the pod answers", Duration::from_secs(20), || world.netns().http_get(address, "/")).unwrap();
    assert!(answer.ends_with("hello\n"), "{answer}");
    // What a port-forward ends in, which Kata's shims know nothing of.
    let std::net::IpAddr::V4(own) = address.ip() else { panic!("{address}") };
    let local = SocketAddr::from(([127, 0, 0, 1], 8080));
    let answer = world.pod(own).unwrap().netns().http_get(local, "/").unwrap();
    assert!(answer.ends_with("hello\n"), "{answer}");

    let talk = ContainerRequest::new(B, &image, &["/bin/sh", "-c", "wget -q -O - http://127.0.0.1:8080/; echo gone >&2; exit 3"]);
    shim.create_container(&talk).await.unwrap();
    shim.start_container(B).await.unwrap();
    let io = shim.finish(B, "").await.unwrap();
    assert_eq!((io.stdout.as_slice(), io.stderr.as_slice(), io.status), (&b"hello\n"[..], &b"gone\n"[..], 3));

    let exec = shim.exec(A, "e1", &["/bin/sh", "-c", "cat; hostname; cat /etc/hosts"], Some(&[b'x'; 20_000])).await.unwrap();
    let text = String::from_utf8_lossy(&exec.stdout);
    assert_eq!(text.matches('x').count(), 20_000);
    assert!(text.ends_with("web\n127.0.0.1 localhost\n"), "{}", &text[20_000..]);
    shim.check().await.unwrap();

    shim.stop_vm().await.unwrap();
    world.wait_for_no_machines(Duration::from_secs(30)).unwrap();
    eventually("the sandbox is forgotten", Duration::from_secs(30), || {
        let list = world.node_list()?;
        ensure!(list.as_array().is_some_and(Vec::is_empty), "{list}");
        Ok(())
    })
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_vm_that_waits_serves_the_next_pod() {
    let options =
        WorldOptions { controller_extra: "[class.default.pool]\nmin = 1\nmax = 1\n".to_owned(), ..WorldOptions::new(Level::Sandbox) };
    let mut world = World::start(&options).unwrap();
    world.registry().push(world.netns(), "app", "1", &Image::busybox(&[]).unwrap()).unwrap();
    let image = format!("{}/app:1", world.registry_host());
    let limit = Duration::from_secs(30);
    let count_machines = |world: &World, count: usize| {
        let machines = world.machines();
        ensure!(machines.len() == count, "{machines:?}");
        Ok(machines)
    };
    let waiting = eventually("one waits", limit, || count_machines(&world, 1)).unwrap().remove(0);
    let (shim, _, _) = world.sandbox("web", 3).await.unwrap();
    let list = world.node_list().unwrap().to_string();
    let id = waiting.file_name().unwrap().to_str().unwrap();
    assert!(list.contains(id), "{id} waited, and the pod runs in another one: {list}");
    eventually("another one waits", limit, || count_machines(&world, 2)).unwrap();
    shim.create_container(&ContainerRequest::new(A, &image, &["/bin/sh", "-c", "echo here"])).await.unwrap();
    shim.start_container(A).await.unwrap();
    assert_eq!(shim.finish(A, "").await.unwrap().stdout, b"here\n");
    shim.stop_vm().await.unwrap();
    let left = eventually("a used one is deleted", limit, || count_machines(&world, 1)).unwrap();
    assert_ne!(left, [waiting]);
    world.shut_down().unwrap();
    assert!(world.machines().is_empty(), "cleanup keeps none waiting: {:?}", world.machines());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_lists_explains_and_deletes() {
    let (mut world, _) = world();
    let (shim, _, _) = world.sandbox("web", 4).await.unwrap();
    let machine = world.machines().remove(0);
    let id = machine.file_name().unwrap().to_str().unwrap();
    let said = |args: &[&str]| world.peerpodctl(args).unwrap();
    let refused = |args: &[&str]| world.peerpodctl(args).unwrap_err().to_string();
    let list = said(&["vm", "list"]);
    assert!(list.contains(id) && list.contains("claimed") && list.contains("default/web"), "{list}");
    let json: serde_json::Value = serde_json::from_str(&said(&["vm", "list", "--json"])).unwrap();
    assert_eq!((&json[0]["instance_id"], &json[0]["cloud_state"]), (&id.into(), &"running".into()), "{json}");
    assert!(said(&["vm", "show", id]).contains("\"state\": \"claimed\""));
    assert!(said(&["vm", "console", id]).contains("peerpods: listening"));
    assert!(said(&["class", "list"]).lines().any(|line| line.starts_with("open ")));
    assert!(said(&["class", "check", "default", "--vcpus", "2", "--memory", "512"]).contains("local.medium: 2 vCPUs, 1024 MiB"));
    let error = refused(&["class", "check", "default", "--vcpus", "64"]);
    assert!(error.contains("no instance type with sample has 64 vCPUs"), "{error}");
    let error = refused(&["class", "check", "gold"]);
    assert!(error.contains("offered: default, open"), "{error}");
    assert!(said(&["claim", "list"]).contains("assigned"));
    let text = said(&["claim", "explain", "default/web"]);
    assert!(text.contains("is assigned") && text.contains(id) && text.contains("the cloud says: running"), "{text}");
    assert!(refused(&["claim", "explain", "default/nobody"]).contains("claim list"));
    assert!(refused(&["vm", "delete", "local-000000000000"]).contains("there is no pod VM local-000000000000"));
    assert!(refused(&["vm", "delete", "../../etc"]).contains("there is no pod VM"));

    assert!(said(&["vm", "delete", id]).contains("is being deleted"));
    eventually("the pod VM goes", Duration::from_secs(30), || {
        ensure!(world.machines().is_empty(), "{:?}", world.machines());
        Ok(())
    })
    .unwrap();
    let text = said(&["claim", "explain", "default/web"]);
    assert!(text.contains("is failed") && text.contains("the instance is being deleted"), "{text}");
    shim.stop_vm().await.unwrap();
    eventually("the claim is forgotten", Duration::from_secs(30), || {
        let list = world.peerpodctl(&["claim", "list"])?;
        ensure!(list.lines().count() == 1, "{list}");
        Ok(())
    })
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_reaches_neither_metadata_nor_the_guest_channel() {
    let (mut world, image) = world();
    let (shim, _, _) = world.sandbox("curious", 2).await.unwrap();
    shim.create_container(&ContainerRequest::new(A, &image, &["/bin/sleep", "600"])).await.unwrap();
    shim.start_container(A).await.unwrap();
    let machine = std::fs::read_dir(world.machines().first().unwrap()).unwrap().count();
    assert!(machine > 0);
    world.netns().ip(&["address", "add", "169.254.169.254/32", "dev", "lo"]).unwrap();
    for target in ["169.254.169.254 80", "10.93.0.2 15150"] {
        let exec =
            shim.exec(A, &format!("nc-{}", &target[..3]), &["/bin/sh", "-c", &format!("nc -w 2 {target} </dev/null")], None).await.unwrap();
        assert_ne!(exec.status, 0, "{target} was reached: {exec:?}");
    }
    shim.stop_vm().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_in_the_hosts_network_gets_loopback_alone() {
    let (world, image) = world();
    let mut shim = world.shim("host-network", 6);
    let socket = shim.create_vm(std::path::Path::new(""), &[("cc_init_data", &world.initdata())]).await.unwrap();
    shim.start_vm(&socket).await.unwrap();
    shim.create_sandbox().await.unwrap();
    shim.create_container(&ContainerRequest::new(A, &image, &["/bin/sh", "-c", "ip -o link; wget -q -O - http://10.93.0.1:5000/v2/"]))
        .await
        .unwrap();
    shim.start_container(A).await.unwrap();
    let io = shim.finish(A, "").await.unwrap();
    let links = String::from_utf8_lossy(&io.stdout);
    assert!(links.contains(" lo: ") && !links.contains("eth0") && io.status != 0, "{io:?}");
    shim.stop_vm().await.unwrap();
    world.wait_for_no_machines(Duration::from_secs(30)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_both_daemons_is_invisible_to_a_ready_pod() {
    let (mut world, image) = world();
    let (shim, _, _) = world.sandbox("steady", 3).await.unwrap();
    let script = "i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); usleep 10000; done";
    shim.create_container(&ContainerRequest::new(A, &image, &["/bin/sh", "-c", script])).await.unwrap();
    shim.start_container(A).await.unwrap();
    let io = async { shim.finish(A, "").await.unwrap() };
    let kills = async {
        world.kill_node().unwrap();
        world.kill_controller().unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        world.start_controller().unwrap();
        world.start_node().unwrap();
    };
    let (io, ()) = tokio::join!(io, kills);
    let expected: String = (0..200).map(|i| format!("line {i}\n")).collect();
    assert_eq!(String::from_utf8_lossy(&io.stdout), expected);
    assert_eq!(io.status, 0);
    shim.stop_vm().await.unwrap();
    world.wait_for_no_machines(Duration::from_secs(30)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_is_durable_while_the_controller_is_away() {
    let (mut world, _) = world();
    let (shim, _, _) = world.sandbox("late", 4).await.unwrap();
    world.kill_controller().unwrap();
    let begin = std::time::SystemTime::now();
    shim.stop_vm().await.unwrap();
    assert!(begin.elapsed().unwrap() < Duration::from_secs(1), "StopVM is answered at once");
    world.kill_node().unwrap();
    world.start_controller().unwrap();
    world.start_node().unwrap();
    world.wait_for_no_machines(Duration::from_secs(30)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_longer_than_tcp_bears_is_invisible_to_the_shim() {
    let (mut world, image) = world();
    let (shim, _, socket) = world.sandbox("cut-off", 5).await.unwrap();
    // Kata's shim opens a second connection that never speaks; losing it is harmless.
    drop(std::os::unix::net::UnixStream::connect(&socket).unwrap());
    let script = "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); usleep 100000; done";
    shim.create_container(&ContainerRequest::new(A, &image, &["/bin/sh", "-c", script])).await.unwrap();
    shim.start_container(A).await.unwrap();
    let io = async { shim.finish(A, "").await.unwrap() };
    let outage = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        world.netns().ip(&["link", "set", "peerpods0", "down"]).unwrap();
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let check = tokio::time::timeout(Duration::from_secs(25), shim.check());
            check.await.expect("Health.Check is answered within the shim's patience").unwrap();
        }
        world.netns().ip(&["link", "set", "peerpods0", "up"]).unwrap();
    };
    let (io, ()) = tokio::join!(io, outage);
    let expected: String = (0..300).map(|i| format!("line {i}\n")).collect();
    assert_eq!(String::from_utf8_lossy(&io.stdout), expected);
    assert_eq!(io.status, 0);
    shim.stop_vm().await.unwrap();
    world.wait_for_no_machines(Duration::from_secs(30)).unwrap();
}
