//! Pods on AWS: the controller's real SDK, the mock cloud's EC2, DHCP and metadata service, and pod VMs made of namespaces.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use anyhow::ensure;
use peerpods_e2e::{Cloud, ContainerRequest, Image, Level, SECRET, World, WorldOptions, eventually};
use serde_json::{Value, json};

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const LIMIT: Duration = Duration::from_secs(30);

fn world(mock_extra: &[&str]) -> World {
    let mock_extra = mock_extra.iter().map(|one| (*one).to_owned()).collect();
    let world = World::start(&WorldOptions { cloud: Cloud::MockAws, mock_extra, ..WorldOptions::new(Level::Sandbox) }).unwrap();
    world.registry().push(world.netns(), "app", "1", &Image::busybox(&[("www/index.html", b"hello\n")]).unwrap()).unwrap();
    world
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
    let (shim, address, _) = world.sandbox("web", 1).await.unwrap();
    let image = format!("{}/app:1", world.registry_host());
    shim.create_container(&ContainerRequest::new(A, &image, &["/bin/sh", "-c", "exec httpd -f -p 8080 -h /www"])).await.unwrap();
    shim.start_container(A).await.unwrap();
    let answer = eventually("the pod answers", LIMIT, || world.netns().http_get(address, "/")).unwrap();
    assert!(answer.ends_with("hello\n"), "{answer}");

    let list = world.peerpodctl(&["vm", "list", "--json"]).unwrap();
    let list: Value = serde_json::from_str(&list).unwrap();
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

/// All files below a folder, with their contents.
fn files(folder: &std::path::Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            files.extend(self::files(&path));
        } else if kind.is_file() && entry.metadata().unwrap().len() < 64 << 20 {
            files.push((path.clone(), std::fs::read(&path).unwrap_or_default()));
        }
    }
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_providers_secret_is_in_its_configuration_alone() {
    let mut world = world(&[]);
    let (shim, _, _) = world.sandbox("web", 2).await.unwrap();
    let mock = world.mock().unwrap();
    // What goes wrong is written down too.
    for kind in [json!({ "refuse": { "code": "UnauthorizedOperation", "status": 403 } }), json!("fail-after"), json!("close-after")] {
        let fault = json!({ "action": "*", "kind": kind, "times": 2 });
        mock.post(world.netns(), "/faults", &fault).unwrap();
    }
    eventually("the faults have come true", LIMIT, || {
        let summary = mock.get(world.netns(), "/summary")?;
        let _ = world.peerpodctl(&["vm", "list"]);
        ensure!(summary["faults_injected"].as_u64() >= Some(1), "{summary}");
        Ok(())
    })
    .unwrap();
    let config = world.folder().join("controller.toml");
    let shown = world.controller_says(&["config", "show", "--config", config.to_str().unwrap()]).unwrap();
    assert!(shown.contains("secret_access_key = \"<hidden>\""), "{shown}");
    let mut said = vec![("config show".into(), shown.into_bytes())];
    for path in ["/calls", "/instances", "/summary"] {
        said.push((path.into(), mock.get(world.netns(), path).unwrap().to_string().into_bytes()));
    }
    for args in [&["vm", "list", "--json"][..], &["claim", "list", "--json"], &["claim", "explain", "default/web"]] {
        said.push((args.join(" ").into(), world.peerpodctl(args).unwrap().into_bytes()));
    }
    let pid = world.controller_pid().unwrap();
    for name in ["cmdline", "environ"] {
        said.push((name.into(), std::fs::read(format!("/proc/{pid}/{name}")).unwrap()));
    }
    said.extend(files(world.folder()).into_iter().filter(|(path, _)| *path != config));
    assert!(said.iter().any(|(path, _)| path.ends_with("controller.log")) && said.len() > 10);
    for (name, bytes) in &said {
        assert!(!bytes.windows(SECRET.len()).any(|part| part == SECRET.as_bytes()), "the secret stands in {}", name.display());
    }
    // Nor can it come to stand in a core file.
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    shim.stop_vm().await.unwrap();
    wait_until_nothing_exists(&world);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_ends_takes_its_instance_with_it_and_the_pod_is_told_why() {
    let mut world = world(&[]);
    let (shim, _, _) = world.sandbox("web", 3).await.unwrap();
    let machine = world.machines().remove(0);
    let record: Value = serde_json::from_slice(&std::fs::read(machine.join("machine.json")).unwrap()).unwrap();
    let pid = i32::try_from(record["process"]["pid"].as_i64().unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("EC2 has ended the instance", LIMIT, || {
        let left = world.mock().unwrap().existing(world.netns())?;
        ensure!(left == (0, 0), "{left:?}");
        Ok(())
    })
    .unwrap();
    shim.stop_vm().await.unwrap();
    wait_until_nothing_exists(&world);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_zone_is_passed_over() {
    let mut world = world(&[]);
    let mock = world.mock().unwrap();
    mock.post(world.netns(), "/capacity", &json!({ "type": "m6a.large", "zone": "eu-west-1a", "left": 0 })).unwrap();
    let (shim, _, _) = world.sandbox("web", 4).await.unwrap();
    let instances = world.mock().unwrap().get(world.netns(), "/instances").unwrap();
    assert_eq!((instances.as_array().map(Vec::len), &instances[0]["zone"]), (Some(1), &json!("eu-west-1b")), "{instances}");
    shim.stop_vm().await.unwrap();
    wait_until_nothing_exists(&world);
}
