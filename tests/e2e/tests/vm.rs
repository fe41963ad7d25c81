//! What only a real pod VM can show: its own kernel, limits under cgroup v2, its own disk, and its death.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use peerpods_e2e::{Cloud, ContainerRequest, Image, Level, World, WorldOptions, eventually_async};

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const C: &str = "cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_vm_limits_its_containers_and_says_when_it_is_full_or_gone() {
    let mut options = WorldOptions::new(Level::Qemu);
    options.provider_extra = "scratch_mib = 64".to_owned();
    let mut world = World::start(&options).unwrap();
    let host = world.registry_host();
    world.registry().push(world.netns(), "app", "1", &Image::busybox(&[]).unwrap()).unwrap();
    world.registry().push(world.netns(), "bulky", "1", &Image::bulky(100 << 20).unwrap()).unwrap();
    let netns = world.add_pod().unwrap().netns().path();
    let mut shim = world.shim("vm", 1);
    let socket = shim.create_vm(&netns, &[("cc_init_data", &world.initdata())]).await.unwrap();
    shim.start_vm(&socket).await.unwrap();
    shim.create_sandbox().await.unwrap();
    let image = format!("{host}/app:1");

    let mut greedy = ContainerRequest::new(A, &image, &["/bin/tail", "/dev/zero"]);
    greedy.memory_limit = Some(16 << 20);
    shim.create_container(&greedy).await.unwrap();
    shim.start_container(A).await.unwrap();
    assert_eq!(shim.finish(A, "").await.unwrap().status, 137, "the kernel ends what exceeds its limit");

    let script = "cat /proc/sys/kernel/osrelease; test -e /dev/vda && echo disk; echo 300 > /proc/self/oom_score_adj; id -u";
    shim.create_container(&ContainerRequest::new(B, &image, &["/bin/sh", "-c", script])).await.unwrap();
    shim.start_container(B).await.unwrap();
    let io = shim.finish(B, "").await.unwrap();
    let text = String::from_utf8_lossy(&io.stdout);
    let host_kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert!(!text.contains(host_kernel.trim()) && text.ends_with("\n0\n") && !text.contains("disk"), "{text}");

    let error = shim.create_container(&ContainerRequest::new(C, &format!("{host}/bulky:1"), &["/bin/true"])).await.unwrap_err();
    let text = format!("{error:#}").to_lowercase();
    assert!(text.contains("space") || text.contains("full"), "{text}");
    println!("{error:#}");

    let machine = world.machines().pop().unwrap();
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(machine.join("machine.json")).unwrap()).unwrap();
    let pid = i32::try_from(record["process"]["pid"].as_i64().unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually_async("the dead VM's agent no longer answers", Duration::from_secs(120), || async {
        let call = tokio::time::timeout(Duration::from_secs(100), shim.exec(B, "e", &["/bin/true"], None)).await;
        anyhow::ensure!(matches!(call, Ok(Err(_))), "{call:?}");
        Ok(())
    })
    .await
    .unwrap();
    shim.stop_vm().await.unwrap();
    world.wait_for_no_machines(Duration::from_secs(30)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_disk_image_boots_with_uefi_as_a_cloud_boots_it() {
    let mut options = WorldOptions::new(Level::Qemu);
    options.cloud = Cloud::MockAws;
    options.mock_extra = vec!["--firmware".to_owned()];
    // Firmware and a compressed kernel want more memory than the smallest machine has.
    options.provider_extra = "instance_types = [\"m6a.xlarge\"]".to_owned();
    let mut world = World::start(&options).unwrap();
    world.registry().push(world.netns(), "app", "1", &Image::busybox(&[]).unwrap()).unwrap();
    let image = format!("{}/app:1", world.registry_host());
    let netns = world.add_pod().unwrap().netns().path();
    let mut shim = world.shim("uefi", 2);
    let socket = shim.create_vm(&netns, &[("cc_init_data", &world.initdata())]).await.unwrap();
    shim.start_vm(&socket).await.unwrap();
    shim.create_sandbox().await.unwrap();
    let script = "cat /proc/cmdline; cat /proc/version; df -m / | tail -1";
    shim.create_container(&ContainerRequest::new(A, &image, &["/bin/sh", "-c", script])).await.unwrap();
    shim.start_container(A).await.unwrap();
    let io = shim.finish(A, "").await.unwrap();
    println!("{}", String::from_utf8_lossy(&io.stdout));
    let list: serde_json::Value = serde_json::from_str(&world.peerpodctl(&["vm", "list", "--json"]).unwrap()).unwrap();
    let console = world.peerpodctl(&["vm", "console", list[0]["instance_id"].as_str().unwrap()]).unwrap();
    println!("{console}");
    // The scratch partition has 16 MiB in the image, and the disk is 8 GiB larger.
    let scratch = console.lines().find_map(|line| line.strip_prefix("peerpods: scratch-mib ")).unwrap();
    let mib: u64 = scratch.split(' ').next().unwrap().parse().unwrap();
    assert!((8192..8192 + 64).contains(&mib), "{scratch}");
    shim.stop_vm().await.unwrap();
    world.wait_for_no_machines(Duration::from_secs(30)).unwrap();
}
