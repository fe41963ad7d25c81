//! Sending files with `CopyFile`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use peerpods_protos::agent::CopyFileRequest;
use peerpods_protos::agent_ttrpc::AgentServiceClient;
use ttrpc::context::with_duration;

use super::tree::{self, Content, Entry, Limits, TreeError};
use crate::plan::Copy;

/// The one call of the agent that is needed here.
#[async_trait]
pub trait AgentFiles: Send + Sync {
    /// Makes a file, folder or link in the guest, or takes a file piece by piece. Idempotent from the first piece on.
    async fn copy_file(&self, request: &CopyFileRequest) -> ttrpc::Result<()>;
}

/// Files could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// On the node's side.
    #[error("copying {mount} into the pod VM")]
    Read {
        /// The mount's source.
        mount: String,
        /// The cause.
        #[source]
        source: TreeError,
    },
    /// On the guest's side.
    #[error("the pod VM's agent did not take {path}")]
    Send {
        /// In the guest.
        path: String,
        /// What it answered.
        #[source]
        source: ttrpc::Error,
    },
    /// The thread that read did not end well.
    #[error("reading {mount} was given up")]
    GivenUp {
        /// The mount's source.
        mount: String,
    },
}

/// What was copied and is to be kept up to date, for [`super::Watcher::start`]. Made from mere copies, all is sent once more.
#[derive(Debug, Default)]
pub struct Copied {
    pub(super) watched: Vec<(Copy, Snapshot)>,
}

/// What the guest has of one mount.
pub(super) type Snapshot = BTreeMap<String, Entry>;

/// Small enough for a ttrpc frame of 4 MiB with room to spare; Kata's Go shim sends as much.
const PIECE_BYTES: usize = 1 << 20;
/// For one request. The guest only writes to memory; the time is for the network.
const DEADLINE: Duration = Duration::from_secs(60);
/// How often a volume that the kubelet is just switching is listed again.
const ATTEMPTS: usize = 5;
const FILE: u32 = 0o100_000;
const FOLDER: u32 = 0o040_000;
const LINK: u32 = 0o120_000;
/// As in an overlay, a character device in place of a file says that there is none. Our agent takes it; Kata's refuses it.
const WHITEOUT: u32 = 0o020_000;

impl From<Vec<Copy>> for Copied {
    fn from(copies: Vec<Copy>) -> Self {
        Self { watched: copies.into_iter().filter(|copy| copy.watch).map(|copy| (copy, Snapshot::new())).collect() }
    }
}

#[async_trait]
impl AgentFiles for AgentServiceClient {
    async fn copy_file(&self, request: &CopyFileRequest) -> ttrpc::Result<()> {
        AgentServiceClient::copy_file(self, with_duration(DEADLINE), request).await.map(|_| ())
    }
}

/// Copies everything, in order. On an error some of it may be in the guest; copying again is fine.
pub async fn copy(agent: &dyn AgentFiles, copies: &[Copy]) -> Result<Copied, CopyError> {
    let mut copied = Copied::default();
    for copy in copies {
        let mut snapshot = Snapshot::new();
        let mut attempts = 1;
        loop {
            match update(agent, copy, &mut snapshot, Removals::Unneeded).await {
                // The kubelet took a folder away while it was read; its successor is there already.
                Err(CopyError::Read { source, .. }) if source.is_gone() && attempts < ATTEMPTS => attempts += 1,
                result => {
                    result?;
                    break;
                }
            }
        }
        if copy.watch {
            copied.watched.push((copy.clone(), snapshot));
        }
    }
    Ok(copied)
}

/// Whether the agent is asked to take files away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Removals {
    /// Nothing was there before, or the agent cannot.
    Unneeded,
    /// It is asked.
    Asked,
    /// It was asked and refused.
    Refused,
}

