//! The way of a pod to its pause container, which most stories begin with.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;

use super::World;
use crate::KataShim;

impl World {
    /// A pod up to its pause container, as Kata's shim brings it there: the shim, port 8080 of the pod, and its agent's socket.
    pub async fn sandbox(&mut self, name: &str, seed: u64) -> Result<(KataShim, SocketAddr, PathBuf)> {
        let pod = self.add_pod()?;
        let (netns, address) = (pod.netns().path(), SocketAddr::from((pod.address(), 8080)));
        let mut shim = self.shim(name, seed);
        let socket = shim.create_vm(&netns, &[("cc_init_data", &self.initdata())]).await?;
        shim.start_vm(&socket).await?;
        shim.create_sandbox().await?;
        Ok((shim, address, socket))
    }
}
