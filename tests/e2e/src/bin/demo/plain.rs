//! A pod of containerd's `peer-pods` handler from request to removal, each phase shown as it happens.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use peerpods_e2e::{
    Cloud, Container, Handler, Image, Level, Rig, RigOptions, Running, RunningPod, Story, Version, WorldOptions, eventually,
    eventually_async,
};

use crate::on_rig;
use crate::say::{phase, show, timed};

/// Tells it; with `keep`, waits for a person before the end.
pub(crate) async fn story(keep: bool, cloud: Cloud) -> Result<()> {
    let what = match cloud {
        Cloud::Local => "start a registry, the controller, the node daemon and containerd",
        Cloud::MockAws => "start a registry, a cloud that speaks EC2, the controller with its AWS provider, the node daemon and containerd",
    };
    let rig = phase(what, || Rig::start(&RigOptions::new(Version::V2, WorldOptions { cloud, ..WorldOptions::new(Level::Qemu) })))?;
    on_rig(rig, async |rig| pod(rig, keep).await).await
}

async fn pod(rig: &Arc<Rig>, keep: bool) -> Result<()> {
    phase("push an image to the registry over HTTP", || {
        let image = Image::busybox(&[("www/index.html", b"hello from a pod VM\n")])?;
        for layer in &image.layers {
            rig.gate().refuse(&layer.digest());
        }
        rig.world().registry().push(rig.world().netns(), "demo-web", "1", &image)
    })?;
    println!("    {}, whose layers the node cannot fetch", rig.image("demo-web"));
    let story = Story::begin(Arc::clone(rig), Handler::PeerPods, "demo").await?;
    let begin = SystemTime::now();
    let pod =
        timed("RunPodSandbox, runtime handler peer-pods: claim a pod VM, boot, attest, bind, connect the network", story.pod("demo").run())
            .await?;
    let address = *pod.addresses().await?.first().context("the pod has no address")?;
    let settings = pod.config_map("settings", &[("greeting", "good morning\n")])?;
    let web = Container::of_image("web", "demo-web")
        .with(|config| config.command = ["/bin/sh", "-c", "echo serving; exec httpd -f -p 8080 -h /www"].map(str::to_owned).to_vec())
        .mount_read_only(&settings, "/settings");
    let web = timed("CreateContainer, StartContainer: the image is pulled inside the pod VM", pod.start(web)).await?;
    let script = "echo \"kernel $(cat /proc/sys/kernel/osrelease)\"; wget -q -O - http://127.0.0.1:8080/";
    let talk = Container::of_image("talk", "demo-web").with(|c| c.command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec());
    let talk = timed("a second container of the same image", pod.start(talk)).await?;
    println!("    pod running {:.1} s after RunPodSandbox", begin.elapsed().unwrap_or_default().as_secs_f64());

    let status = timed("its end", talk.is_over()).await?;
    show(&talk.output("stdout")?);
    show(&talk.output("stderr")?);
    ensure!(status.exit_code == 0, "container talk ended with status {}", status.exit_code);
    looks_around(&story, &pod, &web, &settings, address).await?;
    if keep {
        wait_for_person(rig, address, &pod, &web).await?;
    }
    print_phases(rig)?;
    timed("StopPodSandbox, RemovePodSandbox", story.clean_up()).await?;
    phase("the pod VM is gone", || rig.world().wait_for_no_machines(Duration::from_secs(60)))?;
    ec2_account(rig)
}

/// What EC2 was asked for, and what the account has now.
fn ec2_account(rig: &Rig) -> Result<()> {
    let (world, netns) = (rig.world(), rig.world().netns());
    let Some(mock) = world.mock() else { return Ok(()) };
    println!("    the controller's calls of EC2:");
    for (action, count) in mock.get(netns, "/summary")?["calls"].as_object().into_iter().flatten() {
        println!("    | {:>4}  {action}", count.as_u64().unwrap_or(0));
    }
    let (instances, parts) = eventually("the account is empty", Duration::from_secs(20), || {
        let existing = mock.existing(netns)?;
        ensure!(existing == (0, 0), "{existing:?}");
        Ok(existing)
    })?;
    println!("    the account has {instances} instances, {parts} volumes and network interfaces");
    Ok(())
}

/// What `kubectl exec` and `port-forward`, an edited ConfigMap and a request to the pod do.
async fn looks_around(
    story: &Story,
    pod: &RunningPod,
    web: &Running,
    settings: &peerpods_e2e::Volume,
    address: std::net::IpAddr,
) -> Result<()> {
    let script = ["/bin/sh", "-c", "id; hostname; ip -4 addr show eth0; cat /settings/greeting"];
    let exec = timed("exec in container web: id, host name, address, a ConfigMap", web.exec(&script, 30)).await?;
    show(&exec.stdout);
    ensure!(exec.exit_code == 0, "exec ended with status {}", exec.exit_code);
    settings.write(&[("greeting", "good evening\n")])?;
    timed(
        "an update of the ConfigMap is seen in the pod VM",
        eventually_async("the update arrives", Duration::from_secs(20), || async {
            let seen = web.exec(&["cat", "/settings/greeting"], 10).await?;
            ensure!(seen.stdout == b"good evening\n", "{}", String::from_utf8_lossy(&seen.stdout));
            Ok(())
        }),
    )
    .await?;
    let netns = story.rig().world().netns();
    let answer = phase("HTTP from the node to the pod's address", || {
        eventually("the pod answers", Duration::from_secs(20), || netns.http_get(SocketAddr::from((address, 8080)), "/"))
    })?;
    println!("    http://{address}:8080/ -> {}", answer.lines().last().unwrap_or(""));
    ensure!(answer.contains("hello from a pod VM"), "unexpected answer: {answer}");
    let (data, error) = timed("port-forward to port 8080", async {
        let stream = story.cri().port_forward(pod.id(), 8080).await?;
        stream.write(b"GET / HTTP/1.0\r\n\r\n").await?;
        stream.finish().await
    })
    .await?;
    let data = String::from_utf8_lossy(&data).into_owned();
    println!("    -> {}", data.lines().last().unwrap_or(""));
    ensure!(data.contains("hello from a pod VM"), "unexpected answer: {data} {error}");
    Ok(())
}

async fn wait_for_person(rig: &Rig, address: std::net::IpAddr, pod: &RunningPod, web: &Running) -> Result<()> {
    let enter = |command: &std::process::Command| {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    };
    println!("\nstill running; try:");
    println!("  {} -q -O - http://{address}:8080/", enter(&rig.world().netns().command("wget")));
    println!("  {} task exec --exec-id me --tty {} /bin/sh", enter(&rig.ctr()?), web.id());
    let node = peerpods_e2e::binaries_folder()?.join("peerpods-node");
    println!("  {} list --config {}", node.display(), rig.world().folder().join("node.toml").display());
    println!("sandbox {}; press Enter or Ctrl-C to clean up", pod.id());
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await??;
    Ok(())
}

/// The daemon's own account of where the time went.
fn print_phases(rig: &Rig) -> Result<()> {
    let list = rig.world().node_list()?;
    let sandbox = list.as_array().and_then(|all| all.first()).context("the node daemon lists no sandbox")?;
    println!("\n      ms  phase");
    for phase in sandbox["phases"].as_array().into_iter().flatten() {
        println!("{:>8}  {}", phase["ms"].as_u64().unwrap_or(0), phase["phase"].as_str().unwrap_or("?"));
    }
    println!();
    Ok(())
}
