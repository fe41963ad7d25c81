//! The mock cloud's account in a soak: who else is in it, when to kill, and what must be true of it in the end.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use peerpods_e2e::{World, eventually};
use serde_json::json;

use crate::Shared;

/// Somebody else's instances.
const NEIGHBOURS: u64 = 3;

/// How long a call that has taken effect waits for its answer: long enough to be killed in.
const HELD_MS: u64 = 800;

/// Nobody may wait for a call that does not come.
const PATIENCE: Duration = Duration::from_secs(8);

/// Thirty of a thousand calls fail, half of those after they have taken effect, and reads miss what is half a second old.
pub(crate) fn mock_options(seed: u64) -> Vec<String> {
    [("--faults-per-mille", 30), ("--stale-ms", 500), ("--seed", seed)].map(|(name, value)| format!("{name}={value}")).to_vec()
}

/// Launches the neighbours' instances: one with no tag, and two whose owner's name resembles ours.
pub(crate) fn move_in(world: &World) -> Result<()> {
    let Some(mock) = world.mock() else { return Ok(()) };
    let owner = std::fs::read_to_string(world.folder().join("controller/owner")).context("the controller's owner tag")?;
    let owner = owner.trim();
    // Their guests wait for a binder that never comes; one without user data would give up and end its instance by itself.
    let user_data = json!({ "version": 1, "binder_ca_sha256": "0".repeat(64), "tee": "sample" }).to_string();
    for tags in [json!({}), json!({ "peerpods:owner": format!("{owner}x") }), json!({ "peerpods:owner": owner, "peerpods:token": "t" })] {
        mock.post(world.netns(), "/launches", &json!({ "count": 1, "tags": tags, "user_data": user_data }))?;
    }
    Ok(())
}

/// When a kill falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aim {
    /// At any moment.
    AnyTime,
    /// When this call has taken effect and its answer is not sent.
    Unanswered(&'static str),
}

impl Aim {
    pub(crate) fn choose(random: &mut fastrand::Rng) -> Self {
        match random.u32(..6) {
            0 => Self::Unanswered("RunInstances"),
            1 => Self::Unanswered("TerminateInstances"),
            2 => Self::Unanswered("DescribeInstances"),
            _ => Self::AnyTime,
        }
    }

    /// Waits until then; true when the controller waits for an answer and must be the one that is killed.
    pub(crate) fn wait(self, shared: &Shared) -> Result<bool> {
        let Self::Unanswered(action) = self else { return Ok(false) };
        let count = || -> Result<Option<u64>> {
            let world = shared.lock();
            let Some(mock) = world.mock() else { return Ok(None) };
            Ok(Some(mock.get(world.netns(), "/summary")?["calls"][action].as_u64().unwrap_or(0)))
        };
        let Some(before) = count()? else { return Ok(false) };
        {
            let world = shared.lock();
            let fault = json!({ "action": action, "kind": { "delay": { "ms": HELD_MS } }, "times": 1 });
            world.mock().context("a mock cloud")?.post(world.netns(), "/faults", &fault)?;
        }
        let came = eventually("the call comes", PATIENCE, || {
            ensure!(count()?.is_some_and(|now| now > before), "not yet");
            Ok(())
        });
        Ok(came.is_ok())
    }
}

/// Nothing leaked, nothing doubled, nothing of the neighbours deleted.
pub(crate) fn check(world: &World, sandboxes: u64) -> Result<()> {
    let mock = world.mock().context("a mock cloud")?;
    let summary = eventually("only the neighbours are left", Duration::from_secs(90), || {
        let left = mock.existing(world.netns())?;
        ensure!(left == (NEIGHBOURS, 2 * NEIGHBOURS), "{left:?} instances and parts, {NEIGHBOURS} of them the neighbours'");
        mock.get(world.netns(), "/summary")
    })?;
    let launched = summary["shown"].as_u64().context("a number")? - NEIGHBOURS;
    ensure!(launched <= sandboxes, "{launched} instances for {sandboxes} sandboxes: some pod had two");
    println!("EC2: {launched} instances for {sandboxes} sandboxes, 0 leaked, 0 doubled, 0 of {NEIGHBOURS} foreign ones deleted");
    println!("EC2: {} calls failed on demand or by chance", summary["faults_injected"]);
    Ok(())
}