/// Sends what differs from the snapshot, which is brought up to date entry by entry: an update that is cut short goes on where it was.
pub(super) async fn update(
    agent: &dyn AgentFiles,
    copy: &Copy,
    snapshot: &mut Snapshot,
    mut removals: Removals,
) -> Result<Removals, CopyError> {
    let limits = Limits::default();
    let entries = on_thread(copy, move |source| tree::list(source, &limits)).await?;
    for entry in &entries {
        let earlier = snapshot.get(&entry.path);
        if earlier == Some(entry) {
            continue;
        }
        let target = target(copy, &entry.path);
        if earlier.is_some_and(|earlier| earlier.content.is_folder() != entry.content.is_folder()) && removals == Removals::Asked {
            removals = remove(agent, &target).await?;
        }
        send(agent, copy, entry, target, limits).await?;
        snapshot.insert(entry.path.clone(), entry.clone());
    }
    let gone: Vec<String> = snapshot.keys().filter(|path| entries.iter().all(|entry| entry.path != **path)).cloned().collect();
    // The content of a folder before the folder.
    for path in gone.iter().rev() {
        if removals == Removals::Asked {
            removals = remove(agent, &target(copy, path)).await?;
        }
        snapshot.remove(path);
    }
    Ok(removals)
}

fn target(copy: &Copy, path: &str) -> String {
    if path.is_empty() { copy.target.clone() } else { format!("{}/{path}", copy.target) }
}

async fn send(agent: &dyn AgentFiles, copy: &Copy, entry: &Entry, path: String, limits: Limits) -> Result<(), CopyError> {
    let mut request = CopyFileRequest { path, uid: entry.uid, gid: entry.gid, ..Default::default() };
    match &entry.content {
        Content::Folder => {
            request.file_mode = FOLDER | entry.permissions;
            deliver(agent, &request).await
        }
        Content::Link(target) => {
            request.file_mode = LINK;
            request.data = target.clone().into_bytes();
            request.file_size = as_size(request.data.len());
            deliver(agent, &request).await
        }
        Content::File(_) => {
            let name = entry.path.clone();
            let content = on_thread(copy, move |source| tree::read(&tree::below(source, &name), &limits)).await?;
            request.file_mode = FILE | entry.permissions;
            request.file_size = as_size(content.len());
            // An empty file is one piece without data.
            let pieces = content.chunks(PIECE_BYTES).chain(content.is_empty().then_some(&[][..]));
            for (number, piece) in pieces.enumerate() {
                request.offset = as_size(number * PIECE_BYTES);
                request.data = piece.to_vec();
                deliver(agent, &request).await?;
            }
            Ok(())
        }
    }
}

async fn deliver(agent: &dyn AgentFiles, request: &CopyFileRequest) -> Result<(), CopyError> {
    agent.copy_file(request).await.map_err(|source| CopyError::Send { path: request.path.clone(), source })
}

/// An agent that does not know removals says so once; what is left behind then is a link to nothing and a folder no link leads to.
async fn remove(agent: &dyn AgentFiles, path: &str) -> Result<Removals, CopyError> {
    let request = CopyFileRequest { path: path.to_owned(), file_mode: WHITEOUT, ..Default::default() };
    match agent.copy_file(&request).await {
        Ok(()) => Ok(Removals::Asked),
        Err(ttrpc::Error::RpcStatus(status)) => {
            tracing::info!(path, answer = status.message, "the agent does not remove files: old ones stay in the pod VM");
            Ok(Removals::Refused)
        }
        Err(source) => Err(CopyError::Send { path: path.to_owned(), source }),
    }
}

async fn on_thread<T: Send + 'static>(
    copy: &Copy,
    work: impl FnOnce(&Path) -> Result<T, TreeError> + Send + 'static,
) -> Result<T, CopyError> {
    let mount = || copy.source.display().to_string();
    let source = copy.source.clone();
    let done = tokio::task::spawn_blocking(move || work(&source)).await.map_err(|_| CopyError::GivenUp { mount: mount() })?;
    done.map_err(|source| CopyError::Read { mount: mount(), source })
}

/// Sizes here are bounded by [`Limits`].
fn as_size(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
