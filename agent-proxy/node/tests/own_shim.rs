//! A sandbox of our own shim: no link of ours, the pod's UID as the claim's key, and an end with the shim or with the pod VM.

mod support;

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use peerpods_claims::ClaimState;
use peerpods_controller_api::PodRef;
use peerpods_link::folder::ProcessIdentity;
use peerpods_node::call::NewSandbox;
use peerpods_node::id::SandboxId;
use support::{BRING_UP, Daemon, World, eventually, new_sandbox};

const UID: &str = "0f1e2d3c-0000-4000-8000-000000000001";

/// Stands for the shim: ends when its input is closed.
struct Shim(Child);

impl Shim {
    fn start() -> Self {
        Self(Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("cat"))
    }

    fn identity(&self) -> ProcessIdentity {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).expect("it runs");
        let start_time = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)).expect("field 22");
        ProcessIdentity { pid: self.0.id(), start_time: start_time.parse().expect("a number") }
    }

    fn end(&mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("reaped");
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wanted(id: &str, shim: &Shim) -> NewSandbox {
    let pod = PodRef::new("default", "web", Some(UID.to_owned())).expect("valid");
    NewSandbox { pod, shim: Some(shim.identity()), ..new_sandbox(id) }
}

async fn ready(world: &Arc<World>, shim: &Shim) -> Daemon {
    let daemon = Daemon::start(world);
    daemon.registry.create(wanted("s1", shim)).await.expect("recorded");
    daemon.start_vm("s1").await.expect("ready");
    daemon
}

fn id() -> SandboxId {
    SandboxId::new("s1").expect("valid")
}

#[tokio::test]
async fn it_has_no_link_and_the_pods_uid_is_its_claim() {
    let (world, shim) = (World::new(), Shim::start());
    let daemon = ready(&world, &shim).await;
    assert_eq!(world.state().links_started, 0);
    assert_eq!(world.state().claims.keys().collect::<Vec<_>>(), [UID]);
    let vm = daemon.registry.bound(&id()).expect("the shim may dial it");
    assert_eq!(vm.instance_id, "i-1");
    assert_eq!(daemon.registry.over(&id(), Duration::from_millis(50)).await, Ok(None), "it goes on");
    daemon.stop("s1").await.expect("stopped");
    daemon.wait_until_clean().await;
    assert_eq!(world.state().released, [UID]);
}

#[tokio::test]
async fn it_ends_with_its_shim() {
    let (world, mut shim) = (World::new(), Shim::start());
    let daemon = ready(&world, &shim).await;
    shim.end();
    daemon.wait_until_clean().await;
    assert_eq!(world.state().released, [UID]);
}

#[tokio::test]
async fn it_ends_with_a_shim_that_died_while_the_daemon_was_away() {
    let (world, mut shim) = (World::new(), Shim::start());
    let world = ready(&world, &shim).await.kill().await;
    shim.end();
    let daemon = Daemon::start(&world);
    daemon.wait_until_clean().await;
    assert_eq!(world.state().released, [UID]);
}

#[tokio::test]
async fn a_daemon_that_was_killed_at_any_step_goes_on_for_it() {
    for point in BRING_UP.into_iter().filter(|point| !point.starts_with("link.")) {
        let (world, shim) = (World::new(), Shim::start());
        world.block(point);
        let daemon = Daemon::start(&world);
        daemon.registry.create(wanted("s1", &shim)).await.expect("recorded");
        world.reached(point).await;
        let world = daemon.kill().await;
        world.unblock();
        let daemon = Daemon::start(&world);
        daemon.start_vm("s1").await.expect("ready");
        {
            let state = world.state();
            assert_eq!((state.launched, state.links_started), (1, 0), "{point}");
        }
        world.assert_no_faults();
        daemon.stop("s1").await.expect("stopped");
        daemon.wait_until_clean().await;
    }
}

#[tokio::test]
async fn the_end_of_its_pod_vm_is_told_with_the_reason() {
    let (world, shim) = (World::new(), Shim::start());
    let daemon = ready(&world, &shim).await;
    let over = tokio::spawn({
        let registry = Arc::clone(&daemon.registry);
        async move { registry.over(&id(), Duration::from_secs(30)).await }
    });
    let failed = ClaimState::Failed { during: "claimed".to_owned(), cause: "the instance stopped by itself".to_owned() };
    world.state().claims[UID].state.send_replace(failed);
    let reason = over.await.expect("told").expect("known").expect("over");
    assert!(reason.contains("i-1") && reason.contains("stopped by itself") && reason.contains("next:"), "{reason}");
    eventually("released", || world.state().released == [UID]).await;
    daemon.stop("s1").await.expect("stopped");
    daemon.wait_until_clean().await;
}
