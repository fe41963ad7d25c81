//! A controller, pod VMs, a kernel and links that live in this process, survive the daemon's death, and keep the books.

// Each test binary uses a part of this.
#![allow(dead_code)]

mod claims;
mod daemon;
mod fakes;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use peerpods_claims::{ClaimRequest, ClaimState};
use tokio::sync::watch;

pub(crate) use daemon::{Daemon, eventually, new_sandbox};

/// Where bring-up can be held or killed: before and after each effect.
pub(crate) const BRING_UP: [&str; 12] = [
    "claim.before",
    "claim.after",
    "describe.before",
    "describe.after",
    "bind.before",
    "bind.evidence",
    "bind.attested",
    "bind.after",
    "network.before",
    "network.after",
    "link.before",
    "link.after",
];

/// Everything outside the daemon.
pub(crate) struct World {
    state: Mutex<State>,
    /// Where whoever gets there stays for ever, and how often somebody got there.
    points: watch::Sender<Points>,
    pub(crate) folder: tempfile::TempDir,
}

#[derive(Debug, Clone, Default)]
struct Points {
    blocked: BTreeSet<&'static str>,
    reached: BTreeMap<&'static str, usize>,
}

#[derive(Default)]
pub(crate) struct State {
    /// By key.
    pub(crate) claims: BTreeMap<String, FakeClaim>,
    /// Pod VMs that exist.
    pub(crate) pod_vms: BTreeMap<String, FakePodVm>,
    /// Pod VMs ever made.
    pub(crate) launched: usize,
    /// Keys that were released, in order.
    pub(crate) released: Vec<String>,
    /// Namespaces that exist.
    pub(crate) netns: BTreeSet<PathBuf>,
    /// Namespaces that are wired, with their VNI.
    pub(crate) wired: BTreeMap<PathBuf, u32>,
    /// Sandboxes with a link, and the connections of shims.
    pub(crate) links: BTreeMap<String, u32>,
    /// Links ever started.
    pub(crate) links_started: usize,
    /// Claims stay pending until told otherwise.
    pub(crate) is_claim_held: bool,
    /// Every claim fails so.
    pub(crate) claim_failure: Option<String>,
    /// How many calls the controller will not answer.
    pub(crate) unavailable: usize,
    /// Every Bind fails so.
    pub(crate) bind_failure: Option<&'static str>,
    /// What went wrong in a way that must never happen.
    pub(crate) faults: Vec<String>,
}

pub(crate) struct FakeClaim {
    pub(crate) request: ClaimRequest,
    pub(crate) state: watch::Sender<ClaimState>,
    pub(crate) instance_id: String,
}

#[derive(Default)]
pub(crate) struct FakePodVm {
    /// The Bind that it took.
    pub(crate) bound: Option<Vec<u8>>,
}

impl World {
    pub(crate) fn new() -> Arc<Self> {
        let mut state = State::default();
        state.netns.insert(netns());
        Arc::new(Self {
            state: Mutex::new(state),
            points: watch::channel(Points::default()).0,
            folder: tempfile::tempdir().expect("tempdir"),
        })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }

    /// Whoever gets to this point from now on stays there.
    pub(crate) fn block(&self, point: &'static str) {
        self.points.send_modify(|points| {
            points.blocked.insert(point);
        });
    }

    /// Nobody stays anywhere; whoever stayed is let go.
    pub(crate) fn unblock(&self) {
        self.points.send_modify(|points| points.blocked.clear());
    }

    /// Waits until somebody has got to this point.
    pub(crate) async fn reached(&self, point: &'static str) {
        let mut points = self.points.subscribe();
        let wait = points.wait_for(|points| points.reached.contains_key(point));
        tokio::time::timeout(std::time::Duration::from_secs(20), wait)
            .await
            .unwrap_or_else(|_| panic!("{point} is not reached"))
            .expect("alive");
    }

    /// The fakes call this before and after what they do.
    pub(crate) async fn point(&self, point: &'static str) {
        self.points.send_modify(|points| *points.reached.entry(point).or_default() += 1);
        let mut points = self.points.subscribe();
        let _ = points.wait_for(|points| !points.blocked.contains(point)).await;
    }

    /// The sandbox files.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path().join("sandboxes")).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    pub(crate) fn file(&self, sandbox_id: &str) -> serde_json::Value {
        let path = self.folder.path().join(format!("sandboxes/{sandbox_id}.json"));
        serde_json::from_slice(&std::fs::read(path).expect("there")).expect("JSON")
    }

    /// Nothing went wrong, and nothing of any sandbox is left anywhere.
    pub(crate) fn assert_clean(&self) {
        let state = self.state();
        assert_eq!(state.faults, Vec::<String>::new());
        assert!(state.claims.is_empty(), "claims left: {:?}", state.claims.keys());
        assert!(state.pod_vms.is_empty(), "pod VMs left: {:?}", state.pod_vms.keys());
        assert!(state.links.is_empty() && state.wired.is_empty(), "{:?} {:?}", state.links, state.wired);
        assert_eq!(self.files(), Vec::<String>::new());
    }

    pub(crate) fn assert_no_faults(&self) {
        assert_eq!(self.state().faults, Vec::<String>::new());
    }
}

pub(crate) fn netns() -> PathBuf {
    PathBuf::from("/run/netns/cni-1")
}
