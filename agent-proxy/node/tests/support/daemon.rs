//! The daemon in a world: started on its folder, killed, started again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use peerpods_controller_api::{Mib, NodeName, PodRef};
use peerpods_node::call::{CallError, NewSandbox};
use peerpods_node::driver::{Context, Timing};
use peerpods_node::id::SandboxId;
use peerpods_node::metrics::Metrics;
use peerpods_node::ports::Ports;
use peerpods_node::record::StopReason;
use peerpods_node::registry::Registry;
use peerpods_node::request::PodRequest;
use peerpods_node::store::Store;
use peerpods_tunnel::credential::NodeKey;
use tokio::time::{Instant, sleep};

use super::{World, netns};

pub(crate) struct Daemon {
    world: Arc<World>,
    pub(crate) registry: Arc<Registry>,
}

impl Daemon {
    /// On the world's folder, with no patience for newer sandboxes.
    pub(crate) fn start(world: &Arc<World>) -> Self {
        Self::start_with(world, Duration::ZERO)
    }

    /// With `takeover` as the time that a stopped sandbox's pod VM stays on offer.
    pub(crate) fn start_with(world: &Arc<World>, takeover: Duration) -> Self {
        Self::start_timed(world, takeover, Duration::from_secs(60))
    }

    /// With `start` as the time that a pod VM may take.
    pub(crate) fn start_timed(world: &Arc<World>, takeover: Duration, start: Duration) -> Self {
        let store = Store::open(world.folder.path()).expect("a folder");
        let loaded = store.load().expect("readable");
        store.tidy(&loaded.damaged).expect("tidied");
        let ports = Ports {
            claims: Arc::clone(world) as _,
            pod_vms: Arc::clone(world) as _,
            networks: Arc::clone(world) as _,
            links: Arc::clone(world) as _,
        };
        let mut timing = Timing::new(start, takeover);
        timing.retry_first = Duration::from_millis(1);
        let key = world.folder.path().join("key.pem");
        let node_key = match std::fs::read_to_string(&key) {
            Ok(pem) => NodeKey::from_pem(&pem).expect("a key"),
            Err(_) => {
                let node_key = NodeKey::generate().expect("a key");
                std::fs::write(&key, node_key.to_pem()).expect("written");
                node_key
            }
        };
        let node = NodeName::new("node-1").expect("valid");
        let context = Context { ports, store, timing, node, node_key, metrics: Metrics::default() };
        Self { world: Arc::clone(world), registry: Registry::start(Arc::new(context), loaded.records) }
    }

    /// Every task ends at the await that it is at; nothing is written any more.
    pub(crate) async fn kill(self) -> Arc<World> {
        self.registry.shut_down().await;
        self.world
    }

    pub(crate) async fn create(&self, id: &str) -> Result<PathBuf, CallError> {
        self.registry.create(new_sandbox(id)).await
    }

    pub(crate) async fn start_vm(&self, id: &str) -> Result<(), CallError> {
        self.registry.start_vm(&SandboxId::new(id).expect("valid"), Duration::from_secs(20)).await
    }

    pub(crate) async fn stop(&self, id: &str) -> Result<(), CallError> {
        self.registry.stop(&SandboxId::new(id).expect("valid"), StopReason::StopVm).await
    }

    /// Waits until nothing of any sandbox is left, then checks the books.
    pub(crate) async fn wait_until_clean(&self) {
        eventually("no sandbox is left", || self.world.files().is_empty()).await;
        self.world.assert_clean();
    }
}

/// A sandbox of the pod `default/web`.
pub(crate) fn new_sandbox(id: &str) -> NewSandbox {
    NewSandbox {
        id: SandboxId::new(id).expect("valid"),
        pod: PodRef::new("default", "web", None).expect("valid"),
        request: PodRequest {
            vcpus: 1.5,
            memory_mib: Mib(512),
            image: None,
            instance_type: None,
            class: None,
            initdata: Some("algorithm = \"sha384\"".to_owned()),
        },
        netns: Some(netns()),
        shim: None,
    }
}

/// Waits for a condition; works with real and with paused time.
pub(crate) async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(3600);
    let real_limit = std::time::SystemTime::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < limit && std::time::SystemTime::now() < real_limit, "{what}");
        sleep(Duration::from_millis(1)).await;
    }
}
