//! The image-skipping snapshotter: a proxy snapshotter of containerd for pods whose images only the guest pulls.
//!
//! containerd asks, layer by layer, for a place to unpack to. A request that says which layer it will become (label
//! `containerd.io/snapshot.ref`, set by containerd itself, never by an image) is answered with "that layer exists already": containerd then
//! fetches manifest and configuration and no layer. A request without it unpacks what containerd has already; it gets a folder that is
//! emptied when the layer is committed. A container's root filesystem is a folder with nothing but `/etc/passwd` and `/etc/group`, from
//! which containerd learns that the guest is to look users up ([`rootfs`]).
//!
//! State is one file a snapshot ([`store`]), written before the answer. When it is lost, what containerd still believes in is taken as
//! existing: a parent need not be known.

mod filter;
mod rootfs;
mod service;
mod store;

use std::path::Path;

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

pub use service::{ImageUsers, Snapshotter};
pub use store::{Store, StoreError};

#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, clippy::unwrap_used, clippy::needless_pass_by_value)]
mod wire {
    tonic::include_proto!("containerd.services.snapshots.v1");
}

/// Serves containerd until the listener fails; dropping the future ends it.
pub async fn serve(listener: UnixListener, snapshotter: Snapshotter) -> Result<(), tonic::transport::Error> {
    let service = wire::snapshots_server::SnapshotsServer::new(snapshotter);
    Server::builder().add_service(service).serve_with_incoming(UnixListenerStream::new(listener)).await
}

/// Opens the store below a folder.
pub fn open(state_dir: &Path) -> Result<Store, StoreError> {
    Store::open(state_dir)
}
