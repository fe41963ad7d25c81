//! The ten calls of containerd.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures::Stream;
use tonic::{Request, Response, Status};

use super::filter::Filter;
use super::rootfs;
use super::store::{Kind, Snapshot, Store, StoreError};
use super::wire;
use crate::ports::chain;

/// Who knows the user that an image's configuration names.
#[async_trait]
pub trait ImageUsers: Send + Sync + 'static {
    /// The user of the image whose layers have that chain id, in a namespace of containerd; `None` when no image is known.
    async fn user_of(&self, namespace: &str, chain_id: &str) -> Option<String>;
}

/// The service.
pub struct Snapshotter {
    store: Mutex<Store>,
    users: Arc<dyn ImageUsers>,
}

/// containerd's way to say which layer an unpacked snapshot will be.
const TARGET: &str = "containerd.io/snapshot.ref";
/// containerd sets a handful.
const LABELS_LIMIT: usize = 64;
/// Snapshots in one message of a list.
const PAGE: usize = 100;

impl Snapshotter {
    /// Over that store.
    pub fn new(store: Store, users: Arc<dyn ImageUsers>) -> Self {
        Self { store: Mutex::new(store), users }
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn make(&self, request: wire::PrepareRequest, namespace: Option<String>, kind: Kind) -> Result<wire::MountsReply, Status> {
        let name = check_name(&request.key)?;
        let labels = labels(request.labels)?;
        if let Some(target) = labels.get(TARGET).filter(|target| !target.is_empty() && kind == Kind::Active).cloned() {
            let mut store = self.store();
            if store.get(&target).is_none() {
                let layer = Snapshot { parent: request.parent, labels, ..Snapshot::new(&target, Kind::Committed) };
                store.put(layer).map_err(|error| disk(&error))?;
            }
            return Err(Status::already_exists(format!("layer {target} is for the guest to fetch")));
        }
        if self.store().get(name).is_some() {
            return Err(Status::already_exists(format!("snapshot {name:?}")));
        }
        // What is unpacked is thrown away; only a container's root filesystem is looked into.
        let is_unpacked = name.rsplit('/').next().is_some_and(|own| own.starts_with("extract-"));
        let mut user = String::new();
        if !is_unpacked && let Some(chain_id) = request.parent.rsplit('/').next().filter(|id| id.starts_with("sha256:")) {
            user = self.users.user_of(namespace.as_deref().unwrap_or("k8s.io"), chain_id).await.unwrap_or_default();
        }
        let mut store = self.store();
        let folder = store.folder(name);
        let made = if is_unpacked { std::fs::create_dir_all(&folder) } else { rootfs::make(&folder, &user) };
        made.map_err(|error| Status::unavailable(format!("cannot make {}: {error}", folder.display())))?;
        let snapshot = Snapshot { parent: request.parent, labels, ..Snapshot::new(name, kind) };
        let reply = mounts(&store, &snapshot);
        store.put(snapshot).map_err(|error| disk(&error))?;
        Ok(reply)
    }
}

/// A bind mount of the snapshot's folder.
fn mounts(store: &Store, snapshot: &Snapshot) -> wire::MountsReply {
    let access = if snapshot.kind == Kind::View { "ro" } else { "rw" };
    wire::MountsReply {
        mounts: vec![wire::Mount {
            r#type: "bind".to_owned(),
            source: store.folder(&snapshot.name).display().to_string(),
            target: String::new(),
            options: vec!["rbind".to_owned(), access.to_owned()],
        }],
    }
}

fn info(snapshot: &Snapshot) -> wire::Info {
    let time =
        |ms: u64| wire::Time { seconds: i64::try_from(ms / 1000).unwrap_or(0), nanos: i32::try_from(ms % 1000).unwrap_or(0) * 1_000_000 };
    let kind = match snapshot.kind {
        Kind::View => wire::Kind::View,
        Kind::Active => wire::Kind::Active,
        Kind::Committed => wire::Kind::Committed,
    };
    wire::Info {
        name: snapshot.name.clone(),
        parent: snapshot.parent.clone(),
        kind: kind.into(),
        created_at: Some(time(snapshot.created_unix_ms)),
        updated_at: Some(time(snapshot.updated_unix_ms)),
        labels: snapshot.labels.clone().into_iter().collect(),
    }
}

fn check_name(name: &str) -> Result<&str, Status> {
    if name.is_empty() || name.len() > 4096 {
        return Err(Status::invalid_argument("a snapshot's name has 1 to 4096 bytes"));
    }
    Ok(name)
}

fn labels(from: HashMap<String, String>) -> Result<std::collections::BTreeMap<String, String>, Status> {
    if from.len() > LABELS_LIMIT {
        return Err(Status::invalid_argument("a snapshot has at most 64 labels"));
    }
    Ok(from.into_iter().collect())
}

fn missing(name: &str) -> Status {
    Status::not_found(format!("snapshot {name:?}"))
}

fn disk(error: &StoreError) -> Status {
    let text = chain(error);
    tracing::error!(error = text, "snapshotter");
    Status::unavailable(text)
}

fn namespace<T>(request: &Request<T>) -> Option<String> {
    request.metadata().get("containerd-namespace").and_then(|value| value.to_str().ok()).map(str::to_owned)
}

#[async_trait]
impl wire::snapshots_server::Snapshots for Snapshotter {
    async fn prepare(&self, request: Request<wire::PrepareRequest>) -> Result<Response<wire::MountsReply>, Status> {
        let namespace = namespace(&request);
        self.make(request.into_inner(), namespace, Kind::Active).await.map(Response::new)
    }

