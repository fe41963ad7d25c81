//! The demo: one peer pod from request to removal, each phase shown as it happens.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use peerpods_e2e::{ContainerRequest, Image, KataShim, Leftovers, Level, World, WorldOptions, eventually};

const WEB: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const TALK: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

fn main() -> Result<()> {
    let keep = std::env::args().any(|a| a == "--keep");
    let before = Leftovers::now()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = story(keep) => outcome,
            _ = tokio::signal::ctrl_c() => { println!("\ninterrupted; cleaning up"); Err(anyhow::anyhow!("interrupted")) }
        }
    });
    // Not dropped: that would wait for the thread that reads standard input.
    runtime.shutdown_background();
    let left = eventually("everything is gone", Duration::from_secs(20), || {
        let left = Leftovers::now()?.since(&before);
        ensure!(left.is_empty(), "{left}");
        Ok(left)
    })?;
    println!("nothing left: {left}");
    outcome
}

async fn story(keep: bool) -> Result<()> {
    let mut world = phase("start a registry, the controller and the node daemon", || World::start(&WorldOptions::new(Level::Qemu)))?;
    let result = pod(&mut world, keep).await;
    if result.is_err() {
        println!("{}", world.logs());
    }
    phase("stop the daemons and remove what they made", || world.shut_down())?;
    drop(world);
    result
}

async fn pod(world: &mut World, keep: bool) -> Result<()> {
    let image = phase("push an image to the registry over HTTP", || {
        let image = Image::busybox(&[("www/index.html", b"hello from a pod VM\n")])?;
        world.registry().push(world.netns(), "demo/web", "1", &image)?;
        Ok(format!("{}/demo/web:1", world.registry_host()))
    })?;
    println!("    {image}");
    let (netns, address) = phase("make the pod's network namespace, as a CNI plugin does", || {
        let pod = world.add_pod()?;
        Ok((pod.netns().path(), pod.address()))
    })?;
    let mut shim = world.shim("demo", 0xde30);

    let begin = SystemTime::now();
    let socket =
        timed("CreateVM: record the sandbox, claim a pod VM", shim.create_vm(&netns, &[("cc_init_data", &world.initdata())])).await?;
    timed("StartVM: boot, attest, bind, connect the network, start the link", shim.start_vm(&socket)).await?;
    timed("create the sandbox and its pause container", shim.create_sandbox()).await?;
    let hosts = shim.copy_file(WEB, "hosts", b"127.0.0.1 localhost\n10.88.0.2 demo\n").await?;
    let mut web = ContainerRequest::new(WEB, &image, &["/bin/sh", "-c", "echo serving; exec httpd -f -p 8080 -h /www"]);
    web.binds.push(("/etc/hosts".to_owned(), hosts));
    timed("pull the image inside the pod VM, create container 1", shim.create_container(&web)).await?;
    timed("start container 1", shim.start_container(WEB)).await?;
    let talk = ContainerRequest::new(
        TALK,
        &image,
        &["/bin/sh", "-c", "echo \"kernel $(cat /proc/sys/kernel/osrelease)\"; wget -q -O - http://127.0.0.1:8080/"],
    );
    timed("create container 2 from the same image", shim.create_container(&talk)).await?;
    timed("start container 2", shim.start_container(TALK)).await?;
    println!("    pod running {:.1} s after CreateVM", begin.elapsed().unwrap_or_default().as_secs_f64());

    let output = timed("container 2's output", shim.finish(TALK, "")).await?;
    show(&output.stdout);
    show(&output.stderr);
    ensure!(output.status == 0, "container 2 ended with status {}", output.status);
    let exec = timed(
        "exec in container 1: uname, id, addresses",
        shim.exec(WEB, "exec-1", &["/bin/sh", "-c", "id; hostname; ip -4 addr show eth0"], None),
    )
    .await?;
    show(&exec.stdout);
    ensure!(exec.status == 0, "exec ended with status {}", exec.status);
    let answer = phase("HTTP from the node to the pod's address", || {
        eventually("the pod answers", Duration::from_secs(20), || world.netns().http_get(SocketAddr::from((address, 8080)), "/"))
    })?;
    println!("    http://{address}:8080/ -> {}", answer.lines().last().unwrap_or(""));
    ensure!(answer.contains("hello from a pod VM"), "unexpected answer: {answer}");

    if keep {
        wait_for_person(world, address, &shim).await?;
    }
    print_phases(world)?;
    timed("delete the pod", async {
        for id in [WEB, TALK, shim.sandbox_id()] {
            let _ = shim.signal(id, 9).await;
            shim.remove_container(id).await?;
        }
        shim.stop_vm().await
    })
    .await?;
    phase("the pod VM is gone", || world.wait_for_no_machines(Duration::from_secs(60)))?;
    world.remove_pod(address);
    Ok(())
}

async fn wait_for_person(world: &World, address: std::net::Ipv4Addr, shim: &KataShim) -> Result<()> {
    println!("\nstill running; try:");
    println!("  nsenter --net={} wget -q -O - http://{address}:8080/", world.netns().path().display());
    println!("  {} list --config {}", binary("peerpods-node")?, world.folder().join("node.toml").display());
    println!("  tail {}", world.folder().join("node.log").display());
    println!("sandbox {}; press Enter or Ctrl-C to clean up", shim.sandbox_id());
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await??;
    Ok(())
}

fn binary(name: &str) -> Result<String> {
    Ok(peerpods_e2e::binaries_folder()?.join(name).display().to_string())
}

/// The daemon's own account of where the time went.
fn print_phases(world: &World) -> Result<()> {
    let list = world.node_list()?;
    let sandbox = list.as_array().and_then(|all| all.first()).context("the node daemon lists no sandbox")?;
    println!("\n      ms  phase");
    for phase in sandbox["phases"].as_array().into_iter().flatten() {
        println!("{:>8}  {}", phase["ms"].as_u64().unwrap_or(0), phase["phase"].as_str().unwrap_or("?"));
    }
    println!();
    Ok(())
}

fn show(bytes: &[u8]) {
    for line in String::from_utf8_lossy(bytes).lines() {
        println!("    | {line}");
    }
}

fn phase<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let begin = announce(what);
    let result = work().with_context(|| what.to_owned());
    done(begin);
    result
}

async fn timed<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let begin = announce(what);
    let result = work.await.with_context(|| what.to_owned());
    done(begin);
    result
}

fn announce(what: &str) -> SystemTime {
    print!("  {what} ... ");
    let _ = std::io::stdout().flush();
    SystemTime::now()
}

fn done(begin: SystemTime) {
    println!("{} ms", begin.elapsed().unwrap_or_default().as_millis());
}
