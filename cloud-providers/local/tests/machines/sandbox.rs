//! Machines of level `sandbox`, and what is the same at both levels.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use peerpods_cloud_api::settings::local::Level;
use peerpods_cloud_api::{CloudProvider as _, Instance, InstanceId, InstanceState, ProviderError, Tee, Zone};
use peerpods_cloud_conformance::Subject;
use peerpods_cloud_local::LocalProvider;
use peerpods_cloud_local::machine::{Host, Record};

use crate::guest::{NAMESPACES, Report};
use crate::world::{LIMIT, World, check_no_cgroup, eventually, in_world, names, owner, request, settings};

async fn launch_one(provider: &LocalProvider, token: &str, user_data: &str) -> Result<Instance> {
    let mut launched = provider.launch(&request(token, 1, user_data)).await?;
    launched.instances.pop().context("one instance")
}

async fn report(world: &World, id: &InstanceId) -> Result<Report> {
    let path = world.machine_folder(id).join("scratch/report.json");
    let text = eventually("the guest reports", || Ok(std::fs::read(&path)?)).await?;
    Ok(serde_json::from_slice(&text)?)
}

fn record(world: &World, id: &InstanceId) -> Result<Record> {
    Host::new(world.settings())?.read(id)?.context("a record")
}

pub(crate) fn machine_has_its_own_world_and_is_deleted_without_trace() {
    in_world(Level::Sandbox, |world| async move {
        let provider = world.provider();
        provider.verify().await?;
        let instance = launch_one(&provider, "token-1", "public words").await?;
        ensure!(instance.state == InstanceState::Running, "{instance:?}");
        let report = report(&world, &instance.id).await?;
        ensure!(report.pid == 1 && report.host_name == instance.id.as_str(), "{report:?}");
        ensure!(report.environment.keys().eq(["PATH"]), "{:?}", report.environment);
        ensure!(report.open_files.is_empty(), "{:?}", report.open_files);
        ensure!(report.root == ["dev", "etc", "init", "proc", "run", "sys", "tmp", "var"], "{:?}", report.root);
        let devices = ["fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero"];
        ensure!(report.devices == devices, "{:?}", report.devices);
        for kind in NAMESPACES {
            let ours = std::fs::read_link(format!("/proc/thread-self/ns/{kind}"))?.display().to_string();
            ensure!(report.namespaces[kind] != ours, "the {kind} namespace is the host's");
        }
        ensure!(report.cgroups.lines().all(|line| line.ends_with(":/")), "{}", report.cgroups);
        ensure!(report.cgroup_is_writable && !report.sys_is_writable);
        ensure!(
            !report.mounts.contains(world.folder.path().to_str().context("UTF-8")?) || report.mounts.lines().count() < 30,
            "{}",
            report.mounts
        );
        check_boot(&report, &instance)?;

        let process = record(&world, &instance.id)?.process.context("a process")?;
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid))?;
        let fields: Vec<&str> = stat.rsplit_once(')').context("stat")?.1.split_ascii_whitespace().collect();
        ensure!(fields[1] != std::process::id().to_string(), "the machine is a child of the provider's program");
        // Seen from outside its PID namespace, group and session have the machine's own pid.
        ensure!(fields[2] == process.pid.to_string() && fields[3] == process.pid.to_string(), "{stat}");
        eventually("the guest has its child", || {
            let pids = std::fs::read_to_string(format!("/proc/{}/task/{}/children", process.pid, process.pid))?;
            ensure!(!pids.trim().is_empty());
            Ok(())
        })
        .await?;

        ensure!(matches!(provider.cleanup_host().await, Err(ProviderError::Unavailable { .. })), "cleanup with a machine");
        world.delete_all(&provider).await?;
        ensure!(!process.is_alive());
        ensure!(provider.delete(&instance.id).await == Err(ProviderError::NotFound));
        provider.cleanup_host().await?;
        Ok(())
    });
}

fn check_boot(report: &Report, instance: &Instance) -> Result<()> {
    ensure!(report.boot.keys().eq(["instance-id", "network", "sandbox", "user-data"]), "{:?}", report.boot);
    ensure!(report.boot["user-data"] == "public words" && report.boot["instance-id"] == instance.id.as_str());
    let network: serde_json::Value = serde_json::from_str(&report.boot["network"])?;
    let address = instance.address.context("an address")?;
    let expected = serde_json::json!({ "address": format!("{address}/24"), "gateway": "10.93.0.1", "dns": [], "mtu": 1500 });
    ensure!(network == expected, "{network}");
    ensure!(report.links.contains(&"eth0".to_owned()) && report.mac.starts_with("02:70:0a:5d:00:"), "{report:?}");
    Ok(())
}

