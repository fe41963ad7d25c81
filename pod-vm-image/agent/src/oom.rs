//! Tells once per kill that a container ran out of memory.
//!
//! The kernel counts kills in the container's cgroup. The counter is looked at when a process of the container ends, before that
//! end is published, so that the event comes first as the shims need it; and while a client waits for events.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::cgroup::Cgroup;

/// Containers whose kills nobody has asked for yet.
#[derive(Debug, Default)]
pub(crate) struct OomEvents {
    waiting: Mutex<VecDeque<String>>,
    added: Notify,
}

/// Watches one container.
#[derive(Debug)]
pub(crate) struct OomWatch {
    container_id: String,
    cgroup: Cgroup,
    seen: AtomicU64,
    events: Arc<OomEvents>,
}

/// The oldest are dropped beyond that; one event per container is all a shim needs.
const MAX_WAITING: usize = 64;

impl OomEvents {
    fn add(&self, container_id: &str) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= MAX_WAITING {
            waiting.pop_front();
        }
        waiting.push_back(container_id.to_owned());
        drop(waiting);
        self.added.notify_one();
    }

    /// The oldest event.
    pub(crate) fn take(&self) -> Option<String> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Returns after an event was added; it may be gone already.
    pub(crate) async fn added(&self) {
        self.added.notified().await;
    }
}

impl OomWatch {
    /// Begins with no kill seen.
    pub(crate) fn new(container_id: &str, cgroup: Cgroup, events: Arc<OomEvents>) -> Self {
        Self { container_id: container_id.to_owned(), cgroup, seen: AtomicU64::new(0), events }
    }

    /// Looks at the counter.
    pub(crate) fn check(&self) {
        let kills = self.cgroup.oom_kills();
        if kills > self.seen.fetch_max(kills, Ordering::Relaxed) {
            tracing::info!(container_id = self.container_id, kills, "out of memory");
            self.events.add(&self.container_id);
        }
    }
}
