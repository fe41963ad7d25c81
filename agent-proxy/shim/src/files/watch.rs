//! Copies of one container that follow the node.
//!
//! A folder is watched, not what is below it: the kubelet switches the link `..data` in it. Events only say that something may have
//! changed; what has is found by listing the folder again and comparing. Therefore a lost event queue costs one more listing, and a
//! node that has no inotify instance left (128 for each user unless raised) costs a delay: folders are then listed every ten seconds.
//!
//! The task ends with its [`Watcher`], in the middle of an update if need be, or when all folders are gone: the kubelet removes volumes
//! only when the pod ends. An update that fails is logged and tried again, slower each time.

use std::ffi::OsString;
use std::io;
use std::time::Duration;

use futures::StreamExt as _;
use inotify::{Event, EventMask, EventStream, Inotify, WatchDescriptor, WatchMask};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::copy::{AgentFiles, Copied, CopyError, Removals, Snapshot, update};
use crate::failure::chain;
use crate::plan::Copy;

/// Keeps copies up to date until it is dropped.
#[derive(Debug)]
pub struct Watcher(JoinHandle<()>);

/// When changes are sent.
#[derive(Debug, Clone, Copy)]
struct Timing {
    /// After the last event.
    quiet: Duration,
    /// After the first event.
    longest: Duration,
    /// Between two listings of a folder without events.
    poll: Duration,
    /// After a failed update; doubled each time.
    retry: Duration,
}

/// The kubelet writes a volume within milliseconds.
const TIMING: Timing = Timing {
    quiet: Duration::from_millis(100),
    longest: Duration::from_secs(1),
    poll: Duration::from_secs(10),
    retry: Duration::from_secs(1),
};
const MAX_RETRY: Duration = Duration::from_secs(60);
/// Room for some events; the rest stays in the kernel's queue.
const EVENT_BUFFER_BYTES: usize = 4096;

impl Watcher {
    /// Follows the copies that are to be watched. What changed since they were copied is sent, too.
    pub fn start(agent: impl AgentFiles + 'static, copies: impl Into<Copied>) -> Self {
        Self::with(agent, copies.into(), TIMING, Inotify::init)
    }

    fn with(agent: impl AgentFiles + 'static, copied: Copied, timing: Timing, open: fn() -> io::Result<Inotify>) -> Self {
        Self(tokio::spawn(async move {
            let folders = Folders::new(copied, timing, open);
            folders.follow(&agent).await;
        }))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The task's state.
struct Folders {
    timing: Timing,
    /// `None` when the node has no inotify instance left.
    events: Option<Events>,
    folders: Vec<Folder>,
    removals: Removals,
}

type Events = EventStream<[u8; EVENT_BUFFER_BYTES]>;

struct Folder {
    copy: Copy,
    snapshot: Snapshot,
    /// `None`: listed every [`Timing::poll`].
    watch: Option<WatchDescriptor>,
    /// When it is listed next.
    due: Option<Instant>,
    /// When the first event since the last listing came.
    since: Option<Instant>,
    retry: Duration,
}

impl Folders {
    fn new(copied: Copied, timing: Timing, open: fn() -> io::Result<Inotify>) -> Self {
        let opened = open().and_then(|inotify| inotify.into_event_stream([0; EVENT_BUFFER_BYTES]));
        let period_secs = timing.poll.as_secs();
        let events = opened
            .inspect_err(|error| tracing::warn!(%error, period_secs, "no inotify instance: raise fs.inotify.max_user_instances"))
            .ok();
        let watch = |copy: &Copy| {
            let added = events.as_ref()?.watches().add(&copy.source, mask());
            added.inspect_err(|error| tracing::warn!(%error, period_secs, path = %copy.source.display(), "not watched")).ok()
        };
        // Due at once for what happened between the copy and the watch.
        let due = Some(Instant::now());
        let folders = copied.watched.into_iter().map(|(copy, snapshot)| {
            let watch = watch(&copy);
            Folder { copy, snapshot, watch, due, since: None, retry: timing.retry }
        });
        let folders = folders.collect();
        Self { timing, events, folders, removals: Removals::Asked }
    }

    async fn follow(mut self, agent: &dyn AgentFiles) {
        while !self.folders.is_empty() {
            let due = self.folders.iter().enumerate().filter_map(|(index, folder)| Some((folder.due?, index))).min();
            match due {
                Some((when, index)) if when <= Instant::now() => self.update(agent, index).await,
                _ => tokio::select! {
                    event = next(self.events.as_mut()) => self.note(event),
                    () = until(due.map(|(when, _)| when)) => {}
                },
            }
        }
    }

    fn note(&mut self, event: Option<io::Result<Event<OsString>>>) {
        let now = Instant::now();
        let watch = match event {
            Some(Ok(event)) if event.mask.contains(EventMask::Q_OVERFLOW) => None,
            Some(Ok(event)) => Some(event.wd),
            // Not seen to happen. Without events everything is listed now and then.
            end => {
                tracing::warn!(error = ?end.and_then(Result::err), "inotify gives no more events");
                self.events = None;
                self.folders.iter_mut().for_each(|folder| folder.watch = None);
                None
            }
        };
        for folder in &mut self.folders {
            if watch.is_none() || folder.watch == watch {
                let since = *folder.since.get_or_insert(now);
                folder.due = Some((now + self.timing.quiet).min(since + self.timing.longest));
            }
        }
    }

    async fn update(&mut self, agent: &dyn AgentFiles, index: usize) {
        let Some(folder) = self.folders.get_mut(index) else { return };
        let result = update(agent, &folder.copy, &mut folder.snapshot, self.removals).await;
        let now = Instant::now();
        folder.since = None;
        match result {
            Ok(removals) => {
                self.removals = removals;
                folder.retry = self.timing.retry;
                folder.due = folder.watch.is_none().then(|| now + self.timing.poll);
            }
            Err(CopyError::Read { source, .. }) if source.is_gone() && !folder.copy.source.exists() => {
                tracing::debug!(path = %folder.copy.source.display(), "a volume is gone from the node");
                self.folders.swap_remove(index);
            }
            Err(error) => {
                let retry_secs = folder.retry.as_secs();
                tracing::warn!(error = chain(&error), path = %folder.copy.source.display(), retry_secs, "updating a volume in the pod VM");
                folder.due = Some(now + folder.retry);
                folder.retry = (folder.retry * 2).min(MAX_RETRY);
            }
        }
    }
}

fn mask() -> WatchMask {
    WatchMask::CREATE
        | WatchMask::MOVE
        | WatchMask::DELETE
        | WatchMask::CLOSE_WRITE
        | WatchMask::ATTRIB
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR
}

async fn next(events: Option<&mut Events>) -> Option<io::Result<Event<OsString>>> {
    match events {
        Some(events) => events.next().await,
        None => std::future::pending().await,
    }
}

async fn until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}