pub(crate) fn machine_outlives_its_provider_and_is_found_by_another() {
    in_world(Level::Sandbox, |world| async move {
        let first = world.provider();
        let instance = launch_one(&first, "token-1", "stay").await?;
        report(&world, &instance.id).await?;
        drop(first);
        let second = world.provider();
        ensure!(second.list(&owner()).await? == std::slice::from_ref(&instance));
        ensure!(second.get(&instance.id).await? == instance);
        let other = peerpods_cloud_api::OwnerTag::new("somebody-else")?;
        ensure!(second.list(&other).await?.is_empty());
        ensure!(second.launch(&request("token-1", 1, "stay")).await?.instances == std::slice::from_ref(&instance));
        world.delete_all(&second).await
    });
}

pub(crate) fn machine_that_ends_by_itself_is_stopped_with_its_last_words() {
    in_world(Level::Sandbox, |world| async move {
        let provider = world.provider();
        let instance = launch_one(&provider, "token-1", "end").await?;
        let host = Host::new(world.settings())?;
        eventually("the machine ends", || {
            ensure!(!host.read(&instance.id)?.context("a record")?.process.context("a process")?.is_alive());
            Ok(())
        })
        .await?;
        ensure!(provider.get(&instance.id).await?.state == InstanceState::Stopped);
        let said = provider.console_tail(&instance.id).await?;
        ensure!(said.lines().last() == Some("guest: out of ideas"), "{said}");
        world.delete_all(&provider).await?;
        ensure!(provider.console_tail(&instance.id).await == Err(ProviderError::NotFound));
        Ok(())
    });
}

/// Blocking work in a machine's network namespace.
fn inside<T: Send + 'static>(world: &World, id: &InstanceId, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let pid = record(world, id)?.process.context("a process")?.pid;
    let netns = std::fs::File::open(format!("/proc/{pid}/ns/net"))?;
    let thread = std::thread::spawn(move || {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        work()
    });
    thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
}

fn configure(world: &World, instance: &Instance) -> Result<()> {
    let address = format!("{}/24", instance.address.context("an address")?);
    inside(world, &instance.id, move || {
        for arguments in
            [vec!["address", "add", &address, "dev", "eth0"], vec!["link", "set", "eth0", "up"], vec!["link", "set", "lo", "up"]]
        {
            ensure!(Command::new("ip").args(&arguments).status()?.success(), "ip {arguments:?}");
        }
        Ok(())
    })
}

fn exchange(to: SocketAddr, limit: Duration) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"ping")?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    Ok(())
}

fn echo(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let mut bytes = [0; 4];
            let _ = stream.read_exact(&mut bytes).and_then(|()| stream.write_all(&bytes));
        }
    });
}

pub(crate) fn machines_reach_the_host_and_not_each_other() {
    in_world(Level::Sandbox, |world| async move {
        let provider = world.provider();
        let launched = provider.launch(&request("token-1", 2, "stay")).await?.instances;
        let [one, two] = launched.as_slice() else { bail!("{launched:?}") };
        for instance in [one, two] {
            report(&world, &instance.id).await?;
            configure(&world, instance)?;
        }
        let listener = TcpListener::bind("10.93.0.1:0")?;
        let host = listener.local_addr()?;
        echo(listener);
        let machine = inside(&world, &two.id, || {
            let listener = TcpListener::bind("0.0.0.0:0")?;
            let port = listener.local_addr()?.port();
            echo(listener);
            Ok(port)
        })?;
        let machine = SocketAddr::new(two.address.context("an address")?, machine);
        inside(&world, &one.id, move || exchange(host, LIMIT)).context("machine to host")?;
        exchange(machine, LIMIT).context("host to machine")?;
        let refused = inside(&world, &one.id, move || exchange(machine, Duration::from_millis(500)));
        ensure!(refused.is_err(), "machines hear each other");
        world.delete_all(&provider).await
    });
}

