//! The network of a pod that has none: pods in the host's network must not see this machine's.
//!
//! On a node such a pod shares the node's network; the node is another machine here, so there is nothing to share, and the pod VM's
//! own network belongs to the channel. The pod gets a namespace with nothing but loopback.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use peerpods_network::POD_NETNS;
use peerpods_network::guest::{LinkConfig, bring_up};

/// Loopback is there with its namespace; this is for the kernel's answer, which a machine that has just booted may keep for a while.
const LOOPBACK_WITHIN: Duration = Duration::from_secs(5);

/// Makes the pod's namespace with loopback only.
pub(super) async fn ensure() -> Result<()> {
    let (done, finished) = tokio::sync::oneshot::channel();
    // A thread of its own: a namespace that a thread has entered cannot be left by pool threads.
    std::thread::Builder::new().name("netns".to_owned()).spawn(move || {
        let _ = done.send(make());
    })?;
    finished.await.map_err(|_| anyhow!("the thread that makes the namespace panicked"))?
}

fn make() -> Result<()> {
    let path = Path::new(POD_NETNS);
    std::fs::create_dir_all(path.parent().context("the pod's namespace has no folder")?)?;
    File::create(path).with_context(|| format!("create {POD_NETNS}"))?;
    unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
    let loopback = LinkConfig { address: "127.0.0.1/8".parse()?, gateway: None, dns: Vec::new(), mtu: 65536 };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(bring_up("lo", &loopback, LOOPBACK_WITHIN))?;
    mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).context("keep the namespace")
}
