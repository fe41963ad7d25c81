//! Folders of the node that change: watched, and copied again.

use std::path::PathBuf;
use std::time::Duration;

use futures::StreamExt as _;
use inotify::{Inotify, WatchMask};
use peerpods_protos::agent_ttrpc::AgentServiceClient;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::copy::copy;
use crate::failure::chain;
use crate::plan::Copy;

/// Keeps copies up to date until it is dropped.
#[derive(Debug)]
pub struct Watcher(JoinHandle<()>);

/// The kubelet makes a change in several steps.
const SETTLE: Duration = Duration::from_millis(200);
/// Between tries of an update that fails.
const PAUSE: Duration = Duration::from_secs(2);
/// Room for some events; more of them only mean one copy.
const BUFFER_BYTES: usize = 4096;

impl Watcher {
    /// Watches the sources of these copies. They are copied once more at the beginning: one may have changed since its first copy.
    pub fn start(agent: AgentServiceClient, copies: Vec<Copy>) -> Self {
        Self(tokio::spawn(async move {
            let sources: Vec<PathBuf> = copies.iter().map(|copy| copy.source.clone()).collect();
            let mut changes = match watch(&sources) {
                Ok(changes) => changes,
                Err(error) => return tracing::error!(%error, "changes of ConfigMaps and Secrets will not be seen in the pod"),
            };
            loop {
                // A queue that overflowed tells no names, so every change is one of everything; nothing else is lost by it.
                while let Err(error) = copy(&agent, &copies).await {
                    tracing::warn!(error = chain(&error), "updating the container's files; trying again");
                    sleep(PAUSE).await;
                }
                if changes.next().await.is_none() {
                    return;
                }
                sleep(SETTLE).await;
            }
        }))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn watch(sources: &[PathBuf]) -> std::io::Result<inotify::EventStream<[u8; BUFFER_BYTES]>> {
    let inotify = Inotify::init()?;
    let mask = WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::DELETE | WatchMask::CLOSE_WRITE | WatchMask::ATTRIB;
    for source in sources {
        inotify.watches().add(source, mask)?;
    }
    inotify.into_event_stream([0; BUFFER_BYTES])
}