pub(crate) fn launch_refuses_what_local_machines_do_not_have() {
    in_world(Level::Sandbox, |world| async move {
        let provider = world.provider();
        let good = request("token-1", 1, "");
        let bad = [
            ("tee", peerpods_cloud_api::LaunchRequest { tee: Tee::Snp, ..good.clone() }),
            ("zone", peerpods_cloud_api::LaunchRequest { zone: Some(Zone::new("a")?), ..good.clone() }),
            ("image", peerpods_cloud_api::LaunchRequest { image: Some("/etc/passwd".to_owned()), ..good.clone() }),
            ("count", peerpods_cloud_api::LaunchRequest { count: 0, ..good.clone() }),
            ("user data", peerpods_cloud_api::LaunchRequest { user_data: vec![0; 1025], ..good.clone() }),
            ("instance type", peerpods_cloud_api::LaunchRequest { instance_type: "huge".to_owned(), ..good }),
        ];
        for (subject, request) in bad {
            match provider.launch(&request).await {
                Err(ProviderError::InvalidRequest { detail }) => ensure!(detail.starts_with(subject), "{detail}"),
                other => bail!("{subject}: {other:?}"),
            }
        }
        let mut insecure = world.settings();
        insecure.insecure_sandbox = false;
        ensure!(matches!(LocalProvider::new(insecure), Err(ProviderError::InvalidRequest { .. })));
        for id in ["local-../../../../etc", "..", "local-0123456789abc", "i-1"] {
            ensure!(provider.delete(&InstanceId::new(id)?).await == Err(ProviderError::NotFound), "{id}");
        }
        world.check_nothing_is_left()
    });
}

pub(crate) fn provider_conforms() {
    in_world(Level::Sandbox, |world| async move {
        let settings = world.settings();
        let subject = Subject {
            open: Box::new(move || std::sync::Arc::new(LocalProvider::new(settings.clone()).expect("settings"))),
            owner_prefix: "conformance/".to_owned(),
            instance_type: "local.small".to_owned(),
            tee: Tee::Sample,
            zone: None,
            largest_batch: 10,
        };
        let outcome = peerpods_cloud_conformance::run(&subject, "").await;
        ensure!(outcome.failed.is_empty() && outcome.passed >= 60, "{outcome:#?}");
        world.check_nothing_is_left()
    });
}

pub(crate) fn foreign_link_of_the_bridges_name_is_left_alone() {
    in_world(Level::Sandbox, |world| async move {
        let ip = |arguments: &[&str]| -> Result<()> {
            ensure!(Command::new("ip").args(arguments).status()?.success(), "ip {arguments:?}");
            Ok(())
        };
        ip(&["link", "add", "peerpods0", "type", "bridge"])?;
        let provider = world.provider();
        for error in [provider.verify().await.err(), provider.launch(&request("token-1", 1, "")).await.err()] {
            let Some(ProviderError::InvalidRequest { detail }) = error else { bail!("{error:?}") };
            ensure!(detail.contains("peerpods0 exists and is not ours"), "{detail}");
        }
        ensure!(world.provider().list(&owner()).await?.is_empty());
        ip(&["link", "delete", "peerpods0"])?;
        world.check_nothing_is_left()?;
        provider.launch(&request("token-1", 1, "")).await?;
        world.delete_all(&provider).await
    });
}

pub(crate) fn concurrent_launches_and_deletes_leave_nothing() {
    in_world(Level::Sandbox, |world| async move {
        let mut tasks = Vec::new();
        for index in 0..8 {
            let settings = settings(&world.state_dir(), Level::Sandbox);
            tasks.push(tokio::spawn(async move {
                let provider = LocalProvider::new(settings)?;
                let token = format!("token-{}", index / 2);
                let launched = provider.launch(&request(&token, 2, "stay")).await?.instances;
                for instance in &launched {
                    match provider.delete(&instance.id).await {
                        Ok(()) | Err(ProviderError::NotFound) => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(launched)
            }));
        }
        for task in tasks {
            match task.await? {
                Ok(launched) => ensure!(launched.len() <= 2),
                // Its twin deleted the machine between plan and start.
                Err(ProviderError::NotFound) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let provider = world.provider();
        for instance in provider.list(&owner()).await? {
            check_state(&instance)?;
        }
        world.delete_all(&provider).await?;
        for id in names(&world.state_dir().join("machines")) {
            check_no_cgroup(&InstanceId::new(id)?)?;
        }
        Ok(())
    });
}

fn check_state(instance: &Instance) -> Result<()> {
    ensure!(instance.state != InstanceState::Stopped, "{instance:?}");
    Ok(())
}
