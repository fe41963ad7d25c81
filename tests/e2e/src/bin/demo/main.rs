//! The demo: a pod from request to removal, each phase shown as it happens, and nothing left behind.
//!
//! By default the story is that of a confidential workload's owner ([`confidential`]); `--plain` and `--aws` tell a plain pod's ([`plain`]).

mod confidential;
mod plain;
mod say;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use peerpods_e2e::{Cloud, Leftovers, Rig, eventually};

use say::phase;

fn main() -> Result<()> {
    let has = |option: &str| std::env::args().any(|argument| argument == option);
    let (keep, cloud) = (has("--keep"), if has("--aws") { Cloud::MockAws } else { Cloud::Local });
    let is_plain = has("--plain") || has("--aws");
    let before = Leftovers::now()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = async { if is_plain { plain::story(keep, cloud).await } else { confidential::story().await } } => outcome,
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

/// Tells a story, shows the logs if it breaks off, and removes everything.
async fn on_rig(rig: Rig, story: impl AsyncFnOnce(&Arc<Rig>) -> Result<()>) -> Result<()> {
    let rig = Arc::new(rig);
    let result = story(&rig).await;
    if result.is_err() {
        println!("{}", rig.logs());
    }
    phase("stop containerd and the daemons, remove what they made", || {
        drop(Arc::into_inner(rig).context("somebody still uses containerd")?);
        Ok(())
    })?;
    result
}
