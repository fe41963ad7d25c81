//! Pod VMs, kernel and links.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use peerpods_node::id::SandboxId;
use peerpods_node::ports::{
    BindFailure, BindObserver, BindTarget, Bound, LinkReport, LinkSpec, LinkTrouble, Links, NetworkTrouble, PodNetworks, PodVms,
};
use peerpods_tunnel::node::Pin;

use super::World;

#[async_trait]
impl PodVms for World {
    async fn bind(&self, target: BindTarget<'_>, observer: &mut (dyn BindObserver + Send)) -> Result<Bound, BindFailure> {
        let failure = |during, cause: &str| BindFailure { during, cause: cause.to_owned(), advice: "look", is_stale_credential: false };
        self.point("bind.before").await;
        if let Some(cause) = self.state().bind_failure {
            return Err(failure("reach the pod VM", cause));
        }
        observer.evidence_arrived().map_err(|e| failure("attest the pod VM", &e))?;
        self.point("bind.evidence").await;
        observer.attested(Pin([7; 32])).map_err(|e| failure("attest the pod VM", &e))?;
        self.point("bind.attested").await;
        {
            let mut state = self.state();
            let bytes = serde_json::to_vec(target.request).expect("JSON");
            let Some(pod_vm) = state.pod_vms.get_mut(target.instance_id) else { return Err(failure("reach the pod VM", "it is gone")) };
            match &pod_vm.bound {
                Some(before) if *before != bytes => {
                    state.faults.push(format!("{} was bound twice", target.instance_id));
                    return Err(failure("bind the pod VM", "already bound"));
                }
                _ => pod_vm.bound = Some(bytes),
            }
        }
        self.point("bind.after").await;
        Ok(Bound { pin: Pin([7; 32]), attest_ms: 1 })
    }
}

#[async_trait]
impl PodNetworks for World {
    async fn inspect(&self, netns: &Path) -> Result<(), NetworkTrouble> {
        self.point("inspect").await;
        if self.exists(netns) { Ok(()) } else { Err(NetworkTrouble(format!("there is no network namespace at {}", netns.display()))) }
    }

    async fn describe(&self, netns: &Path, vm: IpAddr, vni: u32) -> Result<serde_json::Value, NetworkTrouble> {
        self.point("describe.before").await;
        let described = serde_json::json!({ "netns": netns, "vm": vm, "vni": vni });
        self.point("describe.after").await;
        Ok(described)
    }

    async fn ensure(&self, netns: &Path, _vm: IpAddr, vni: u32) -> Result<(), NetworkTrouble> {
        self.point("network.before").await;
        let before = self.state().wired.insert(netns.to_owned(), vni);
        if before.is_some_and(|before| before != vni) {
            self.state().faults.push(format!("{} was wired as {before:?} and {vni}", netns.display()));
        }
        self.point("network.after").await;
        Ok(())
    }

    async fn remove(&self, netns: &Path, _vni: u32) -> Result<(), NetworkTrouble> {
        self.point("network-remove.before").await;
        self.state().wired.remove(netns);
        self.point("network-remove.after").await;
        Ok(())
    }

    fn exists(&self, netns: &Path) -> bool {
        self.state().netns.contains(netns)
    }
}

#[async_trait]
impl Links for World {
    async fn ensure(&self, spec: &LinkSpec) -> Result<(), LinkTrouble> {
        self.point("link.before").await;
        {
            let mut state = self.state();
            if !state.links.contains_key(spec.sandbox_id.as_str()) {
                state.links_started += 1;
                state.links.insert(spec.sandbox_id.to_string(), 0);
            }
        }
        self.point("link.after").await;
        Ok(())
    }

    async fn stop(&self, id: &SandboxId) -> Result<(), LinkTrouble> {
        self.point("link-stop.before").await;
        self.state().links.remove(id.as_str());
        self.point("link-stop.after").await;
        Ok(())
    }

    async fn report(&self, id: &SandboxId) -> LinkReport {
        match self.state().links.get(id.as_str()) {
            Some(connections) => LinkReport::Running { connections: *connections, accepted: u64::from(*connections) },
            None => LinkReport::Absent,
        }
    }

    async fn remove_folder(&self, _: &SandboxId) -> Result<(), LinkTrouble> {
        self.point("folder.before").await;
        self.point("folder.after").await;
        Ok(())
    }

    fn socket(&self, id: &SandboxId) -> PathBuf {
        PathBuf::from("/run/pods").join(id.as_str()).join("agent.ttrpc")
    }
}
