//! This node's containerd, asked what an image is: which manifest and which configuration its CRI made a container from.
//!
//! The answer is by digest, so the guest pulls exactly what the node resolved. Content is taken from containerd's store and verified against
//! its digest before it is read; manifests are all that is needed, so layers need not be on the node.

mod manifest;
mod users;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::{GetContainerRequest, GetImageRequest, ReadContentRequest};
use containerd_client::tonic::transport::Channel;
use containerd_client::tonic::{Code, Request, Status};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use crate::ports::{ImageResolver, ResolveFailure, Resolved};

/// Asks containerd on its socket; a connection a question, so that a restarted containerd is no trouble.
#[derive(Debug)]
pub struct Resolver {
    socket: PathBuf,
    /// Users of images by the chain id of their layers: an image with other content has another one.
    users: Mutex<HashMap<String, String>>,
}

/// For all of one question.
const LIMIT: Duration = Duration::from_secs(10);
/// Manifests and indexes are some KiB; registries refuse more than 4 MiB.
const MAX_CONTENT_BYTES: usize = 4 << 20;
/// Users that are remembered.
const MAX_USERS: usize = 1000;
const NAMESPACE: &str = "containerd-namespace";

impl Resolver {
    /// Of the containerd that listens there.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, users: Mutex::default() }
    }

    async fn ask(&self, namespace: &str, container_id: &str, image_name: &str) -> Result<Resolved, ResolveFailure> {
        let channel = self.connect().await?;
        let name = match self.image_of(&channel, namespace, container_id).await? {
            Some(name) => name,
            None if image_name.is_empty() => {
                return Err(ResolveFailure::NotFound(format!(
                    "containerd knows no container {container_id}, and the request names no image"
                )));
            }
            None => image_name.to_owned(),
        };
        let mut images = ImagesClient::new(channel.clone());
        let image = images.get(in_namespace(namespace, GetImageRequest { name: name.clone() })?).await;
        let image = image.map_err(|status| self.failed(&format!("image {name}"), &status))?.into_inner().image;
        let target = image.and_then(|image| image.target);
        let target = target.ok_or_else(|| ResolveFailure::Unusable(format!("containerd's image {name} has no content")))?;
        let repository = manifest::repository(&name).ok_or_else(|| {
            ResolveFailure::Unusable(format!("image {name} names no registry that the guest could pull it from; next: push it to one"))
        })?;
        let mut digest = target.digest;
        let mut bytes = self.content(&channel, namespace, &digest).await?;
        let unusable = |text: String| ResolveFailure::Unusable(format!("image {name}: {text}"));
        if let Some(chosen) = manifest::choose(&bytes).map_err(&unusable)? {
            digest = chosen;
            bytes = self.content(&channel, namespace, &digest).await?;
        }
        let config_digest = manifest::config(&bytes).map_err(&unusable)?;
        Ok(Resolved { reference: format!("{repository}@{digest}"), config_digest })
    }

    async fn connect(&self) -> Result<Channel, ResolveFailure> {
        containerd_client::connect(&self.socket).await.map_err(|error| self.away(&error.to_string()))
    }

    async fn image_of(&self, channel: &Channel, namespace: &str, container_id: &str) -> Result<Option<String>, ResolveFailure> {
        let mut containers = ContainersClient::new(channel.clone());
        match containers.get(in_namespace(namespace, GetContainerRequest { id: container_id.to_owned() })?).await {
            Ok(answer) => Ok(answer.into_inner().container.map(|container| container.image).filter(|image| !image.is_empty())),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(self.failed(&format!("container {container_id}"), &status)),
        }
    }

    async fn content(&self, channel: &Channel, namespace: &str, digest: &str) -> Result<Vec<u8>, ResolveFailure> {
        let mut client = ContentClient::new(channel.clone());
        let request = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
        let failed = |status: &Status| self.failed(&format!("content {digest}"), status);
        let mut stream = client.read(in_namespace(namespace, request)?).await.map_err(|status| failed(&status))?.into_inner();
        let mut bytes = Vec::new();
        while let Some(piece) = stream.message().await.map_err(|status| failed(&status))? {
            if bytes.len() + piece.data.len() > MAX_CONTENT_BYTES {
                return Err(ResolveFailure::Unusable(format!("content {digest} is larger than 4 MiB: it is no manifest")));
            }
            bytes.extend(piece.data);
        }
        if format!("sha256:{}", hex::encode(Sha256::digest(&bytes))) == digest {
            Ok(bytes)
        } else {
            Err(ResolveFailure::Unusable(format!("containerd's content {digest} is not what its digest says")))
        }
    }

    fn failed(&self, what: &str, status: &Status) -> ResolveFailure {
        match status.code() {
            Code::NotFound => {
                ResolveFailure::NotFound(format!("containerd has no {what}; next: pull the image again (imagePullPolicy: Always)"))
            }
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => self.away(status.message()),
            code => ResolveFailure::Unusable(format!("containerd does not tell of {what}: {code:?}: {}", status.message())),
        }
    }

    fn away(&self, cause: &str) -> ResolveFailure {
        ResolveFailure::Unavailable(format!("containerd does not answer at {}: {cause}", self.socket.display()))
    }
}

#[async_trait]
impl ImageResolver for Resolver {
    async fn resolve(&self, namespace: &str, container_id: &str, image_name: &str) -> Result<Resolved, ResolveFailure> {
        match timeout(LIMIT, self.ask(namespace, container_id, image_name)).await {
            Ok(answer) => answer,
            Err(_) => Err(self.away("no answer within 10 s")),
        }
    }
}

fn in_namespace<T>(namespace: &str, message: T) -> Result<Request<T>, ResolveFailure> {
    let value = namespace.parse().map_err(|_| ResolveFailure::NotFound(format!("{namespace:?} is no namespace of containerd")))?;
    let mut request = Request::new(message);
    request.metadata_mut().insert(NAMESPACE, value);
    Ok(request)
}