    async fn view(&self, request: Request<wire::PrepareRequest>) -> Result<Response<wire::MountsReply>, Status> {
        let namespace = namespace(&request);
        self.make(request.into_inner(), namespace, Kind::View).await.map(Response::new)
    }

    async fn mounts(&self, request: Request<wire::KeyRequest>) -> Result<Response<wire::MountsReply>, Status> {
        let key = request.into_inner().key;
        let store = self.store();
        let snapshot = store.get(&key).filter(|snapshot| snapshot.kind != Kind::Committed).ok_or_else(|| missing(&key))?;
        Ok(Response::new(mounts(&store, snapshot)))
    }

    /// The record of the layer comes first: a crash in between leaves a folder that the next start removes with its record's end.
    async fn commit(&self, request: Request<wire::CommitRequest>) -> Result<Response<wire::Nothing>, Status> {
        let request = request.into_inner();
        let name = check_name(&request.name)?;
        let mut store = self.store();
        let from =
            store.get(&request.key).filter(|snapshot| snapshot.kind == Kind::Active).cloned().ok_or_else(|| missing(&request.key))?;
        if store.get(name).is_some() {
            return Err(Status::already_exists(format!("snapshot {name:?}")));
        }
        let layer = Snapshot { parent: from.parent, labels: labels(request.labels)?, ..Snapshot::new(name, Kind::Committed) };
        store.put(layer).map_err(|error| disk(&error))?;
        store.remove(&request.key).map_err(|error| disk(&error))?;
        Ok(Response::new(wire::Nothing {}))
    }

    async fn remove(&self, request: Request<wire::KeyRequest>) -> Result<Response<wire::Nothing>, Status> {
        let key = request.into_inner().key;
        let mut store = self.store();
        if store.get(&key).is_none() {
            return Err(missing(&key));
        }
        if store.has_children(&key) {
            return Err(Status::failed_precondition(format!("snapshot {key:?} has children")));
        }
        store.remove(&key).map_err(|error| disk(&error))?;
        Ok(Response::new(wire::Nothing {}))
    }

    async fn stat(&self, request: Request<wire::KeyRequest>) -> Result<Response<wire::InfoReply>, Status> {
        let key = request.into_inner().key;
        let found = self.store().get(&key).map(info).ok_or_else(|| missing(&key))?;
        Ok(Response::new(wire::InfoReply { info: Some(found) }))
    }

    /// Only labels can change.
    async fn update(&self, request: Request<wire::UpdateRequest>) -> Result<Response<wire::InfoReply>, Status> {
        let request = request.into_inner();
        let new = request.info.ok_or_else(|| Status::invalid_argument("the request has no info"))?;
        let paths = request.update_mask.unwrap_or_default().paths;
        let mut store = self.store();
        let mut snapshot = store.get(&new.name).cloned().ok_or_else(|| missing(&new.name))?;
        if paths.is_empty() || paths.iter().any(|path| path == "labels") {
            snapshot.labels = labels(new.labels)?;
        } else {
            for path in paths {
                let key = path.strip_prefix("labels.").ok_or_else(|| Status::invalid_argument(format!("{path} cannot be changed")))?;
                match new.labels.get(key).filter(|value| !value.is_empty()) {
                    Some(value) => snapshot.labels.insert(key.to_owned(), value.clone()),
                    None => snapshot.labels.remove(key),
                };
            }
        }
        snapshot.updated_unix_ms = crate::ledger::now_ms();
        let reply = info(&snapshot);
        store.put(snapshot).map_err(|error| disk(&error))?;
        Ok(Response::new(wire::InfoReply { info: Some(reply) }))
    }

    type ListStream = Pin<Box<dyn Stream<Item = Result<wire::ListReply, Status>> + Send>>;

    async fn list(&self, request: Request<wire::ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let filters: Vec<Filter> = request
            .into_inner()
            .filters
            .iter()
            .map(|text| Filter::parse(text))
            .collect::<Result<_, _>>()
            .map_err(Status::invalid_argument)?;
        let found: Vec<wire::Info> = {
            let store = self.store();
            let wanted = |snapshot: &&Snapshot| filters.is_empty() || filters.iter().any(|filter| filter.holds(snapshot));
            store.all().filter(wanted).map(info).collect()
        };
        let pages: Vec<_> = found.chunks(PAGE).map(|page| Ok(wire::ListReply { info: page.to_vec() })).collect();
        Ok(Response::new(Box::pin(futures::stream::iter(pages))))
    }

    /// Layers take no room here, and what a container's folder takes is not the image's.
    async fn usage(&self, request: Request<wire::KeyRequest>) -> Result<Response<wire::UsageReply>, Status> {
        let key = request.into_inner().key;
        let store = self.store();
        store.get(&key).ok_or_else(|| missing(&key))?;
        Ok(Response::new(wire::UsageReply { size: 0, inodes: 0 }))
    }

    /// Nothing is left to do later.
    async fn cleanup(&self, _: Request<wire::CleanupRequest>) -> Result<Response<wire::Nothing>, Status> {
        Ok(Response::new(wire::Nothing {}))
    }
}
